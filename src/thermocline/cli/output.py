"""Write on stdout what was asked for: rows as a table, JSON, CSV or Arrow; reports; and talk on stderr."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from thermocline.query.column_names import told_apart

from .options import Form

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console

    from thermocline.query.coverage import Coverage

TABLE_ROWS_MAX: Final = 1000
"""Rows a table shows. It says how many more there are; the other forms give all."""


def write_rows(table: pa.Table, form: Form) -> None:
    """Write an Arrow table on stdout. BadParameter for Arrow bytes to a terminal."""
    if form is Form.json:
        _write_json(table)
    elif form is Form.csv:
        _write_csv(table)
    elif form is Form.arrow:
        _write_arrow(table)
    else:
        shown = table.slice(0, TABLE_ROWS_MAX)
        write_report((list(row.values()) for row in _rows(shown)), told_apart(table.column_names))
        if table.num_rows > shown.num_rows:
            note(f"{shown.num_rows:,} of {table.num_rows:,} rows; -o json, csv or arrow gives all")


def write_report(
    rows: Iterable[Sequence[object]], columns: Sequence[str], *, spans: Callable[[str], Sequence[tuple[int, int]]] | None = None
) -> None:
    """A table of text on stdout, which on a terminal is made to fit.

    spans  (start, length) of what is to stand out in a line, where the terminal can
    """
    from rich.text import Text

    from .columns import laid_out

    screen = console()
    head, *lines = laid_out(rows, columns, screen.width if screen.is_terminal else None)
    screen.print(head, style="bold", markup=False, soft_wrap=True)
    for line in lines:
        text = Text(line)
        for start, length in spans(line) if spans is not None and screen.is_terminal else ():
            text.stylize("bold reverse", start, start + length)
        screen.print(text, soft_wrap=True)


def write_lines(lines: Iterable[str]) -> None:
    """Lines of text on stdout."""
    sys.stdout.writelines(f"{line}\n" for line in lines)


def write_object(value: object) -> None:
    """One JSON value on stdout, indented."""
    import orjson

    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS) + b"\n")
    sys.stdout.buffer.flush()


def note(text: str) -> None:
    """One line of talk on stderr."""
    sys.stderr.write(f"{text}\n")


def note_coverage(coverage: Coverage, *, full: bool = False) -> None:
    """What an answer rests on, on stderr: one line, or everything as JSON."""
    import orjson

    note(orjson.dumps(coverage.as_dict(), option=orjson.OPT_INDENT_2).decode() if full else str(coverage))


def console() -> Console:
    """A console on stdout that adds nothing of its own."""
    from rich.console import Console

    return Console(highlight=False, emoji=False)


def bytes_text(count: int) -> str:
    """A size people read: 12 B, 1.0 MiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1000 or unit == "GiB":
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    raise AssertionError("the last unit takes every size")


def _write_json(table: pa.Table) -> None:
    import orjson

    out = sys.stdout.buffer
    out.write(b"[")
    separator = b"\n"
    for row in _rows(table):
        out.write(separator + orjson.dumps(row, default=_json_value, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS))
        separator = b",\n"
    out.write(b"\n]\n" if table.num_rows else b"]\n")
    out.flush()


def _json_value(value: Any) -> Any:
    import orjson

    from .columns import instant, plain

    if isinstance(value, decimal.Decimal):
        return orjson.Fragment(format(value, "f")) if value.is_finite() else None
    return instant(value) if isinstance(value, dt.datetime) else plain(value)


def _write_csv(table: pa.Table) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(told_apart(table.column_names))
    for row in _rows(table):
        writer.writerow([_csv_value(value) for value in row.values()])


def _csv_value(value: Any) -> Any:
    from .columns import instant, plain

    if isinstance(value, dt.datetime):
        return instant(value)
    if isinstance(value, list | dict):
        import orjson

        return orjson.dumps(value, default=_json_value, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS).decode()
    return value if value is None or isinstance(value, bool | int | float | decimal.Decimal) else plain(value)


def _write_arrow(table: pa.Table) -> None:
    import pyarrow as pa
    import typer

    if sys.stdout.isatty():
        raise typer.BadParameter("Arrow is binary: send it to a file or a pipe", param_hint="-o")
    with pa.ipc.new_stream(sys.stdout.buffer, table.schema) as stream:
        stream.write_table(table)
    sys.stdout.buffer.flush()


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    named = table.rename_columns(told_apart(table.column_names))
    for batch in named.to_batches(max_chunksize=10_000):
        yield from batch.to_pylist()
