"""Following: starts, positions, filters, gaps, restarts; exports and replays."""

from __future__ import annotations

import datetime as dt
import io
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars
import pytest

from tests.archiving import append, corrupt_block, settings_for
from tests.conftest import StartServer
from tests.servers import RedisServer
from tests.tidying import Archive
from thermocline.archiver.worker import Worker
from thermocline.config import Settings
from thermocline.errors import QueryRefused, StoreReplaced, TierUnavailable
from thermocline.ingest.append import Client
from thermocline.ndjson import parse_line
from thermocline.query import replay
from thermocline.query.cursor import parse_cursor
from thermocline.query.follow import Followed, Tail
from thermocline.query.gaps import Gap
from thermocline.store import Store, connect


@pytest.fixture
def settings(tmp_path: Path, server: RedisServer) -> Settings:
    return settings_for(tmp_path, server)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with connect(settings) as opened:
        yield opened


def contents(items: list[Any]) -> list[str]:
    return [item.event["content"] for item in items]


def everything(tail: Tail) -> list[Any]:
    """What there is now."""
    found: list[Any] = []
    while (items := tail.read(timeout_s=0)) or not tail.caught_up:
        found += items
    return found


def trim_all(store: Store) -> None:
    for state in store.tiers.ledger.view().shards:
        store.tiers.hot.trim(state.shard, state.position, settled_events=state.events, settled_bytes=state.bytes, others_bytes=0)


def test_a_tail_from_now_gives_what_is_appended_later(store: Store) -> None:
    append(store.tiers, 5)
    with store.tail() as tail:
        assert tail.read(timeout_s=0) == [] and tail.caught_up
        append(store.tiers, 3, start=5)
        assert sorted(contents(tail.read(timeout_s=30))) == ["5", "6", "7"]


def test_a_reader_that_waits_is_woken_by_an_append(store: Store) -> None:
    tail, found = store.tail("c0"), []
    waiting = threading.Thread(target=lambda: found.extend(tail.read(timeout_s=60)))
    waiting.start()
    append(store.tiers, 2, conversations=1)
    waiting.join(60)
    assert [item.event["seq"] for item in found][:1] == [1]


def test_every_position_resumes_exactly_after_its_event_from_logs_and_from_segments(store: Store) -> None:
    append(store.tiers, 20)
    items = everything(store.tail(start="begin"))
    assert len(items) == 20
    positions = [item.position for item in items]
    assert all(text.isascii() and text.isprintable() and len(text) < 1024 for text in positions)
    for trimmed in (False, True):
        if trimmed:
            Worker(store.tiers).once()
            trim_all(store)
        for number in (0, 7, 19):
            again = everything(store.tail(start=positions[number]))
            assert sorted(contents(again)) == sorted(contents(items[number + 1 :]))
    middle = store.tail(start=positions[3])
    third = middle.read(3)[-1].position
    assert len(everything(store.tail(start=third))) == 20 - 4 - 3


def test_a_datetime_begins_with_what_was_ingested_from_then_on(store: Store) -> None:
    append(store.tiers, 10)
    border = everything(store.tail(start="begin"))[-1].event["ingested_at"] + dt.timedelta(microseconds=1)
    append(store.tiers, 5, start=10)
    assert sorted(contents(everything(store.tail(start=border)))) == ["10", "11", "12", "13", "14"]
    Worker(store.tiers).once()
    trim_all(store)
    assert sorted(contents(everything(store.tail(start=border)))) == ["10", "11", "12", "13", "14"]


def test_a_conversation_is_followed_from_a_seq_on_across_the_border(store: Store) -> None:
    append(store.tiers, 6, conversations=1)
    Worker(store.tiers).once()
    trim_all(store)
    append(store.tiers, 3, conversations=1, start=6)
    assert [item.event["seq"] for item in everything(store.tail("c0", start=4))] == [4, 5, 6, 7, 8, 9]


def test_types_are_chosen_by_name_or_pattern(store: Store) -> None:
    append(store.tiers, 2, event_type="tool.call")
    append(store.tiers, 2, event_type="tool.result")
    append(store.tiers, 2, event_type="error")
    assert len(everything(store.tail(start="begin", event_types=["tool.*"]))) == 4
    assert len(everything(store.tail(start="begin", event_types=["error", "tool.call"]))) == 4
    with pytest.raises(QueryRefused, match="event_types"):
        store.tail(event_types=[""])


