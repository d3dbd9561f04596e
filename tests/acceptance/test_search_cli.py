"""`thermocline search` as its users have it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.test_cli import failed, succeeded, thermocline
from thermocline.tiers import embedded


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    lines = [
        {"conversation_id": "order-17", "event_type": "message.user", "content": "Where is\nmy Refund?"},
        {"conversation_id": "order-17", "event_type": "tool.result", "content": "refund: pending", "tool_name": "look"},
        {"conversation_id": "order-18", "event_type": "message.user", "content": "nothing"},
    ]
    (tmp_path / "events.ndjson").write_text("".join(json.dumps(line) + "\n" for line in lines))
    succeeded(tmp_path, "append", "events.ndjson")
    yield tmp_path
    embedded.stop(tmp_path / "thermocline-data")


def test_search_shows_the_newest_first_as_a_table_and_as_json(place: Path) -> None:
    done = thermocline(place, "search", "REFUND")
    assert done.returncode == 0
    head, _, first, second = done.stdout.splitlines()
    assert head.split() == ["timestamp", "conversation_id", "seq", "event_type", "snippet"]
    assert first.endswith("refund: pending")
    assert second.endswith("Where is⏎ my Refund?")
    assert "3 events as of" in done.stderr
    [row] = json.loads(succeeded(place, "search", "is my", "--phrase", "--type", "message.user", "-o", "json"))
    assert (row["snippet"], row["spans"]) == ("Where is\nmy Refund?", [{"start": 6, "length": 5}])
    [row] = json.loads(succeeded(place, "search", "refund", "--tool", "look", "--full", "-o", "json"))
    assert row["content"] == "refund: pending"


def test_search_says_how_to_go_on(place: Path) -> None:
    done = thermocline(place, "search", "refund", "--limit", "1", "-o", "json")
    [line] = [line for line in done.stderr.splitlines() if line.startswith("To go on: --before ")]
    [row] = json.loads(succeeded(place, "search", "refund", "--before", line.rsplit(" ", 1)[1], "-o", "json"))
    assert row["seq"] == 1


def test_wrong_usage_is_one_line(place: Path) -> None:
    assert "1 to 32 words" in failed(place, "search", " ", code=1)
    assert "no time like" in thermocline(place, "search", "refund", "--since", "soon").stderr
