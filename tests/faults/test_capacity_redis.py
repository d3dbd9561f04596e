"""A full Redis: appends are refused whole, health says it, the worker makes room, appends go on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.archiving import settings_for
from tests.conftest import StartServer
from thermocline.archiver.worker import Worker
from thermocline.errors import Backpressure, OutcomeUnknown
from thermocline.ingest.append import Client
from thermocline.store import Store, connect

MIB = 1 << 20
EVENT_ID = "0198f3a0-5b7c-7e11-9f00-1234567890ab"


@pytest.mark.parametrize(
    "tight", [False, pytest.param(True, marks=pytest.mark.long)], ids=["maxmemory", "hot.unsettled_bytes_max"]
)
def test_a_full_redis_takes_no_part_of_an_append_says_so_and_is_emptied_by_the_worker(
    tmp_path: Path, redis_server: StartServer, tight: bool
) -> None:
    server = redis_server(options={"appendfsync": "always", "maxmemory": "1gb" if tight else "12mb"})
    limits = {"unsettled_bytes_max": 6 * MIB, "log_bytes_max": 6 * MIB} if tight else {}
    hot = {"cache_window_s": 0, "log_grace_s": 0, "connect_timeout_s": 1, **limits}
    settings = settings_for(tmp_path, server, hot=hot, warm={"settle_bytes": MIB}, ingest={"deadline_s": 1})
    kept: list[str] = []
    with connect(settings) as store, Client(settings, tiers=store.tiers) as client:
        assert store.status().health == "green"
        for _ in range(2):
            with pytest.raises(Backpressure, match=r"hot\.unsettled_bytes_max" if tight else "maxmemory") as caught:
                for number in range(1000):
                    text = os.urandom(200_000).hex()
                    settled(lambda text=text, number=number: client.append(f"c{number % 3}", "t", text))
                    kept.append(text)
            assert caught.value.retry_after_s > 0
            before, name = state(store), f"new {len(kept)}"
            for one, event_id in (("c0", None), (name, None), (name, EVENT_ID)):
                with pytest.raises(Backpressure):
                    settled(lambda one=one, text=text, event_id=event_id: client.append(one, "t", text, event_id=event_id))
            assert state(store) == before
            found = store.status()
            assert found.health == "red"
            assert any("append sheds load" in reason for reason in found.reasons), found.reasons
            for _ in range(2):
                assert Worker(store.tiers).once().problem is None
            assert store.status().health == "green"
        client.append("c0", "t", "last")
        assert sorted(text for (text,) in store.sql("SELECT content FROM events").fetchall()) == sorted([*kept, "last"])
        assert store.verify(deep=True).problems == ()


def settled(append: Callable[[], object]) -> None:
    """Append, and have it settled when a busy machine lets the reply come after the deadline."""
    while True:
        try:
            append()
            return
        except OutcomeUnknown as unknown:
            append = unknown.retry


def state(store: Store) -> list[object]:
    """Everything in Redis, but for what says when."""
    call = store.tiers.hot.link.call
    names = sorted(call("KEYS", "*"))
    return [(name, call("DUMP", name)) for name in names]
