"""Very many conversations, one very long one, very large events: what they take is bounded, and everything is found again."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.archived import keep_warm
from tests.archiving import settings_for
from tests.servers import RedisServer
from thermocline.archiver.trim import Trimmer
from thermocline.archiver.worker import Worker
from thermocline.errors import InvalidEvent
from thermocline.event import EVENT_BYTES_MAX, Event
from thermocline.ingest.append import Client
from thermocline.ingest.line import line_of
from thermocline.ingest.producer import Producer
from thermocline.ingest.validate import fields_of
from thermocline.store import Store, connect
from thermocline.tiers.cold_schema import KINDS

MIB = 1 << 20
DAY_US = 86_400_000_000
HEAD_BYTES_MAX = 70
"""Of a conversation in Redis, for ever: docs/operations.md says 50 to plan with."""
KEEP_ALL = {"rules": [{"name": "all", "keep": True}]}
Record = Callable[[str, object], None]


@pytest.mark.parametrize("conversations", [5000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_a_million_conversations_take_few_keys_and_bytes_of_redis_and_few_files(
    tmp_path: Path, server: RedisServer, conversations: int, record_property: Record
) -> None:
    """The ring has fewer of them: the bounds are per conversation."""
    hot = {"buckets": min(8192, conversations // 40), "cache_window_s": 1, "log_grace_s": 0, "durable_lag_s": 0, "timeout_s": 60}
    settings = settings_for(tmp_path, server, hot=hot, sampling=KEEP_ALL)
    old_us = (time.time_ns() // 1000 // DAY_US - 9) * DAY_US
    with connect(keep_warm(settings)) as store, Client(settings, tiers=store.tiers) as client:
        empty = store.tiers.hot.facts().used_memory
        for start in range(0, conversations, 50_000):
            client.append_many(
                {"conversation_id": f"conversation-{number}", "event_type": "t", "timestamp": old_us}
                for number in range(start, min(conversations, start + 50_000))
            )
            Worker(store.tiers).once()
        call = store.tiers.hot.link.call
        heads = call("KEYS", "*:h:*")
        assert len(heads) <= settings.hot.shards * settings.hot.buckets
        all_of = store.tiers.hot.link.pipeline
        assert sum(all_of([("HLEN", name) for name in heads])) == conversations
        head_bytes = sum(all_of([("MEMORY", "USAGE", name, "SAMPLES", 0) for name in heads]))
        clock_s = [0.0]
        trimmer = Trimmer(store.tiers, monotonic=lambda: clock_s[0])
        for clock_s[0] in (0.0, settings.hot.cache_window_s):  # as if that had passed, for the logs and for what points into them
            trimmer.step()
        all_of([("UNLINK", name) for name in call("KEYS", "*:c:*")])
        used = store.tiers.hot.facts().used_memory - empty
        assert len(call("KEYS", "*")) - len(heads) < 10 * settings.hot.shards  # DBSIZE counts what has just expired
        if conversations >= 1_000_000:  # with fewer, the hashes themselves are most of it
            assert head_bytes < HEAD_BYTES_MAX * conversations
            assert used < 2 * HEAD_BYTES_MAX * conversations
        assert len(store.tiers.ledger.view().segments) < 12
    with connect(settings) as store, Client(settings, tiers=store.tiers) as client:
        assert Worker(store.tiers).once().archived_kept == conversations
        view, batches = store.tiers.ledger.view(), len(store.tiers.ledger.batches())
        assert batches == 1 + (conversations - 1) // settings.cold.archive_rows_max
        full = sum(file.file_bytes for file in view.files) // settings.cold.file_bytes_max
        assert len(view.files) <= batches * len(KINDS) + full
        assert store.sql("SELECT count(*) FROM conversation_summary").fetchall() == [(conversations,)]
        assert client.append("conversation-7", "t", "again").seq == 2
        timed: dict[str, float] = {}
        with timing(timed, "history"):
            query = "SELECT seq FROM events WHERE conversation_id = 'conversation-7' ORDER BY seq"
            assert store.sql(query).fetchall() == [(1,), (2,)]
        with timing(timed, "recent"):
            assert len(store.recent("conversation-7").fetchall()) == 2
        assert store.verify().problems == ()
    record_property("redis_bytes_each", [round(head_bytes / conversations, 1), round(used / conversations, 1)])
    record_property("files", [(file.kind, file.file_bytes) for file in view.files])
    record_property("seconds", timed)


@pytest.mark.parametrize("events", [20_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_a_conversation_of_a_million_events_settles_merges_and_is_read_like_any_other(
    tmp_path: Path, server: RedisServer, events: int, record_property: Record
) -> None:
    rows_max = events // 4
    hot = {"cache_window_s": 0, "log_grace_s": 0, "durable_lag_s": 0, "timeout_s": 60}
    settings = settings_for(tmp_path, server, hot=hot, warm={"segment_rows_max": rows_max})
    with connect(settings) as store:
        with Producer(settings) as producer:
            for number in range(events):
                producer.append("long", "output.chunk", str(number))
                if number % 100 == 0:
                    producer.append(f"short {number % 700}", "output.chunk", str(number))
                if (number + 1) % (events // 5) == 0:
                    producer.flush()
                    Worker(store.tiers).once()
        assert Worker(store.tiers).once().problem is None
        segments = store.tiers.ledger.view().segments
        assert max(one.rows for one in segments) <= 2 * rows_max, "a merge splits a conversation that is larger than a segment"
        timed: dict[str, float] = {}
        with timing(timed, "history"):
            [(found, last, distinct, right)] = store.sql(
                "SELECT count(*), max(seq), count(DISTINCT seq), bool_and(content = (seq - 1)::VARCHAR) FROM events "
                "WHERE conversation_id = 'long'"
            ).fetchall()
        assert (found, last, distinct, right) == (events, events, events, True)
        with timing(timed, "recent"):
            newest = store.recent("long", 100).fetchall()
        assert [row[2] for row in newest] == list(range(events - 99, events + 1))
        with timing(timed, "range"):
            query = "SELECT count(*) FROM events WHERE conversation_id = 'long' AND seq BETWEEN 1000 AND 1999"
            assert store.sql(query).fetchall() == [(1000,)]
        with Client(settings, tiers=store.tiers) as client:
            assert client.append("long", "t", "last", expected_seq=events).seq == events + 1
        record_property("seconds", timed)
        record_property("segments", [(one.level, one.rows, one.file_bytes) for one in segments])
        assert store.verify(deep=True).problems == ()


class timing:
    """How long the block took goes into `into[name]`."""

    def __init__(self, into: dict[str, float], name: str) -> None:
        self._into, self._name = into, name

    def __enter__(self) -> None:
        self._begin = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._into[self._name] = round(time.monotonic() - self._begin, 3)


@pytest.mark.parametrize("events", [24, pytest.param(600, marks=pytest.mark.long)])
def test_events_of_one_mebibyte_go_through_all_tiers_and_come_back_byte_for_byte(
    tmp_path: Path, server: RedisServer, events: int
) -> None:
    hot = {"cache_window_s": 0, "log_grace_s": 0, "durable_lag_s": 0}
    settings = settings_for(tmp_path, server, hot=hot, sampling=KEEP_ALL)
    old_us = (time.time_ns() // 1000 // DAY_US - 9) * DAY_US
    short = Event(conversation_id="c0", event_type="t", content="x", timestamp=old_us)
    room = EVENT_BYTES_MAX - len(line_of(fields_of(short), old_us).payload) + len(short.content)
    texts = [os.urandom(room // 2 + 1).hex()[:room] for _ in range(6)]
    with connect(keep_warm(settings)) as store, Client(settings, tiers=store.tiers) as client:
        for start in range(0, events, 24):
            client.append_many(
                {"conversation_id": f"c{number % 3}", "event_type": "t", "content": texts[number % 6], "timestamp": old_us}
                for number in range(start, start + 24)
            )
            check_whole(store, texts, start + 24)
            report = Worker(store.tiers).once()
            assert (report.problem, report.settled_events) == (None, 24)
            check_whole(store, texts, start + 24)
        assert [row[2] for row in store.recent("c0", 6).fetchall()] == list(range(events // 3 - 5, events // 3 + 1))
    with connect(settings) as store, Client(settings, tiers=store.tiers) as client:
        assert Worker(store.tiers).once().archived_kept == events
        check_whole(store, texts, events)
        with pytest.raises(InvalidEvent, match=f"at most {EVENT_BYTES_MAX:,}: split it over several events"):
            client.append("c0", "t", texts[0] + "x", timestamp=old_us)
        with pytest.raises(InvalidEvent, match=r"event 1: content: .*at most"):
            client.append_many({"conversation_id": "c0", "event_type": "t", "content": text} for text in ("x", "y" * 2 * MIB))
        check_whole(store, texts, events)
        assert store.verify(deep=True).problems == ()


def check_whole(store: Store, texts: list[str], events: int) -> None:
    """The store has these texts in turn, so many in all."""
    found = store.sql("SELECT md5(content), count(*) FROM events GROUP BY ALL").fetchall()
    digests = [hashlib.md5(text.encode()).hexdigest() for text in texts]
    assert dict(found) == Counter(digests[number % len(texts)] for number in range(events))
