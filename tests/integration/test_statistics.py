"""The statistics views equal the same computed from the events, before and after merges, with late and backfilled events."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.servers import RedisServer
from tests.site import Site, chats
from thermocline.archiver.worker import Worker
from thermocline.config import load
from thermocline.event import Event
from thermocline.ingest.append import Client
from thermocline.sample_import import events_of, load_runs
from thermocline.store import Store, connect
from thermocline.tiers import rollups
from thermocline.tiers.opening import open_tiers

HOURLY = """
SELECT hour, conversation_id, event_count::BIGINT AS event_count, total_bytes::BIGINT AS total_bytes
FROM hourly_stats ORDER BY ALL
"""
HOURLY_FROM_EVENTS = """
SELECT date_trunc('hour', timestamp) AS hour, conversation_id, count(*) AS event_count,
       sum(strlen(content))::BIGINT AS total_bytes
FROM events GROUP BY ALL ORDER BY ALL
"""
SUMMARY = """
SELECT conversation_id, started_at, ended_at, total_events::BIGINT AS total_events, task_count::BIGINT AS task_count,
       interventions::BIGINT AS interventions
FROM conversation_summary ORDER BY ALL
"""
SUMMARY_FROM_EVENTS = """
SELECT conversation_id, min(timestamp) AS started_at, max(timestamp) AS ended_at, count(*) AS total_events,
       count(DISTINCT task_id) AS task_count,
       count(*) FILTER (event_type = 'intervention' OR event_type LIKE 'intervention.%') AS interventions
FROM events GROUP BY ALL ORDER BY ALL
"""
SUMS = (
    "SELECT hour, sum(event_count) AS n, sum(total_bytes) AS size FROM {} GROUP BY hour ORDER BY ALL",
    "SELECT conversation_id, min(hour), sum(event_count) AS n FROM {} GROUP BY 1 HAVING sum(event_count) > 3 ORDER BY ALL",
    "SELECT sum(total_bytes) / sum(event_count) FROM {} WHERE conversation_id > 'c'",
)
"""Of these several rows with one key are as good as one, which the store makes use of."""
DAY_US = 86_400_000_000


def assert_equal(store: Store) -> int:
    """Both views against the events; how many conversations there are."""
    assert store.sql(HOURLY).to_arrow().to_pylist() == store.sql(HOURLY_FROM_EVENTS).to_arrow().to_pylist()
    for query in SUMS:
        wrapped = query.format("(SELECT * FROM hourly_stats)")
        assert store.sql(query.format("hourly_stats")).to_arrow().equals(store.sql(wrapped).to_arrow())
    summary = store.sql(SUMMARY).to_arrow().to_pylist()
    assert summary == store.sql(SUMMARY_FROM_EVENTS).to_arrow().to_pylist()
    return len(summary)


def test_the_views_equal_the_events_at_every_step(data_dir: Path) -> None:
    warm = {"day_rows_min": 100, "fan_in": 2, "rollup_rows_min": 200, "purge_grace_s": 0, "window_days": 10_000}
    settings = load({"data_dir": data_dir, "warm": warm, "hot": {"durable_lag_s": 0, "append_fsync": "always"}}, environ={})
    now_us = time.time_ns() // 1000
    real = [Event(**event) for event in events_of(load_runs(), end_us=now_us)]
    late = [
        Event(
            conversation_id=event.conversation_id,
            event_type="intervention.late",
            task_id=f"late-{number % 3}",
            timestamp=now_us - number * DAY_US,
        )
        for number, event in enumerate(real[:40])
    ]
    backfilled = [
        Event(
            conversation_id=f"old-{number % 17}",
            event_type="intervention",
            content="é" * number,
            timestamp=now_us - number * 13 * DAY_US // 7,
        )
        for number in range(300)
    ]
    with connect(settings) as store, open_tiers(settings) as tiers, Client(settings) as client:
        for part in (real[:500], real[500:], late, backfilled):
            client.append_many(part)
            before = assert_equal(store)
            Worker(tiers).once()
            assert assert_equal(store) == before
        client.append_many(late)
        assert before == assert_equal(store)
        levels = {segment.level for segment in tiers.ledger.view().segments}
        assert max(levels) >= 1
        assert store.verify(deep=True).ok


def test_a_second_pass_of_the_worker_changes_nothing(data_dir: Path) -> None:
    settings = load({"data_dir": data_dir, "warm": {"purge_grace_s": 0}}, environ={})
    with open_tiers(settings) as tiers, Client(settings) as client:
        for part in range(3):
            client.append_many(Event(conversation_id=f"chat-{n}", event_type="t", content=str(part)) for n in range(50))
            Worker(tiers).once()
        once = tiers.ledger.view()
        files = sorted(path.name for path in (settings.namespace_dir / "segments").iterdir())
        Worker(tiers).once()
        again = tiers.ledger.view()
        assert (again.segments, again.shards) == (once.segments, once.shards)
        assert files == sorted(path.name for path in (settings.namespace_dir / "segments").iterdir())


def test_segments_without_totals_by_hour_count_by_what_they_have(
    tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Site(tmp_path / "data", server.url, warm={"rollup_rows_min": 100}) as site:
        for count, as_before in ((150, True), (30, True), (150, False), (30, False)):
            with monkeypatch.context() as older:
                if as_before:
                    older.setattr(rollups, "create_total", lambda schema, rows: "SELECT 1")
                site.append(chats(count))
                site.settle()
        site.append(chats(7))
        assert_equal(site.store)
        [(events, size)] = site.store.sql("SELECT sum(event_count), sum(total_bytes) FROM hourly_stats").fetchall()
        assert (events, size) == site.store.sql("SELECT count(*), sum(strlen(content)) FROM events").fetchone()
        assert events == 367
        assert site.store.verify(deep=True).problems == ()
