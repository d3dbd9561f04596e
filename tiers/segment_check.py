"""Whether the rows of a segment are what it says of itself. For verify."""

from __future__ import annotations

from collections.abc import Sequence

from . import rollups
from .checksum import SEGMENT_CHECKSUM, same_kind
from .duck import Connection
from .ledger import Segment
from .user_rollups import TABLE, Definition, made_in

_ASTRAY = """
    SELECT count(*) FROM (
        SELECT first_row, last_row, events, sum(events) OVER (ORDER BY conversation_id) AS upto
        FROM (SELECT conversation_id, min(rowid) AS first_row, max(rowid) AS last_row, count(*) AS events
              FROM {}.events GROUP BY conversation_id))
    WHERE first_row <> upto - events OR last_row <> upto - 1"""
"""Conversations whose rows are not where counting those before them says: what a history relies on (query/conversations.py)."""


def contradictions(
    con: Connection, alias: str, segment: Segment, definitions: Sequence[Definition] = (), *, deep: bool
) -> list[str]:
    """Where the rows of an attached segment are not what it says of itself.

    definitions  rollups of the user: those of them it carries are compared too
    """
    columns = f"count(*), {SEGMENT_CHECKSUM}" if deep else "count(*), ''"
    [(rows, checksum)] = con.execute(f"SELECT {columns} FROM {alias}.events").fetchall()
    problems = [] if rows == segment.rows else [f"it holds {rows} rows, not {segment.rows}"]
    if deep and checksum != segment.checksum and same_kind(checksum, segment.checksum):
        problems.append(f"its rows have the checksum {checksum}, not {segment.checksum}")
    if deep and con.execute(_ASTRAY.format(alias)).fetchall() != [(0,)]:
        problems.append("its rows are not sorted by conversation")
    found = con.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = ?", [alias]).fetchall() if deep else []
    tables = {name for (name,) in found}
    missing = [rollup.name for rollup in rollups.ROLLUPS if deep and segment.has_rollups and rollup.name not in tables]
    problems += [f"{name} is missing" for name in missing]
    for table, agrees in rollups.agreements(alias, tables):
        if con.execute(agrees).fetchall() != [(True,)]:
            problems.append(f"{table} is not what its events add up to")
    if TABLE in tables:
        carried = made_in(con, f"{alias}.{TABLE}")
        for one in definitions:
            if (one.name, one.hash) in carried and con.execute(one.agrees(alias)).fetchall() != [(True,)]:
                problems.append(f"{TABLE} is not what its events give for rollups.{one.name}")
    return problems
