"""Bytes of real conversations in every tier, against SQLite: `python -m bench.sizes [FILE]`.

FILE is a JSON list of recorded runs (thermocline.sample_import says which shape); default: the shipped sample. The runs are
appended through the CLI, spread over one day (or --days), and archived whole, once keeping everything and once by the default
policy. Every day is a file of its own, and small files cost: each has a footer of 3 KiB and finds fewer repetitions.
"""

from __future__ import annotations

import argparse
import itertools
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from thermocline.archiver.archive import Archiver
from thermocline.archiver.lease import Lease
from thermocline.archiver.worker import Worker
from thermocline.config import Settings, load
from thermocline.event import COLUMN_NAMES
from thermocline.sample_import import SAMPLE, events_of, load_runs, ndjson
from thermocline.store import connect
from thermocline.tiers.ledger import View
from thermocline.tiers.opening import open_tiers

from .markdown import markdown
from .results import Row

DAY_US = 86_400_000_000
KEEP_ALL = {"rules": [{"name": "all", "keep": True}]}
WARM_ONLY = {"window_days": 10_000}


def size_figures(runs: Path, days: float) -> list[Row]:
    """Bytes per event, and the share of SQLite's."""
    events = list(events_of(load_runs(runs), end_us=_last_midnight_us(), days=days))
    count = len(events)
    with tempfile.TemporaryDirectory(prefix="thermocline-sizes-") as name:
        folder = Path(name)
        lines = folder / "events.ndjson"
        lines.write_bytes(b"\n".join(ndjson(events)) + b"\n")
        whole = _store(folder / "whole", lines, KEEP_ALL)
        sampled = _store(folder / "sampled", lines, {"rules": []})
        sqlite = _sqlite_bytes(whole, folder / "events.sqlite")
        warm = sum(one.file_bytes for one in _view(whole).segments)
        kept, rollups = _archived_bytes(whole)
        few, _ = _archived_bytes(sampled)
        [(left,)] = _rows(sampled, "SELECT count(*) FROM events")

    def figure(what: str, size: int, beside: str = "") -> Row:
        share = f"1/{sqlite / size:.1f} of SQLite" if size != sqlite else ""
        against = "; ".join(part for part in (share, beside) if part)
        return Row(what=what, value=f"{size / count:,.1f} B/event", against=against)

    return [
        figure("SQLite, one table, one index (conversation, time)", sqlite, f"{count:,} events, {sqlite:,} B"),
        figure("warm, rollups included", warm),
        figure("cold, everything kept", kept),
        figure("cold, sampled by the default policy", few, f"{left:,} of {count:,} events kept"),
        figure("rollups and decisions of the archive, beside either", rollups),
    ]


def _store(data_dir: Path, lines: Path, sampling: dict[str, Any]) -> Settings:
    """A store with the events in warm."""
    settings = load({"data_dir": data_dir, "sampling": sampling, "warm": WARM_ONLY}, environ={})
    command = [sys.executable, "-m", "thermocline", "--data-dir", str(data_dir), "append", str(lines)]
    subprocess.run(command, check=True, capture_output=True)
    with open_tiers(settings) as tiers:
        Worker(tiers).once()
    return settings


def _last_midnight_us() -> int:
    return time.time_ns() // 1000 // DAY_US * DAY_US - 1


def _view(settings: Settings) -> View:
    with open_tiers(settings) as tiers:
        return tiers.ledger.view()


def _rows(settings: Settings, query: str) -> list[tuple[Any, ...]]:
    with connect(settings) as store:
        return store.sql(query).fetchall()


def _archived_bytes(settings: Settings) -> tuple[int, int]:
    """(bytes of event files, of all others) when everything is archived as if it had aged out."""
    with open_tiers(settings.model_copy(update={"warm": settings.warm.model_copy(update={"window_days": 7})})) as tiers:
        lease = Lease(settings.namespace_dir, tiers.ledger)
        while Archiver(tiers, lease.epoch).step(before_us=time.time_ns() // 1000 + DAY_US):
            pass
        lease.release()
        files = tiers.ledger.view().files
    events = sum(file.file_bytes for file in files if file.kind == "events")
    return events, sum(file.file_bytes for file in files) - events


def _sqlite_bytes(settings: Settings, path: Path) -> int:
    """The file that a table of the same rows makes, with one index."""
    rows = _rows(settings, f"SELECT {', '.join(COLUMN_NAMES)} FROM events ORDER BY timestamp, conversation_id, seq")
    con = sqlite3.connect(path)
    con.execute(f"CREATE TABLE events ({', '.join(COLUMN_NAMES)})")
    con.execute("CREATE INDEX by_conversation ON events (conversation_id, timestamp)")
    holes = ", ".join("?" * len(COLUMN_NAMES))
    plain = ([value.isoformat() if hasattr(value, "isoformat") else value for value in row] for row in rows)
    while batch := list(itertools.islice(plain, 1000)):
        con.executemany(f"INSERT INTO events VALUES ({holes})", batch)
    con.commit()
    con.close()
    return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sizes", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=SAMPLE)
    parser.add_argument("--days", type=float, default=1)
    options = parser.parse_args()
    print(markdown(size_figures(options.file, options.days)))


if __name__ == "__main__":
    main()
