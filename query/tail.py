"""The hot tail of one reader: unsettled events, decoded once and kept until they settle.

Rows are kept in a few tables of an in-memory DuckDB that only grow and are dropped whole, each up to the row that a cut had at
its time (a "chunk"), so a query that runs on an older cut keeps what it reads. A refresh pages only what is new and inserts it
into the newest table. What cannot be decoded is rejected by the same rule as in settle, and counted.

When Redis stops answering, what was fetched by then stays, and the next refresh goes on from there; after any other failure, be
it Ctrl-C, the tail starts over.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from thermocline.errors import TierUnavailable
from thermocline.event import COLUMNS
from thermocline.tiers.block import ORIGIN, Position
from thermocline.tiers.duck import Connection, fresh_name
from thermocline.tiers.hot import Hot, ShardCut
from thermocline.tiers.ledger import View
from thermocline.tiers.rows import parse_blocks

from .lines import decoded, few

PARSE_BYTES: Final = 32 << 20
"""Payload decoded at once."""
CHUNK_ROWS: Final = 20_000
"""From here on new rows begin another table: what has settled of one is taken out by copying the rest."""
CHUNKS_MAX: Final = 6
"""The last of so many takes all that comes."""
SCHEMA: Final = "memory.tail"
EMPTY: Final = f"{SCHEMA}.none"
"""A table without rows that has the columns of `events`: what a relation over nothing reads."""
_COLUMN_LIST: Final = ", ".join(column.name for column in COLUMNS)
_PLACE: Final = "shard, position_ms, position_seq"
_COLUMN_TYPES: Final = ", ".join(f"{column.name} {column.sql_type}" for column in COLUMNS)


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """Decoded events: the first rows of a table."""

    table: str
    rows: int
    newest_us: int
    """Latest ingested_at."""
    reach: Mapping[int, tuple[Position, Position]]
    """shard → no row is before the first position, none after the last."""

    @property
    def sql(self) -> str:
        """What FROM names: later rows of the table are of later cuts."""
        return f"{self.table} WHERE rowid < {self.rows}"


class TailState(msgspec.Struct, frozen=True, kw_only=True):
    """What a cut keeps of the tail."""

    chunks: tuple[Chunk, ...] = ()
    rejected: int = 0

    @property
    def rows(self) -> int:
        return sum(chunk.rows for chunk in self.chunks)

    @property
    def newest_us(self) -> int | None:
        return max((chunk.newest_us for chunk in self.chunks), default=None)


class Hole(Exception):
    """Internal: the log lacks entries that nothing says were trimmed."""


class Tail:
    """Not thread-safe: the reader's lock covers it.

    con  a connection to an in-memory database of its own; other cursors of it may read the chunks at any time
    """

    def __init__(self, con: Connection, *, page_bytes_max: int) -> None:
        self._con = con
        self._page_bytes_max = page_bytes_max
        self._chunks: list[Chunk] = []
        self._rejected: list[tuple[int, Position, int]] = []
        self._reached: dict[int, tuple[Position, int]] = {}
        self._trimmed: dict[int, Position] = {}
        self._identity: object = None
        self._tables: set[str] = set()
        self._numbers = 0
        con.execute(f"CREATE SCHEMA {SCHEMA}")
        con.execute(f"CREATE TABLE {EMPTY} ({_COLUMN_TYPES})")

    def advance(self, hot: Hot, view: View, cut: Sequence[ShardCut], shards: Container[int] | None = None) -> TailState | None:
        """The events after the view's positions up to the cut, fetching what is new.

        shards  those that are wanted, None for all; of any other the answer holds some events or none
        None when the log was trimmed beyond the view meanwhile: take a fresh view and call again; what was fetched is kept.
        Hole when events are missing for no such reason; the tail is empty then.
        """
        try:
            wanted = cut if shards is None else [one for one in cut if one.shard in shards]
            return self._advance(hot, view, cut, wanted)
        except TierUnavailable:
            raise  # between two steps: everything fits together
        except BaseException:
            self.clear()
            raise

    def _advance(self, hot: Hot, view: View, cut: Sequence[ShardCut], wanted: Sequence[ShardCut]) -> TailState | None:
        identity = [(shard.incarnation, shard.era) for shard in cut]
        if identity != self._identity or any(shard.last < self._place(shard.shard)[0] for shard in cut):
            self.clear()  # Redis came back older, or as another: what was read before may be gone from the log
            self._identity = identity
        self._drop_settled([state.position for state in view.shards])
        starts = {state.shard: max((state.position, state.events), self._place(state.shard)) for state in view.shards}
        behind = [shard for shard in wanted if shard.last > starts[shard.shard][0]]
        if behind:
            self._fetch(hot, behind, starts)
            self._check(behind, starts, hot.trimmed())
        positions = {state.shard: state.position for state in view.shards}
        if any(self._trimmed.get(shard.shard, ORIGIN) > positions[shard.shard] for shard in wanted):
            return None
        return TailState(chunks=tuple(self._chunks), rejected=sum(events for _, _, events in self._rejected))

    def clear(self) -> None:
        """Forget everything; tables stay until `keep_only`."""
        self._chunks, self._rejected, self._reached, self._trimmed = [], [], {}, {}

    def keep_only(self, held: Iterable[Chunk]) -> None:
        """Drop the tables that neither the tail nor `held` uses."""
        used = {chunk.table for chunk in (*held, *self._chunks)}
        for table in self._tables - used:
            self._con.execute(f"DROP TABLE IF EXISTS {table}")
            self._tables.discard(table)

    def _place(self, shard: int) -> tuple[Position, int]:
        """(position, N) up to which the shard was read."""
        return self._reached.get(shard, (ORIGIN, 0))

    def _fetch(self, hot: Hot, behind: Sequence[ShardCut], starts: Mapping[int, tuple[Position, int]]) -> None:
        pages: list[pa.Table] = []
        size = 0
        for shard in behind:
            at = starts[shard.shard][0]
            while at < shard.last:
                page = hot.page(shard.shard, at, shard.last, bytes_max=self._page_bytes_max)
                if page.num_rows == 0:
                    break
                pages.append(page)
                size += page.nbytes
                at = Position(page.column("position_ms")[-1].as_py(), page.column("position_seq")[-1].as_py())
                if size >= PARSE_BYTES:
                    self._decode(pa.concat_tables(pages), starts)
                    pages, size = [], 0
        if pages:
            self._decode(pa.concat_tables(pages), starts)
        for shard in behind:
            _, events = max(starts[shard.shard], self._place(shard.shard))
            self._reached[shard.shard] = (shard.last, events)

    def _decode(self, blocks: pa.Table, starts: Mapping[int, tuple[Position, int]]) -> None:
        """Add the rows of `blocks` to the chunks and remember how far their shards are read."""
        spans = _spans(blocks)
        reach = {shard: (first, last) for shard, first, last, _ in spans}
        newest_us: int = pc.max(blocks.column("ingested_us")).as_py()
        rows = decoded(blocks.to_pydict()) if few(blocks) else None
        if rows is not None:
            self._add(pa.Table.from_batches([rows]), newest_us, reach)
        else:
            parsed = fresh_name("tail")
            try:
                rejected = parse_blocks(self._con, blocks, parsed)
                self._add(f"temp.{parsed}", newest_us, reach)
                self._rejected += [(line.shard, Position.parse(line.position), line.events) for line in rejected]
            finally:
                self._con.execute(f"DROP TABLE IF EXISTS temp.{parsed}")
        for shard, _, upto, count in spans:
            _, events = max(starts[shard], self._place(shard))
            self._reached[shard] = (upto, events + count)

    def _add(self, rows: str | pa.Table, newest_us: int, reach: Mapping[int, tuple[Position, Position]]) -> None:
        """Let the newest chunk have these rows too, or a new one."""
        last = self._chunks[-1] if self._chunks else None
        if last is None or (last.rows >= CHUNK_ROWS and len(self._chunks) < CHUNKS_MAX):
            table = self._table()
            self._chunks.append(Chunk(table=table, rows=self._insert(table, rows), newest_us=newest_us, reach=reach))
            return
        both = {shard: (last.reach.get(shard, span)[0], span[1]) for shard, span in reach.items()}
        self._chunks[-1] = Chunk(
            table=last.table,
            rows=last.rows + self._insert(last.table, rows),
            newest_us=max(last.newest_us, newest_us),
            reach={**last.reach, **both},
        )

    def _check(self, behind: Sequence[ShardCut], starts: Mapping[int, tuple[Position, int]], trimmed: Sequence[Position]) -> None:
        """Compare what was read with the counters of the cut."""
        for shard in behind:
            start, _ = starts[shard.shard]
            _, events = self._reached[shard.shard]
            if trimmed[shard.shard] > start:
                self._trimmed[shard.shard] = trimmed[shard.shard]
            elif events != shard.events_total:
                missing = shard.events_total - events
                raise Hole(f"shard {shard.shard} of Redis' log lacks {missing} events between {start} and {shard.last}")
            self._reached[shard.shard] = (shard.last, shard.events_total)

    def _drop_settled(self, settled: Sequence[Position]) -> None:
        """Take what is in segments by now out of the chunks."""
        kept = []
        for chunk in self._chunks:
            if all(first > settled[shard] for shard, (first, _) in chunk.reach.items()):
                kept.append(chunk)
                continue
            left = {shard: (settled[shard].next(), last) for shard, (_, last) in chunk.reach.items() if last > settled[shard]}
            if left:
                after = " OR ".join(f"(shard = {shard} AND {_after(settled[shard])})" for shard in left)
                table = self._table()
                rows = self._insert(table, f"{chunk.table} WHERE {after}")
                if rows:
                    [(newest_us,)] = self._con.execute(f"SELECT max(epoch_us(ingested_at)) FROM {table}").fetchall()
                    kept.append(Chunk(table=table, rows=rows, newest_us=newest_us, reach=left))
        self._chunks = kept
        self._rejected = [line for line in self._rejected if line[1] > settled[line[0]]]

    def _table(self) -> str:
        """The name of a new table."""
        self._numbers += 1
        table = f"{SCHEMA}.c{self._numbers}"
        self._tables.add(table)
        self._con.execute(f"CREATE TABLE {table} ({_COLUMN_TYPES}, shard INTEGER, position_ms BIGINT, position_seq BIGINT)")
        return table

    def _insert(self, table: str, rows: str | pa.Table) -> int:
        """How many rows there were: of a relation, or a table WITH_PLACES."""
        if not isinstance(rows, str):
            self._con.from_arrow(rows).insert_into(table)  # a quarter quicker than SQL over a registered table
            return int(rows.num_rows)
        [(count,)] = self._con.execute(f"INSERT INTO {table} SELECT {_COLUMN_LIST}, {_PLACE} FROM {rows}").fetchall()
        return int(count)


def _spans(blocks: pa.Table) -> list[tuple[int, Position, Position, int]]:
    """(shard, its first and last position among these blocks, their events); the blocks of a shard follow one another."""
    shards, ms, seqs, events = (blocks.column(name).to_numpy() for name in ("shard", "position_ms", "position_seq", "events"))
    first = np.flatnonzero(np.diff(shards, prepend=-1))
    last = np.append(first[1:], len(shards)) - 1
    begins, ends = (map(Position, ms[at].tolist(), seqs[at].tolist()) for at in (first, last))
    return list(zip(shards[first].tolist(), begins, ends, np.add.reduceat(events, first).tolist(), strict=True))


def _after(position: Position) -> str:
    ms, seq = position
    return f"(position_ms > {ms} OR (position_ms = {ms} AND position_seq > {seq}))"
