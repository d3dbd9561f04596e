"""A worker whose bucket is in trouble: one line says so, health is red, it tries again, and everything else goes on."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.archived import keep_warm
from tests.s3_front import DROP, HANG, Action, Answer, Front
from tests.s3_servers import Bucket
from tests.waiting import wait_until
from thermocline.archiver import schedule
from thermocline.archiver.worker import Worker
from thermocline.config import Settings, load
from thermocline.ingest.append import Client
from thermocline.store import Store, connect
from thermocline.tiers.s3_requests import CONTINUE_WAIT_S

DAY_US = 86_400_000_000
COUNTS = "SELECT count(*), count(DISTINCT (conversation_id, seq)) FROM events"
PUT_ONLY = ("PUT", "DELETE", "DELETES", "ABORT")
TROUBLES: dict[str, tuple[Action, tuple[str, ...], str]] = {
    "gone": (DROP, (), "the connection broke"),
    "without the bucket": (Answer(404, "NoSuchBucket", "none"), (), "no bucket"),
    "read-only": (Answer(403, "AccessDenied", "Access Denied."), PUT_ONLY, "the keys need s3:ListBucket, GetObject, PutObject"),
    "slow": (HANG, (), "no answer in time"),
    "overloaded": (Answer(503, "SlowDown", "Please reduce your request rate."), (), "the server fails (503 "),
    "full": (Answer(507, "InsufficientStorage", "no room"), PUT_ONLY, "the server is full (507 InsufficientStorage no room)"),
    "with other keys": (Answer(403, "SignatureDoesNotMatch", "no"), (), "the server refuses the keys (SignatureDoesNotMatch)"),
    "an hour off": (
        Answer(403, "RequestTimeTooSkewed", "too large", {"Date": "Sun, 01 Nov 2026 00:00:00 GMT"}),
        (),
        "this machine's clock is off, the server's says Sun, 01 Nov 2026 00:00:00 GMT: set it (NTP)",
    ),
}

TRIED_AGAIN = ("gone", "slow", "overloaded")
"""Until the deadline, which is short for that."""


@pytest.fixture
def front(moto_bucket: Bucket) -> Iterator[Front]:
    with Front(moto_bucket.endpoint_url, lambda kind, number: None) as made:
        yield made


@pytest.fixture
def settings(tmp_path: Any, redis_server: Any, moto_bucket: Bucket, front: Front, trouble: str) -> Settings:
    patience_s = 1.0 if trouble in TRIED_AGAIN else 20.0  # what answers at all may be slow when the machine is
    limits = {"connect_timeout_s": patience_s, "timeout_s": patience_s, "deadline_s": 2 * patience_s + CONTINUE_WAIT_S}
    cold = {"endpoint_url": front.url, **limits}
    server = redis_server(options={"appendfsync": "always"})
    hot = {"shards": 4, "buckets": 64, "durable_lag_s": 0}
    return load(
        {
            "data_dir": str(tmp_path / "data"),
            "redis_url": server.url,
            "hot": hot,
            "cold": cold,
            "cold_url": moto_bucket.url,
            "warm": {"settle_events": 1},
            "worker": {"failures_red": 2, "settle_every_s": 0.1},
        },
        environ={},
    )


IN_SHORT = ("slow", "full", "with other keys")
"""The long ring takes all."""


@pytest.mark.parametrize("trouble", [one if one in IN_SHORT else pytest.param(one, marks=pytest.mark.long) for one in TROUBLES])
def test_a_bucket_in_trouble_holds_up_nothing_but_the_archive(
    settings: Settings, front: Front, trouble: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(schedule, "RETRY_FIRST_S", 0.1)
    caplog.set_level(logging.INFO, "thermocline.worker")
    action, kinds, words = TROUBLES[trouble]
    with connect(keep_warm(settings)) as store, Client(settings, tiers=store.tiers) as client:
        client.append_many(old_events(200))
        Worker(store.tiers).once()
    front.plan = lambda kind, number: action if not kinds or kind in kinds else None
    with connect(settings) as store, Client(settings, tiers=store.tiers) as client:
        worker = Worker(store.tiers)
        worker.start()
        try:
            wait_until(lambda: words in (worker.problem or ""), 90, "health is red and says why")
            append_and_look(store, client, start=200)
            append_and_look(store, client, start=210)
            assert (said(settings)["health"], words in said(settings)["problem"]) == ("red", True)
            wait_until(lambda: said(settings)["failures"]["archive"] > 2, 90, "it is tried again")
            lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("archive: ")]
            assert len([line for line in lines if words in line]) == 1, lines
            assert all("\n" not in line and "Traceback" not in line for line in lines)
            assert archived(store) == 0
            front.plan = lambda kind, number: None
            wait_until(lambda: archived(store) == 220, 90, "it is archived as soon as the bucket is well again")
            wait_until(lambda: worker.problem is None, 90, "health is green")
            assert store.sql(COUNTS).fetchall() == [(220, 220)]
        finally:
            front.plan = lambda kind, number: None
            assert worker.stop(60)
        assert store.verify(deep=True).problems == ()


def append_and_look(store: Store, client: Client, *, start: int) -> None:
    """Ten events more are acknowledged, settle and are found."""
    client.append_many(old_events(10, start=start))
    wait_until(lambda: settled(store) == start + 10, 90, "what is appended settles all the same")
    assert store.sql(COUNTS).fetchall() == [(start + 10, start + 10)]


def said(settings: Settings) -> dict[str, Any]:
    """What the worker shows."""
    shown: dict[str, Any] = json.loads((settings.namespace_dir / "worker.json").read_text())
    return shown


def old_events(count: int, *, start: int = 0) -> list[dict[str, Any]]:
    """Errors, which no policy drops, of nine days ago."""
    first_us = (time.time_ns() // 1000 // DAY_US - 9) * DAY_US
    return [
        {"conversation_id": f"c{number % 5}", "event_type": "error", "content": str(number), "timestamp": first_us + number}
        for number in range(start, start + count)
    ]


def settled(store: Store) -> int:
    return sum(state.events for state in store.tiers.ledger.view().shards)


def archived(store: Store) -> int:
    return sum(row.events_in for row in store.tiers.ledger.batches())
