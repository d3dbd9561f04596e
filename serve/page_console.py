"""What the SQL console shows of an answer: a bounded table, and a chart when the columns make one. Plain data."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa

from thermocline.query.column_names import told_apart

from .page_text import cell

ROWS_MAX: Final = 500
"""In the table of a page."""
COLUMNS_MAX: Final = 64
POINTS_MAX: Final = 5_000
"""In a chart."""
SERIES_MAX: Final = 6
LABELS_MAX: Final = 60
"""Bars of a chart whose first column is text."""


def table(found: pa.Table) -> dict[str, Any]:
    """The first rows as text. Numbers are told apart, to be set to the right."""
    names = told_apart(found.schema.names)[:COLUMNS_MAX]
    kinds = ["num" if _is_number(field.type) else "" for field in found.schema][:COLUMNS_MAX]
    rows = [[cell(value) for value in row] for row in _rows(found.slice(0, ROWS_MAX), len(names))]
    columns = [
        {"name": name, "type": str(field.type), "kind": kind}
        for name, field, kind in zip(names, found.schema, kinds, strict=False)
    ]
    return {"columns": columns, "rows": rows, "count": found.num_rows, "left_out": found.num_columns - len(names)}


def chart(found: pa.Table) -> str:
    """A chart of the answer as JSON for the page's script: first column across, numbers up; "" when it makes none."""
    if found.num_rows < 2 or found.num_columns < 2:
        return ""
    fields = list(found.schema)
    names = told_apart(found.schema.names)
    ys = [place for place, field in enumerate(fields) if place and _is_number(field.type)][:SERIES_MAX]
    if not ys:
        return ""
    points = found.slice(0, POINTS_MAX)
    first = points.column(0).to_pylist()
    series = [{"name": names[place], "y": [_float(value) for value in points.column(place).to_pylist()]} for place in ys]
    kind = fields[0].type
    if _is_number(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        xs = [_float(value) for value in first]
        if any(x is None for x in xs) or len(set(xs)) != len(xs):
            return ""
        order = sorted(range(len(xs)), key=lambda place: xs[place] or 0.0)
        ordered = [{"name": one["name"], "y": [one["y"][place] for place in order]} for one in series]
        spec = {
            "kind": "lines",
            "name": names[0],
            "time": pa.types.is_temporal(kind),
            "x": [xs[place] for place in order],
            "series": ordered,
        }
        return json.dumps(spec)
    if len(first) > LABELS_MAX:
        return ""
    labels = [cell(value, 24) for value in first]
    return json.dumps(
        {"kind": "bars", "name": names[0], "time": False, "x": list(range(len(labels))), "labels": labels, "series": series[:1]}
    )


def _rows(found: pa.Table, columns: int) -> Sequence[tuple[Any, ...]]:
    return list(zip(*(found.column(place).to_pylist() for place in range(columns)), strict=True))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _float(value: Any) -> float | None:
    if isinstance(value, dt.datetime):
        return value.replace(tzinfo=value.tzinfo or dt.UTC).timestamp()
    if isinstance(value, dt.date):
        return dt.datetime(value.year, value.month, value.day, tzinfo=dt.UTC).timestamp()
    if isinstance(value, int | float | decimal.Decimal) and math.isfinite(value):
        return float(value)
    return None
