"""Which objects a pass of scrub reads, and what it remembers of them: values in, values out."""

from __future__ import annotations

from pathlib import Path

import pytest

from thermocline.archiver.scrub_plan import SEGMENT, Item, due_items
from thermocline.errors import TierCorrupt
from thermocline.tiers.damage import Damage, Part, Rows, joined
from thermocline.tiers.scrub_state import DAMAGED_MAX, FILE_NAME, ScrubState, change_state, read_state
from thermocline.tiers.segment_sum import read_sum, sum_of, sum_path, write_sum

DAY_US = 86_400_000_000
HOUR_US = DAY_US // 24
WEEK_US = 7 * DAY_US
MIB = 1 << 20


def items(*sizes: int, created_us: int = 0) -> list[Item]:
    return [Item(kind=SEGMENT, name=f"{number:03}", bytes=size, created_us=created_us) for number, size in enumerate(sizes)]


def due(every: list[Item], read_us: dict[str, int], now_us: int, *, bytes_max: int = 1 << 40) -> list[str]:
    chosen = due_items(every, read_us, now_us, period_us=WEEK_US, every_us=HOUR_US, bytes_max=bytes_max)
    return [item.name for item in chosen]


def test_what_was_written_or_read_less_than_half_a_period_ago_is_not_read() -> None:
    assert due(items(MIB, MIB, created_us=WEEK_US), {}, WEEK_US + WEEK_US // 2 - 1) == []
    assert due(items(MIB, MIB), {"segment 000": WEEK_US, "segment 001": WEEK_US}, WEEK_US + 1) == []
    assert due([], {}, WEEK_US) == []


def test_the_one_read_longest_ago_comes_first_and_one_is_read_however_large() -> None:
    every = items(100 * MIB, 100 * MIB, 100 * MIB)
    read = {"segment 000": 3, "segment 001": 1, "segment 002": 2}
    assert due(every, read, WEEK_US - 1) == ["001"]
    assert due(every, read, WEEK_US - 1, bytes_max=1) == ["001"]


def test_what_is_overdue_is_read_at_once_up_to_the_bound() -> None:
    every = items(*[MIB] * 10)
    assert len(due(every, {}, 2 * WEEK_US)) == 10
    assert len(due(every, {}, 2 * WEEK_US, bytes_max=3 * MIB)) == 3


def test_everything_is_read_once_a_week_and_no_pass_reads_much_more_than_its_share() -> None:
    every = items(*[MIB * (1 + number % 5) for number in range(400)])
    read = {item.key: number * WEEK_US // 400 for number, item in enumerate(every)}
    share = sum(item.bytes for item in every) // 168
    now_us, oldest = WEEK_US, 0
    for _ in range(24 * 30):
        now_us += HOUR_US
        chosen = due_items(every, read, now_us, period_us=WEEK_US, every_us=HOUR_US, bytes_max=1 << 30)
        assert sum(item.bytes for item in chosen) <= 3 * share + 5 * MIB
        read.update({item.key: now_us for item in chosen})
        oldest = max(oldest, now_us - min(read.values()))
    assert oldest < WEEK_US + DAY_US // 2


def damage(item: str) -> Damage:
    return Damage(item=item, place=item, problem="its sum is wrong", events=1)


def test_a_damage_is_remembered_until_its_object_is_read_again_or_gone() -> None:
    there = {"a": 1, "b": 2}
    first = ScrubState().after(there, {"a": 10}, [damage("a")], now_us=10)
    assert (first.damaged, first.oldest_us, first.passed_us) == ((damage("a"),), 2, 10)
    second = first.after(there, {"b": 20}, [damage("b")], now_us=20)
    assert second.damaged == (damage("a"), damage("b"))
    assert second.after(there, {"a": 30}, [], now_us=30).damaged == (damage("b"),)
    assert second.after({"b": 2}, {}, [], now_us=30).read == {"b": 20}
    assert second.after({}, {}, [], now_us=30) == ScrubState(passed_us=30, oldest_us=30)
    many = first.after(there, {"a": 11}, [damage("a")] * (DAMAGED_MAX + 5), now_us=11)
    assert len(many.damaged) == DAMAGED_MAX


def test_a_state_that_cannot_be_read_is_an_empty_one(tmp_path: Path) -> None:
    assert read_state(tmp_path) == ScrubState()
    state = change_state(tmp_path, lambda old: old.after({"a": 1}, {"a": 5}, [damage("a")], now_us=9))
    assert read_state(tmp_path) == state
    (tmp_path / FILE_NAME).write_text("{")
    assert read_state(tmp_path) == ScrubState()


def test_ranges_that_meet_are_one() -> None:
    ranges = [Rows(start=0, end=5), Rows(start=5, end=9), Rows(start=12, end=20)]
    assert joined(ranges) == (Rows(start=0, end=9), Rows(start=12, end=20))


def test_a_damage_says_what_is_gone_and_how_much_it_does_not_show() -> None:
    found = Damage(
        item="segment x",
        place="/x.duckdb",
        problem="its sum is wrong",
        events=1500,
        rows=(Rows(start=0, end=1500),),
        parts=(Part(conversation_id="c1", seq_min=3, seq_max=1002, events=1000),),
        conversations=2,
        hint="not mended: there is no mirror",
    )
    assert found.lines() == [
        "/x.duckdb: its sum is wrong (rows 0 to 1,499)",
        "  gone unless it is restored: 1,500 events of 2 conversations",
        "    c1: 1,000 events, seq 3 to 1,002",
        "    and 1 conversations more",
        "  not mended: there is no mirror",
    ]


def test_a_sum_is_read_back_and_any_bit_of_it_that_changes_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.duckdb"
    path.write_bytes(b"x" * 3_000_000)
    assert read_sum(path) is None
    write_sum(path, sum_of(path, from_disk=True))
    assert read_sum(path) == sum_of(path)
    content = sum_path(path).read_bytes()
    for place in range(len(content)):
        sum_path(path).write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(TierCorrupt, match="is not what was written"):
            read_sum(path)
