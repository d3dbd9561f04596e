"""Rows from blocks: what settle and the hot tail share, so that both see the same events (docs/formats.md, "Block").

The common case is two statements: parse every line, then compare what came out with what the blocks' headers say (events,
bytes of content and metadata, NULLs of each column, JSON strings). Only blocks that differ, or that have lines to skip,
are read again (rows_strict.py), to say which of their lines are at fault and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from thermocline.event import COLUMNS

from . import line_sql
from .duck import DATA_ERRORS, Connection, registered
from .rows_strict import PLACE, chunked, numbered, parse_strictly, rejected_block
from .warm import Rejected


def parse_blocks(con: Connection, blocks: pa.Table, into: str) -> list[Rejected]:
    """What could not be used; the good events become the rows of a new temporary table `into` of `con`.

    blocks  hot.BLOCKS_SCHEMA, whole blocks, any number
    into    created here: the columns of COLUMNS in order, then shard, position_ms, position_seq; row order is not defined

    Skipped lines make no row; rejected lines make none either but keep their seq. Nothing a block holds can make this
    raise: a line that aborts a statement is found by halving and rejected alone. Must not run inside a transaction.
    """
    plain, special, faulty = _sorted_out(blocks)
    rejected = [rejected_block(header, header["fault"], header["payload"]) for header in faulty.to_pylist()]
    suspicious = _parse_plain(con, plain, into)
    if suspicious:
        special = pa.concat_tables([special, plain.take(suspicious)])
    if special.num_rows:
        rejected += parse_strictly(con, special, into)
    rejected.sort(key=lambda one: (one.shard, *map(int, one.position.split("-")), one.ordinal))
    return rejected


@contextmanager
def trusted(con: Connection, blocks: pa.Table) -> Iterator[str]:
    """A SELECT of the rows of plain blocks, parsed as it is read, for who checks `agreement` over what came out."""
    with registered(con, chunked(blocks)) as source:
        yield f"SELECT {line_sql.values()} FROM ({line_sql.parsed(line_sql.lines_of(source))})"


def are_plain(blocks: pa.Table) -> bool:
    """Whether no block has a fault or lines to skip."""
    return bool(blocks["fault"].null_count == blocks["skip"].null_count == blocks.num_rows)


AGREEMENT: Final = (line_sql.FIT, "count(*)", line_sql.STRINGS_SEEN, *line_sql.SIZES)
"""Aggregates over the rows of blocks, for `agree`."""


def agree(blocks: pa.Table, found: Sequence[Any]) -> bool:
    """Whether `found`, the AGREEMENT of rows, is what the headers and lines of their plain blocks say, in sum."""
    fit, rows, strings, *sizes = found
    stated = pc.list_flatten(blocks["sizes"]).to_numpy()
    if not fit or rows != (pc.sum(blocks["events"]).as_py() or 0) or len(stated) != blocks.num_rows * len(sizes):
        return False
    if stated.reshape(-1, len(sizes)).sum(axis=0).tolist() != sizes:
        return False
    unseen: int = sum(_count_strings(chunk) for chunk in blocks["payload"].chunks) - strings
    given_ids: int = pc.sum(pc.count_substring(blocks["payload"], '"event_id":"')).as_py() if unseen else 0
    return unseen == given_ids


def _sorted_out(blocks: pa.Table) -> tuple[pa.Table, pa.Table, pa.Table]:
    """(blocks to parse at once, those with lines to skip, those with a fault)."""
    if are_plain(blocks):
        return blocks, blocks.slice(0, 0), blocks.slice(0, 0)
    sound, whole = pc.is_null(blocks["fault"]), pc.is_null(blocks["skip"])
    return (
        blocks.filter(pc.and_(sound, whole)),
        blocks.filter(pc.and_(sound, pc.invert(whole))),
        blocks.filter(pc.invert(sound)),
    )


def _parse_plain(con: Connection, blocks: pa.Table, into: str) -> list[int]:
    """Create `into` with the rows of all blocks but those whose rows are not what their headers say: their indices."""
    with trusted(con, blocks) as select:
        try:
            con.execute(f"CREATE TEMP TABLE {into} AS {select}")
        except DATA_ERRORS:
            columns = ", ".join(f"{column.name} {column.sql_type}" for column in COLUMNS)
            con.execute(f"CREATE TEMP TABLE {into} ({columns}, shard INTEGER, position_ms BIGINT, position_seq BIGINT)")
            return list(range(blocks.num_rows))
    [found] = con.execute(f"SELECT {', '.join(AGREEMENT)} FROM {into}").fetchall()
    if agree(blocks, found):
        return []
    suspicious = _suspicious(con, blocks, into)
    with registered(con, blocks.select(PLACE).take(suspicious)) as places:
        same = " AND ".join(f"{into}.{name} = {places}.{name}" for name in PLACE)
        con.execute(f"DELETE FROM {into} USING {places} WHERE {same}")
    return suspicious


def _count_strings(payloads: pa.StringArray) -> int:
    """How often `":"` stands in the payloads, left to right: in `"status":":"` once."""
    offsets = np.frombuffer(payloads.buffers()[1], np.int32)
    first, last = offsets[payloads.offset], offsets[payloads.offset + len(payloads)]
    text = np.frombuffer(payloads.buffers()[2], np.uint8)[first:last]
    colons = np.flatnonzero(text[1:-1] == ord(":"))
    found = colons[(text[colons] == ord('"')) & (text[colons + 2] == ord('"'))]
    if np.any(np.diff(found) == len('":')):  # some share a quote: rare, and left to who counts them one by one
        return pc.sum(pc.count_substring(payloads, '":"')).as_py() or 0
    return len(found)


def _suspicious(con: Connection, blocks: pa.Table, into: str) -> list[int]:
    """Indices of the blocks whose own rows and header differ."""
    place = ", ".join(PLACE)
    measured = ", ".join(AGREEMENT[1:])
    stated = f"list_concat([events, {line_sql.STRINGS_OF_BLOCK}], sizes)"
    with registered(con, numbered(blocks)) as source:
        found = con.execute(
            f"SELECT block FROM {source} LEFT JOIN"
            f" (SELECT {place}, {line_sql.FIT} AS fit, [{measured}] AS measured FROM {into} GROUP BY ALL) USING ({place})"
            f" WHERE fit IS NOT TRUE OR measured IS DISTINCT FROM {stated} ORDER BY block"
        ).fetchall()
    return [block for (block,) in found]
