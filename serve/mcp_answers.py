"""Answers of tools as text that a model reads: an object per row, bounded, and a last line that says what it rests on. Pure."""

from __future__ import annotations

import datetime as dt
import decimal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import orjson

ANSWER_CHARS_MAX: Final = 40_000
"""Of one answer; about 10,000 tokens."""
VALUE_CHARS_MAX: Final = 4_000
"""Of one value of a row of SQL."""
SHOWN: Final = (
    *("seq", "tier", "timestamp", "event_type", "agent_id", "task_id", "model", "tool_name", "status", "duration_ms", "cost_usd"),
    *("input_tokens", "output_tokens", "content", "metadata"),
)
"""Columns of an event in an answer about one conversation, and its tier; those that are NULL or empty are left out."""


def rows_text(rows: Iterable[Mapping[str, Any]], *, note: str, chars_max: int = ANSWER_CHARS_MAX, cut: str = "") -> str:
    """A line per row; then `note`. Rows that would not fit are left out, and counted if they are at hand.

    cut  how to ask for what was left out
    """
    lines: list[str] = []
    size = left_out = 0
    for row in rows:
        line = _line(row)
        if left_out or size + len(line) > chars_max:
            left_out += 1
            continue
        size += len(line) + 1
        lines.append(line)
    if not lines and not left_out:
        lines.append("(no rows)")
    if left_out:
        lines.append(f"({left_out} more rows do not fit into an answer{': ' if cut else ''}{cut})")
    return "\n".join([*lines, f"-- {note}"])


def named(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Rows by column; of two columns with one name the second is name_1."""
    names: list[str] = []
    for column in columns:
        name, number = column, 0
        while name in names:
            number += 1
            name = f"{column}_{number}"
        names.append(name)
    for row in rows:
        yield dict(zip(names, row, strict=True))


def events_text(rows: Iterable[Mapping[str, Any]], *, content_chars: int, note: str, cut: str) -> str:
    """Events of one conversation, in order, with a line where seqs are missing."""
    return rows_text(_with_gaps(rows, content_chars), note=note, cut=cut)


def _with_gaps(rows: Iterable[Mapping[str, Any]], content_chars: int) -> Iterator[dict[str, Any]]:
    last: int | None = None
    for row in rows:
        seq = row["seq"]
        if last is not None and seq > last + 1:
            yield {"gap": f"seq {last + 1} to {seq - 1} are not here: sampled out when they were archived, or declared lost"}
        last = seq
        yield {
            name: clipped(row[name], content_chars) if name in ("content", "metadata") else row[name]
            for name in SHOWN
            if row.get(name) is not None and row[name] != ""
        }


def clipped(text: str, chars: int) -> str:
    """The text, or its beginning and how much more there is."""
    return text if len(text) <= chars else f"{text[:chars]}… ({len(text) - chars:,} more characters)"


def _line(row: Mapping[str, Any]) -> str:
    short = {name: clipped(value, VALUE_CHARS_MAX) if isinstance(value, str) else value for name, value in row.items()}
    return orjson.dumps(short, default=_plain, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS).decode()


def _plain(value: Any) -> Any:
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() and abs(value) < 1 << 63 else str(value)
    if isinstance(value, bytes):
        return clipped(value.hex(), VALUE_CHARS_MAX)
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    return clipped(str(value), VALUE_CHARS_MAX)
