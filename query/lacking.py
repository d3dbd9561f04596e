"""What rollups of the user leave out: events that were archived before they were defined."""

from __future__ import annotations

from collections.abc import Mapping

from thermocline.errors import TierCorrupt, TierUnavailable
from thermocline.tiers.duck import Connection, duckdb_errors
from thermocline.tiers.user_rollups import Definition

from .archived import Archived
from .bounds import Bounds
from .relations import Sources, archived_sql


def lacking(
    base: Connection,
    archived: Archived,
    definitions: Mapping[str, Definition],
    sources: Mapping[str, Sources],
    bounds: Mapping[str, Bounds],
) -> str:
    """How many archived events each of the user's rollups among `sources` was not made from; empty when there are none."""
    found = []
    for relation in sorted(definitions.keys() & sources.keys()):
        query = archived_sql(definitions[relation], sources[relation], bounds[relation], archived.place)
        try:
            events, made = (0, 0) if query is None else _one(base, query)
        except (TierUnavailable, TierCorrupt) as exc:
            raise (archived.failure(sources.values(), exc) or exc) from exc
        if made < events:
            found.append(f"{relation} lacks {events - made:,} of {events:,} archived events: archived without this definition")
    return "; ".join(found)


def _one(base: Connection, query: str) -> tuple[int, int]:
    con = base.cursor()
    try:
        with duckdb_errors("the rollups of archived events", reading=True):
            [found] = con.execute(query).fetchall()
    finally:
        con.close()
    return int(found[0]), int(found[1])
