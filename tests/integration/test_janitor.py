"""The janitor removes what nothing needs, and only that."""

from __future__ import annotations

import os
import shutil
import time

import pytest
import sqlalchemy as sa

from tests.archiving import Crash
from tests.shelf import Shelf
from tests.tidying import Archive, breaking_at
from thermocline.archiver import janitor
from thermocline.archiver.batches import Batches
from thermocline.archiver.janitor import Cleaned
from thermocline.archiver.recover import recover
from thermocline.archiver.worker import Worker
from thermocline.errors import LeaseHeld, TierCorrupt, TierUnavailable
from thermocline.tiers import ledger_schema
from thermocline.tiers.cold_schema import KINDS

NOTHING = Cleaned()


def everything(archive: Archive) -> set[str]:
    return {one.key for one in archive.tiers.cold.objects()}


def test_nothing_is_opened_while_nothing_was_archived(archive: Archive) -> None:
    assert archive.clean() == NOTHING
    assert not archive.bucket.exists()


def test_what_is_live_is_left_alone(archive: Archive) -> None:
    archive.archive_rounds(2)
    before = everything(archive)
    assert archive.clean() == NOTHING
    assert everything(archive) == before
    found = archive.clean(days=40)
    assert (found.objects, found.orphans, found.removed) == (0, 0, found.litter)
    archive.check()


def test_objects_that_left_go_when_no_snapshot_needs_them_any_more(archive: Archive) -> None:
    archive.archive_rounds()
    batch = archive.compact()
    assert batch is not None
    before, contents = archive.keys(), archive.contents()
    assert archive.clean(days=29) == NOTHING
    assert archive.keys() == before
    found = archive.clean(days=31)
    assert (found.objects, found.orphans, found.unclaimed) == (len(batch.removed), 0, 0)
    assert found.snapshots >= len(KINDS)
    assert found.bytes > 0
    assert archive.clean(days=31) == NOTHING
    archive.check_clean()
    archive.check()
    assert archive.contents() == contents


def test_objects_that_left_stay_for_the_grace(shelf: Shelf) -> None:
    with shelf.fresh(cold={"purge_grace_s": 50 * 86_400}) as archive:
        archive.archive_rounds()
        archive.compact()
        before = archive.keys()
        assert archive.clean(days=49).removed == 0
        assert archive.keys() == before
        assert archive.clean(days=51).objects > 0


def test_an_object_both_live_and_in_the_trash_is_not_removed(archive: Archive) -> None:
    archive.archive_rounds()
    live = archive.files("events")[0]
    with archive.tiers.ledger._engine.write() as con:
        con.execute(sa.insert(ledger_schema.trash), {"path": f"cold://{live.key}", "left_us": 1, "move_id": "m"})
    with pytest.raises(TierCorrupt, match="both live and in the trash; nothing was removed"):
        archive.clean(days=40)
    assert {live.key} <= archive.keys()


@pytest.mark.parametrize("step", ["write done", "upload", "upload done", "describe"])
def test_what_a_batch_that_was_given_up_left_goes_and_nothing_else(archive: Archive, step: str) -> None:
    archive.archive_rounds()
    before, contents = archive.keys(), archive.contents()
    with pytest.raises(Crash):
        archive.compact(breaking_at(step))
    left = archive.keys() - before
    assert archive.clean() == NOTHING  # the batch is begun still: it may be finished
    assert archive.keys() == before | left
    for intent in archive.tiers.ledger.intents():
        Batches(archive.tiers, archive.epoch).give_up(intent.batch_id)
    assert archive.clean().orphans == len(left)
    assert archive.keys() == before
    assert bool(left) == (step in ("upload done", "describe"))
    assert archive.contents() == contents
    archive.check()


def test_orphans_stay_for_the_grace(shelf: Shelf) -> None:
    with shelf.fresh(cold={"purge_grace_s": 3600}) as archive:
        archive.archive_rounds()
        with pytest.raises(TierUnavailable):
            archive.compact(breaking_at("upload done", TierUnavailable("the store is away")))
        assert archive.tiers.ledger.intents() == []
        before = archive.keys()
        assert archive.clean() == NOTHING
        assert archive.keys() == before
        assert archive.clean(days=1).orphans > 0


def test_objects_with_other_names_than_ours_are_not_looked_at(archive: Archive) -> None:
    archive.archive_rounds(1)
    cold, batch_id = archive.tiers.cold, "0" * 32
    others = {
        "events/readme.txt",
        "events/day=2026-11-01/export.parquet",
        "batches/notes.json",
        f"other/day=2026-11-01/{batch_id}-1.parquet",
    }
    for key in (*others, f"events/day=2026-11-01/{batch_id}-1.parquet", f"batches/{batch_id}.json"):
        cold.put(key, b"text")
    assert archive.clean().orphans == 2
    assert others <= everything(archive)


