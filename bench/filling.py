"""Rows appended by the column, for what is measured afterwards: DuckDB makes the lines, the product all the rest.

A line is byte for byte what the product makes of the row, at a fifth of the cost: rows of the workload need no check.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Final

import pyarrow as pa

from thermocline.config import Settings
from thermocline.event import COLUMNS, NULLABLE_COLUMNS
from thermocline.ingest.appender import Appender
from thermocline.ingest.encode import blocks_of
from thermocline.ingest.line import Line
from thermocline.ingest.sending import Stored
from thermocline.ingest.source import Source
from thermocline.tiers.block import Block
from thermocline.tiers.duck import Connection, registered
from thermocline.tiers.duck import connect as open_duck

from .workload import as_strings

ROWS = 20_000
"""Rows whose events wait for each other: a block has events of one conversation among so many."""
DEADLINE_S = 60.0
_IN_LINE: Final = [column.name for column in COLUMNS if column.in_line and column.name != "event_id"]
_VALUES: Final = {"timestamp": "epoch_us(timestamp)", "content": "nullif(content, '')"}


def append(config: Settings, tables: Iterable[pa.Table], *, appended: list[Block] | None = None) -> int:
    """Append the rows of the tables, some while blocks of the next are made; how many there were.

    appended  gets the blocks
    """
    count = 0
    sent: Future[None] | None = None
    with (
        closing(Source(config, None)) as source,
        closing(Appender(source.session(), reconfirm=source.reconfirm)) as appender,
        closing(open_duck(memory_bytes=1 << 30, threads=1)) as con,
        ThreadPoolExecutor(1) as sending,
    ):
        for rows in (table.slice(start, ROWS) for table in tables for start in range(0, table.num_rows, ROWS)):
            blocks = list(_blocks(con, as_strings(rows), config))
            count += rows.num_rows
            if appended is not None:
                appended += blocks
            if sent is not None:
                sent.result()
            sent = sending.submit(send, appender, blocks)
        if sent is not None:
            sent.result()
    return count


def send(appender: Appender, blocks: Sequence[Block]) -> None:
    for outcome in appender.send(blocks, deadline_s=DEADLINE_S):
        if not isinstance(outcome, Stored):
            raise outcome


def _blocks(con: Connection, rows: pa.Table, config: Settings) -> Iterator[Block]:
    grouped: dict[str, list[Line]] = {}
    for name, line in zip(rows["conversation_id"].to_pylist(), lines_of(con, rows), strict=True):
        grouped.setdefault(name, []).append(line)
    limits = {"events_max": config.ingest.block_events_max, "bytes_max": config.ingest.block_bytes_max}
    for name, lines in grouped.items():
        yield from blocks_of(name, lines, shards=config.hot.shards, **limits)


def lines_of(con: Connection, rows: pa.Table) -> Sequence[Line]:
    """The line of each row, in their order."""
    present = set(rows.column_names)
    first, *rest = [f""""{name}":' || to_json({_VALUES.get(name, name)})""" for name in _IN_LINE if name in present]
    payload = ", ".join([f"'{{{first}", *[f"',{member}" for member in rest], "'}'"])  # concat leaves out what is NULL
    bits = list(enumerate(NULLABLE_COLUMNS))
    nulls = [f"({name} IS NULL)::INT * {1 << bit}" if name in present else str(1 << bit) for bit, name in bits]
    with registered(con, rows) as source:
        found = con.execute(
            f"SELECT encode(concat({payload})), epoch_us(timestamp), coalesce(strlen(content), 0),"
            f" coalesce(strlen(metadata), 0), {' + '.join(nulls)} FROM {source}"
        ).fetchall()
    return [Line(*one, None) for one in found]
