"""How much of everything there is now: numbers by name."""

from __future__ import annotations

import os
import re
import sqlite3
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import psutil

from tests.servers import RedisServer
from thermocline.tiers.supervisor import Connection, parse_info

from .flat import Bound

MIB = 1 << 20
BOUNDS = (
    Bound(prefix="rss ", slack=48 * MIB),
    Bound(prefix="fds ", slack=12),
    Bound(prefix="redis memory", slack=16 * MIB),
    Bound(prefix="waiting events", share=1.0, slack=20_000),
    Bound(prefix="files ", share=0.25, slack=12),
    Bound(prefix="bytes ", share=0.25, slack=8 * MIB),
    Bound(prefix="rows ", share=0.25, slack=12),
    Bound(prefix="rows segment_ranges", share=0.25, slack=12 * 16),  # one for each shard
    Bound(prefix="bytes redis/", share=0.25, slack=32 * MIB),  # it doubles until it is rewritten
    # kept for ever, or as long as what they tell of: statistics by day, a row and a description of every batch
    Bound(prefix="files cold/rollup_", slack=12, per_day=4),
    Bound(prefix="bytes cold/rollup_", slack=MIB, per_day=MIB),
    Bound(prefix="files cold/batches", slack=12, per_day=12),
    Bound(prefix="rows cold_files", slack=24, per_day=16),
    Bound(prefix="rows batches", slack=12, per_day=12),
)
BATCH_ID = re.compile(r"[0-9a-f]{32}")
TABLES = ("segments", "segment_ranges", "cold_files", "batches", "intents", "trash", "losses", "epochs")


def sample(namespace: Path, mirror: Path, redis: RedisServer, pids: Mapping[str, int]) -> dict[str, float]:
    """Of a namespace in use, its mirror, its Redis, and the processes by name."""
    found: dict[str, float] = {}
    for name, pid in pids.items():
        process = psutil.Process(pid)
        found[f"rss {name}"] = process.memory_info().rss
        found[f"fds {name}"] = process.num_fds()
    with Connection(redis.socket, 30) as link:
        found["redis memory"] = float(parse_info(link.ask(("INFO", "memory"))[0])["used_memory"])
    for folder, prefix in ((namespace, ""), (mirror, "mirror/"), (redis.folder, "redis/")):
        files, size = sizes(folder)
        found |= {f"files {prefix}{kind}": count for kind, count in files.items()}
        found |= {f"bytes {prefix}{kind}": count for kind, count in size.items()}
    with sqlite3.connect(f"file:{namespace / 'ledger.db'}?mode=ro", uri=True) as con:
        for table in TABLES:
            [[found[f"rows {table}"]]] = con.execute(f"SELECT count(*) FROM {table}").fetchall()
    con.close()
    return found


def sizes(folder: Path) -> tuple[Counter[str], Counter[str]]:
    """(files, bytes) by kind: the folders above a file that are not of one day or batch, else the file's name."""
    files: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for place, _, names in os.walk(folder):
        parts = [part for part in Path(place).relative_to(folder).parts if "=" not in part and not BATCH_ID.fullmatch(part)][:3]
        for name in names:
            try:
                count = (Path(place) / name).stat().st_size
            except FileNotFoundError:
                continue
            kind = "/".join(parts) if parts else name
            files[kind] += 1
            size[kind] += count
    return files, size