def test_a_line_that_cannot_be_read_is_a_gap_that_says_rejected(store: Store) -> None:
    append(store.tiers, 1, conversations=1)
    corrupt_block(store.tiers, 0)
    append(store.tiers, 1, conversations=1, start=1)
    for _ in ("in the log", "settled"):
        gap, event = everything(store.tail("c0", start="begin"))
        assert isinstance(gap, Gap) and gap[:4] == ("c0", 1, 1, "rejected")
        assert isinstance(event, Followed) and event.event["seq"] == 2
        assert len(everything(store.tail(start=gap.position))) == 1
        Worker(store.tiers).once()
        trim_all(store)


def test_numbers_that_a_killed_redis_may_have_given_are_a_gap_that_says_lost(tmp_path: Path, redis_server: StartServer) -> None:
    server = redis_server(options={"appendfsync": "everysec"})
    with connect(settings_for(tmp_path, server)) as store, store.tail("c0", start="begin") as tail:
        append(store.tiers, 1, conversations=1)
        tail.read(timeout_s=30)
        server.kill()
        server.start()
        append(store.tiers, 1, conversations=1, start=1)
        for reader in (tail, store.tail("c0", start="begin")):
            *_, gap, event = everything(reader)
            assert isinstance(gap, Gap) and gap.reason == "lost" and gap.to_seq - gap.from_seq + 1 >= 1_000_000
            assert event.event["content"] == "1" and event.event["seq"] == gap.to_seq + 1


def test_what_has_expired_is_a_gap_that_says_so(tmp_path: Path, server: RedisServer) -> None:
    with Archive(tmp_path, server, cold={"retention_days": 8}) as archive:
        archive.archive_round()
        assert archive.expire() is not None
        archive.trim()
        [gap] = everything(archive.store.tail("c0", start="begin"))
        assert isinstance(gap, Gap) and gap[:4] == ("c0", 1, 9, "expired")
        assert everything(archive.store.tail("c0", start=gap.position)) == []


def test_a_reader_holds_a_page_of_large_events_at_most(store: Store) -> None:
    append(store.tiers, 12, conversations=1, task_id="t")
    with Client(store.settings, tiers=store.tiers) as client:
        client.append_many([{"conversation_id": "large", "event_type": "t", "content": "x" * 300_000} for _ in range(12)])
    Worker(store.tiers).once()
    trim_all(store)
    for name in ("large", None):
        tail = Tail(store._shared_following(), name, start="begin", page_bytes_max=700_000)
        count = 0
        while (items := tail.read(1, timeout_s=0)) or not tail.caught_up:
            assert sum(len(row["content"]) for row, _ in tail._ready if isinstance(row, dict)) <= 700_000
            count += len(items)
        assert count == (12 if name else 24)


def test_a_position_from_before_redis_was_wiped_is_refused_and_says_what_to_do(store: Store) -> None:
    append(store.tiers, 5)
    tail = store.tail(start="begin")
    position = tail.read()[-1].position
    store.tiers.hot.drop()
    with pytest.raises(StoreReplaced, match="wiped"):
        tail.read(timeout_s=0)
    with pytest.raises(StoreReplaced, match="begin anew"):
        store.tail(start=position)


@pytest.mark.parametrize("start", ["yesterday", "t1.AAAA", 0, 3, True, dt.datetime(2026, 1, 1), 2.5])
def test_what_is_no_place_to_start_at_is_refused(store: Store, start: Any) -> None:
    with pytest.raises(QueryRefused):
        store.tail(start=start)


def test_a_position_that_was_changed_is_refused(store: Store) -> None:
    text = store.tail().position
    assert parse_cursor(text).text() == text
    with pytest.raises(QueryRefused, match="not a position"):
        parse_cursor(text[:-2] + ("AA" if text[-2:] != "AA" else "BB"))


def test_a_tail_of_a_closed_store_says_so(settings: Settings) -> None:
    with connect(settings) as store:
        tail = store.tail()
    with pytest.raises(TierUnavailable, match="store is closed"):
        tail.read(timeout_s=0)


def test_a_shard_gives_later_times_to_later_blocks_whatever_its_clock_does(store: Store) -> None:
    append(store.tiers, 1, conversations=1)
    [cut] = [one for one in store.tiers.hot.cut() if one.events_total]
    ahead_us = cut.newest_us + 3_600_000_000
    store.tiers.hot.link.call("HSET", store.tiers.hot.keys.meta(cut.shard), "t", ahead_us)  # as if its clock had been ahead
    with Client(store.settings, tiers=store.tiers) as client:
        for _ in range(2):
            client.append("c0", "output.chunk", "later")
    times = [item.event["ingested_at"] for item in everything(store.tail("c0", start=2))]
    assert times[0] < times[1] and (times[1] - times[0]) == dt.timedelta(microseconds=1)


