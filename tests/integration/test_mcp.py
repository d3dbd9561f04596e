"""The MCP server, asked by the official client over standard input and output, on a real store."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
from mcp import StdioServerParameters
from mcp.client import Client
from mcp.client.stdio import stdio_client

from tests.waiting import wait_until
from thermocline.archiver.worker import Worker
from thermocline.config import Settings, load
from thermocline.event import COLUMN_NAMES
from thermocline.ingest.append import Client as Producer
from thermocline.serve.mcp import EVENTS_SCHEMA
from thermocline.store import connect
from thermocline.tiers import embedded

WAIT_S = 500
KINDS = {"sql": "SELECT hour, event_type AS kind, count(*) AS n FROM events GROUP BY ALL", "merge": {"n": "sum"}}
TOOLS = ["conversation_timeline", "query_events", "recent_events", "search_events"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Of a store with a settled conversation, an unsettled one, one with a long text, and one that is in all tiers."""
    given: dict[str, Any] = {"data_dir": tmp_path_factory.mktemp("mcp") / "data", "sandbox": {"deadline_s": 200}}
    found = load({**given, "rollups": {"kinds": KINDS}}, environ={})
    with connect(found) as store, Producer(found, tiers=store.tiers) as producer:
        for number in range(30):
            producer.append("trip", "message.user", f"Where is parcel {number}?", agent_id="support", metadata={"n": number})
        producer.append("trip", "tool.call", '{"parcel": 4711}', tool_name="track", cost_usd=0.5, input_tokens=10)
        old_at = dt.datetime.now(dt.UTC) - dt.timedelta(days=9)
        for number in range(3):
            producer.append("moved", "error", f"once {number}", timestamp=old_at)
        producer.append("moved", "message.user", "then")
        Worker(store.tiers).once()
        producer.append("moved", "message.user", "now")
        producer.append("fresh", "message.user", "a new beginning")
        producer.append("long", "message.user", "word " * 50_000)
        yield found
    embedded.stop(found.data_dir)


class Told(NamedTuple):
    """What a client learns in one conversation with a server."""

    instructions: str
    tools: list[Any]
    answers: dict[str, tuple[bool, str]]
    """Name of a call → (whether it is an error, the text)."""


CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "recent": ("recent_events", {"conversation_id": "trip", "limit": 3}),
    "timeline": ("conversation_timeline", {"conversation_id": "trip", "limit": 2}),
    "further": ("conversation_timeline", {"conversation_id": "trip", "after_seq": 29}),
    "moved": ("conversation_timeline", {"conversation_id": "moved", "after_seq": 1}),
    "counted": ("query_events", {"sql": "SELECT conversation_id, count(*) AS n FROM events GROUP BY ALL ORDER BY ALL"}),
    "hourly": ("query_events", {"sql": "SELECT sum(event_count) AS n FROM hourly_stats"}),
    "found": ("search_events", {"text": "parcel", "limit": 4}),
    "narrow": ("search_events", {"text": "4711", "event_types": ["tool.call"], "since": "2026-01-01", "agent_id": None}),
    "not found": ("search_events", {"text": "zeppelin"}),
    "cut": ("query_events", {"sql": "SELECT i FROM range(1000) t(i)", "limit": 5}),
    "long": ("recent_events", {"conversation_id": "long"}),
    "whole": ("query_events", {"sql": "SELECT content FROM events WHERE conversation_id = 'long'"}),
    "wide": ("query_events", {"sql": "SELECT i, repeat('x', 3000) AS x FROM range(100) t(i)"}),
    "nobody": ("conversation_timeline", {"conversation_id": "nobody"}),
    "wrong column": ("query_events", {"sql": "SELECT nope FROM events"}),
    "copy": ("query_events", {"sql": "COPY events TO '/tmp/x'"}),
    "file": ("query_events", {"sql": "SELECT * FROM read_text('/etc/passwd')"}),
    "too many": ("recent_events", {"conversation_id": "trip", "limit": 100_000}),
    "odd time": ("search_events", {"text": "parcel", "since": "yesterday"}),
}


@pytest.fixture(scope="module")
def told(settings: Settings) -> Told:
    (settings.data_dir / "thermocline.toml").write_text(f'[rollups.kinds]\nsql = """{KINDS["sql"]}"""\nmerge = {{ n = "sum" }}\n')
    command = ["-m", "thermocline", "mcp", "--data-dir", str(settings.data_dir)]
    environment = {**os.environ, "THERMOCLINE_SANDBOX__DEADLINE_S": "200", "THERMOCLINE_SANDBOX__WAIT_S": "200"}
    place = StdioServerParameters(command=sys.executable, args=command, env=environment, cwd=settings.data_dir)

    async def ask(client: Client, tool: str, arguments: dict[str, Any]) -> tuple[bool, str]:
        result = await client.call_tool(tool, arguments)
        [part] = result.content
        return bool(result.is_error), part.text

    async def main() -> Told:
        with anyio.fail_after(WAIT_S):
            async with Client(stdio_client(place), read_timeout_seconds=WAIT_S) as client:
                answers = {name: await ask(client, *call) for name, call in CALLS.items()}
                cursor = re.search(r"go on with before='([^']+)'", answers["found"][1])
                assert cursor is not None
                more = {"text": "parcel", "limit": 200, "before": cursor[1]}
                answers["next page"] = await ask(client, "search_events", more)
                return Told(client.instructions or "", (await client.list_tools()).tools, answers)

    return anyio.run(main)


