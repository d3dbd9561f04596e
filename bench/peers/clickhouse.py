"""ClickHouse in this process, through chdb."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.feather

from .duckdb_table import SCHEMA
from .peer import AGGREGATE, BY_HOUR, COLUMNS, HISTORY, NAMES, NOT_INSTALLED, ONE_CONVERSATION, ONE_DAY, Peer, Rows, plain

BATCH_EVENTS = 100_000
_TYPES = {"text": "String", "int": "Int64", "float": "Nullable(Float64)", "time": "DateTime64(6, 'UTC')"}
_LOW = ("event_type", "agent_id", "model", "tool_name", "status")
_TIMES = "timestamp >= fromUnixTimestamp64Micro({0}) AND timestamp < fromUnixTimestamp64Micro({1})"


class ClickHouse(Peer):
    name = "clickhouse"
    title = "ClickHouse (chdb)"
    configuration = (
        "MergeTree ORDER BY (conversation_id, timestamp) PARTITION BY day, LowCardinality for names, content CODEC(ZSTD), "
        "inserts of 100,000 (clickhouse.com/docs: 10,000 to 100,000 a batch), OPTIMIZE … FINAL after loading; max_threads 2; "
        "in the same process"
    )
    modules = ("chdb", "chdb.session")
    install = "pip install chdb"
    queries: ClassVar[dict[str, str]] = {
        HISTORY: "SELECT * FROM events WHERE conversation_id = '{0}' ORDER BY timestamp",
        ONE_DAY: f"SELECT count(), sum(length(content)) FROM events WHERE {_TIMES}",
        ONE_CONVERSATION: "SELECT count(), min(timestamp), max(timestamp), uniqExact(task_id) FROM events"
        " WHERE conversation_id = '{0}'",
        BY_HOUR: "SELECT toStartOfHour(timestamp) AS hour, count(), sum(length(content)) FROM events GROUP BY hour",
        AGGREGATE: "SELECT event_type, count(), sum(output_tokens), avg(duration_ms) FROM events"
        f" WHERE {_TIMES} GROUP BY event_type",
    }

    @classmethod
    def missing(cls) -> str:
        try:
            return super().missing()
        except ModuleNotFoundError:  # of a package that is not there no part can be looked for
            return f"{NOT_INSTALLED}: {cls.install}"

    @classmethod
    def version(cls) -> str:
        return f"{importlib.metadata.version('chdb-core')} (chdb {importlib.metadata.version('chdb')})"

    def open(self) -> None:
        from chdb.session import Session

        self._session = Session(str(self.folder / "clickhouse"))
        columns = ", ".join(f"{name} {_column(name, kind)}" for name, kind in COLUMNS)
        for statement in (
            "CREATE DATABASE IF NOT EXISTS bench ENGINE = Atomic",
            "USE bench",
            "SET max_threads = 2",
            f"CREATE TABLE IF NOT EXISTS events ({columns}) ENGINE = MergeTree"
            " PARTITION BY toDate(timestamp) ORDER BY (conversation_id, timestamp)"
            " SETTINGS old_parts_lifetime = 5",  # else what was merged takes its room twice for eight minutes
        ):
            self._session.query(statement)

    def close(self) -> None:
        self._session.close()

    def append(self, events: Sequence[dict[str, Any]]) -> None:
        for start in range(0, len(events), BATCH_EVENTS):
            self.load(pa.Table.from_pylist(list(events[start : start + BATCH_EVENTS]), schema=SCHEMA))

    def load(self, table: pa.Table) -> None:
        path = self.folder / "incoming.arrow"
        pyarrow.feather.write_feather(plain_times(table), path, compression="uncompressed")
        self._session.query(f"INSERT INTO events SELECT {', '.join(NAMES)} FROM file('{path}', 'Arrow')")
        path.unlink()

    def loaded(self) -> None:
        self._session.query("OPTIMIZE TABLE events FINAL")

    def query(self, name: str, parameters: Sequence[Any] = ()) -> Rows:
        text = self.queries[name].format(*parameters)
        found = self._session.query(text, "ArrowTable")
        return [(found.num_rows,)] if name == HISTORY else [tuple(row.values()) for row in found.to_pylist()]


def plain_times(table: pa.Table) -> pa.Table:
    """The rows with types that ClickHouse's Arrow reader knows."""
    made = plain(table) if pa.types.is_string_view(table["content"].type) else table
    place = made.schema.get_field_index("timestamp")
    return made.set_column(place, "timestamp", made["timestamp"].cast(pa.timestamp("us", "UTC")))


def _column(name: str, kind: str) -> str:
    if name in _LOW:
        return "LowCardinality(Nullable(String))" if name != "event_type" else "LowCardinality(String)"
    if kind == "text" and name not in ("conversation_id", "content"):
        return "Nullable(String)" + (" CODEC(ZSTD)" if name == "metadata" else "")
    if kind == "int" and name != "seq":
        return "Nullable(Int64)"
    return _TYPES[kind] + (" CODEC(ZSTD)" if name == "content" else "")
