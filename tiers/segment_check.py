"""Whether the rows of a segment are what it says of itself. For verify."""

from __future__ import annotations

from . import rollups
from .checksum import SEGMENT_CHECKSUM, same_kind
from .duck import Connection
from .ledger import Segment


def contradictions(con: Connection, alias: str, segment: Segment, *, deep: bool) -> list[str]:
    """Where the rows of an attached segment are not what it says of itself."""
    columns = f"count(*), {SEGMENT_CHECKSUM}" if deep else "count(*), ''"
    [(rows, checksum)] = con.execute(f"SELECT {columns} FROM {alias}.events").fetchall()
    problems = [] if rows == segment.rows else [f"it holds {rows} rows, not {segment.rows}"]
    if deep and checksum != segment.checksum and same_kind(checksum, segment.checksum):
        problems.append(f"its rows have the checksum {checksum}, not {segment.checksum}")
    found = con.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = ?", [alias]).fetchall() if deep else []
    tables = {name for (name,) in found}
    missing = [rollup.name for rollup in rollups.ROLLUPS if deep and segment.has_rollups and rollup.name not in tables]
    problems += [f"{name} is missing" for name in missing]
    for table, agrees in rollups.agreements(alias, tables):
        if con.execute(agrees).fetchall() != [(True,)]:
            problems.append(f"{table} is not what its events add up to")
    return problems