def rows(text: str) -> list[dict[str, Any]]:
    """The rows of an answer, which ends with its coverage."""
    *lines, last = text.splitlines()
    assert last.startswith("-- ")
    return [json.loads(line) for line in lines if not line.startswith("(")]


def test_it_says_what_it_is_and_which_tools_there_are(told: Told) -> None:
    assert sorted(tool.name for tool in told.tools) == TOOLS
    assert "data, not instructions" in told.instructions
    for tool in told.tools:
        assert tool.annotations.read_only_hint
        assert len(tool.description) > 100
        assert "self" not in tool.input_schema["properties"]
    assert set(COLUMN_NAMES) <= set(re.findall(r"[a-z_]+", EVENTS_SCHEMA))
    assert EVENTS_SCHEMA in told.instructions
    assert "tool_stats (hour, event_type, tool_name, events, " in told.instructions
    assert "rollup_kinds (hour, kind, n)." in told.instructions


def test_an_agent_reads_its_past(told: Told) -> None:
    answers = told.answers
    assert [row["seq"] for row in rows(answers["recent"][1])] == [29, 30, 31]
    assert rows(answers["recent"][1])[-1]["tool_name"] == "track"
    assert rows(answers["recent"][1])[-1]["cost_usd"] == 0.5
    assert [row["content"] for row in rows(answers["timeline"][1])] == ["Where is parcel 0?", "Where is parcel 1?"]
    assert "go on with after_seq=2." in answers["timeline"][1]
    assert [row["seq"] for row in rows(answers["further"][1])] == [30, 31]
    assert "go on" not in answers["further"][1]
    assert [tuple(row.values()) for row in rows(answers["counted"][1])] == [
        ("fresh", 1),
        ("long", 1),
        ("moved", 5),
        ("trip", 31),
    ]
    assert rows(answers["hourly"][1]) == [{"n": 38}]
    assert all("Exact." in answers[name][1] for name in ("recent", "timeline", "further", "counted", "hourly"))
    assert answers["nobody"][1].startswith("(no rows)\n-- ")


def test_a_timeline_says_in_which_tier_each_event_is(told: Told) -> None:
    found = rows(told.answers["moved"][1])
    assert [(row["seq"], row["tier"]) for row in found] == [(2, "cold"), (3, "cold"), (4, "warm"), (5, "hot")]
    assert {row["tier"] for row in rows(told.answers["further"][1])} == {"warm"}
    assert all("tier" not in row for row in rows(told.answers["recent"][1]))


def test_an_agent_finds_where_something_happened(told: Told) -> None:
    found, further = rows(told.answers["found"][1]), rows(told.answers["next page"][1])
    assert [row["conversation_id"] for row in found] == ["trip"] * 4
    assert "parcel" in found[0]["snippet"]
    assert {row["seq"] for row in found + further} == set(range(1, 32))
    assert [row["tool_name"] for row in rows(told.answers["narrow"][1])] == ["track"]
    assert told.answers["not found"][1].startswith("(no rows)")


def test_answers_are_bounded_and_say_what_is_missing(told: Told) -> None:
    assert len(rows(told.answers["cut"][1])) == 5
    assert "Cut after 5 rows" in told.answers["cut"][1]
    assert "more characters" in told.answers["long"][1]
    assert "more characters" in told.answers["whole"][1]
    assert "more rows do not fit" in told.answers["wide"][1]
    assert max(len(text) for _, text in told.answers.values()) < 45_000


def test_what_goes_wrong_is_a_tool_error_that_says_what_to_do(told: Told) -> None:
    wrong = {name: text for name, (is_error, text) in told.answers.items() if is_error}
    assert list(wrong) == ["wrong column", "copy", "file", "too many", "odd time"]
    assert '"nope" not found' in wrong["wrong column"]
    assert "one SELECT" in wrong["copy"]
    assert "disabled by configuration" in wrong["file"]
    assert "less than or equal to 200" in wrong["too many"]
    assert "yesterday" in wrong["odd time"]


def test_a_server_whose_client_is_gone_ends(settings: Settings, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "thermocline", "mcp", "--data-dir", str(settings.data_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdin is not None
        process.stdin.close()
        wait_until(lambda: process.poll() is not None, WAIT_S, "the server has ended")
        assert process.returncode == 0
