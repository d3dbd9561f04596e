"""The answer of a query: rows in Arrow, held whole, so that nothing that happens later can change it."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from .coverage import Coverage

if TYPE_CHECKING:
    import pandas
    import polars

SHOWN_ROWS_MAX: Final = 20
SHOWN_CHARS_MAX: Final = 200


class Result:
    """Rows and columns of one answer, and `coverage`: what it rests on. Immutable; iterates over rows as tuples."""

    def __init__(self, table: pa.Table, coverage: Coverage) -> None:
        self._table = table
        self.coverage = coverage

    @property
    def columns(self) -> list[str]:
        return list(self._table.column_names)

    def to_arrow(self) -> pa.Table:
        return self._table

    def pl(self) -> polars.DataFrame:
        """A polars DataFrame."""
        import polars

        frame = polars.from_arrow(self._table)
        assert isinstance(frame, polars.DataFrame)
        return frame

    def df(self) -> pandas.DataFrame:
        """A pandas DataFrame."""
        return self._table.to_pandas()

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows as Python values; TIMESTAMPTZ as aware datetimes."""
        return list(self)

    def fetchone(self) -> tuple[Any, ...] | None:
        """The first row, every time; None when there is none."""
        return next(iter(self), None)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for batch in self._table.to_batches(max_chunksize=10_000):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        return f"<Result: {len(self):,} rows of {', '.join(self.columns)}; {self.coverage}>"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        shown = self._table.slice(0, SHOWN_ROWS_MAX)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(_shown(value))}</td>" for value in row.values()) + "</tr>" for row in _rows(shown)
        )
        more = len(self) - shown.num_rows
        note = f"<p>{more:,} more rows</p>" if more else ""
        return (
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            f"{note}<p><small>{escape(str(self.coverage))}</small></p>"
        )


def _rows(table: pa.Table) -> Iterator[dict[int, Any]]:
    """Rows keyed by place: two columns may have one name."""
    columns = [column.to_pylist() for column in table.columns]
    for index in range(table.num_rows):
        yield {place: column[index] for place, column in enumerate(columns)}


def _shown(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= SHOWN_CHARS_MAX else text[: SHOWN_CHARS_MAX - 1] + "…"


def with_integers(table: pa.Table, wide: list[int]) -> pa.Table:
    """`table` with the columns at places `wide` (HUGEINT, which Arrow has only as a decimal) as int64 where every value fits."""
    for place in wide:
        try:
            column = pc.cast(table.column(place), pa.int64())
        except pa.ArrowInvalid:
            continue  # sums beyond 64 bits stay decimals
        table = table.set_column(place, table.field(place).with_type(pa.int64()), column)
    return table
