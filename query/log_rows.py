"""Events of a log's pages as plain Python, block by block: what a reader that follows gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from thermocline.tiers.block import Position
from thermocline.tiers.duck import Connection, asked, fresh_name
from thermocline.tiers.rows import parse_blocks

from .lines import PLACES, decoded, few
from .patterns import Patterns
from .plain import plain_rows
from .relations import COLUMNS_SQL

Parser = Callable[[], AbstractContextManager[Connection]]
_HEADERS = ("shard", "position_ms", "position_seq", "ingested_us", "conversation_id", "seq_first", "events")


class BlockRows(NamedTuple):
    """One block."""

    shard: int
    us: int
    """Its ingested_at."""
    position: Position
    conversation_id: str
    seq_first: int
    seq_last: int
    seqs: Sequence[int]
    """Of the events that can be read, ascending; the others are rejected."""
    rows: dict[int, dict[str, Any]]
    """seq → values by column, of those that are wanted."""


def last_position(page: pa.Table) -> Position | None:
    """Of the last block in a page of one log; None when it is empty."""
    if not page.num_rows:
        return None
    return Position(page.column("position_ms")[-1].as_py(), page.column("position_seq")[-1].as_py())


def read_blocks(parser: Parser, pages: Sequence[pa.Table], conversation_id: str | None, types: Patterns) -> list[BlockRows]:
    """The blocks of these pages, of one conversation or all, about in the order they were ingested in; of a log, in its order.

    parser  gives a database that parses what is not a few plain blocks, by the rule of settle
    """
    blocks = pa.concat_tables(pages)
    if conversation_id is not None:
        blocks = blocks.filter(pc.equal(blocks.column("conversation_id"), conversation_id))
    if not blocks.num_rows:
        return []
    rows: dict[tuple[int, int, int], dict[int, dict[str, Any]]] = {}
    for row in plain_rows(_table(parser, blocks)):
        place = tuple(row.pop(name) for name in PLACES.names)
        rows.setdefault(place, {})[row["seq"]] = row
    found = []
    for shard, ms, seq, us, name, first, events in zip(*(blocks.column(one).to_pylist() for one in _HEADERS), strict=True):
        here = rows.get((shard, ms, seq), {})
        wanted = {at: row for at, row in here.items() if types.match(row["event_type"])}
        found.append(BlockRows(shard, us, Position(ms, seq), name, first, first + events - 1, sorted(here), wanted))
    return sorted(found, key=lambda block: block.us)


def _table(parser: Parser, blocks: pa.Table) -> pa.Table:
    rows = decoded(blocks.to_pydict()) if few(blocks) else None
    if rows is not None:
        return pa.Table.from_batches([rows])
    parsed = fresh_name("followed")
    with parser() as con:
        try:
            parse_blocks(con, blocks, parsed)
            return asked(con, f"SELECT {COLUMNS_SQL}, {', '.join(PLACES.names)} FROM temp.{parsed}").to_arrow_table()
        finally:
            con.execute(f"DROP TABLE IF EXISTS temp.{parsed}")
