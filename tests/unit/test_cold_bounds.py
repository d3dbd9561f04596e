"""What the ledger says of a cold file's rows: exact bounds, whatever pieces they come in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from thermocline.tiers.cold_bounds import Bounds, BoundsOf
from thermocline.tiers.cold_schema import KINDS, SCHEMAS
from thermocline.tiers.segment_file import EVENT_TYPES_MAX

DAY = "2026-11-13"
DAY_START = datetime(2026, 11, 13, tzinfo=UTC)
DAY_US = int(DAY_START.timestamp() * 1e6)


def rows(*hours: int, **columns: list[object]) -> pa.Table:
    """A row for each hour of the day: its number in every column of numbers and times, c<number> as its conversation."""
    times = [DAY_START + timedelta(hours=hour) for hour in hours]
    made = {"timestamp": pa.array(times, pa.timestamp("us", tz="UTC")), "conversation_id": [f"c{hour}" for hour in hours]}
    return pa.table({**made, "event_type": ["error"] * len(hours), **columns})


def test_rows_that_stand_for_others_are_counted() -> None:
    found = BoundsOf("events", DAY)
    for rates in ([1.0, 0.1], [0.5, 0.999], [1.0, 1.0]):
        found.add(rows(1, 2, sample_rate=list[object](rates)))
    assert found.bounds().sampled_rows == 3


def test_bounds_are_those_of_all_pieces_in_any_order() -> None:
    found = BoundsOf("events", DAY)
    for piece in (rows(5, 7), rows(2), rows(9, 3, event_type=["b", "a"])):
        found.add(piece)
    assert found.bounds() == Bounds(
        timestamp_min_us=DAY_US + 2 * 3_600_000_000,
        timestamp_max_us=DAY_US + 9 * 3_600_000_000,
        conversation_min="c2",
        conversation_max="c9",
        event_types=("a", "b", "error"),
        sampled_rows=0,
    )


@pytest.mark.parametrize(("count", "listed"), [(EVENT_TYPES_MAX, True), (EVENT_TYPES_MAX + 1, False)])
def test_more_event_types_than_are_listed_are_none(count: int, listed: bool) -> None:
    found = BoundsOf("events", DAY)
    names = [f"type-{number:03}" for number in range(count)]
    for name in (*names, *names):
        found.add(rows(1, event_type=[name]))
    assert found.bounds().event_types == (tuple(names) if listed else None)


def test_names_are_compared_by_code_point_as_queries_compare_them() -> None:
    found = BoundsOf("events", DAY)
    for name in ("z", "ä", "Z", "\U0001f600", "\uffff"):
        found.add(rows(1, conversation_id=[name]))
    assert (found.bounds().conversation_min, found.bounds().conversation_max) == ("Z", "\U0001f600")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_bounds_and_what_it_lacks_is_the_day_and_no_name(kind: str) -> None:
    schema = SCHEMAS[kind]
    column = {pa.string(): "c1", pa.timestamp("us", tz="UTC"): DAY_START + timedelta(hours=1), pa.uuid(): b"\0" * 16}
    table = pa.table({field.name: pa.array([column.get(field.type, 1)], field.type) for field in schema})
    found = BoundsOf(kind, DAY)
    found.add(table)
    bounds = found.bounds()
    later_us = 0 if kind == "rollup_task" else 3_600_000_000
    assert bounds.timestamp_min_us == bounds.timestamp_max_us == DAY_US + later_us
    assert bounds.conversation_min == bounds.conversation_max == ("c1" if "conversation_id" in schema.names else "")
    assert bounds.event_types == (("c1",) if "event_type" in schema.names else None)
