"""Which unsettled events go to a process that answers a query elsewhere."""

from __future__ import annotations

from thermocline.query.bounds import ANY_ROW, HOUR_US, Bounds, Texts
from thermocline.query.handover import tail_filter


def test_a_query_that_reads_no_relation_gets_no_events() -> None:
    assert tail_filter({}) == ("FALSE", [])
    assert tail_filter({"events": Bounds(event_types=Texts.of([]))}) == ("FALSE", [])


def test_what_is_not_bounded_gets_all() -> None:
    assert tail_filter({"events": ANY_ROW}) == ("TRUE", [])
    assert tail_filter({"events": Bounds(time_min_us=5), "hourly_stats": ANY_ROW}) == ("TRUE", [])


def test_bounds_become_conditions_and_values_never_text() -> None:
    name = "'; DROP TABLE x"
    where, values = tail_filter({"events": Bounds(time_min_us=5, conversations=Texts.of([name]), event_types=Texts(low="a"))})
    assert name not in where
    assert values == [5, [name], "a"]
    assert where.count("?") == 3


def test_the_end_of_an_hour_is_not_cut_off() -> None:
    """hour <= x is about the start of the hour that an event is in."""
    _, values = tail_filter({"hourly_stats": Bounds(time_max_us=7 * HOUR_US)})
    assert values == [8 * HOUR_US]
