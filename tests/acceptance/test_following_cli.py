"""`tail`, `replay`, `export`, `groups` and `parked`, as their users have them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.test_cli import environment, succeeded, thermocline
from tests.servers import RedisServer
from tests.waiting import wait_until
from thermocline.config import load
from thermocline.ingest.append import Client
from thermocline.store import Store, connect


@pytest.fixture
def variables(server: RedisServer) -> dict[str, str]:
    return {"THERMOCLINE_REDIS_URL": server.url}


@pytest.fixture
def store(tmp_path: Path, server: RedisServer) -> Iterator[Store]:
    settings = load({"data_dir": tmp_path / "thermocline-data", "redis_url": server.url}, environ={})
    with connect(settings) as opened:
        with Client(settings, tiers=opened.tiers) as client:
            for number in range(12):
                client.append(f"c{number % 2}", "tool.call" if number % 3 else "error", f"event \x1b[31m{number}")
        yield opened


def test_the_newest_events_are_shown_without_what_a_terminal_obeys(
    store: Store, tmp_path: Path, variables: dict[str, str]
) -> None:
    said = succeeded(tmp_path, "tail", "c1", "-n", "2", **variables).splitlines()
    assert [line.split("  ")[1:] for line in said] == [
        ["c1 5", "error", "event ·[31m9"],
        ["c1 6", "tool.call", "event ·[31m11"],
    ]


def test_a_tail_ends_with_a_position_that_another_begins_at(store: Store, tmp_path: Path, variables: dict[str, str]) -> None:
    done = thermocline(tmp_path, "tail", "--start", "begin", "-o", "json", "--type", "error", **variables)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(events) == 4 and {event["event_type"] for event in events} == {"error"}
    position = done.stderr.strip().removeprefix("position: ")
    assert succeeded(tmp_path, "tail", "--start", position, **variables) == ""
    assert len(succeeded(tmp_path, "tail", "--start", events[0]["position"], **variables).splitlines()) == 11
    refused = thermocline(tmp_path, "tail", "--start", "t1.nonsense", **variables)
    assert refused.returncode == 1 and "not a position" in refused.stderr and "Traceback" not in refused.stderr


def test_a_tail_that_follows_shows_what_is_appended_until_it_is_interrupted(
    store: Store, tmp_path: Path, variables: dict[str, str]
) -> None:
    # A shell that starts the tests in the background has them ignore SIGINT, and their children with them.
    heeded = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
    command = [sys.executable, "-c", heeded, sys.executable, "-m", "thermocline", "tail", "-f", "-n", "1"]
    out = (tmp_path / "out").open("wb")
    with (
        out,
        subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment(**variables),
            stdout=out,
            stderr=subprocess.PIPE,
        ) as process,
    ):
        wait_until(lambda: "11" in (tmp_path / "out").read_text(), 120, "the newest event is shown")
        with Client(store.settings, tiers=store.tiers) as client:
            client.append("c9", "t", "fresh")
        wait_until(lambda: "fresh" in (tmp_path / "out").read_text(), 120, "what was appended is shown")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 0 and b"position: t1." in said and b"Traceback" not in said


def test_a_replay_shows_a_part_of_a_conversation(store: Store, tmp_path: Path, variables: dict[str, str]) -> None:
    said = succeeded(tmp_path, "replay", "c0", "--speed", "0", "--from", "2", "--until", "4", "-o", "json", **variables)
    assert [json.loads(line)["seq"] for line in said.splitlines()] == [2, 3, 4]


def test_what_is_exported_can_be_appended(store: Store, tmp_path: Path, variables: dict[str, str]) -> None:
    done = thermocline(tmp_path, "export", "out.ndjson", "--type", "tool.*", **variables)
    assert done.returncode == 0 and done.stderr.startswith("8 events in ")
    assert "8 events appended" in thermocline(tmp_path, "append", "out.ndjson", "--namespace", "two", **variables).stderr
    lines = succeeded(tmp_path, "export", "-", "--conversation", "c0", **variables).splitlines()
    assert [json.loads(line)["conversation_id"] for line in lines] == ["c0"] * 6


def test_groups_and_what_they_parked_are_shown_replayed_and_deleted(
    store: Store, tmp_path: Path, variables: dict[str, str]
) -> None:
    with store.subscribe("mailer", start="begin", deliveries_max=1) as subscription:
        [delivery] = subscription.read(timeout_s=60)
        delivery.nack(reason="no such address")
    assert [one["parked"] for one in json.loads(succeeded(tmp_path, "groups", "list", "-o", "json", **variables))] == [1]
    assert "mailer" in succeeded(tmp_path, "groups", **variables)
    assert "no such address" in succeeded(tmp_path, "parked", "mailer", **variables)
    assert "1 events" in thermocline(tmp_path, "parked", "mailer", "--replay", **variables).stderr
    assert json.loads(succeeded(tmp_path, "parked", "mailer", "-o", "json", **variables)) == []
    succeeded(tmp_path, "groups", "delete", "mailer", **variables)
    missing = thermocline(tmp_path, "parked", "mailer", **variables)
    assert missing.returncode == 1 and "no group 'mailer'" in missing.stderr
