"""Compacting the archive: fewer files that say the same, exactly once, whatever happens on the way."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.archiving import Crash
from tests.killed import BATCH_STEPS, VISIBLE_FROM, steps
from tests.shelf import Shelf
from tests.tidying import FILES_MIN, Archive, breaking_at
from thermocline.archiver.batches import key_of
from thermocline.archiver.compact import Compactor
from thermocline.archiver.recover import recover
from thermocline.archiver.worker import Worker
from thermocline.errors import LeaseHeld, TierCorrupt, TierUnavailable
from thermocline.tiers.cold_schema import KINDS
from thermocline.tiers.ledger import Batch

ROLLUPS = [kind for kind in KINDS if kind.startswith("rollup_") and kind not in ("rollup_decision", "rollup_user")]


def test_events_and_statistics_are_the_same_in_fewer_files(archive: Archive) -> None:
    archive.archive_rounds()
    before, events = archive.contents(), archive.files("events")
    batch = archive.compact()
    assert batch is not None
    assert archive.contents() == before
    assert len(events) == 2 * FILES_MIN
    assert [file.day for file in archive.files("events")] == sorted({file.day for file in events})
    assert {kind: len(archive.files(kind)) for kind in ROLLUPS} == dict.fromkeys(ROLLUPS, 1)
    assert (batch.kind, batch.events_in, batch.events_kept) == ("compact", *[sum(file.rows for file in events)] * 2)
    assert (batch.totals, batch.inputs, batch.rate_min < 1) == ((), (), True)
    archive.check()


def test_each_table_gets_one_snapshot_that_is_the_batch(archive: Archive) -> None:
    archive.archive_rounds()
    batch = archive.compact()
    assert batch is not None
    changed = {file.kind for file in batch.files}
    assert changed >= {"events", *ROLLUPS}
    for kind in KINDS:
        assert (batch.batch_id in archive.tiers.iceberg.batches(kind)) == (kind in changed)
    assert msgspec.json.decode(archive.tiers.cold.get(key_of(batch.batch_id)), type=Batch) == batch


def test_nothing_is_due_until_there_are_enough_small_files_and_again_afterwards(archive: Archive) -> None:
    archive.archive_rounds(FILES_MIN - 1)
    assert archive.compact() is None
    archive.archive_round()
    assert archive.compact() is not None
    assert archive.compact() is None


def test_rollups_are_added_up_by_their_keys(archive: Archive) -> None:
    archive.archive_rounds()
    rows = {kind: max(file.rows for file in archive.files(kind)) for kind in ROLLUPS}
    archive.compact()
    found = {kind: sum(file.rows for file in archive.files(kind)) for kind in ROLLUPS}
    assert found["rollup_conversation"] == rows["rollup_conversation"] == 7
    assert found["rollup_quantile"] == rows["rollup_quantile"]
    assert found["rollup_hourly"] == rows["rollup_hourly"]


def test_the_rows_that_stand_for_others_are_counted_as_before(archive: Archive) -> None:
    archive.archive_rounds()
    query = "SELECT count(*) FILTER (sample_rate < 1) FROM events"
    before = archive.store.sql(query)
    [(sampled,)] = before.fetchall()
    assert archive.compact() is not None
    after = archive.store.sql(query)
    assert after.fetchall() == [(sampled,)]
    assert 0 < sampled == before.coverage.sampled_rows == after.coverage.sampled_rows < after.coverage.cold_rows


def test_the_archive_goes_on_after_it_with_the_decisions_that_were_made(archive: Archive) -> None:
    archive.archive_rounds()
    rates = "SELECT DISTINCT conversation_id, event_type, sample_rate FROM events ORDER BY ALL"
    before = archive.store.sql(rates).fetchall()
    for _ in range(2):
        assert archive.compact() is not None
        archive.archive_rounds(2)
    after = archive.store.sql(rates).fetchall()
    assert set(before) <= set(after)
    assert len({(conversation, kind) for conversation, kind, _ in after}) == len(after)
    archive.check()


def test_a_conversation_is_found_by_the_index_made_of_compacted_rollups(archive: Archive) -> None:
    for _ in range(FILES_MIN):
        archive.archive_round(days=4)
    query = "SELECT count(*), sum(seq) FROM events WHERE conversation_id = 'c3'"
    before = archive.store.sql(query).fetchall()
    archive.compact()
    assert len(archive.files("events")) >= 4
    assert archive.store.sql(query).fetchall() == before
    gone = archive.store.sql("SELECT count(*) FROM events WHERE conversation_id = 'c33'")
    assert gone.fetchall() == [(0,)]
    assert gone.coverage.files_read == 0


@pytest.mark.parametrize("step", steps())
def test_a_crash_at_any_step_leaves_it_to_be_done_exactly_once(archive: Archive, step: str) -> None:
    archive.archive_rounds()
    before, view = archive.contents(), archive.view()
    with pytest.raises(Crash):
        archive.compact(breaking_at(step))
    assert archive.contents() == before
    if step != "commit done":
        assert archive.view() == view
    archive.close()
    archive.open()
    assert (Compactor(archive.tiers, archive.epoch).step() is None) == (BATCH_STEPS.index(step) >= VISIBLE_FROM)
    assert archive.contents() == before
    archive.check()
    assert [row.kind for row in archive.tiers.ledger.batches()].count("compact") == 1
    archive.clean(days=40)
    archive.check_clean()
    archive.check()
    assert archive.contents() == before


def test_an_error_at_any_step_is_raised_and_the_next_step_goes_on(archive: Archive) -> None:
    archive.archive_rounds()
    before = archive.contents()
    compactor = Compactor(archive.tiers, archive.epoch)
    for step in BATCH_STEPS[: VISIBLE_FROM + 1]:
        with pytest.raises(TierUnavailable, match="away"):
            archive.compact(breaking_at(step, TierUnavailable("the store is away")))
        assert archive.contents() == before
        assert len(archive.tiers.ledger.intents()) == (step in ("intend done", "describe", "describe done"))
    assert compactor.step() is None
    assert [row.kind for row in archive.tiers.ledger.batches()].count("compact") == 1
    archive.check()
    archive.clean(days=40)
    archive.check_clean()


def test_readers_see_no_dip_while_it_works(archive: Archive) -> None:
    archive.archive_rounds()
    wanted = archive.store.sql("SELECT count(*), sum(hash(event_id)) FROM events").fetchall()
    hourly = archive.store.sql("SELECT sum(event_count), sum(total_bytes) FROM hourly_stats").fetchall()
    seen: list[Any] = []
    failures: list[BaseException] = []
    stop = threading.Event()

    def read() -> None:
        try:
            while not stop.is_set():
                seen.append(archive.store.sql("SELECT count(*), sum(hash(event_id)) FROM events").fetchall() == wanted)
                seen.append(archive.store.sql("SELECT sum(event_count), sum(total_bytes) FROM hourly_stats").fetchall() == hourly)
        except BaseException as exc:
            failures.append(exc)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert archive.compact() is not None
    finally:
        stop.set()
        reader.join()
    assert failures == []
    assert seen and all(seen)


def test_a_damaged_input_is_never_replaced_and_the_rest_is_done_without_it(archive: Archive) -> None:
    archive.archive_rounds(FILES_MIN)
    damaged = archive.files("rollup_hourly")[0]
    path = archive.tiers.cold.path(damaged.key)
    sound = path.read_bytes()
    path.write_bytes(sound[:200] + bytes([sound[200] ^ 1]) + sound[201:])
    view = archive.view()
    compactor = Compactor(archive.tiers, archive.epoch)
    with pytest.raises(TierCorrupt, match=damaged.file_id):
        compactor.step()
    assert archive.view() == view
    batch = compactor.step()
    assert batch is not None
    assert damaged in archive.files("rollup_hourly")
    assert len(archive.files("rollup_conversation")) == 1
    path.write_bytes(sound)
    archive.check()


def test_a_missing_input_changes_nothing(archive: Archive) -> None:
    archive.archive_rounds()
    path = archive.tiers.cold.path(archive.files("events")[0].key)
    path.rename(path.with_suffix(".away"))
    view = archive.view()
    with pytest.raises(TierCorrupt, match="not there any more"):
        archive.compact()
    assert archive.view() == view
    path.with_suffix(".away").rename(path)
    archive.check()


def test_a_cold_tier_that_is_away_changes_nothing(archive: Archive) -> None:
    archive.archive_rounds()
    before, view, away = archive.contents(), archive.view(), archive.bucket.with_name("away")
    archive.bucket.rename(away)
    with pytest.raises(TierUnavailable):
        archive.compact()
    assert archive.view() == view
    assert archive.tiers.ledger.intents() == []
    if archive.bucket.exists():
        _remove_empty(archive.bucket)
    away.rename(archive.bucket)
    assert archive.compact() is not None
    assert archive.contents() == before
    archive.check()


def _remove_empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir()
    folder.rmdir()


def test_a_batch_that_is_published_is_not_given_up_because_the_cold_tier_is_away(archive: Archive) -> None:
    archive.archive_rounds()
    before, away = archive.contents(), archive.bucket.with_name("away")
    with pytest.raises(Crash):
        archive.compact(breaking_at("publish done"))
    archive.bucket.rename(away)
    with pytest.raises(TierUnavailable):
        archive.compact()
    assert len(archive.tiers.ledger.intents()) == 1
    if archive.bucket.exists():
        _remove_empty(archive.bucket)
    away.rename(archive.bucket)
    assert archive.compact() is None
    assert archive.contents() == before
    archive.check()


def test_a_worker_that_lost_its_lease_changes_nothing(archive: Archive) -> None:
    archive.archive_rounds()
    view = archive.view()
    archive.tiers.ledger.take_epoch("another", 0)
    with pytest.raises(LeaseHeld):
        archive.compact()
    assert archive.view() == view


def test_new_rollups_are_the_local_copies_of_a_bucket(shelf: Shelf) -> None:
    with shelf.fresh(bucket=True) as archive:
        archive.archive_rounds()
        before = archive.contents()
        archive.compact()
        copies = archive.settings.namespace_dir / "cold"
        for kind in ROLLUPS:
            [file] = archive.files(kind)
            key = file.key
            assert (copies / key).read_bytes() == archive.tiers.cold.get(key)
        assert archive.contents() == before
        archive.clean()
        live = {file.key for file in archive.view().files if file.kind != "events"}
        assert {path.relative_to(copies).as_posix() for path in copies.rglob("*.parquet")} == live
        assert archive.contents() == before


def test_a_ledger_made_again_lists_what_compacting_left(archive: Archive) -> None:
    archive.archive_rounds()
    archive.compact()
    archive.archive_rounds(1)
    before, view = archive.contents(), archive.view()
    archive.close()
    recover(archive.settings, force=True)
    archive.open()
    assert archive.view().files == view.files
    assert archive.view().totals == view.totals
    assert archive.contents() == before
    archive.clean(days=40)
    archive.check_clean()
    archive.check()


def test_the_worker_does_it_and_says_so(archive: Archive) -> None:
    archive.archive_rounds()
    files = len(archive.view().files)
    before = archive.contents()
    report = Worker(archive.tiers).once()
    assert report.compacted_files >= 6 * FILES_MIN - 1
    assert len(archive.view().files) < files
    assert (report.expired_events, report.problem) == (0, None)
    assert archive.contents() == before
    assert Worker(archive.tiers).once().compacted_files == 0