def test_what_a_ledger_that_was_put_back_does_not_know_is_reported_and_left(archive: Archive) -> None:
    archive.archive_rounds(1)
    archive.tiers.ledger.checkpoint()
    ledger = archive.settings.namespace_dir / "ledger.db"
    archive.close()
    shutil.copy(ledger, ledger.with_suffix(".copy"))
    archive.open()
    batch = archive.archive_round()
    before = archive.keys()
    archive.close()
    for path in ledger.parent.glob("ledger.db-*"):
        path.unlink()
    shutil.copy(ledger.with_suffix(".copy"), ledger)
    archive.open()
    found = archive.clean(days=40)
    assert found.unclaimed == len(batch.files) + 1
    assert (found.objects, found.orphans) == (0, 0)
    assert archive.keys() == before


def test_what_is_older_than_the_ledger_is_left_unless_the_ledger_knows_its_batch(archive: Archive) -> None:
    archive.archive_rounds()
    compacted = archive.compact()
    assert compacted is not None
    with pytest.raises(Crash):
        archive.archive_round(reach=breaking_at("upload done"))
    before = archive.keys()
    archive.close()
    recover(archive.settings, force=True)
    archive.open()
    found = archive.clean(days=40)
    assert (found.objects, found.orphans, found.unclaimed) == (0, len(compacted.removed), 0)
    assert found.spared == len(before - archive.live_keys()) - len(compacted.removed) > 0
    assert archive.clean(days=40).spared == found.spared
    assert archive.compact() is None
    archive.check()


def test_what_failed_commits_left_in_the_tables_goes(archive: Archive) -> None:
    archive.archive_rounds(1)
    litter = "iceberg/events/metadata/00009-none.metadata.json"
    archive.tiers.cold.put(litter, b"{}")
    before = everything(archive)
    assert archive.clean().litter == 1
    assert everything(archive) == before - {litter}


def test_uploads_that_were_never_finished_are_ended(archive: Archive) -> None:
    archive.archive_rounds(1)
    unfinished = archive.tiers.cold.path("events/x.parquet").with_name("0123.tmp")
    unfinished.write_bytes(b"half")
    os.utime(unfinished, (time.time() - 10, time.time() - 10))
    assert archive.clean().uploads == 1
    assert not unfinished.exists()


def test_local_copies_go_when_no_reader_of_an_older_view_needs_them(shelf: Shelf) -> None:
    with shelf.fresh(bucket=True, cold={"purge_grace_s": 3600}) as archive:
        archive.archive_rounds()
        archive.contents()
        archive.compact()
        copies = archive.settings.namespace_dir / "cold"
        before = len(list(copies.rglob("*.parquet")))
        assert archive.clean().copies == 0
        assert archive.clean(days=1).copies == before - len([file for file in archive.view().files if file.kind != "events"])


def test_a_pass_is_bounded_and_the_next_ones_do_the_rest(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.archive_rounds()
    batch = archive.compact()
    assert batch is not None
    monkeypatch.setattr(janitor, "DELETES_MAX", 5)
    passes = []
    while (found := archive.clean(days=40)) != NOTHING:
        assert max(found.objects, found.orphans, found.litter) <= 5
        passes.append(found)
    assert sum(one.objects for one in passes) == len(batch.removed)
    archive.check_clean()


def test_a_crash_while_it_deletes_is_made_good_by_the_next_pass(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.archive_rounds()
    archive.compact()
    cold = archive.tiers.cold
    delete = cold.delete

    def dying(keys: object) -> None:
        delete(list(keys)[:3])  # type: ignore[call-overload]
        raise Crash

    monkeypatch.setattr(cold, "delete", dying)
    with pytest.raises(Crash):
        archive.clean(days=40)
    monkeypatch.undo()
    archive.clean(days=40)
    archive.check_clean()
    archive.check()


def test_a_cold_tier_that_is_away_changes_nothing(archive: Archive) -> None:
    archive.archive_rounds()
    archive.compact()
    away = archive.bucket.with_name("away")
    trash = archive.tiers.ledger.trash()
    archive.bucket.rename(away)
    with pytest.raises(TierUnavailable):
        archive.clean(days=40)
    assert archive.tiers.ledger.trash() == trash


def test_a_worker_that_lost_its_lease_deletes_nothing(archive: Archive) -> None:
    archive.archive_rounds()
    archive.compact()
    before = everything(archive)
    archive.tiers.ledger.take_epoch("another", 0)
    with pytest.raises(LeaseHeld):
        archive.clean(days=40)
    assert everything(archive) == before


def test_the_worker_says_how_much_it_removed(archive: Archive) -> None:
    archive.archive_rounds(1)
    for number in range(3):
        archive.tiers.cold.put(f"events/day=2026-11-01/{number:032x}-1.parquet", b"text")
    report = Worker(archive.tiers).once()
    assert (report.removed_objects, report.problem) == (3, None)
