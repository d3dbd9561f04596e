"""Each metric of docs/http.md is there, is listed, and says what is so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.servers import RedisServer, redis_binaries
from tests.serving import Served, event, served, settings_for
from thermocline.archiver.worker import Worker

ROOT = Path(__file__).parents[2]
Values = dict[tuple[str, ...], float]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("metrics")
    redis = RedisServer(redis_binaries()[-1], folder / "redis", options={"appendfsync": "always"})
    redis.start()
    try:
        with served(settings_for(redis.url, folder / "data")) as running:
            yield running
    finally:
        redis.stop()


@pytest.fixture(scope="module")
def values(server: Served) -> Values:
    """(name, labels' values…) → value, after one of everything: 5 events, 3 stored, 2 of them settled; 2 queries; a tail."""
    with server.client() as client:
        client.post("/v1/events", json=[event(content="a"), event(content="b"), event("c", ""), event("c", "", content="x")])
        Worker(server.service.store.tiers).once()
        client.post("/v1/events", json=event(content="cd"))
        client.post("/v1/query", json={"sql": "SELECT 1 AS n"}).raise_for_status()
        client.post("/v1/query", json={"sql": "SELEC"})
        client.get("/healthz", headers={"Host": "evil.example.org"})
        with client.stream("GET", "/v1/tail?start=begin") as stream:
            lines = stream.iter_lines()  # kept: the stream ends with it
            while not next(lines).startswith("data: "):
                pass
            text = client.get("/metrics").raise_for_status().text
    found: Values = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = [value for name, value in sorted(sample.labels.items()) if name != "le"]
            found[(sample.name, *labels)] = sample.value
    return found


def documented() -> set[str]:
    table = (ROOT / "docs" / "http.md").read_text().partition("## Metrics")[2]
    return set(re.findall(r"^\| `(thermocline_[a-z_]+)`", table, flags=re.MULTILINE))


def test_every_metric_is_documented_and_no_other(values: Values) -> None:
    shown = {re.sub(r"_(bucket|count|sum)$", "", name) for name, *_ in values}
    never_yet = {"thermocline_tails_closed_total", "thermocline_worker_failures"}
    assert documented() - never_yet == shown - never_yet


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (("thermocline_http_requests_total", "POST", "/v1/events", "207"), 1),
        (("thermocline_http_requests_total", "POST", "/v1/query", "400"), 1),
        (("thermocline_http_request_seconds_count", "/v1/query"), 2),
        (("thermocline_http_refused_total", "unknown-host"), 1),
        (("thermocline_http_requests_open",), 2),
        (("thermocline_append_events_total", "stored"), 3),
        (("thermocline_append_events_total", "refused"), 2),
        (("thermocline_append_events_total", "duplicate"), 0),
        (("thermocline_append_seconds_count",), 2),
        (("thermocline_queries_total", "answered"), 1),
        (("thermocline_queries_total", "refused"), 1),
        (("thermocline_query_seconds_count",), 2),
        (("thermocline_query_rows_total",), 1),
        (("thermocline_limit_used", "tails"), 1),
        (("thermocline_limit_max", "tails"), 250),
        (("thermocline_limit_used", "connections"), 2),
        (("thermocline_limit_max", "connections"), 1000),
        (("thermocline_limit_used", "queries"), 0),
        (("thermocline_limit_max", "queries"), 34),
        (("thermocline_limit_used", "answers"), 0),
        (("thermocline_limit_used", "recent_bytes"), 0),
        (("thermocline_limit_max", "answers"), 16),
        (("thermocline_limit_used", "bodies_bytes"), 0),
        (("thermocline_limit_max", "bodies_bytes"), 128 << 20),
        (("thermocline_limit_used", "append_threads"), 0),
        (("thermocline_limit_max", "append_threads"), 16),
        (("thermocline_limit_max", "read_threads"), 2),
        (("thermocline_limit_used", "read_threads"), 1),
        (("thermocline_limit_max", "tail_threads"), 2),
        (("thermocline_audit_lines",), 2),
        (("thermocline_audit_failures",), 0),
        (("thermocline_slow_readers_total",), 0),
        (("thermocline_store_up",), 1),
        (("thermocline_health",), 0),
        (("thermocline_tier_events", "hot"), 1),
        (("thermocline_tier_events", "warm"), 2),
        (("thermocline_tier_events", "cold"), 0),
        (("thermocline_tier_files", "warm"), 1),
        (("thermocline_tier_bytes", "cold"), 0),
        (("thermocline_unsettled_bytes_max",), 512 << 20),
        (("thermocline_log_bytes_max",), 1 << 30),
        (("thermocline_warm_bytes_max",), 0),
        (("thermocline_segments", "0"), 1),
        (("thermocline_rejected_events",), 0),
        (("thermocline_lost_events",), 0),
        (("thermocline_redis_bytes_max",), 0),
        (("thermocline_redis_write_ok",), 1),
        (("thermocline_archive_overdue_seconds",), 0),
        (("thermocline_damaged_objects",), 0),
        (("thermocline_worker_running",), 0),
        (("thermocline_mirror_lag_seconds",), 0),
        (("thermocline_verified_seconds",), 0),
        (("thermocline_archived_seconds",), 0),
    ],
    ids=lambda part: "/".join(part) if isinstance(part, tuple) else "",
)
def test_a_metric_says_what_is_so(values: Values, sample: tuple[str, ...], expected: float) -> None:
    assert values[sample] == expected


@pytest.mark.parametrize(
    "name",
    [
        "thermocline_query_bytes_total",
        "thermocline_tail_events_total",
        "thermocline_started_seconds",
        "thermocline_redis_used_bytes",
        "thermocline_log_bytes",
        "thermocline_cached_events",
        "thermocline_cached_bytes",
        "thermocline_ledger_wal_bytes",
        "thermocline_oldest_unsettled_seconds",
    ],
)
def test_a_metric_has_moved(values: Values, name: str) -> None:
    assert values[(name,)] > 0
