"""Which cold files become one: enough of them, similar in size, and no byte more often than the bound says."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence

import msgspec
import pytest

from thermocline.archiver.compact_plan import FILES_MAX, TINY_BYTES, Group, due_groups, hull
from thermocline.tiers.cold_schema import KINDS
from thermocline.tiers.ledger import ColdFile

KIB, MIB = 1 << 10, 1 << 20


def file(number: int, size: int, *, kind: str = "events", day: str = "2026-11-01", rows: int = 1) -> ColdFile:
    return ColdFile(
        file_id=f"{number:032x}-00001",
        batch_id=f"{number:032x}",
        kind=kind,
        day=day,
        url=f"file:///cold/{kind}/day={day}/{number:032x}-00001.parquet",
        rows=rows,
        file_bytes=size,
        timestamp_min_us=0,
        timestamp_max_us=0,
        conversation_min="",
        conversation_max="",
        event_types=None,
        checksum="",
        created_us=0,
    )


def due(files: Sequence[ColdFile], **changed: int | Iterable[str]) -> list[Group]:
    limits = {"files_min": 8, "small_bytes_max": 32 * MIB, "file_bytes_max": 256 * MIB}
    bounds = {"rows_max": 2_000_000, "batch_bytes_max": 2048 * MIB}
    return due_groups(files, **{**limits, **bounds, **changed})  # type: ignore[arg-type]


def sizes(group: Group) -> list[int]:
    return sorted(one.file_bytes for one in group.files)


def test_fewer_files_than_it_takes_are_left_alone() -> None:
    assert due([file(n, KIB) for n in range(7)]) == []
    [group] = due([file(n, KIB) for n in range(8)])
    assert sizes(group) == [KIB] * 8


def test_events_are_counted_by_day_and_rollups_over_all_days() -> None:
    days = [f"2026-11-0{1 + n % 2}" for n in range(14)]
    assert due([file(n, KIB, day=day) for n, day in enumerate(days)]) == []
    [group] = due([file(n, KIB, kind="rollup_task", day=day) for n, day in enumerate(days)])
    assert (group.kind, group.day, len(group.files)) == ("rollup_task", "2026-11-01", 14)


def test_each_kind_is_a_group_of_its_own_with_events_last_and_the_oldest_day_first() -> None:
    files = [file(n, KIB, kind=kind, day=f"2026-11-0{9 - n // 8}") for kind in KINDS for n in range(16)]
    found = [(group.kind, group.day) for group in due(files)]
    assert found == [*((kind, "2026-11-08") for kind in KINDS[1:]), ("events", "2026-11-08"), ("events", "2026-11-09")]


def test_a_file_that_is_large_enough_or_taken_is_left_alone() -> None:
    files = [file(n, 32 * MIB) for n in range(20)]
    assert due(files) == []
    files = [file(n, 5 * MIB) for n in range(8)]
    assert due(files, taken=[files[3].file_id]) == []


def test_a_file_is_not_rewritten_for_the_sake_of_much_smaller_ones() -> None:
    small = [file(n, 100 * KIB) for n in range(1, 9)]
    [group] = due([file(0, 20 * MIB), *small])
    assert sizes(group) == [100 * KIB] * 8
    assert due([file(0, 20 * MIB), *small[:7]]) == []


def test_files_of_a_few_bytes_are_alike() -> None:
    [group] = due([file(0, 60 * KIB), *(file(n, 2 * KIB) for n in range(1, 8))])
    assert len(group.files) == 8


def test_a_group_fits_in_one_file_and_a_batch_is_bounded() -> None:
    groups = due([file(n, 31 * MIB, day=f"2026-11-{1 + n // 100:02d}") for n in range(1000)])
    assert [len(group.files) for group in groups] == [8] * 8
    assert sum(group.file_bytes for group in groups) <= 2048 * MIB
    [group] = due([file(n, KIB, kind="rollup_task") for n in range(3 * FILES_MAX)])
    assert len(group.files) == FILES_MAX


def test_a_batch_has_so_many_rows_that_settling_can_wait_for_it() -> None:
    days = [f"2026-11-{1 + n // 8:02d}" for n in range(80)]
    groups = due([file(n, KIB, day=day, rows=100_000) for n, day in enumerate(days)])
    assert [group.rows for group in groups] == [800_000, 800_000]
    [group] = due([file(n, MIB, rows=300_000) for n in range(20)])
    assert group.rows == 1_800_000
    assert due([file(n, KIB, rows=1_000_000) for n in range(20)]) == []


def test_at_least_one_group_is_due_whatever_its_size() -> None:
    [group] = due([file(n, 31 * MIB) for n in range(8)], batch_bytes_max=1)
    assert len(group.files) == 8


def test_what_fills_a_file_is_enough_even_if_it_is_fewer_files() -> None:
    [group] = due([file(n, 30 * MIB) for n in range(64)], files_min=64)
    assert len(group.files) == 8
    [group] = due([file(n, 400 * KIB) for n in range(20)], file_bytes_max=MIB)
    assert len(group.files) == 2


def test_files_that_are_as_large_as_allowed_are_left_alone_however_small_that_is() -> None:
    assert due([file(n, 600 * KIB) for n in range(20)], file_bytes_max=MIB) == []


def test_the_order_of_the_files_does_not_matter() -> None:
    files = [file(n, (n * 37 % 11 + 1) * 50 * KIB) for n in range(40)]
    assert due(files) == due(files[::-1])


@pytest.mark.parametrize("files_min", [2, 3, 8, 20])
@pytest.mark.parametrize("shrink", [1.0, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_arrivals_of_any_size_leave_few_files_and_rewrite_a_byte_seldom(files_min: int, shrink: float, seed: int) -> None:
    """shrink: what is left of the bytes of rollups that are added up."""
    draw = random.Random(seed)
    live: list[ColdFile] = []
    arrived = rewritten = 0
    for number in range(1500):
        size = int(3 * KIB * math.exp(draw.expovariate(0.7)))
        arrived += size
        live.append(file(2 * number, min(size, 300 * MIB), kind="rollup_task", rows=size // 100))
        while groups := due(live, files_min=files_min):
            [group] = groups
            rewritten += group.file_bytes
            gone = set(group.files)
            live = [one for one in live if one not in gone]
            made = max(KIB, int(group.file_bytes * shrink))
            live.append(file(10_000 + 2 * number + len(live), made, kind="rollup_task", rows=made // 100))
    growth = max(1.5, files_min / 2)
    levels = math.log(32 * MIB / TINY_BYTES, growth)
    assert sum(one.file_bytes < 32 * MIB for one in live) < files_min * (levels + 2)
    assert rewritten < arrived * (levels + TINY_BYTES / (3 * KIB) / (files_min - 1) + 1)


def test_ranges_are_joined_by_shard_from_the_first_position_to_the_last() -> None:
    one = msgspec.json.encode([(0, "5-0", "9-1"), (2, "0-0", "7-0")]).decode()
    other = msgspec.json.encode([(0, "10-0", "100-0"), (1, "3-0", "4-0")]).decode()
    assert msgspec.json.decode(hull([one, other])) == [[0, "5-0", "100-0"], [1, "3-0", "4-0"], [2, "0-0", "7-0"]]
    assert hull([other, one]) == hull([one, other])
    assert hull(["[]"]) == "[]"
