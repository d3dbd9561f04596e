"""Which segments hold a conversation, and in which rows, remembered in memory.

What the ledger knows of a segment, its first and last conversation, says little: every day has most of the alphabet. And DuckDB's
own bounds of a row group know eight bytes of a text, which is nothing when all names begin with `conversation-`. So what a
conversation is in is read once and kept: of a segment the hashes of its conversations, of a large one also their rows.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from thermocline.errors import TierCorrupt
from thermocline.tiers.duck import Connection, asked
from thermocline.tiers.ledger import Segment

from .attached import alias
from .bounds import Bounds
from .relations import Sources

NAMES_MAX: Final = 100
"""A query that asks for more conversations reads every segment its other bounds leave."""
ROWS_MIN: Final = 100_000
"""In a smaller segment DuckDB finds the rows as fast by itself."""
HASHES_MAX: Final = 10_000
"""Names whose hash is remembered, or NAMES_MAX more."""
BYTES_MAX: Final = 128 << 20
"""Remembered at most, 8 or 16 bytes a conversation and segment: room for those of 100 million events. The ones asked for longest
ago are forgotten first."""
Numbers = npt.NDArray[Any]


class Conversations:
    """Thread-safe. con: any connection of the database that the segments are attached to."""

    def __init__(self, con: Connection) -> None:
        self._con = con
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[Numbers, ...]] = OrderedDict()
        self._hash_of: dict[str, np.uint64] = {}

    def narrowed(self, sources: Mapping[str, Sources], bounds: Mapping[str, Bounds]) -> dict[str, Sources]:
        """The sources without segments and rows that hold none of the conversations asked for; the segments are attached."""
        found = dict(sources)
        for relation, source in sources.items():
            names = bounds[relation].conversations.values
            if names is not None and len(names) <= NAMES_MAX and source.segments:
                con = self._con.cursor()
                try:
                    found[relation] = self._narrowed(con, source, names, rows=relation == "events")
                finally:
                    con.close()
        return found

    def _narrowed(self, con: Connection, source: Sources, names: Iterable[str], *, rows: bool) -> Sources:
        wanted = self._hashed(con, names)
        segments, spans = [], {}
        for segment in source.segments:
            hashes, *edges = self._held(con, segment)
            found = _places(hashes, wanted)
            if len(found):
                segments.append(segment)
                if rows and edges:
                    first, last = edges
                    spans[segment.segment_id] = (int(first[found].min()), int(last[found].max()))
        return msgspec.structs.replace(source, segments=tuple(segments), ranges=spans)

    def _hashed(self, con: Connection, names: Iterable[str]) -> Numbers:
        """What DuckDB's hash() makes of them. Asking it takes up to a fifth of a whole query, so what it said is remembered."""
        found = {name: self._hash_of.get(name) for name in names}
        new = [name for name, hashed in found.items() if hashed is None]
        if new:
            [hashes] = _columns(con, "SELECT hash(unnest(?))", [new])
            made = dict(zip(new, hashes, strict=True))
            if len(self._hash_of) > HASHES_MAX:
                self._hash_of.clear()
            self._hash_of.update(made)
            found.update(made)
        return np.array(list(found.values()), np.uint64)

    def _held(self, con: Connection, segment: Segment) -> tuple[Numbers, ...]:
        """(hashes of its conversations, sorted), of a large one with (first row, last row)."""
        with self._lock:
            known = self._known.get(segment.segment_id)
            if known is not None:
                self._known.move_to_end(segment.segment_id)
                return known
        found = (_rows_of if segment.rows >= ROWS_MIN else _hashes_of)(con, segment)
        with self._lock:
            self._known[segment.segment_id] = found
            while len(self._known) > 1 and sum(_size(known) for known in self._known.values()) > BYTES_MAX:
                self._known.popitem(last=False)
        return found


def _hashes_of(con: Connection, segment: Segment) -> tuple[Numbers, ...]:
    table = "rollup_conversation" if segment.has_rollups else "events"
    return _columns(con, f"SELECT DISTINCT hash(conversation_id) AS hash FROM {alias(segment.segment_id)}.{table} ORDER BY hash")


def _rows_of(con: Connection, segment: Segment) -> tuple[Numbers, ...]:
    """As `ranges` gives them. A segment is sorted by conversation (docs/formats.md), so counting is enough: of 1.8 million rows a
    tenth of the time that looking at each takes, and their column need not be read."""
    counted = "SELECT conversation_id, events FROM {}.rollup_conversation"
    if not segment.has_rollups:
        counted = "SELECT conversation_id, count(*) AS events FROM {}.events GROUP BY conversation_id"
    query = f"SELECT hash(conversation_id), events FROM ({counted.format(alias(segment.segment_id))}) ORDER BY conversation_id"
    hashes, events = _columns(con, query)
    if events.sum() != segment.rows:
        raise TierCorrupt(
            f"segment {segment.segment_id} holds {segment.rows:,} events, and its conversations add up to {events.sum():,}: "
            "run `thermocline verify --deep`"
        )
    return ranges(hashes, events)


def ranges(hashes: Numbers, events: Numbers) -> tuple[Numbers, ...]:
    """(hashes, sorted; first row; last row) of conversations of which one follows the other, each with so many rows."""
    ends = np.cumsum(events)
    order = np.argsort(hashes)
    found, starts = np.unique(hashes[order], return_index=True)  # two names may have one hash
    first, last = np.minimum.reduceat((ends - events)[order], starts), np.maximum.reduceat(ends[order], starts) - 1
    return found, first.astype(np.uint32), last.astype(np.uint32)


def _places(known: Numbers, wanted: Numbers) -> Numbers:
    """Where `known`, sorted, has any of `wanted`."""
    places = known.searchsorted(wanted)
    found: Numbers = places[known.take(places, mode="clip") == wanted]
    return found


def _size(columns: Iterable[Numbers]) -> int:
    return sum(column.nbytes for column in columns)


def _columns(con: Connection, query: str, parameters: Sequence[object] | None = None) -> tuple[Numbers, ...]:
    return tuple(column.to_numpy() for column in asked(con, query, parameters).to_arrow_table().columns)
