"""Odd events through every way in and every tier: each is refused for what is wrong with it, or comes back as it was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fuzzed import WAYS, run_fuzz
from tests.odd_events import faults, row_of, unlike
from tests.servers import RedisServer

EVENTS = 10_000


@pytest.mark.lengthy
def test_ten_thousand_odd_events_are_refused_or_come_back_as_they_were(server: RedisServer, tmp_path: Path) -> None:
    report = run_fuzz(tmp_path / "data", server, events=EVENTS, seed=1)
    assert report.problems == []
    assert report.events >= EVENTS and report.stored + report.refused == report.events
    assert min(report.stored, 4 * report.refused) > EVENTS / 2
    assert report.by_way.keys() == {*WAYS, "CLI"}
    assert set(report.compared_in) == {"hot", "settled", "merged", "archived"}
    assert report.largest_bytes > 1 << 20, "some are longer than allowed"


GOOD = {"conversation_id": "c", "event_type": "t", "content": "tail\x00", "metadata": '{"a": 1.00}', "cost_usd": 0.1}


@pytest.mark.parametrize(
    ("column", "other"),
    [("content", "tail"), ("metadata", '{"a":1.0}'), ("cost_usd", 0.10000000000000002), ("event_type", "T"), ("task_id", "")],
)
def test_a_row_that_is_not_what_was_given_is_told(column: str, other: Any) -> None:
    wanted = row_of(GOOD)
    assert unlike(wanted, dict(wanted)) == []
    found = unlike(wanted, {**wanted, column: other})
    assert [text.partition(":")[0] for text in found] == [column]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("conversation_id", "#c"),
        ("event_type", "a..b"),
        ("content", "\ud800"),
        ("metadata", "[1]"),
        ("metadata", '{"a":' * 65 + "1" + "}" * 65),
        ("cost_usd", float("nan")),
        ("input_tokens", 2**63),
        ("timestamp", 1),
        ("event_id", "x"),
        ("model", "a\n"),
        ("extra", 1),
    ],
)
def test_what_the_page_of_formats_forbids_is_known_here_too(field: str, value: Any) -> None:
    now_us = 1_780_000_000_000_000
    assert faults(GOOD, now_us) == set()
    assert faults({**GOOD, field: value}, now_us) == {field}
