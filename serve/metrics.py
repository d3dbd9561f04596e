"""What /metrics shows: what the server counts, and, when asked, what the store holds. docs/http.md lists every one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from thermocline.config import Settings
from thermocline.errors import ThermoclineError
from thermocline.query.status import Status

if TYPE_CHECKING:
    from .service import Service

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for every counter, which says nothing that a restart does not
MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
HEALTH: Final = {"green": 0, "yellow": 1, "red": 2}
WORKER_FRESH_S: Final = 60
"""How old the worker's last word may be for it to count as running."""


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self, settings: Settings) -> None:
        self.registry = CollectorRegistry()
        named: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter("thermocline_http_requests", "Requests answered", ["method", "route", "status"], **named)
        self._seconds = Histogram(
            "thermocline_http_request_seconds", "From the headers to the last byte", ["route"], buckets=SECONDS, **named
        )
        self._refused = Counter("thermocline_http_refused", "Requests refused by a limit or a check", ["reason"], **named)
        self._events = Counter("thermocline_append_events", "Events sent to /v1/events", ["outcome"], **named)
        self._append_seconds = Histogram("thermocline_append_seconds", "From headers to outcomes", buckets=SECONDS, **named)
        self._queries = Counter("thermocline_queries", "Queries ended", ["outcome"], **named)
        self._query_seconds = Histogram("thermocline_query_seconds", "From request to whole answer", buckets=SECONDS, **named)
        self._query_rows = Counter("thermocline_query_rows", "Rows of answers", **named)
        self._query_bytes = Counter("thermocline_query_bytes", "Bytes of answers", **named)
        self._tail_events = Counter("thermocline_tail_events", "Events and gaps sent to tails", **named)
        self._tails_closed = Counter("thermocline_tails_closed", "Tails ended", ["reason"], **named)
        self._slow = Counter("thermocline_slow_readers", "Connections closed because nothing was read", **named)
        self.open_requests = Gauge("thermocline_http_requests_open", "Requests under way", **named)

    def watch(self, service: Service) -> None:
        """Show the service's limits and the store's state too."""
        self.registry.register(_Limits(service))
        self.registry.register(_Store(service))

    def text(self) -> bytes:
        """All of it in Prometheus' format. Blocks while the store is looked at."""
        return bytes(generate_latest(self.registry))

    def answered(self, method: str, route: str, status: int, took_s: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(took_s)

    def refused(self, reason: str) -> None:
        self._refused.labels(reason).inc()

    def appended(self, outcomes: Sequence[Mapping[str, Any]], took_s: float) -> None:
        for outcome in ("stored", "duplicate", "refused", "not_stored", "unknown"):
            count = sum(("duplicate" if one.get("duplicate") else one.get("outcome")) == outcome for one in outcomes)
            self._events.labels(outcome).inc(count)
        self._append_seconds.observe(took_s)

    def queried(self, outcome: str, took_s: float, rows: int, size: int) -> None:
        self._queries.labels(outcome).inc()
        self._query_seconds.observe(took_s)
        self._query_rows.inc(rows)
        self._query_bytes.inc(size)

    def tailed(self, count: int) -> None:
        self._tail_events.inc(count)

    def tail_closed(self, reason: str) -> None:
        self._tails_closed.labels(reason).inc()

    def slow_reader(self) -> None:
        self._slow.inc()


class _Limits:
    """Each bound of the server beside what is taken of it."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        service = self._service
        limits = service.settings.serve
        used = GaugeMetricFamily("thermocline_limit_used", "What is taken of a bound of the server", labels=["limit"])
        most = GaugeMetricFamily("thermocline_limit_max", "The bound", labels=["limit"])
        bounds: dict[str, tuple[float, float]] = {
            "connections": (service.connections(), limits.connections_max),
            "bodies_bytes": (service.bodies.taken, service.bodies.size),
            "append_threads": (service.appending.borrowed_tokens, limits.append_threads),
            "read_threads": (service.reading.borrowed_tokens, limits.read_threads),
            "tail_threads": (service.tailing.borrowed_tokens, limits.tail_threads),
            "queries": (service.queries.taken, service.queries.size),
            "answers": (service.answers.taken, limits.answers_max),
            "tails": (service.tails.taken, limits.tails_max),
            "recent_bytes": (service.store.recent_bytes, service.settings.query.recent_bytes_max),
        }
        for name, (taken, size) in bounds.items():
            used.add_metric([name], taken)
            most.add_metric([name], size)
        yield used
        yield most
        yield gauge("thermocline_audit_lines", "Lines written to the audit log", service.audit.lines)
        yield gauge("thermocline_audit_failures", "Lines that could not be written", service.audit.failures)
        yield gauge("thermocline_started_seconds", "When the server started, Unix time", service.started_s)


class _Store:
    """What the store holds, and how near it is to its bounds; only `thermocline_store_up` 0 while it cannot be asked."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        try:
            status = self._service.status()
        except ThermoclineError:
            yield gauge("thermocline_store_up", "Whether the store can be asked", 0)
            return
        yield gauge("thermocline_store_up", "Whether the store can be asked", 1)
        yield from store_metrics(status, self._service.settings)
        yield from worker_metrics(status.worker or {})


def store_metrics(status: Status, settings: Settings) -> Iterator[Metric]:
    """A status as metrics."""
    hot, warm = settings.hot, settings.warm
    yield gauge("thermocline_health", "0 green, 1 yellow, 2 red", HEALTH[status.health])
    for name, what in (("events", "Events"), ("bytes", "Bytes"), ("files", "Files")):
        family = GaugeMetricFamily(f"thermocline_tier_{name}", f"{what} of a tier; hot is what has not settled", labels=["tier"])
        for tier in status.tiers:
            family.add_metric([tier.tier], getattr(tier, name))
        yield family
    waiting = next(tier for tier in status.tiers if tier.tier == "hot")
    yield gauge("thermocline_unsettled_bytes_max", "Beyond it append sheds (hot.unsettled_bytes_max)", hot.unsettled_bytes_max)
    yield gauge(
        "thermocline_oldest_unsettled_seconds", "How long the oldest event waits to settle", status.oldest_unsettled_s or 0
    )
    yield gauge("thermocline_log_bytes", "Payload in Redis' logs, settled and not", status.cached.bytes + waiting.bytes)
    yield gauge("thermocline_log_bytes_max", "Bound of it (hot.log_bytes_max)", hot.log_bytes_max)
    yield gauge("thermocline_cached_events", "Settled events that Redis still has", status.cached.events)
    yield gauge("thermocline_cached_bytes", "Their payload", status.cached.bytes)
    yield gauge("thermocline_warm_bytes_max", "Beyond it settle stops (warm.bytes_max); 0 is no limit", warm.bytes_max)
    levels = GaugeMetricFamily("thermocline_segments", "Segments", labels=["level"])
    for level, count in {0: 0, **status.segments_by_level}.items():
        levels.add_metric([str(level)], count)
    yield levels
    yield gauge("thermocline_rejected_events", "Events that settle could not use, ever", status.rejected)
    yield gauge("thermocline_lost_events", "Acknowledged events declared lost, ever", status.lost)
    yield gauge("thermocline_redis_used_bytes", "Memory Redis uses", status.redis.used_bytes)
    yield gauge("thermocline_redis_bytes_max", "Its maxmemory; 0 is no limit", status.redis.bytes_max)
    yield gauge("thermocline_redis_write_ok", "Whether Redis could write to its disk", status.redis.write_ok)
    overdue = status.overdue
    yield gauge(
        "thermocline_archive_overdue_seconds",
        "How long the oldest due day waits to be archived",
        overdue.waits_s if overdue else 0,
    )
    yield gauge("thermocline_damaged_objects", "Stored objects found damaged", status.scrub.damaged if status.scrub else 0)
    log = settings.namespace_dir / "ledger.db-wal"
    yield gauge("thermocline_ledger_wal_bytes", "Size of the ledger's write-ahead log", log.stat().st_size if log.exists() else 0)


def worker_metrics(said: Mapping[str, Any]) -> Iterator[Metric]:
    """What the worker last said of itself as metrics."""
    running = bool(said.get("running")) and float(said.get("age_s", 0)) < WORKER_FRESH_S
    yield gauge("thermocline_worker_running", "Whether a worker has spoken within the last minute", running)
    failures = GaugeMetricFamily("thermocline_worker_failures", "Failures in a row of a job of the worker", labels=["job"])
    for job, count in (said.get("failures") or {}).items():
        failures.add_metric([job], count)
    yield failures
    yield gauge("thermocline_mirror_lag_seconds", "How far behind the mirror is", float(said.get("mirror_lag_s") or 0))
    yield gauge(
        "thermocline_settled_seconds",
        "When the worker last settled, Unix time; 0 never",
        float(said.get("settled_us") or 0) / 1e6,
    )
    yield gauge(
        "thermocline_archived_seconds", "When it last archived, Unix time; 0 never", float(said.get("archived_us") or 0) / 1e6
    )
    yield gauge(
        "thermocline_verified_seconds", "When it last verified, Unix time; 0 never", float(said.get("verified_us") or 0) / 1e6
    )


def gauge(name: str, help_text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, help_text, value=float(value))
