"""Coalescing: which output chunks become one event, and what it holds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from thermocline.event import Event
from thermocline.ingest.coalesce import Chunk, mergeable
from thermocline.ingest.line import encoded, line_of
from thermocline.ingest.validate import checked, fields_of

NOW_US = 1_780_000_000_000_000


def values(content: str | None = "x", **given: Any) -> dict[str, Any]:
    fields = {"conversation_id": "c", "event_type": "output.chunk", "content": content, **given}
    return checked(fields_of(Event(**fields)), NOW_US)


def chunk(first: dict[str, Any], *, until_s: float = 1.0) -> Chunk:
    return Chunk(first, until_s=until_s, line_bytes=len(encoded(first).payload))


def merged(*parts: dict[str, Any], now_s: float = 0.5, bytes_max: int = 1 << 20) -> dict[str, Any] | None:
    """The one event they become; None when they do not."""
    made = chunk(parts[0])
    for part in parts[1:]:
        if not made.merge(part, now_s, bytes_max=bytes_max):
            return None
    line: dict[str, Any] = json.loads(made.line().payload)
    return line


def test_contents_are_joined_and_the_first_time_is_kept() -> None:
    parts = [values("Hel", timestamp=NOW_US), values("lo", timestamp=NOW_US + 5), values("", timestamp=NOW_US - 5), values("!")]
    assert merged(*parts) == {"event_type": "output.chunk", "timestamp": NOW_US, "content": "Hello!"}


def test_counts_cost_and_duration_are_added_and_absent_is_nothing() -> None:
    line = merged(
        values(output_tokens=1, cost_usd=0.5), values(output_tokens=2, duration_ms=3), values(input_tokens=7, cost_usd=0.25)
    )
    assert line is not None
    assert (line["output_tokens"], line["cost_usd"], line["duration_ms"], line["input_tokens"]) == (3, 0.75, 3.0, 7)


def test_keys_stay_in_column_order() -> None:
    made = chunk(values("a"))
    assert made.merge(values("b", output_tokens=1), 0.5, bytes_max=1 << 20)
    assert list(json.loads(made.line().payload)) == ["event_type", "timestamp", "output_tokens", "content"]


def test_all_empty_chunks_make_an_event_without_content() -> None:
    assert merged(values(""), values("")) == {"event_type": "output.chunk", "timestamp": NOW_US}


@pytest.mark.parametrize("field", ["agent_id", "task_id", "correlation_id", "parent_id", "model", "tool_name", "status"])
def test_any_other_difference_keeps_them_apart(field: str) -> None:
    assert merged(values(**{field: "1"}), values(**{field: "1"})) is not None
    assert merged(values(**{field: "1"}), values(**{field: "2"})) is None
    assert merged(values(**{field: "1"}), values()) is None
    assert merged(values(), values(**{field: ""})) is None


def test_only_output_chunks_without_id_and_metadata_are_mergeable() -> None:
    assert mergeable(values())
    assert not mergeable(values(event_type="output"))
    assert not mergeable(values(event_id="0" * 32))
    assert not mergeable(values(metadata={}))
    assert not mergeable(values(None))


def test_the_window_counts_from_the_first_chunk() -> None:
    assert merged(values(), values(), now_s=1.0) is not None
    assert merged(values(), values(), now_s=1.001) is None


def test_sums_that_no_column_holds_keep_them_apart() -> None:
    assert merged(values(output_tokens=2**63 - 1), values(output_tokens=1)) is None
    assert merged(values(cost_usd=1.7e308), values(cost_usd=1.7e308)) is None
    assert merged(values(output_tokens=2**63 - 1), values(output_tokens=-1)) is not None


@pytest.mark.parametrize("text", ["x" * 100, "\x00" * 100, "é" * 100, "\\" * 100])
def test_a_merged_event_never_exceeds_its_bound(text: str) -> None:
    made = chunk(values(text, output_tokens=2**61, cost_usd=1e-300))
    count = 1
    while made.merge(values(text, output_tokens=1, cost_usd=1e-300, duration_ms=0.1, input_tokens=2**56), 0.5, bytes_max=4000):
        count += 1
    line = made.line()
    assert count > 2
    assert len(line.payload) + 1000 > 3000
    assert len(line.payload) <= 4000


def test_a_refused_merge_changes_nothing() -> None:
    first = values("a", output_tokens=1)
    made = chunk(first)
    assert not made.merge(values("b", output_tokens=1, task_id="other"), 0.5, bytes_max=1 << 20)
    assert not made.merge(values("b", output_tokens=1), 0.5, bytes_max=10)
    fields = fields_of(Event(conversation_id="c", event_type="output.chunk", content="a", output_tokens=1))
    assert made.line() == line_of(fields, NOW_US)
