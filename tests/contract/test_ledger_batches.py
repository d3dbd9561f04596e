"""What the ledger does with batches of the archive: taken whole and once, or refused with nothing moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.segments import advanced, cold_file, covering, new_id, segment, settle, write_files
from thermocline.errors import TierCorrupt
from thermocline.event import FORMAT
from thermocline.tiers.ledger import Batch, Intent, Segment, ShardState, ShardTotals
from thermocline.tiers.ledger_rows import FETCH_MAX
from thermocline.tiers.ledger_sql import SqlLedger

SHARDS = 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "space"


@pytest.fixture
def ledger(folder: Path) -> Iterator[SqlLedger]:
    made = SqlLedger(f"sqlite:///{folder}/ledger.db", folder=folder)
    made.create(incarnation="inc1", shards=SHARDS, buckets=8192, now_us=7)
    yield made
    made.close()


@pytest.fixture
def epoch(ledger: SqlLedger) -> int:
    return ledger.take_epoch("me", 1)


def archiving(made: Segment, **changes: object) -> Batch:
    """The batch that archives a segment of six events of shard 0, of which four are kept."""
    batch_id = new_id()
    batch = Batch(
        format=FORMAT,
        batch_id=batch_id,
        kind="archive",
        day="2026-11-13",
        policy_hash="h",
        rate_min=0.5,
        events_in=6,
        events_kept=4,
        inputs=(made.segment_id,),
        files=(cold_file(batch_id, 1, 4), cold_file(batch_id, 2, 1, kind="rollup_hourly")),
        totals=(ShardTotals(shard=0, kept=4, sampled_out=2),),
        created_us=1,
    )
    return msgspec.structs.replace(batch, **changes)


def test_an_archived_segment_gives_way_to_its_files_and_its_events_are_counted(
    ledger: SqlLedger, folder: Path, epoch: int
) -> None:
    made, younger = settle(ledger, folder, epoch, 6), settle(ledger, folder, epoch, 1, 2)
    batch = archiving(made)
    ledger.intend(epoch, Intent(batch_id=batch.batch_id, kind="archive", inputs=batch.inputs, begun_us=1))
    ledger.committed(epoch, batch, snapshot_id="s", now_us=50)
    view = ledger.view()
    assert (view.segments, set(view.files)) == ((younger,), set(batch.files))
    assert view.totals[0] == ShardTotals(shard=0, kept=4, sampled_out=2)
    assert [row.path for row in ledger.trash()] == [f"segments/{made.segment_id}.duckdb"]
    assert ledger.intents() == []
    assert [(row.batch_id, row.snapshot_id) for row in ledger.batches()] == [(batch.batch_id, "s")]


def test_the_same_batch_again_is_a_no_op_so_an_unknown_outcome_may_be_retried(
    ledger: SqlLedger, folder: Path, epoch: int
) -> None:
    batch = archiving(settle(ledger, folder, epoch, 6))
    ledger.committed(epoch, batch, snapshot_id=None, now_us=50)
    view, trash = ledger.view(), ledger.trash()
    ledger.committed(epoch, batch, snapshot_id=None, now_us=60)
    assert (ledger.view(), ledger.trash(), len(ledger.batches())) == (view, trash, 1)


Damage = Callable[[Batch, Batch], Batch]
BROKEN: dict[str, tuple[Damage, str]] = {
    "a segment that is not live": (
        lambda batch, _: msgspec.structs.replace(batch, inputs=(*batch.inputs, "gone")),
        r"\['gone'\] must be live",
    ),
    "a file to remove that is not live": (
        lambda batch, _: msgspec.structs.replace(batch, removed=("gone-1",)),
        r"\['gone-1'\] must be live",
    ),
    "a file that is there already": (
        lambda batch, before: msgspec.structs.replace(batch, files=(*batch.files, before.files[0])),
        "must be new",
    ),
    "an event that vanishes": (
        lambda batch, _: msgspec.structs.replace(batch, totals=(ShardTotals(shard=0, kept=4, sampled_out=1),)),
        r"by shard {0: 6} events go in, {0: 5} come out",
    ),
    "events of another shard": (
        lambda batch, _: msgspec.structs.replace(batch, totals=(ShardTotals(shard=1, kept=4, sampled_out=2),)),
        r"by shard {0: 6} events go in, {1: 6} come out",
    ),
    "fewer rows than it says it keeps": (
        lambda batch, _: msgspec.structs.replace(batch, files=(cold_file(batch.batch_id, 1, 3),)),
        "3 archived events for 0, but it states 4 more",
    ),
    "rows of removed files that are not written again": (
        lambda batch, before: msgspec.structs.replace(batch, removed=(before.files[0].file_id,)),
        "4 archived events for 4, but it states 4 more",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_batch_that_does_not_add_up_is_refused_and_moves_nothing(
    case: str, ledger: SqlLedger, folder: Path, epoch: int
) -> None:
    damage, complaint = BROKEN[case]
    before = archiving(settle(ledger, folder, epoch, 6))
    ledger.committed(epoch, before, snapshot_id=None, now_us=50)
    batch = damage(archiving(settle(ledger, folder, epoch, 6)), before)
    view, trash = ledger.view(), ledger.trash()
    with pytest.raises(TierCorrupt, match=rf"batch {batch.batch_id}: .*{complaint}.*; nothing was moved"):
        ledger.committed(epoch, batch, snapshot_id=None, now_us=60)
    assert (ledger.view(), ledger.trash(), len(ledger.batches())) == (view, trash, 1)


def test_a_batch_is_not_begun_with_what_another_has_taken(ledger: SqlLedger, epoch: int) -> None:
    first = Intent(batch_id="b1", kind="archive", inputs=("s1", "s2"), begun_us=1)
    ledger.intend(epoch, first)
    with pytest.raises(TierCorrupt, match="batch b1 was begun with inputs of b2: it must end first"):
        ledger.intend(epoch, Intent(batch_id="b2", kind="archive", inputs=("s2", "s3"), begun_us=2))
    assert ledger.intents() == [first]
    other = Intent(batch_id="b3", kind="compact", inputs=("s3",), begun_us=3)
    ledger.intend(epoch, other)
    again = msgspec.structs.replace(first, begun_us=4)
    ledger.intend(epoch, again)
    assert ledger.intents() == [again, other]
    ledger.give_up(epoch, "b1")
    assert ledger.intents() == [other]


def test_more_segments_and_files_than_are_named_in_one_statement_are_all_in_the_view(folder: Path) -> None:
    count = FETCH_MAX + 1
    state, segments = ShardState(shard=0), []
    for _ in range(count):
        after = advanced(state, 1)
        segments.append(segment(covering([state], [after])))
        state = after
    write_files(folder, segments)
    batch_id = new_id()
    files = tuple(cold_file(batch_id, number, 1) for number in range(count))
    totals = (ShardTotals(shard=0, kept=count),)
    batch = archiving(segments[0], batch_id=batch_id, inputs=(), files=files, totals=totals, events_in=count, events_kept=count)
    made = SqlLedger(f"sqlite:///{folder}/ledger.db", folder=folder)
    made.rebuild(incarnation="i", shards=[state], segments=segments, batches=[batch], buckets=1, now_us=9)
    view = made.view()
    assert (set(view.segments), set(view.files)) == (set(segments), set(files))
    assert view == made.view()
    made.close()