EVENTS = [
    {
        "conversation_id": f"c{number % 3}",
        "event_type": ("output.chunk", "tool.call")[number % 2],
        "content": f'{number}\n"\u2028é',
        "cost_usd": number / 7,
        "input_tokens": number,
        "metadata": ('{"a": 1.00}', ' {"b":\n 1e3}', None)[number % 3],
        "timestamp": f"2026-11-20T00:00:{number:02}.000001Z",
    }
    for number in range(30)
]


@pytest.fixture
def filled(store: Store) -> Store:
    with Client(store.settings, tiers=store.tiers) as client:
        client.append_many(EVENTS[:20])
        Worker(store.tiers).once()
        client.append_many(EVENTS[20:])
    return store


def test_exported_lines_appended_again_are_the_same_events(filled: Store, tmp_path: Path, settings: Settings) -> None:
    done = filled.export(tmp_path / "out.ndjson")
    lines = (tmp_path / "out.ndjson").read_bytes().split(b"\n")
    assert done.events == 30 and lines.pop() == b"" and len(lines) == 30
    assert done.bytes == (tmp_path / "out.ndjson").stat().st_size
    with connect(settings.model_copy(update={"namespace": "again"})) as other:
        with Client(other.settings, tiers=other.tiers) as client:
            client.append_many([parse_line(line) for line in lines])
        query = "SELECT * EXCLUDE (ingested_at) FROM events ORDER BY conversation_id, seq"
        assert other.sql(query).to_arrow().equals(filled.sql(query).to_arrow())


def test_an_export_has_what_was_asked_for(filled: Store) -> None:
    out = io.BytesIO()
    done = filled.export(
        out,
        conversation_id="c1",
        event_types=["tool.*"],
        since=dt.datetime(2026, 11, 20, 0, 0, 7, tzinfo=dt.UTC),
        until=dt.datetime(2026, 11, 20, 0, 0, 20, tzinfo=dt.UTC),
    )
    assert [json.loads(line)["input_tokens"] for line in out.getvalue().split(b"\n")[:-1]] == [7, 13, 19]
    assert done.events == 3 and done.coverage.exact


def test_parquet_has_every_column_and_row(filled: Store, tmp_path: Path) -> None:
    filled.export(tmp_path / "out.parquet", format="parquet")
    frame = polars.read_parquet(tmp_path / "out.parquet")
    expected = filled.sql("SELECT * FROM events ORDER BY conversation_id, seq").pl()
    assert frame.columns == expected.columns
    assert frame.to_dicts() == expected.to_dicts()


def test_cloudevents_are_what_their_specification_asks_for(filled: Store) -> None:
    lines, batch = io.BytesIO(), io.BytesIO()
    filled.export(lines, format="cloudevents")
    filled.export(batch, format="cloudevents-batch")
    events = json.loads(batch.getvalue())
    assert events == [json.loads(line) for line in lines.getvalue().split(b"\n")[:-1]]
    assert len({(event["source"], event["id"]) for event in events}) == 30
    for event in events:
        assert event["specversion"] == "1.0" and event["source"] == "/thermocline/default"
        assert dt.datetime.fromisoformat(event["time"]).tzinfo is not None
        assert all(name.isalnum() and name.islower() and len(name) <= 20 for name in event)
    assert [event["sequence"] for event in events if event["subject"] == "c2"] == [str(seq) for seq in range(1, 11)]


def test_an_export_that_fails_leaves_the_file_as_it_was(filled: Store, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("before")
    with pytest.raises(QueryRefused, match="format must be one of"):
        filled.export(tmp_path / "out", format="xml")  # type: ignore[arg-type]
    assert (tmp_path / "out").read_text() == "before"


def test_a_replay_keeps_the_pauses_divided_by_its_speed_and_bounded(filled: Store) -> None:
    slept: list[float] = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    items = replay.replayed(
        filled.tail("c0", start=1), speed=2.0, until=4, pause_s_max=10, sleep=sleep, monotonic=lambda: clock[0]
    )
    assert [item.event["seq"] for item in items if isinstance(item, Followed)] == [1, 2, 3, 4]
    assert slept == [1.5, 1.5, 1.5]
    slept.clear()
    assert len(list(replay.replayed(filled.tail("c0"), speed=2.0, until=None, pause_s_max=1, sleep=sleep))) == 0
    found = list(
        replay.replayed(filled.tail("c0", start=8), speed=1.0, until=None, pause_s_max=1, sleep=sleep, monotonic=lambda: clock[0])
    )
    assert len(found) == 3 and slept == [1.0, 1.0]
    assert len(list(filled.replay("c0", speed=math.inf, from_seq=9))) == 2
    with pytest.raises(QueryRefused, match="speed"):
        filled.replay("c0", speed=0)
