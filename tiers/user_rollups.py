"""Rollups that a store's settings define, as SQL text: how they are made from events, stored as rows of one table, and added up.

A definition is a SELECT of `hour`, more keys and aggregates over a segment's events; definition_check.py holds it to what adds
up. All of them are stored in the table `rollup_user` of a segment, or in cold files of that kind:

    rollup      name
    definition  hash of what it means: rows of another hash are of another rollup
    hour
    keys        JSON array of the other keys, as text; NULL: a marker
    partials    JSON array of the values, as text; of a marker how many events of that hour it was made from

The markers say what a definition was made from, so that nobody has to guess what an answer lacks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from thermocline.event import COLUMNS

from .duck import DATA_ERRORS, Connection, DuckError, fresh_name, quoted
from .rollups import HOUR

TABLE: Final = "rollup_user"
PREFIX: Final = "rollup_"
"""Of the relations: the rollup `refunds` is `rollup_refunds`."""
COLUMN_TYPES: Final = {
    "rollup": "VARCHAR",
    "definition": "VARCHAR",
    "hour": "TIMESTAMPTZ",
    "keys": "VARCHAR",
    "partials": "VARCHAR",
}
EVENT_COLUMNS: Final = {
    **{one.name: "VARCHAR" if one.sql_type in ("UUID", "JSON") else one.sql_type for one in COLUMNS},
    "hour": "TIMESTAMPTZ",
}
"""What a definition sees of an event: the columns of `events`, and its hour."""
_EVENTS: Final = ", ".join(
    f"{one.name}::VARCHAR AS {one.name}" if one.sql_type in ("UUID", "JSON") else one.name for one in COLUMNS
)
log = logging.getLogger("thermocline.rollups")


class Output(msgspec.Struct, frozen=True):
    """One column of a definition."""

    name: str
    sql_type: str
    merge: str = ""
    """sum, min or max; empty for a key."""

    @property
    def sql(self) -> str:
        return '"' + self.name.replace('"', '""') + '"'


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """A rollup of the settings, checked."""

    name: str
    sql: str
    outputs: tuple[Output, ...]
    """In the order of its columns; one of them is `hour`."""
    rows_max: int
    hash: str

    @property
    def relation(self) -> str:
        return f"{PREFIX}{self.name}"

    @property
    def keys(self) -> list[Output]:
        return [one for one in self.outputs if not one.merge and one.name != "hour"]

    @property
    def values(self) -> list[Output]:
        return [one for one in self.outputs if one.merge]

    def fresh(self, rows: str) -> str:
        """SELECT of its columns from `rows`, a relation with the columns of stored events. Rows of a key are one."""
        return f"WITH events AS (SELECT {_EVENTS}, {HOUR} AS hour FROM {rows}) {self.sql}"

    def stored(self, table: str) -> str:
        """SELECT of its columns from `table`, a relation with the columns of TABLE. Rows of a key may be several."""
        keys = [f"json_extract_string(keys, '$[{place}]')::{one.sql_type} AS {one.sql}" for place, one in enumerate(self.keys)]
        values = [
            f"json_extract_string(partials, '$[{place}]')::{one.sql_type} AS {one.sql}" for place, one in enumerate(self.values)
        ]
        return f"SELECT {', '.join(['hour', *keys, *values])} FROM {table} WHERE {self._own} AND keys IS NOT NULL"

    def relation_sql(self, stored: Sequence[str], rows: Sequence[str]) -> str:
        """SELECT of its columns, one row for each key, over what is stored of it and over events of which nothing is."""
        columns = ", ".join(one.sql for one in self.outputs)
        parts = [f"SELECT {columns} FROM ({self.stored(table)})" for table in stored]
        parts += [f"SELECT {columns} FROM ({self.fresh(one)})" for one in rows]
        added = [f"{one.merge}({one.sql})::{one.sql_type} AS {one.sql}" if one.merge else one.sql for one in self.outputs]
        keys = ", ".join(one.sql for one in self.outputs if not one.merge)
        return f"SELECT {', '.join(added)} FROM ({' UNION ALL '.join(parts)}) GROUP BY {keys}"

    def rows(self, rows: str) -> str:
        """SELECT of the rows of TABLE that this definition makes of `rows`, without markers."""
        keys, values = (", ".join(f"{one.sql}::VARCHAR" for one in some) for some in (self.keys, self.values))
        return (
            f"SELECT {self._named}, hour, to_json([{keys}]::VARCHAR[])::VARCHAR AS keys,"
            f" to_json([{values}]::VARCHAR[])::VARCHAR AS partials FROM ({self.fresh(rows)})"
        )

    def markers(self, rows: str) -> str:
        """SELECT of the markers that go with `rows`."""
        return f"SELECT {self._named}, {HOUR} AS hour, NULL AS keys, count(*)::VARCHAR AS partials FROM {rows} GROUP BY ALL"

    def events(self, table: str, where: str = "true") -> str:
        """SELECT of how many events the rows in `table` were made from."""
        return f"SELECT coalesce(sum(partials::BIGINT), 0)::BIGINT FROM {table} WHERE {self._own} AND keys IS NULL AND {where}"

    def agrees(self, schema: str) -> str:
        """SELECT that gives true if what a schema stores of it is what its events give, sums of DOUBLE left aside."""
        exact = ", ".join(one.sql for one in self.outputs if not (one.merge and one.sql_type in ("DOUBLE", "FLOAT")))
        stored = f"SELECT {exact} FROM ({self.stored(f'{schema}.{TABLE}')})"
        fresh = f"SELECT {exact} FROM ({self.fresh(f'{schema}.events')})"
        return f"SELECT NOT EXISTS ({stored} EXCEPT ALL {fresh}) AND NOT EXISTS ({fresh} EXCEPT ALL {stored})"

    @property
    def _own(self) -> str:
        return f"rollup = {quoted(self.name)} AND definition = {quoted(self.hash)}"

    @property
    def _named(self) -> str:
        return f"{quoted(self.name)} AS rollup, {quoted(self.hash)} AS definition"


def create(con: Connection, table: str, rows: str, definitions: Iterable[Definition], *, temporary: bool = False) -> None:
    """Make `table` of what the definitions make of `rows`, events.

    What has too many rows, or fails on a value, is left out: its events are then read when it is asked for, and nothing that
    moves events waits for it.
    """
    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMN_TYPES.items())
    made = fresh_name("rollup")
    con.execute(f"CREATE TEMP TABLE {made} ({columns})")
    try:
        for one in definitions:
            _add(con, made, rows, one)
        kind = "TEMP TABLE" if temporary else "TABLE"
        con.execute(f"CREATE {kind} {table} AS SELECT * FROM {made} ORDER BY rollup, definition, hour, keys")
    finally:
        con.execute(f"DROP TABLE {made}")


def _add(con: Connection, table: str, rows: str, definition: Definition) -> None:
    found = fresh_name("rows")
    try:
        con.execute(f"CREATE TEMP TABLE {found} AS SELECT * FROM ({definition.rows(rows)}) LIMIT {definition.rows_max + 1}")
    except DuckError as exc:
        if not isinstance(exc, DATA_ERRORS) and type(exc).__name__ != "OutOfMemoryException":
            raise
        log.warning("rollups.%s is left out of what is written: %s", definition.name, str(exc).strip().split("\n", 1)[0][:300])
        return
    try:
        [(count,)] = con.execute(f"SELECT count(*) FROM {found}").fetchall()
        if count > definition.rows_max:
            log.warning("rollups.%s is left out: more than rows_max (%d) rows", definition.name, definition.rows_max)
            return
        con.execute(f"INSERT INTO {table} SELECT * FROM {found} UNION ALL {definition.markers(rows)}")
    finally:
        con.execute(f"DROP TABLE {found}")


def made_in(con: Connection, table: str) -> frozenset[tuple[str, str]]:
    """(name, hash) of the definitions that `table` has rows of."""
    return frozenset(con.execute(f"SELECT DISTINCT rollup, definition FROM {table} WHERE keys IS NULL").fetchall())
