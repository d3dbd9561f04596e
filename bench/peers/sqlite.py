"""SQLite, the system that users come from."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, ClassVar

import pyarrow as pa

from .peer import AGGREGATE, BY_HOUR, COLUMNS, HISTORY, NAMES, ONE_CONVERSATION, ONE_DAY, Peer, Rows, plain, values_of

BATCH_EVENTS = 1000
INDEXES = {"by_conversation": "conversation_id, timestamp", "by_time": "timestamp"}
_TYPES = {"text": "TEXT", "int": "INTEGER", "float": "REAL", "time": "INTEGER"}


class Sqlite(Peer):
    name = "sqlite"
    title = "SQLite (WAL)"
    configuration = (
        "journal_mode=WAL and synchronous=NORMAL (sqlite.org/wal.html), cache_size 256 MiB; one table, indexes on "
        "(conversation_id, timestamp) and on timestamp; loaded without a journal, ANALYZE afterwards; one prepared INSERT, a "
        "transaction per 1,000 events, or per event where events come one by one; Python's sqlite3"
    )
    events_max = 10_000_000
    queries: ClassVar[dict[str, str]] = {
        HISTORY: "SELECT * FROM events WHERE conversation_id = ? ORDER BY timestamp",
        ONE_DAY: "SELECT count(*), sum(length(content)) FROM events WHERE timestamp >= ? AND timestamp < ?",
        ONE_CONVERSATION: "SELECT count(*), min(timestamp), max(timestamp), count(DISTINCT task_id) FROM events"
        " WHERE conversation_id = ?",
        BY_HOUR: "SELECT timestamp / 3600000000, count(*), sum(length(content)) FROM events GROUP BY 1",
        AGGREGATE: "SELECT event_type, count(*), sum(output_tokens), avg(duration_ms) FROM events"
        " WHERE timestamp >= ? AND timestamp < ? GROUP BY event_type",
    }

    @classmethod
    def version(cls) -> str:
        return sqlite3.sqlite_version

    def open(self) -> None:
        self._con = sqlite3.connect(self.folder / "events.sqlite", isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", f"cache_size=-{256 << 10}"):
            self._con.execute(f"PRAGMA {pragma}").fetchall()
        columns = ", ".join(f"{name} {_TYPES[kind]}" for name, kind in COLUMNS)
        self._con.execute(f"CREATE TABLE IF NOT EXISTS events ({columns})")
        self._make_indexes()
        self._insert = f"INSERT INTO events VALUES ({', '.join('?' * len(NAMES))})"

    def _make_indexes(self) -> None:
        for name, columns in INDEXES.items():
            self._con.execute(f"CREATE INDEX IF NOT EXISTS {name} ON events ({columns})")

    def close(self) -> None:
        self._con.close()

    def append_one(self, event: dict[str, Any]) -> None:
        self._con.execute(self._insert, values_of(event))

    def append(self, events: Sequence[dict[str, Any]]) -> None:
        for start in range(0, len(events), BATCH_EVENTS):
            self._store([values_of(event) for event in events[start : start + BATCH_EVENTS]])

    def load(self, table: pa.Table) -> None:
        self._con.execute("PRAGMA journal_mode=OFF").fetchall()
        for name in INDEXES:  # made again when all is there, which takes less time
            self._con.execute(f"DROP INDEX IF EXISTS {name}")
        columns = plain(table)
        self._store(list(zip(*(columns[name].to_pylist() for name in NAMES), strict=True)))

    def _store(self, rows: Sequence[tuple[Any, ...]]) -> None:
        self._con.execute("BEGIN")
        self._con.executemany(self._insert, rows)
        self._con.execute("COMMIT")

    def loaded(self) -> None:
        self._make_indexes()
        self._con.execute("PRAGMA analysis_limit=1000").fetchall()
        self._con.execute("ANALYZE")
        self._con.execute("PRAGMA journal_mode=WAL").fetchall()

    def query(self, name: str, parameters: Sequence[Any] = ()) -> Rows:
        return self._con.execute(self.queries[name], parameters).fetchall()
