"""The pipeline one would write first: an XADD per event, row-by-row INSERT into DuckDB, a daily COPY to Parquet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import orjson

from bench.servers import RedisServer

from .duckdb_table import DuckTable
from .peer import NAMES, Peer
from .redis_py import STREAM


class Naive(Peer):
    name = "naive"
    title = "naive pipeline"
    configuration = (
        "XADD per event, one at a time; XREAD of 100; one INSERT per event into one DuckDB table, autocommitted; "
        "one COPY to Parquet (ZSTD) of the day"
    )
    modules = ("redis", "duckdb")
    install = "pip install redis duckdb"
    events_max = 1_000_000

    def open(self) -> None:
        (self.folder / "redis").mkdir(parents=True, exist_ok=True)
        self._server = RedisServer(self.folder / "redis")
        self._table = DuckTable(self.folder)
        self._table.open()
        self._after = b"0"

    def close(self) -> None:
        self._table.close()
        self._server.close()

    def append_one(self, event: dict[str, Any]) -> None:
        self._server.client.xadd(STREAM, {"d": orjson.dumps(event)})

    def append(self, events: Sequence[dict[str, Any]]) -> None:
        for event in events:
            self.append_one(event)

    def settle(self, limit_s: float) -> tuple[int, float]:
        """(events inserted, seconds it took); ends after `limit_s`."""
        holes = ", ".join("make_timestamptz(?)" if name == "timestamp" else "?" for name in NAMES)
        insert, count, begin = f"INSERT INTO events VALUES ({holes})", 0, time.perf_counter()
        while found := self._server.client.xread({STREAM: self._after}, count=100):
            for self._after, fields in found[0][1]:
                event = orjson.loads(fields[b"d"])
                self._table.con.execute(insert, [event.get(name) for name in NAMES])
                count += 1
                if time.perf_counter() - begin > limit_s:
                    return count, time.perf_counter() - begin
        return count, time.perf_counter() - begin

    def archive(self) -> float:
        """Seconds of writing the table as Parquet."""
        begin = time.perf_counter()
        self._table.con.execute(f"COPY events TO '{self.folder / 'day.parquet'}' (FORMAT parquet, COMPRESSION zstd)")
        return time.perf_counter() - begin
