"""Readers against everything that moves archived data: `python -m tests.cold_readers [--queries 10000] [--cold-url URL]`.

Reader processes count events by all three relations while this one appends old events, settles, merges, archives, compacts,
purges with hardly any grace, and makes and drops local copies. Every event is an error, which sampling never drops, so
each count must lie between what was acknowledged before and after it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from thermocline.archiver.worker import Worker
from thermocline.config import Settings, load
from thermocline.errors import TierUnavailable
from thermocline.ingest.append import Client
from thermocline.store import Store, connect
from thermocline.tiers.cold_schema import KINDS
from thermocline.tiers.opening import Tiers

DAY_US = 86_400_000_000
BATCH_EVENTS = 120
DAYS = 4
RESTLESS = {
    "warm": {"purge_grace_s": 0.5, "fan_in": 2},
    "cold": {"purge_grace_s": 0.5, "compact_files_min": 2, "archive_rows_max": 1000},
    "hot": {"shards": 4, "buckets": 64, "log_grace_s": 1},
}
QUERIES = (
    "SELECT count(*), count(DISTINCT (conversation_id, seq)) FROM events",
    "SELECT sum(event_count), sum(event_count) FROM hourly_stats",
    "SELECT sum(total_events), sum(total_events) FROM conversation_summary",
    "SELECT sum(n), sum(n) FROM (SELECT conversation_id, count(*) AS n FROM events WHERE event_type = 'error' GROUP BY ALL)",
)


class Verdict(msgspec.Struct, kw_only=True):
    queries: int = 0
    unavailable: int = 0
    retried: int = 0
    """Answers for which data moved while they were read."""
    anomalies: list[str] = []
    rounds: int = 0
    archived_events: int = 0
    compacted_files: int = 0
    removed_objects: int = 0


def read(folder: Path, number: int) -> None:
    """A reader process: count until told to stop, and say what was odd."""
    settings = load(json.loads((folder / "settings.json").read_text()))
    said: dict[str, Any] = {"queries": 0, "unavailable": 0, "retried": 0, "anomalies": []}
    with connect(settings) as store:
        while not (folder / "stop").exists():
            query = QUERIES[said["queries"] % len(QUERIES)]
            try:
                before = appended(store)
                result = store.sql(query)
                [(counted, distinct)] = result.fetchall()
                after = appended(store)
            except TierUnavailable as exc:
                said["unavailable"] += 1
                said["anomalies"] += [str(exc)]
                continue
            except Exception as exc:  # whatever it is, it is an anomaly
                said["anomalies"] += [f"{type(exc).__name__}: {exc}"]
                continue
            said["queries"] += 1
            said["retried"] += result.coverage.retries > 0
            if not before <= (counted or 0) <= after or counted != distinct:
                said["anomalies"] += [f"{query}: {counted}, {distinct} distinct, of {before} to {after}: {result.coverage}"]
            if said["queries"] % 10 == 0:
                write(folder / f"reader-{number}.json", said)
    write(folder / f"reader-{number}.json", said)


def appended(store: Store) -> int:
    return sum(shard.events_total for shard in store.tiers.hot.cut())


def write(path: Path, said: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(said))
    temporary.replace(path)


def run(settings: Settings, overrides: dict[str, Any], folder: Path, *, queries: int, readers: int = 2) -> Verdict:
    """Move data until the readers have made so many queries.

    overrides  what the readers make the same settings from
    """
    write(folder / "settings.json", overrides)
    command = [sys.executable, "-m", "tests.cold_readers", "--folder", str(folder), "--reader"]
    verdict = Verdict()
    with connect(settings) as store:
        started = [subprocess.Popen([*command, str(number)]) for number in range(readers)]
        try:
            while verdict.queries < queries and all(one.poll() is None for one in started):
                move(store.tiers, verdict)
                verdict.queries = sum(one["queries"] for one in said(folder))
        finally:
            (folder / "stop").touch()
            codes = [one.wait(60) for one in started]
        verdict.anomalies += [f"a reader ended with {code}" for code in codes if code]
        for one in said(folder):
            verdict.unavailable += one["unavailable"]
            verdict.retried += one["retried"]
            verdict.anomalies += one["anomalies"]
        verdict.queries = sum(one["queries"] for one in said(folder))
        verdict.anomalies += store.verify(deep=True).problems
    return verdict


def said(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.glob("reader-*.json")]


def move(tiers: Tiers, verdict: Verdict) -> None:
    """One round: new old events, everything the worker does, and local copies made and dropped."""
    now_us = time.time_ns() // 1000
    with Client(tiers.settings, tiers=tiers) as client:
        client.append_many(
            [
                {
                    "conversation_id": f"c{number % 7}",
                    "event_type": "error",
                    "content": str(number),
                    "timestamp": now_us - (6 + number % DAYS) * DAY_US,
                }
                for number in range(BATCH_EVENTS)
            ]
        )
    batches = {row.batch_id for row in tiers.ledger.batches()}
    for kind in KINDS if batches else ():  # as if cold.snapshot_keep_days had passed: what compaction replaced can be deleted
        tiers.iceberg.expire(kind, before_us=now_us, batches=batches)
    report = Worker(tiers).once()
    assert report.problem is None, report.problem
    files = [file for file in tiers.ledger.view().files if file.kind == "events"]
    tiers.copies.keep([file.key for file in files[::2]], until_us=now_us + 1_000_000)
    verdict.rounds += 1
    verdict.archived_events += report.archived_events
    verdict.compacted_files += report.compacted_files
    verdict.removed_objects += report.removed_objects


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.cold_readers", description=__doc__)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--readers", type=int, default=3)
    parser.add_argument("--cold-url", help="s3:// folder; AWS_ENDPOINT_URL and keys from the environment")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--reader", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reader is not None:
        read(options.folder, options.reader)
        return
    with tempfile.TemporaryDirectory(prefix="thermocline-readers-") as name:
        overrides = {"data_dir": f"{name}/data", "cold_url": options.cold_url, **RESTLESS}
        begin = time.monotonic()
        verdict = run(load(overrides), overrides, Path(name), queries=options.queries, readers=options.readers)
        seconds = round(time.monotonic() - begin)
    print(json.dumps({**msgspec.structs.asdict(verdict), "seconds": seconds, "pid": os.getpid()}, indent=2))  # noqa: T201
    sys.exit(bool(verdict.anomalies))


if __name__ == "__main__":
    main()
