"""Plain DuckDB: one table in one file, typed Arrow inserts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import duckdb
import pyarrow as pa

from .peer import AGGREGATE, BY_HOUR, HISTORY, NAMES, ONE_CONVERSATION, ONE_DAY, Peer, Rows

BATCH_EVENTS = 10_000
_TYPES = {
    "event_id": "UUID", "seq": "BIGINT", "timestamp": "TIMESTAMPTZ", "duration_ms": "DOUBLE", "cost_usd": "DOUBLE",
    "input_tokens": "BIGINT", "output_tokens": "BIGINT",
}  # fmt: skip
_ARROW = {
    "seq": pa.int64(), "timestamp": pa.timestamp("us", "UTC"), "duration_ms": pa.float64(), "cost_usd": pa.float64(),
    "input_tokens": pa.int64(), "output_tokens": pa.int64(),
}  # fmt: skip
_TIMES = "timestamp >= make_timestamptz(?) AND timestamp < make_timestamptz(?)"
SCHEMA = pa.schema([(name, _ARROW.get(name, pa.string())) for name in NAMES])


class DuckTable(Peer):
    name = "duckdb"
    title = "DuckDB, one table"
    configuration = (
        "one table in one file, STORAGE_VERSION 'latest' so that text is compressed, no index, 2 threads, memory_limit 2 GiB; "
        "Arrow tables of 10,000 events by INSERT … SELECT, a transaction each; rows loaded sorted by day, conversation and time, "
        "as Thermocline's segments are"
    )
    load_rows = 1_000_000
    modules = ("duckdb",)
    install = "pip install duckdb"
    queries: ClassVar[dict[str, str]] = {
        HISTORY: "SELECT * FROM events WHERE conversation_id = ? ORDER BY timestamp",
        ONE_DAY: f"SELECT count(*), sum(strlen(content)) FROM events WHERE {_TIMES}",
        ONE_CONVERSATION: "SELECT count(*), min(timestamp), max(timestamp), count(DISTINCT task_id) FROM events"
        " WHERE conversation_id = ?",
        BY_HOUR: "SELECT date_trunc('hour', timestamp), count(*), sum(strlen(content)) FROM events GROUP BY 1",
        AGGREGATE: "SELECT event_type, count(*), sum(output_tokens), avg(duration_ms) FROM events"
        f" WHERE {_TIMES} GROUP BY event_type",
    }

    @classmethod
    def version(cls) -> str:
        return duckdb.__version__

    def open(self) -> None:
        self.con = duckdb.connect(config={"threads": 2, "memory_limit": "2GiB", "temp_directory": str(self.folder / "spill")})
        self.con.execute("SET TimeZone = 'UTC'")
        self.con.execute("SET preserve_insertion_order = true")
        self.con.execute(f"ATTACH '{self.folder / 'events.duckdb'}' AS file (STORAGE_VERSION 'latest')")
        self.con.execute("USE file")
        columns = ", ".join(f"{name} {_TYPES.get(name, 'VARCHAR')}" for name in NAMES)
        self.con.execute(f"CREATE TABLE IF NOT EXISTS events ({columns})")

    def close(self) -> None:
        self.con.close()

    def append_one(self, event: dict[str, Any]) -> None:
        self.append([event])

    def append(self, events: Sequence[dict[str, Any]]) -> None:
        for start in range(0, len(events), BATCH_EVENTS):
            self.load(pa.Table.from_pylist(list(events[start : start + BATCH_EVENTS]), schema=SCHEMA))

    def load(self, table: pa.Table) -> None:
        self.con.register("incoming", table.select(NAMES))
        self.con.execute("INSERT INTO events SELECT * FROM incoming")
        self.con.unregister("incoming")

    def loaded(self) -> None:
        self.con.execute("CHECKPOINT")

    def query(self, name: str, parameters: Sequence[Any] = ()) -> Rows:
        found = self.con.execute(self.queries[name], list(parameters)).to_arrow_table()
        return [(found.num_rows,)] if name == HISTORY else [tuple(row.values()) for row in found.to_pylist()]
