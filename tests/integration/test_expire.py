"""Archived events that are older than wanted leave, are counted as erased, and are gone for good."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.archiving import Crash
from tests.killed import BATCH_STEPS, VISIBLE_FROM, steps
from tests.shelf import Shelf
from tests.tidying import DAY_US, Archive, breaking_at
from thermocline.archiver import expire
from thermocline.archiver.expire import Expirer
from thermocline.archiver.recover import recover
from thermocline.archiver.verify import conservation
from thermocline.archiver.worker import Worker
from thermocline.errors import TierCorrupt, TierUnavailable

STATISTICS = ("SELECT * FROM hourly_stats ORDER BY ALL", "SELECT * FROM conversation_summary ORDER BY ALL")


@pytest.fixture
def archive(shelf: Shelf) -> Iterator[Archive]:
    """Events of the twelfth and the eleventh day before today; those of the twelfth are due."""
    with shelf.fresh(cold={"retention_days": 11}) as made:
        yield made


def statistics(archive: Archive) -> list[object]:
    return [archive.store.sql(query).to_arrow() for query in STATISTICS]


def test_whole_days_leave_and_every_event_stays_accounted_for(archive: Archive) -> None:
    archive.archive_rounds(2)
    before, files = statistics(archive), archive.files("events")
    old = [file for file in files if file.day == min(file.day for file in files)]
    rows = sum(file.rows for file in old)
    batch = archive.expire()
    assert batch is not None
    assert (batch.kind, batch.events_in, batch.events_kept, batch.files) == ("expire", rows, 0, ())
    assert archive.files("events") == [file for file in files if file not in old]
    totals = archive.view().totals
    assert (sum(one.erased for one in totals), sum(one.kept for one in totals)) == (rows, sum(file.rows for file in files) - rows)
    assert all(one.difference == 0 for one in conservation(archive.view(), archive.tiers.hot.cut()))
    assert len([one for one in totals if one.erased]) > 1
    assert statistics(archive) == before
    assert archive.store.sql("SELECT count(*) FROM events").fetchall() == [(sum(file.rows for file in files) - rows,)]
    archive.check()
    assert archive.expire() is None


def test_without_a_retention_nothing_ever_leaves(shelf: Shelf) -> None:
    with shelf.fresh() as archive:
        archive.archive_rounds(1)
        expirer = Expirer(archive.tiers, archive.epoch)
        assert expirer.step(now_us=time.time_ns() // 1000 + 10_000 * DAY_US) is None


def test_a_day_leaves_only_when_its_end_is_old_enough(archive: Archive) -> None:
    archive.archive_rounds(1)
    expirer = Expirer(archive.tiers, archive.epoch)
    midnight_us = archive.now_us // DAY_US * DAY_US
    assert expirer.due(midnight_us - 1) == []
    assert len(expirer.due(midnight_us)) == 1
    assert len(expirer.due(midnight_us + DAY_US)) == 2


@pytest.mark.parametrize(("bound", "removed"), [({"FILES_MAX": 2}, [2, 1]), ({"BATCH_FILES": 0}, [1, 1, 1])])
def test_a_batch_is_bounded_and_takes_the_oldest_days_first(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, bound: dict[str, int], removed: list[int]
) -> None:
    monkeypatch.setattr(expire, *next(iter(bound.items())))
    archive.archive_rounds(3)
    old = min(file.day for file in archive.files("events"))
    assert [len(batch.removed) for batch in iter(archive.expire, None)] == removed
    assert old not in {file.day for file in archive.files("events")}
    archive.check()


@pytest.mark.parametrize("step", steps([step for step in BATCH_STEPS if not step.startswith("upload")]))
def test_a_crash_at_any_step_counts_every_event_once(archive: Archive, step: str) -> None:
    archive.archive_rounds(1)
    before = statistics(archive)
    with pytest.raises(Crash):
        archive.expire(breaking_at(step))
    archive.close()
    archive.open()
    assert archive.store.verify(deep=True).problems == ()
    assert (archive.expire() is None) == (BATCH_STEPS.index(step) >= VISIBLE_FROM)
    archive.check()
    assert [row.kind for row in archive.tiers.ledger.batches()].count("expire") == 1
    assert len(archive.files("events")) == 1
    assert statistics(archive) == before
    archive.clean(days=40)
    archive.check_clean()


def test_a_ledger_made_again_knows_what_was_erased(archive: Archive) -> None:
    archive.archive_rounds(1)
    archive.expire()
    view, before = archive.view(), archive.contents()
    archive.close()
    recover(archive.settings, force=True)
    archive.open()
    assert (archive.view().files, archive.view().totals) == (view.files, view.totals)
    assert archive.contents() == before
    archive.check()


def test_a_damaged_file_cannot_be_counted_and_stays(archive: Archive) -> None:
    archive.archive_rounds(1)
    view = archive.view()
    expirer = Expirer(archive.tiers, archive.epoch)
    [file] = expirer.due(archive.now_us)
    path = archive.tiers.cold.path(file.key)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TierCorrupt, match=file.file_id):
        expirer.step()
    assert archive.view() == view
    assert expirer.step() is None


def test_a_cold_tier_that_is_away_changes_nothing(archive: Archive) -> None:
    archive.archive_rounds(1)
    view, away = archive.view(), archive.bucket.with_name("away")
    archive.bucket.rename(away)
    with pytest.raises(TierUnavailable):
        archive.expire()
    assert archive.view() == view
    assert archive.tiers.ledger.intents() == []


def test_the_worker_does_it_and_says_so(archive: Archive) -> None:
    archive.archive_rounds(1)
    rows = sum(file.rows for file in archive.files("events"))
    report = Worker(archive.tiers).once()
    assert 0 < report.expired_events == rows - sum(file.rows for file in archive.files("events"))
    assert (report.compacted_files, report.problem) == (0, None)


def test_a_ledger_is_made_again_after_the_snapshots_of_old_batches_expired_and_their_files_are_gone(archive: Archive) -> None:
    """A batch that no history tells of any more must not be published again: its files were replaced, and are not there."""
    archive.archive_rounds(3)
    assert archive.compact()
    archive.expire()
    archive.archive_round()
    archive.clean(days=40)
    archive.check_clean()
    view, before = archive.view(), archive.contents()
    keys = archive.tiers.iceberg.keys("events")
    archive.close()
    recover(archive.settings, force=True)
    archive.open()
    assert (archive.view().files, archive.view().totals) == (view.files, view.totals)
    assert archive.tiers.iceberg.keys("events") == keys
    assert archive.contents() == before
    archive.check()
