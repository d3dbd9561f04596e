"""SQL text that parses the NDJSON lines of blocks into events. Pure text: rows.py runs it.

Numbers are parsed as JSON text, then cast and compared, because `from_json` takes `true` for 1, rounds 1.5 and makes NULL of
what is too large, all quietly. It also reads a number as its text where a string belongs: that shows in the count of `":"`,
which stands only between a key and a string (inside a JSON string a quote is escaped, and metadata is one string, whatever
it holds). What is wrong with which line is the business of `reasons`, which parses once more and only where sums differ.
"""

from __future__ import annotations

import json
from typing import Final

from thermocline.event import COLUMNS, NULLABLE_COLUMNS, TIMESTAMP_MIN_US, Column

_TIMESTAMP_MAX_US: Final = 253_402_300_799_999_999
"""9999-12-31T23:59:59.999999Z: what every tier can represent."""

_LINE_COLUMNS: Final = tuple(column for column in COLUMNS if column.in_line)
_STRINGS: Final = tuple(column.name for column in _LINE_COLUMNS if column.line_type == "VARCHAR")
_INTEGERS: Final = tuple(column.name for column in _LINE_COLUMNS if column.line_type == "BIGINT" and column.nullable)
_DOUBLES: Final = tuple(column.name for column in _LINE_COLUMNS if column.line_type == "DOUBLE")

_SPEC: Final = json.dumps({column.name: "VARCHAR" if column.name in _STRINGS else "JSON" for column in _LINE_COLUMNS})
_KINDS: Final = {
    "VARCHAR": ("string", "'VARCHAR'"),
    "BIGINT": ("64-bit integer", "'BIGINT', 'UBIGINT'"),
    "DOUBLE": ("number", "'DOUBLE', 'BIGINT', 'UBIGINT'"),
}
"""What a key's value must be, in words and as `json_type` calls it."""

_BLOCK: Final = "shard, position_ms, position_seq, conversation_id, seq_first, ingested_us, block_id"
_BLANKS: Final = "' ' || chr(9) || chr(10) || chr(13)"
_TIMESTAMP_FITS: Final = f"epoch_us(timestamp) BETWEEN {TIMESTAMP_MIN_US} AND {_TIMESTAMP_MAX_US}"


def lines_of(blocks: str) -> str:
    """Every line of blocks that skip none: the block's columns, line, ordinal, seq_offset (the same)."""
    return f"""
        SELECT {_BLOCK}, unnest(lines) AS line, unnest(range(len(lines))) AS ordinal, ordinal AS seq_offset
        FROM (SELECT {_BLOCK}, string_split(payload, chr(10)) AS lines FROM {blocks})"""


def picked_lines_of(blocks: str) -> str:
    """The lines of blocks that `picks` (1-based) names, with their `seq_offsets` (NULL: skipped), and the block's number."""
    return f"""
        SELECT block, {_BLOCK}, unnest(lines) AS line, unnest(picks) - 1 AS ordinal, unnest(seq_offsets) AS seq_offset
        FROM (SELECT block, {_BLOCK}, picks, seq_offsets, list_select(string_split(payload, chr(10)), picks) AS lines
              FROM {blocks})"""


def parsed(lines: str) -> str:
    """The lines with `e`, the parsed struct, NULL for what is not JSON."""
    return f"SELECT *, TRY(from_json(line, '{_SPEC}')) AS e FROM ({lines})"


def _integer(name: str) -> str:
    text = f"e.{name}::VARCHAR"
    return f"CASE WHEN TRY_CAST({text} AS BIGINT)::VARCHAR = {text} THEN TRY_CAST({text} AS BIGINT) END"


def _value(column: Column) -> str:
    match column.name:
        case "event_id":
            derived = "substring(block_id, 1, 32) || right(to_hex(65536 + ordinal), 4)"
            return f"TRY_CAST(CASE WHEN e.event_id IS NULL THEN {derived} ELSE e.event_id END AS UUID)"
        case "conversation_id":
            return "conversation_id"
        case "seq":
            return "seq_first + seq_offset"
        case "timestamp":
            return f"TRY(make_timestamptz({_integer('timestamp')}))"
        case "ingested_at":
            return "make_timestamptz(ingested_us)"
        case "content":
            return "coalesce(e.content, '')"
        case "metadata":
            return "TRY_CAST(e.metadata AS JSON)"
        case "sample_rate":
            return "1.0::DOUBLE"
        case name if name in _INTEGERS:
            return _integer(name)
        case name if name in _DOUBLES:
            return f"TRY_CAST(e.{name}::VARCHAR AS DOUBLE)"
        case name:
            return f"e.{name}"


