"""Rows from blocks that are not what their headers say, or that skip lines: every line judged, none trusted.

A line that is no event is rejected alone. A block is rejected whole when its header cannot be right: when its good lines
add up to more than it states, or to less than the lines that are no events could explain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from thermocline.event import COLUMN_NAMES

from . import line_sql
from .duck import DATA_ERRORS, Connection, fresh_name, registered
from .warm import Rejected

PLACE: Final = ("shard", "position_ms", "position_seq")
_CHUNKS_MAX = 64
"""Pieces a table of blocks is handed to DuckDB in: it parses as many at once as it has threads."""
_NEEDED = (*PLACE, "conversation_id", "seq_first", "ingested_us", "block_id", "payload")
_LIST = pa.list_(pa.int64())
_SIZES_IN_BYTES = 2
"""The first entries of `sizes` are bytes, the others count lines."""


def parse_strictly(con: Connection, blocks: pa.Table, into: str) -> list[Rejected]:
    """Add to `into` the good, unskipped rows of these blocks; what is rejected, by line or by block, in any order."""
    line_counts = pc.add(pc.count_substring(blocks["payload"], "\n"), 1).to_pylist()
    rejected: list[Rejected] = []
    offsets: list[list[int | None]] = []
    usable: list[int] = []
    for index, (header, lines) in enumerate(zip(_headers(blocks), line_counts, strict=True)):
        fault = _header_fault(header, lines)
        if fault is None:
            usable.append(index)
            offsets.append(_seq_offsets(lines, header["skip"] or ()))
        else:
            rejected.append(rejected_block(header, fault, _text(blocks["payload"], index)))
    if not usable:
        return rejected
    blocks = blocks.take(usable)
    piece = _with_picks(numbered(blocks.select(_NEEDED)), [list(range(1, len(one) + 1)) for one in offsets], offsets)
    strict = fresh_name("strict")
    try:
        unreadable = _read(con, piece, strict, create=True)
        return rejected + _judged(con, strict, blocks, unreadable, into)
    finally:
        con.execute(f"DROP TABLE IF EXISTS {strict}")


def _header_fault(header: Mapping[str, Any], lines: int) -> str | None:
    """Why the header cannot be that of a block of so many lines."""
    skip = header["skip"] or ()
    if header["events"] + len(skip) != lines:
        return f"it holds {lines} lines, its header says {header['events']} events and {len(skip)} skipped"
    if len(set(skip)) != len(skip) or not all(0 <= ordinal < lines for ordinal in skip):
        return f"its header skips lines it does not have: {skip}"
    if len(header["sizes"]) != len(line_sql.SIZE_NAMES):
        return f"its header states {len(header['sizes'])} sizes, not {len(line_sql.SIZE_NAMES)}"
    return None


def _seq_offsets(lines: int, skip: Sequence[int]) -> list[int | None]:
    """Per line, how far its seq is from the block's first; None for skipped lines."""
    skipped, offset = set(skip), 0
    offsets: list[int | None] = []
    for ordinal in range(lines):
        offsets.append(None if ordinal in skipped else offset)
        offset += ordinal not in skipped
    return offsets


def _read(con: Connection, piece: pa.Table, strict: str, *, create: bool = False) -> dict[tuple[int, int], str]:
    """Parse the picked lines of `piece` into `strict`, halving around what raises: (block, ordinal) → why it cannot be read."""
    with registered(con, chunked(piece)) as source:
        select = line_sql.reasons(line_sql.picked_lines_of(source))
        if create:
            con.execute(f"CREATE TEMP TABLE {strict} AS {select} LIMIT 0")
        try:
            con.execute(f"INSERT INTO {strict} {select}")
            return {}
        except DATA_ERRORS as exc:
            problem = str(exc).strip().split("\n", 1)[0]
    halves = _halves(piece)
    if halves is None:
        return {(piece["block"][0].as_py(), piece["picks"][0].as_py()[0] - 1): problem}
    return _read(con, halves[0], strict) | _read(con, halves[1], strict)


def _halves(piece: pa.Table) -> tuple[pa.Table, pa.Table] | None:
    """The piece in two, by blocks, then by lines; None for a single line."""
    if piece.num_rows > 1:
        middle = piece.num_rows // 2
        return piece.slice(0, middle), piece.slice(middle)
    picks, offsets = piece["picks"][0].as_py(), piece["seq_offsets"][0].as_py()
    if len(picks) == 1:
        return None
    block, middle = piece.drop_columns(["picks", "seq_offsets"]), len(picks) // 2
    return (
        _with_picks(block, [picks[:middle]], [offsets[:middle]]),
        _with_picks(block, [picks[middle:]], [offsets[middle:]]),
    )


