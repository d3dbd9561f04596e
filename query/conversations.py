"""Which segments hold a conversation, and in which rows, remembered in memory.

What the ledger knows of a segment, its first and last conversation, says little: every day has most of the alphabet. And DuckDB's
own bounds of a row group know eight bytes of a text, which is nothing when all names begin with `conversation-`. So what a
conversation is in is read once and kept: of a segment the hashes of its conversations, of one that was read also their rows.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

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
        self._known: OrderedDict[tuple[str, str], tuple[Numbers, ...]] = OrderedDict()
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
        segments = tuple(one for one in source.segments if len(_places(self._hashes(con, one), wanted)))
        ranges = {}
        for segment in segments if rows else ():
            if segment.rows >= ROWS_MIN:
                hashes, first, last = self._rows(con, segment)
                places = _places(hashes, wanted)
                ranges[segment.segment_id] = (int(first[places].min()), int(last[places].max()))
        return msgspec.structs.replace(source, segments=segments, ranges=ranges)

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
        return np.array(list(found.values()))

    def _hashes(self, con: Connection, segment: Segment) -> Numbers:
        """Sorted."""
        known = self._known_rows(segment)
        if known is not None:
            return known[0]
        table = "rollup_conversation" if segment.has_rollups else "events"
        query = f"SELECT DISTINCT hash(conversation_id) AS hash FROM {alias(segment.segment_id)}.{table} ORDER BY hash"
        return self._remembered(segment, "hashes", lambda: _columns(con, query))[0]

    def _rows(self, con: Connection, segment: Segment) -> tuple[Numbers, ...]:
        """(hashes, sorted; first row; last row)."""
        hashed = f"SELECT hash(conversation_id) AS hash, rowid AS place FROM {alias(segment.segment_id)}.events"
        query = f"SELECT hash, min(place)::UINTEGER, max(place)::UINTEGER FROM ({hashed}) GROUP BY hash ORDER BY hash"
        found = self._remembered(segment, "rows", lambda: _columns(con, query))
        with self._lock:
            self._known.pop((segment.segment_id, "hashes"), None)
        return found

    def _known_rows(self, segment: Segment) -> tuple[Numbers, ...] | None:
        key = (segment.segment_id, "rows")
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
            return self._known.get(key)

    def _remembered(self, segment: Segment, what: str, read: Callable[[], tuple[Numbers, ...]]) -> tuple[Numbers, ...]:
        key = (segment.segment_id, what)
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
                return known
        found = read()
        with self._lock:
            self._known[key] = found
            while len(self._known) > 1 and sum(_size(known) for known in self._known.values()) > BYTES_MAX:
                self._known.popitem(last=False)
        return found


def _places(known: Numbers, wanted: Numbers) -> Numbers:
    """Where `known`, sorted, has any of `wanted`."""
    places = known.searchsorted(wanted)
    found: Numbers = places[known.take(places, mode="clip") == wanted]
    return found


def _size(columns: Iterable[Numbers]) -> int:
    return sum(column.nbytes for column in columns)


def _columns(con: Connection, query: str, parameters: Sequence[object] | None = None) -> tuple[Numbers, ...]:
    return tuple(column.to_numpy() for column in asked(con, query, parameters).to_arrow_table().columns)
