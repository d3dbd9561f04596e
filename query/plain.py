"""Rows as dicts of plain Python. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """One dict per row, keys in the order of columns; times as aware datetimes. Arrow takes three times as long."""
    names = table.column_names
    columns = [_values(column) for column in table.columns]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _values(column: pa.ChunkedArray) -> Sequence[Any]:
    if column.type == pa.timestamp("us", tz="UTC"):
        known: dict[int | None, dt.datetime | None] = {None: None}
        found = column.cast(pa.int64()).to_pylist()
        for us in set(found) - known.keys():
            known[us] = _EPOCH + dt.timedelta(microseconds=us)
        return [known[us] for us in found]
    values: Sequence[Any] = column.to_pylist()
    return values
