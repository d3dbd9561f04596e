"""What was used, exact after sampling; and which tier the events of a conversation are in, wherever they have moved."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import RedisServer
from tests.serving import settings_for
from thermocline.archiver.worker import Worker
from thermocline.ingest.append import Client
from thermocline.store import Store, connect

DAY_US = 86_400_000_000


@pytest.fixture
def store(data_dir: Path, server: RedisServer) -> Iterator[Store]:
    with connect(settings_for(server.url, data_dir)) as opened:
        yield opened


def answer(conversation: str, at_us: int, **more: Any) -> dict[str, Any]:
    used = {"model": "m-1", "input_tokens": 100, "output_tokens": 10, "cost_usd": 0.5}
    return {
        "conversation_id": conversation,
        "event_type": "message.assistant",
        "content": "ab",
        "timestamp": at_us,
        **used,
        **more,
    }


def test_usage_is_exact_and_places_are_right_when_events_are_hot_warm_cold_and_sampled_out(store: Store) -> None:
    now_us = time.time_ns() // 1000
    with Client(store.settings, tiers=store.tiers) as client:
        client.append_many([answer("a", now_us - 30 * DAY_US + n) for n in range(100)])
        client.append_many([answer("a", now_us, model=None), answer("b", now_us)])
        Worker(store.tiers).once()
        client.append_many([answer("a", now_us, event_type="error"), answer("b", now_us, model="m-2")])
    sums = {"events": 0, "content_bytes": 0, "input_tokens": 0, "output_tokens": 0, "cost_usd": 0.0, "errors": 0}
    rows = store.usage().to_arrow().to_pylist()
    for row in rows:
        sums = {name: value + row[name] for name, value in sums.items()}
    assert sums == {
        "events": 104, "content_bytes": 208, "input_tokens": 10_400, "output_tokens": 1040, "cost_usd": 52.0, "errors": 1,
    }  # fmt: skip
    assert [row["month"] for row in rows] == sorted((row["month"] for row in rows), reverse=True)
    assert sum(row["events"] for row in store.usage("b").to_arrow().to_pylist()) == 2
    assert len(store.usage("nobody")) == 0

    runs = store.whereabouts("a").fetchall()
    kept = {seq: tier for first, last, tier in runs for seq in range(first, last + 1)}
    there = [seq for (seq,) in store.sql("SELECT seq FROM events WHERE conversation_id = 'a' ORDER BY seq").fetchall()]
    assert sorted(kept) == there
    assert 0 < sum(tier == "cold" for tier in kept.values()) < 100
    assert (kept[101], kept[102]) == ("warm", "hot")
    assert store.whereabouts("a", 101, 101).fetchall() == [(101, 101, "warm")]
    assert store.whereabouts("nobody").fetchall() == []

    spread = store.spread("a", 102, parts=10).fetchall()
    assert sum(events for _, _, events in spread) == len(there)
    assert {part for part, _, _ in spread} <= set(range(10))
    assert {tier for part, tier, _ in spread if part == 9} >= {"warm", "hot"}