def _with_picks(blocks: pa.Table, picks: list[list[int]], offsets: list[list[int | None]]) -> pa.Table:
    return blocks.append_column("picks", pa.array(picks, _LIST)).append_column("seq_offsets", pa.array(offsets, _LIST))


def _judged(
    con: Connection, strict: str, blocks: pa.Table, unreadable: Mapping[tuple[int, int], str], into: str
) -> list[Rejected]:
    """Move the good rows of `strict` to `into`; the rest as Rejected. `block` in `strict` is the index in `blocks`."""
    headers = _headers(blocks)
    wrong = _wrong_blocks(con, strict, headers)
    if wrong:
        con.execute(f"DELETE FROM {strict} WHERE block IN (SELECT unnest(?))", [list(wrong)])
    columns = ", ".join([*COLUMN_NAMES, *PLACE])
    con.execute(f"INSERT INTO {into} SELECT {columns} FROM {strict} WHERE reason IS NULL AND seq_offset IS NOT NULL")
    rejected = [rejected_block(headers[block], reason, _text(blocks["payload"], block)) for block, reason in wrong.items()]
    unfit = con.sql(
        f"SELECT block, ordinal, reason, line FROM {strict} WHERE reason IS NOT NULL AND seq_offset IS NOT NULL"
    ).to_arrow_table()
    places = zip(*(unfit[name].to_pylist() for name in ("block", "ordinal", "reason")), strict=True)
    for index, (block, ordinal, reason) in enumerate(places):
        rejected.append(_rejected_line(headers[block], ordinal, reason, _text(unfit["line"], index)))
    for (block, ordinal), problem in unreadable.items():
        if block not in wrong and ordinal not in (headers[block]["skip"] or ()):
            line = _text(blocks["payload"], block).split("\n")[ordinal]
            rejected.append(_rejected_line(headers[block], ordinal, f"cannot be read: {problem}", line))
    return rejected


def _wrong_blocks(con: Connection, strict: str, headers: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Blocks to reject whole, with the reason."""
    sizes = ", ".join(line_sql.SIZES)
    found = con.execute(f"SELECT block, count(*), {sizes} FROM {strict} WHERE reason IS NULL GROUP BY block").fetchall()
    measured = {block: measures for block, *measures in found}
    nothing = [0] * (1 + len(line_sql.SIZES))
    judged = {block: _mismatch(header, *measured.get(block, nothing)) for block, header in enumerate(headers)}
    return {block: reason for block, reason in judged.items() if reason is not None}


def _mismatch(header: Mapping[str, Any], good: int, *sizes: int) -> str | None:
    """What the good lines of a block add up to that its header contradicts, lines that are no events taken into account."""
    unfit = header["events"] + len(header["skip"] or ()) - good
    for index, (name, stated, found) in enumerate(zip(line_sql.SIZE_NAMES, header["sizes"], sizes, strict=True)):
        unknown = min(unfit, 1) * stated if index < _SIZES_IN_BYTES else unfit
        if not found <= stated <= found + unknown:
            among = f" among its {good} good lines" if unfit else ""
            return f"its header states {stated} {name}, there are {found}{among}"
    return None


def rejected_block(header: Mapping[str, Any], reason: str, payload: str) -> Rejected:
    """The whole block as rejected, all its events."""
    return Rejected(
        shard=header["shard"],
        position=f"{header['position_ms']}-{header['position_seq']}",
        ordinal=-1,
        conversation_id=header["conversation_id"],
        reason=reason,
        line=payload,
        events=header["events"],
    )


def _rejected_line(header: Mapping[str, Any], ordinal: int, reason: str, line: str) -> Rejected:
    return Rejected(
        shard=header["shard"],
        position=f"{header['position_ms']}-{header['position_seq']}",
        ordinal=ordinal,
        conversation_id=header["conversation_id"],
        reason=reason,
        line=line,
    )


def _headers(blocks: pa.Table) -> list[dict[str, Any]]:
    headers: list[dict[str, Any]] = blocks.drop_columns(["payload"]).to_pylist()
    return headers


def _text(column: pa.ChunkedArray, index: int) -> str:
    """A string of the column, whatever its bytes are."""
    raw: bytes = column[index].cast(pa.binary()).as_py()
    return raw.decode(errors="backslashreplace")


def numbered(blocks: pa.Table) -> pa.Table:
    """The blocks with their index as the column `block`."""
    return blocks.append_column("block", pa.array(np.arange(blocks.num_rows, dtype=np.int32)))


def chunked(blocks: pa.Table) -> pa.Table:
    """The same rows in pieces that DuckDB's threads can share."""
    rows = max(1, -(-blocks.num_rows // _CHUNKS_MAX))
    return pa.Table.from_batches(blocks.to_batches(max_chunksize=rows), schema=blocks.schema)
