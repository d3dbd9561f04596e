"""What the overview shows: tiers and the flow between them, jobs, conservation, cost, events over time. Plain data."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from thermocline.archiver.verify import ShardCheck, conservation, sum_problems
from thermocline.query.status import Status
from thermocline.store import Store

from .metrics import WORKER_FRESH_S

Value = TypeVar("Value")
FLOW_S: Final = 60.0
"""Over which the flow between tiers is measured."""
SAMPLES_MAX: Final = 240
REST: Final = 4.0
"""After a value was made, so many times as long nothing is done for it: who looks may take a fifth of a thread."""
GB: Final = 1e9
PRICES: Final[Mapping[str, float]] = {"hot": 3.50, "warm": 0.08, "cold": 0.023}
"""Dollars a month for 10⁹ bytes: memory of a small cloud server, SSD block storage, S3 Standard; list prices of 2026."""
MONTHS_MAX: Final = 12
JOBS: Final = {
    "settle": "Redis to segments",
    "trim": "settled blocks out of Redis",
    "merge": "segments to larger ones",
    "archive": "segments to cold files",
    "tidy": "compact and expire cold files",
    "clean": "objects nothing needs",
    "purge": "files in the trash",
    "verify": "every event accounted for",
    "scrub": "reads everything again",
    "mirror": "copies for another disk",
    "checkpoint": "the ledger's log",
}
PLACES: Final = (
    ("hot", "hot", "in Redis, not settled"),
    ("warm", "warm", "in segments"),
    ("kept", "cold", "archived, kept"),
    ("sampled_out", "cold", "archived, sampled out: counted in rollups"),
    ("erased", "", "expired or erased"),
    ("rejected", "", "could not be used, set aside"),
    ("lost", "", "declared lost"),
)
SPANS: Final = {
    "minutes": (
        "the last hour, by minute",
        60,
        "SELECT epoch(time_bucket(INTERVAL 1 MINUTE, timestamp))::BIGINT AS began, count(*) AS events FROM events"
        " WHERE timestamp >= now() - INTERVAL 1 HOUR GROUP BY began ORDER BY began",
    ),
    "hours": (
        "the last three days, by hour",
        3600,
        "SELECT epoch(hour)::BIGINT AS began, sum(event_count)::BIGINT AS events FROM hourly_stats"
        " WHERE hour >= now() - INTERVAL 72 HOUR GROUP BY began ORDER BY began",
    ),
    "days": (
        "the last 60 days, by day",
        86_400,
        "SELECT epoch(date_trunc('day', hour))::BIGINT AS began, sum(event_count)::BIGINT AS events FROM hourly_stats"
        " WHERE hour >= now() - INTERVAL 60 DAY GROUP BY began ORDER BY began",
    ),
}
SPAN_BARS: Final = {"minutes": 60, "hours": 72, "days": 60}


class Mark(NamedTuple):
    """How many events had come so far to each of the three places, at a time."""

    at_s: float
    appended: int
    settled: int
    archived: int


class Kept:
    """Values that are made anew when they are older than so many seconds, and than what making them took, many times over.
    While one is made, others get the one before. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[str, tuple[float, Any]] = {}
        self._being_made: set[str] = set()

    def get(self, name: str, age_s: float, make: Callable[[], Value]) -> Value:
        with self._lock:
            found = self._made.get(name)
            if found is not None and (time.monotonic() < found[0] or name in self._being_made):
                kept: Value = found[1]
                return kept
            self._being_made.add(name)
        begin_s = time.monotonic()
        try:
            value = make()
            end_s = time.monotonic()
            with self._lock:
                self._made[name] = (end_s + max(age_s, REST * (end_s - begin_s)), value)
            return value
        finally:
            with self._lock:
                self._being_made.discard(name)


class Overview:
    """What many who look at the same time share. Thread-safe; errors are those of Store.status and Store.sql."""

    def __init__(self, store: Store, status: Callable[[], Status]) -> None:
        self._store = store
        self._status = status
        self._kept = Kept()
        self._marks: deque[Mark] = deque(maxlen=SAMPLES_MAX)

    def now(self) -> dict[str, Any]:
        """Everything that changes by the second."""
        return self._kept.get("now", 0.9, self._now)

    def _now(self) -> dict[str, Any]:
        status = self._status()
        view = self._store.tiers.ledger.view()
        shards = conservation(view, self._store.tiers.hot.cut())
        settled = sum(state.events for state in view.shards)
        left = sum(total.kept + total.sampled_out + total.erased for total in view.totals)
        mark = Mark(time.monotonic(), sum(one.appended for one in shards), settled, left)
        self._marks.append(mark)
        return {
            "status": status,
            "at": dt.datetime.now(dt.UTC),
            "tiers": tiers(status, max((file.created_us for file in view.files), default=0) / 1e6, time.time()),
            "flow": flow(list(self._marks)),
            "conservation": balance(shards),
            "jobs": jobs(status.worker, time.time()),
            "worker": worker(status.worker),
            "storage": storage(status),
        }

    def costs(self) -> list[dict[str, Any]]:
        """By month, the newest first."""
        return self._kept.get("costs", 30, lambda: months(self._store.usage().to_arrow().to_pylist()))

    def chart(self, span: str) -> dict[str, Any]:
        """Events over time: label, and x and y of every bar, those without events too."""
        return self._kept.get(f"chart {span}", 5, lambda: self._chart(span))

    def _chart(self, span: str) -> dict[str, Any]:
        label, step, sql = SPANS[span]
        found = dict(self._store.sql(sql).fetchall())
        now = int(time.time()) // step * step
        xs = [now - step * back for back in reversed(range(SPAN_BARS[span]))]
        bars = {
            "kind": "bars",
            "name": "UTC",
            "x": xs,
            "time": True,
            "series": [{"name": "events", "y": [found.get(x, 0) for x in xs]}],
        }
        rows = [(dt.datetime.fromtimestamp(x, dt.UTC), found[x]) for x in reversed(xs) if x in found]
        return {
            "label": label,
            "spec": msgspec.json.encode(bars).decode(),
            "rows": rows,
            "events": sum(found.get(x, 0) for x in xs),
        }


