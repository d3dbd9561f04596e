"""Real conversations through all three tiers, compared with what went in: `python -m tests.archived [FILE] [--cold-url URL]`.

FILE is a JSON list of recorded runs (thermocline.sample_import says which shape); default: the shipped sample. The runs are
spread over twelve days, with an error, an intervention and a created file in each, appended, settled, merged and archived.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from tests.reporting import reported
from tests.roundtrip import expected
from thermocline.archiver.worker import Worker, WorkReport
from thermocline.config import Settings, load
from thermocline.ingest.append import Client
from thermocline.sample_import import SAMPLE, events_of, load_runs, ndjson
from thermocline.store import Store, connect

DAYS = 12
KEPT_TYPES = ("error", "intervention", "file_created", "file.created")
STATISTICS = ("SELECT * FROM hourly_stats ORDER BY ALL", "SELECT * FROM conversation_summary ORDER BY ALL")


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """What came out against what went in."""

    events: int
    archived: int
    kept: int
    problems: list[str]


def aged_events(path: Path = SAMPLE, *, end_us: int | None = None) -> list[dict[str, Any]]:
    """The runs of a file as events, the oldest twelve days before `end_us` (default: now)."""
    end_us = end_us or time.time_ns() // 1000
    events: list[dict[str, Any]] = []
    last: dict[str, Any] = {}
    for event in events_of(load_runs(path), end_us=end_us - 1, days=DAYS):
        if last and event["conversation_id"] != last["conversation_id"]:
            events += _never_dropped(last)
        events.append(event)
        last = event
    return events + _never_dropped(last)


def _never_dropped(event: dict[str, Any]) -> list[dict[str, Any]]:
    at = {"conversation_id": event["conversation_id"], "timestamp": event["timestamp"]}
    return [{**at, "event_type": kind, "content": f"{kind} ü of {event['conversation_id']}"} for kind in KEPT_TYPES]


def keep_warm(settings: Settings) -> Settings:
    """The settings with nothing old enough to be archived."""
    return settings.model_copy(update={"warm": settings.warm.model_copy(update={"window_days": 10_000})})


def append_and_work(settings: Settings, events: list[dict[str, Any]]) -> None:
    """Everything appended, settled and merged; nothing archived."""
    with connect(keep_warm(settings)) as store, Client(settings, tiers=store.tiers) as client:
        client.append_many(events)
        report = Worker(store.tiers).once()
        assert report.problem is None, report.problem


def archive(settings: Settings) -> WorkReport:
    with connect(settings) as store:
        return Worker(store.tiers).once()


def statistics(store: Store) -> list[pa.Table]:
    return [store.sql(query).to_arrow() for query in STATISTICS]


def compare(settings: Settings, events: list[dict[str, Any]]) -> Compared:
    """Append, work, archive, and compare at each step. Nothing may be in the namespace before."""
    append_and_work(settings, events)
    with connect(settings) as store:
        before = statistics(store)
    report = archive(settings)
    problems = [] if report.problem is None else [report.problem]
    with connect(settings) as store:
        for name, old, new in zip(("hourly_stats", "conversation_summary"), before, statistics(store), strict=True):
            problems += [] if old.equals(new) else [f"{name} is not what it was before archiving"]
        problems += _missing(store, events) + _changed(store, events) + list(store.verify(deep=True).problems)
    return Compared(events=len(events), archived=report.archived_events, kept=report.archived_kept, problems=problems)


def _missing(store: Store, events: list[dict[str, Any]]) -> list[str]:
    """Types that are never sampled out and of which some are gone."""
    found = dict(store.sql("SELECT event_type, count(*) FROM events GROUP BY ALL").fetchall())
    wanted = {kind: sum(event["event_type"] == kind for event in events) for kind in KEPT_TYPES}
    return [f"{found.get(kind, 0)} of {count} {kind} are left" for kind, count in wanted.items() if found.get(kind) != count]


def _changed(store: Store, events: list[dict[str, Any]]) -> list[str]:
    """Rows that are not, byte for byte, the event appended under that number."""
    wanted = expected(list(ndjson(events)))
    rows = store.sql("SELECT conversation_id, seq, content, metadata, epoch_us(timestamp) FROM events").fetchall()
    problems = []
    for conversation_id, seq, content, metadata, at_us in rows:
        given = wanted[conversation_id][seq - 1]
        if (content, metadata, at_us) != (given["content"], given["metadata"], given["timestamp"]):
            problems.append(f"event {seq} of {conversation_id} is not what was appended")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.archived", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=SAMPLE)
    parser.add_argument("--cold-url", help="s3:// or file:// folder; default: in a temporary data directory")
    parser.add_argument("--endpoint-url", help="of an S3-compatible server")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="thermocline-archived-") as folder:
        settings = load({"data_dir": folder, "cold_url": options.cold_url, "cold": {"endpoint_url": options.endpoint_url}})
        found = compare(settings, aged_events(options.file))
    sys.exit(reported(found))


if __name__ == "__main__":
    main()
