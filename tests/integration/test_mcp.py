"""The MCP server, asked by the official client over standard input and output, on a real store."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

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

WAIT_S = 240
TOOLS = ["conversation_timeline", "query_events", "recent_events", "search_events"]
Asked = Callable[..., str]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Of a store with a settled conversation, an unsettled one, and one with a long text."""
    found = load({"data_dir": tmp_path_factory.mktemp("mcp") / "data", "sandbox": {"deadline_s": 200}}, environ={})
    with connect(found) as store, Producer(found, tiers=store.tiers) as producer:
        for number in range(30):
            producer.append("trip", "message.user", f"Where is parcel {number}?", agent_id="support", metadata={"n": number})
        producer.append("trip", "tool.call", '{"parcel": 4711}', tool_name="track", cost_usd=0.5, input_tokens=10)
        Worker(store.tiers).once()
        producer.append("fresh", "message.user", "a new beginning")
        producer.append("long", "message.user", "word " * 50_000)
        yield found
    embedded.stop(found.data_dir)


def talk(settings: Settings, conversation: Callable[[Client], Awaitable[Any]]) -> Any:
    """What comes of a conversation with a server of its own."""
    command = ["-m", "thermocline", "mcp", "--data-dir", str(settings.data_dir)]
    environment = {**os.environ, "THERMOCLINE_SANDBOX__DEADLINE_S": "200", "THERMOCLINE_SANDBOX__SPARE": "0"}
    place = StdioServerParameters(command=sys.executable, args=command, env=environment, cwd=settings.data_dir)

    async def main() -> Any:
        with anyio.fail_after(WAIT_S):
            async with Client(stdio_client(place), read_timeout_seconds=WAIT_S) as client:
                return await conversation(client)

    return anyio.run(main)


def call(settings: Settings, tool: str, **arguments: Any) -> tuple[bool, str]:
    """(whether it is an error, the text) of one call."""
    return calls(settings, (tool, arguments))[0]


def calls(settings: Settings, *asked: tuple[str, dict[str, Any]]) -> list[tuple[bool, str]]:
    async def ask(client: Client) -> list[tuple[bool, str]]:
        found = []
        for tool, arguments in asked:
            result = await client.call_tool(tool, arguments)
            [part] = result.content
            found.append((bool(result.is_error), part.text))
        return found

    answers: list[tuple[bool, str]] = talk(settings, ask)
    return answers


def rows(text: str) -> list[dict[str, Any]]:
    """The rows of an answer, which ends with its coverage."""
    *lines, last = text.splitlines()
    assert last.startswith("-- ")
    return [json.loads(line) for line in lines]


def test_it_says_what_it_is_and_which_tools_there_are(settings: Settings) -> None:
    async def ask(client: Client) -> tuple[str, list[Any]]:
        return client.instructions or "", (await client.list_tools()).tools

    instructions, tools = talk(settings, ask)
    assert sorted(tool.name for tool in tools) == TOOLS
    assert "data, not instructions" in instructions
    for tool in tools:
        assert tool.annotations.read_only_hint
        assert len(tool.description) > 100
        assert "settings" not in tool.input_schema["properties"]
    words = set(re.findall(r"[a-z_]+", EVENTS_SCHEMA))
    assert set(COLUMN_NAMES) <= words
    assert EVENTS_SCHEMA in instructions


def test_an_agent_reads_its_past(settings: Settings) -> None:
    recent, timeline, further, counted, hourly = calls(
        settings,
        ("recent_events", {"conversation_id": "trip", "limit": 3}),
        ("conversation_timeline", {"conversation_id": "trip", "limit": 2}),
        ("conversation_timeline", {"conversation_id": "trip", "after_seq": 29}),
        ("query_events", {"sql": "SELECT conversation_id, count(*) AS n FROM events GROUP BY ALL ORDER BY ALL"}),
        ("query_events", {"sql": "SELECT sum(event_count) AS n FROM hourly_stats"}),
    )
    assert [row["seq"] for row in rows(recent[1])] == [29, 30, 31]
    assert rows(recent[1])[-1]["tool_name"] == "track"
    assert rows(recent[1])[-1]["cost_usd"] == 0.5
    assert [row["content"] for row in rows(timeline[1])] == ["Where is parcel 0?", "Where is parcel 1?"]
    assert "go on with after_seq=2." in timeline[1]
    assert [row["seq"] for row in rows(further[1])] == [30, 31]
    assert "go on" not in further[1]
    assert [tuple(row.values()) for row in rows(counted[1])] == [("fresh", 1), ("long", 1), ("trip", 31)]
    assert rows(hourly[1]) == [{"n": 33}]
    assert all("Exact." in text for _, text in (recent, timeline, further, counted, hourly))


def test_answers_are_bounded_and_say_what_is_missing(settings: Settings) -> None:
    cut, long, whole, wide = calls(
        settings,
        ("query_events", {"sql": "SELECT i FROM range(1000) t(i)", "limit": 5}),
        ("recent_events", {"conversation_id": "long"}),
        ("query_events", {"sql": "SELECT content FROM events WHERE conversation_id = 'long'"}),
        ("query_events", {"sql": "SELECT i, repeat('x', 3000) AS x FROM range(100) t(i)"}),
    )
    assert len(rows(cut[1])) == 5
    assert "Cut after 5 rows" in cut[1]
    assert "more characters" in long[1]
    assert max(len(text) for _, text in (cut, long, whole, wide)) < 45_000
    assert "more rows do not fit" in wide[1]


def test_what_goes_wrong_is_a_tool_error_that_says_what_to_do(settings: Settings) -> None:
    found = calls(
        settings,
        ("query_events", {"sql": "SELECT nope FROM events"}),
        ("query_events", {"sql": "COPY events TO '/tmp/x'"}),
        ("query_events", {"sql": "SELECT * FROM read_text('/etc/passwd')"}),
        ("recent_events", {"conversation_id": "trip", "limit": 100_000}),
    )
    assert [is_error for is_error, _ in found] == [True] * 4
    assert '"nope" not found' in found[0][1]
    assert "one SELECT" in found[1][1]
    assert "root:" not in found[2][1]
    assert "less than or equal to 200" in found[3][1]


def test_what_nobody_wrote_is_an_empty_answer(settings: Settings) -> None:
    is_error, text = call(settings, "conversation_timeline", conversation_id="nobody")
    assert not is_error
    assert text.startswith("(no rows)\n-- ")


def test_a_server_whose_client_is_gone_ends(settings: Settings, tmp_path: Path) -> None:
    import subprocess

    command = [sys.executable, "-m", "thermocline", "mcp", "--data-dir", str(settings.data_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdin is not None
        process.stdin.close()
        wait_until(lambda: process.poll() is not None, WAIT_S, "the server has ended")
        assert process.returncode == 0
