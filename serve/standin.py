"""Until the sandbox is there: the same calls, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

ROWS_MAX = 100_000


class Answer:
    def __init__(self, table: pa.Table, coverage: Any, rows_max: int) -> None:
        self.schema = table.schema
        self.coverage = coverage
        self.truncated = table.num_rows > rows_max
        self._table = table.slice(0, rows_max)

    def batches(self) -> Iterator[pa.RecordBatch]:
        yield from self._table.to_batches()

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *exc: object) -> None: ...


class Sandbox:
    def __init__(self, store: Any, settings: Any) -> None:
        self._store = store

    def run(self, query: str, rows_max: int | None = None, deadline_s: float | None = None, cancelled: Any = None) -> Answer:
        found = self._store.sql(query)
        return Answer(found.to_arrow(), found.coverage, rows_max or ROWS_MAX)