def values() -> str:
    """The select list over `parsed` lines: the columns of COLUMNS in order, then the block's place.

    A value that is not what it should be is NULL here; which of them matter is for `sums` and `reasons` to say.
    """
    texts = [f"{_value(column)} AS {column.name}" for column in COLUMNS]
    return ", ".join([*texts, "shard, position_ms, position_seq"])


SIZE_NAMES: Final = ("content bytes", "metadata bytes", *(f"lines without {name}" for name in NULLABLE_COLUMNS))
"""What the entries of a block's `sizes` count, in their order."""

SIZES: Final = (
    "coalesce(sum(strlen(content)), 0)",
    "coalesce(sum(strlen(metadata::VARCHAR)), 0)",
    *(f"count(*) - count({name})" for name in NULLABLE_COLUMNS),
)
"""Aggregates over rows: what `sizes` should say of their lines."""

STRINGS_SEEN: Final = " + ".join(
    ["count(CASE WHEN content <> '' THEN 1 END)"] + [f"count({name})" for name in _STRINGS if name not in ("event_id", "content")]
)
"""Aggregate over rows: JSON strings of their lines, but for ids the caller gave."""

STRINGS_OF_BLOCK: Final = 'len(string_split(payload, \'":"\')) - len(string_split(payload, \'"event_id":"\'))'
"""The same of a block's payload."""

FIT: Final = f"""(
    count(event_id) = count(*) AND count(timestamp) = count(*) AND count(event_type) = count(*)
    AND coalesce(min(event_type) <> '', true)
    AND coalesce(bool_and({_TIMESTAMP_FITS}), true)
    AND coalesce(bool_and(prefix(metadata::VARCHAR, '{{')), true)
    AND {" AND ".join(f"coalesce(bool_and(isfinite({name})), true)" for name in _DOUBLES)})"""
"""Aggregate over rows: whether all of them are events, as far as their values tell."""


def reasons(lines: str) -> str:
    """A SELECT of the values of picked lines, with block, ordinal, seq_offset, line, and why the line is no event or NULL."""
    kinds = ", ".join(f"'$.{column.name}'" for column in _LINE_COLUMNS)
    whens = [f"WHEN e IS NULL OR NOT prefix(ltrim(line, {_BLANKS}), '{{') THEN 'not a JSON object'"]
    for index, column in enumerate(_LINE_COLUMNS, start=1):
        wanted, allowed = _KINDS[column.line_type]
        whens.append(f"WHEN kinds[{index}] NOT IN ('NULL', {allowed}) THEN '{column.name} is not a {wanted}'")
    whens += [
        "WHEN (event_type <> '') IS NOT TRUE THEN 'event_type is missing'",
        "WHEN e.timestamp IS NULL THEN 'timestamp is missing'",
        f"WHEN ({_TIMESTAMP_FITS}) IS NOT TRUE THEN 'timestamp is not an integer from {TIMESTAMP_MIN_US} to {_TIMESTAMP_MAX_US}'",
        *(f"WHEN e.{name} IS NOT NULL AND {name} IS NULL THEN '{name} is not a 64-bit integer'" for name in _INTEGERS),
        *(
            f"WHEN e.{name} IS NOT NULL AND isfinite({name}) IS NOT TRUE THEN '{name} is not a finite number'"
            for name in _DOUBLES
        ),
        "WHEN e.metadata IS NOT NULL AND prefix(ltrim(metadata::VARCHAR, "
        f"{_BLANKS}), '{{') IS NOT TRUE THEN 'metadata is not a JSON object'",
        "WHEN e.event_id IS NOT NULL AND event_id IS NULL THEN 'event_id is not a UUID'",
        "WHEN event_id IS NULL THEN 'the id of its block is not a UUID'",
    ]
    return f"""
        SELECT * EXCLUDE (e, kinds), CASE {" ".join(whens)} END AS reason
        FROM (SELECT {values()}, block, ordinal, seq_offset, line, e, TRY(json_type(line, [{kinds}])) AS kinds
              FROM ({parsed(lines)}))"""
