"""Recorded runs become events: one per message, one per tool call, one at the end, nothing lost on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from thermocline.ndjson import parse_line
from thermocline.sample_import import DAY_US, MESSAGE_TYPES, events_of, load_runs, ndjson

END_US = 1_794_265_200_000_000


def by_conversation(events: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        found[event["conversation_id"]].append(event)
    return found


def sample() -> list[dict[str, Any]]:
    return list(events_of(load_runs(), end_us=END_US))


def test_every_message_call_and_run_of_the_sample_is_an_event() -> None:
    runs = load_runs()
    kinds = Counter(event["event_type"] for event in sample())
    roles = Counter(message["role"] for run in runs for message in run["traj"])
    assert len(runs) == kinds["run.finished"] == 40
    assert {role: kinds[kind] for role, kind in MESSAGE_TYPES.items()} == roles
    assert kinds["tool.call"] == sum(len(message.get("tool_calls") or []) for run in runs for message in run["traj"])


def test_a_run_can_be_put_together_again_from_its_events() -> None:
    events = by_conversation(sample())
    roles = {kind: role for role, kind in MESSAGE_TYPES.items()}
    for run in load_runs():
        *inner, last = events[f"airline-{run['task_id']}-{run['trial']}"]
        messages = [
            {"role": roles[event["event_type"]], "content": event["content"], **event.get("metadata", {})}
            for event in inner
            if event["event_type"] in roles
        ]
        calls = [
            {"id": event["metadata"]["id"], "type": event["metadata"]["type"]}
            | {"function": {"arguments": event["content"], "name": event["tool_name"]}}
            for event in inner
            if event["event_type"] == "tool.call"
        ]
        assert messages == run["traj"]
        assert calls == [call for message in run["traj"] for call in message.get("tool_calls") or []]
        assert last["metadata"] | {"traj": messages} == run
        assert last["status"] == ("solved" if run["reward"] == 1.0 else "failed")


def test_a_call_follows_the_message_that_makes_it_and_precedes_its_result() -> None:
    for events in by_conversation(sample()).values():
        for place, event in enumerate(events):
            if event["event_type"] == "tool.call":
                assert event["metadata"]["id"] in str(events[place - 1]["metadata"]["tool_calls"])
                assert events[place + 1]["parent_id"] == event["metadata"]["id"]


def test_times_rise_within_a_run_and_fill_the_period_up_to_its_end() -> None:
    events = by_conversation(sample())
    for conversation in events.values():
        times = [event["timestamp"] for event in conversation]
        assert times == sorted(times)
    everything = [event["timestamp"] for conversation in events.values() for event in conversation]
    assert min(everything) == END_US - 10 * DAY_US
    assert END_US - DAY_US // 24 <= max(everything) <= END_US


def test_the_same_run_always_gets_the_same_times() -> None:
    assert sample() == sample()


def test_lines_are_what_append_reads() -> None:
    events = sample()
    for line, event in zip(ndjson(events), events, strict=True):
        parsed = parse_line(line)
        assert parsed.content == event.get("content", "")
        assert json.loads(bytes(parsed.metadata or b"null")) == event.get("metadata")  # type: ignore[arg-type]


def test_the_command_prints_the_sample_as_ndjson() -> None:
    command = [sys.executable, "-m", "thermocline.sample_import", "--end", "2026-11-20T00:00:00Z", "--days", "2"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert len(done.stdout.splitlines()) == len(sample())


@pytest.mark.parametrize(("text", "problem"), [("{}", "not a list of runs"), ("nope", "Expecting value"), (None, "No such file")])
def test_a_file_of_another_shape_is_one_line_of_error(text: str | None, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "runs.json"
    if text is not None:
        file.write_text(text)
    done = subprocess.run([sys.executable, "-m", "thermocline.sample_import", file], capture_output=True, text=True)
    assert done.returncode == 2
    assert problem in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