def tiers(status: Status, archived_s: float, now_s: float) -> list[dict[str, Any]]:
    """Hot, warm, cold: how much, and how far behind. archived_s: when the newest cold file was made, 0 never. Pure."""
    found = []
    total = sum(tier.events for tier in status.tiers)
    for tier in status.tiers:
        if tier.tier == "hot":
            lag = "nothing waits" if status.oldest_unsettled_s is None else ""
            facts = {"lag_s": status.oldest_unsettled_s, "lag": lag, "lag_name": "oldest waits to settle"}
            note = f"Redis {status.redis.version}, {status.redis.durability}"
        elif tier.tier == "warm":
            due = status.overdue
            facts = {
                "lag_s": due.waits_s if due else None,
                "lag": "" if due else "nothing is due",
                "lag_name": "oldest due to archive",
            }
            note = f"{tier.files:,} segment{'' if tier.files == 1 else 's'}"
        else:
            ago_s = max(0.0, now_s - archived_s) if archived_s else None
            facts = {"lag_s": ago_s, "lag": "" if archived_s else "not yet", "lag_name": "since the last archive"}
            note = f"{tier.files:,} file{'' if tier.files == 1 else 's'}, rollups included"
        share = tier.events / total if total else 0.0
        found.append({"name": tier.tier, "events": tier.events, "bytes": tier.bytes, "note": note, "share": share, **facts})
    return found


def flow(marks: list[Mark]) -> dict[str, float | None]:
    """Events a second into each tier over the last minute; None before there are two looks at it. Pure."""
    names = ("appended", "settled", "archived")
    if not marks:
        return dict.fromkeys(names)
    last = marks[-1]
    first = next(mark for mark in marks if last.at_s - mark.at_s <= FLOW_S)
    took_s = last.at_s - first.at_s
    if took_s < 0.5:
        return dict.fromkeys(names)
    return {name: max(0, getattr(last, name) - getattr(first, name)) / took_s for name in names}


def balance(shards: list[ShardCheck]) -> dict[str, Any]:
    """The sum of all shards: appended, and where the events are. Pure."""
    appended = sum(one.appended for one in shards)
    places = [
        {"name": name.replace("_", " "), "tier": tier, "what": what, "events": sum(getattr(one, name) for one in shards)}
        for name, tier, what in PLACES
    ]
    return {"appended": appended, "places": places, "problems": sum_problems(shards)}


def jobs(said: Mapping[str, Any] | None, now_s: float) -> list[dict[str, Any]]:
    """Each job of the worker: when it last worked, failed, and why. Pure."""
    runs = (said or {}).get("jobs") or {}
    failures = (said or {}).get("failures") or {}
    found = []
    for name in [*JOBS, *sorted(set(runs) - set(JOBS))]:
        run = runs.get(name) or {}
        ago = {what: now_s - run[f"{what}_us"] / 1e6 if run.get(f"{what}_us") else None for what in ("worked", "failed")}
        if run or name in ("settle", "merge", "archive", "verify"):
            failed = failures.get(name, 0) > 0 or (ago["failed"] is not None and ago["worked"] is None)
            state = "failing" if failed else "ok" if ago["worked"] is not None else "waiting"
            found.append({"name": name, "what": JOBS.get(name, ""), "state": state, "failures": failures.get(name, 0),
                          "worked_s": ago["worked"], "failed_s": ago["failed"], "problem": run.get("problem", "")})  # fmt: skip
    return found


def worker(said: Mapping[str, Any] | None) -> dict[str, Any]:
    """Whether there is a worker. Pure."""
    if said is None:
        return {"running": False, "told": "no worker has ever run here: `thermocline worker` starts one"}
    age_s = float(said.get("age_s") or 0)
    running = bool(said.get("running")) and age_s < WORKER_FRESH_S
    told = f"process {said.get('pid')} on {said.get('host')}" if running else "the worker has ended or is silent: nothing moves"
    return {"running": running, "told": told, "age_s": age_s}


def storage(status: Status) -> list[dict[str, Any]]:
    """What the bytes of each tier cost a month, by PRICES. Pure."""
    sizes = {tier.tier: tier.bytes for tier in status.tiers}
    sizes["hot"] += status.cached.bytes
    return [
        {"tier": name, "bytes": sizes[name], "price": price, "usd": sizes[name] / GB * price} for name, price in PRICES.items()
    ]


def months(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Usage by month from usage by month and model. Pure."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = f"{row['month']:%Y-%m}"
        month = found.setdefault(name, {"month": name, "events": 0, "tokens": 0, "cost_usd": 0.0, "errors": 0, "models": []})
        month["events"] += row["events"]
        month["tokens"] += row["input_tokens"] + row["output_tokens"]
        month["cost_usd"] += row["cost_usd"]
        month["errors"] += row["errors"]
        if row["model"] and row["cost_usd"]:
            month["models"].append((row["model"], row["cost_usd"]))
    return list(found.values())[:MONTHS_MAX]
