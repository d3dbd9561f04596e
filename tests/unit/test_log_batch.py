"""Reading the blocks to settle: in order, bounded, and never past a hole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.blocks import PAYLOAD_BYTES, FakeLogs, cut_of, row, rows_in_order
from thermocline.archiver.log_batch import Batch, read_batch
from thermocline.errors import TierCorrupt
from thermocline.tiers.block import Position
from thermocline.tiers.hot import ShardCut
from thermocline.tiers.ledger import ShardState

NEW = ShardState(shard=0)


def read(logs: FakeLogs, cuts: Sequence[ShardCut], states: Sequence[ShardState] | None = None, **bounds: int) -> Batch:
    limits = {"first_shard": 0, "events_max": 1000, "bytes_max": 1 << 20, "page_bytes_max": 1 << 20, **bounds}
    found = states or [ShardState(shard=cut.shard) for cut in cuts]
    return read_batch(logs, found, cuts, **limits)  # type: ignore[arg-type]


def numbers(batch: Batch) -> list[tuple[int, int]]:
    return list(zip(batch.blocks["shard"].to_pylist(), batch.blocks["position_ms"].to_pylist(), strict=True))


def test_all_blocks_up_to_the_cut_are_read_and_no_more() -> None:
    rows = rows_in_order([3, 2, 4, 1])
    batch = read(FakeLogs(rows), [cut_of(rows[:3])])
    assert numbers(batch) == [(0, 1), (0, 2), (0, 3)]
    assert (batch.events, batch.bytes) == (9, 3 * PAYLOAD_BYTES)
    assert batch.reached[0].position == Position(3, 0)
    assert (batch.reached[0].events, batch.reached[0].bytes) == (9, 30)


def test_reading_starts_after_what_has_settled() -> None:
    rows = rows_in_order([3, 2, 4])
    state = ShardState(shard=0, position=Position(2, 0), events=5, bytes=20)
    assert numbers(read(FakeLogs(rows), [cut_of(rows)], [state])) == [(0, 3)]


def test_a_shard_with_nothing_new_is_left_out() -> None:
    rows = rows_in_order([2], shard=1)
    batch = read(FakeLogs(rows), [cut_of([], shard=0), cut_of(rows, shard=1)])
    assert list(batch.reached) == [1]
    nothing = read(FakeLogs([]), [cut_of([])])
    assert (nothing.blocks.num_rows, nothing.reached) == (0, {})


def test_shards_take_turns_page_by_page_from_the_one_named() -> None:
    rows = [*rows_in_order([1] * 4, shard=0), *rows_in_order([1] * 4, shard=1), *rows_in_order([1] * 2, shard=2)]
    cuts = [cut_of([one for one in rows if one["shard"] == shard], shard=shard) for shard in range(3)]
    batch = read(FakeLogs(rows, page_rows=2), cuts, first_shard=1)
    assert [shard for shard, _ in numbers(batch)] == [1, 1, 2, 2, 0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(("bounds", "blocks"), [({"events_max": 5}, 2), ({"events_max": 6}, 3), ({"bytes_max": 25}, 2)])
def test_a_batch_has_whole_blocks_within_its_bounds(bounds: dict[str, int], blocks: int) -> None:
    rows = rows_in_order([2] * 8)
    batch = read(FakeLogs(rows), [cut_of(rows)], **bounds)
    assert batch.blocks.num_rows == blocks
    assert batch.reached[0].events == 2 * blocks


def test_one_block_beyond_the_bounds_is_read_alone() -> None:
    rows = rows_in_order([50, 50])
    batch = read(FakeLogs(rows), [cut_of(rows)], events_max=5)
    assert numbers(batch) == [(0, 1)]


def test_a_full_batch_stops_before_a_block_of_the_next_shard_that_does_not_fit() -> None:
    rows = [*rows_in_order([4], shard=0), *rows_in_order([4], shard=1)]
    cuts = [cut_of(rows[:1], shard=0), cut_of(rows[1:], shard=1)]
    batch = read(FakeLogs(rows), cuts, events_max=6)
    assert numbers(batch) == [(0, 1)]
    assert list(batch.reached) == [0]


HOLES: dict[str, list[dict[str, Any]]] = {
    "a block is missing between two": [row(1, total=1), row(3, total=3)],
    "the first block is missing": [row(2, total=2)],
    "a number is given twice": [row(1, total=1), row(2, total=1)],
    "bytes go back": [row(1, total=1, size=50), row(2, total=2, size=40)],
    "a damaged block hides a missing one": [row(1, total=1), row(2, total=99, fault="checksum"), row(3, total=2)],
}


@pytest.mark.parametrize("case", HOLES)
def test_a_hole_stops_the_reading_and_is_placed(case: str) -> None:
    rows = HOLES[case]
    with pytest.raises(TierCorrupt, match=r"hole in shard 0 after \d+-0, where N is \d"):
        read(FakeLogs(rows), [cut_of(rows)])


def test_a_log_that_ends_before_its_counter_is_a_hole() -> None:
    rows = rows_in_order([1, 1])
    cut = cut_of(rows, last=Position(9, 0), events_total=5)
    with pytest.raises(TierCorrupt, match="holds nothing up to 9-0, where N is 5"):
        read(FakeLogs(rows), [cut])


def test_a_hole_is_found_across_pages() -> None:
    rows = [row(1, total=1), row(2, total=2), row(4, total=4)]
    with pytest.raises(TierCorrupt, match="after 2-0, where N is 2"):
        read(FakeLogs(rows, page_rows=2), [cut_of(rows)])


DAMAGED = {"events": 77, "events_total": -5, "bytes_total": 10**15, "fault": "header checksum y does not match"}


@pytest.mark.parametrize("page_rows", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("counts", "damaged", "events"),
    [
        ([2, 3, 4], {1}, [2, 3, 4]),
        ([2, 3, 4], {0}, [2, 3, 4]),
        ([2, 3, 4], {2}, [2, 3, 4]),
        ([2, 3, 4, 5], {1, 2}, [2, 1, 6, 5]),
        ([2, 3], {0, 1}, [1, 4]),
        ([7], {0}, [7]),
        ([1, 2, 3, 4, 5], {0, 2, 4}, [1, 2, 3, 4, 5]),
    ],
)
def test_a_damaged_block_counts_what_its_sound_neighbours_leave_for_it(
    counts: list[int], damaged: set[int], events: list[int], page_rows: int
) -> None:
    """However the log is paged; two damaged in a row share what is left between them."""
    rows = rows_in_order(counts)
    cut = cut_of(rows)
    for index in damaged:
        rows[index] = {**rows[index], **DAMAGED}
    batch = read(FakeLogs(rows, page_rows=page_rows), [cut])
    assert batch.events == sum(counts)
    assert batch.reached[0].events == sum(counts)
    assert batch.reached[0].bytes == cut.bytes_total
    totals = batch.blocks["events_total"].to_pylist()
    assert totals == [sum(events[: index + 1]) for index in range(len(counts))]
    assert batch.blocks["events"].to_pylist() == events
    assert batch.blocks["bytes_total"].to_pylist() == sorted(batch.blocks["bytes_total"].to_pylist())


def test_damaged_blocks_at_the_end_of_a_log_that_lacks_the_rest_are_a_hole() -> None:
    rows = [{**row(1, total=1), **DAMAGED}]
    cut = cut_of(rows, events_total=0, last=Position(5, 0))
    with pytest.raises(TierCorrupt, match="1 damaged blocks, but N goes on at 0"):
        read(FakeLogs(rows), [cut])
