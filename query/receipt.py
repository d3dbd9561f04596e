"""What was read for an answer, what was not, and why: worked out from what the query had, and only when somebody asks. Pure."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from thermocline.tiers.hot import ShardCut
from thermocline.tiers.ledger import ColdFile, Segment, View

from .bounds import ANY_ROW, Bounds, Texts, outside
from .relations import BY_HOUR, Sources, kinds_of

NAMES_MAX: Final = 1000
"""Files named in a receipt; it counts all."""


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """What one tier had to do with an answer."""

    tier: Literal["hot", "warm", "cold"]
    read: int
    """Shards of hot, segments of warm, files of cold."""
    pruned: Mapping[str, int]
    """Of the others: how many were left out for which reason."""
    rows: int
    """Events in what was read, before the query's own WHERE."""
    bytes: int
    """Size of what was read; a query need not read all of a file."""
    fresh_at: dt.datetime | None
    """hot: when its newest event was ingested. warm: up to which ingestion time events have settled. cold: the newest timestamp
    that is archived. None: it holds nothing."""
    names: tuple[str, ...] = ()
    """What was read: ids of segments, keys of cold files; at most NAMES_MAX."""


class Evidence(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What a query had. Shared with other answers of the same view."""

    view: View
    shards: tuple[ShardCut, ...]
    read_shards: frozenset[int] | None
    """None: all."""
    hot_rows: int
    hot_newest_at: dt.datetime | None
    sources: Mapping[str, Sources]
    bounds: Mapping[str, Bounds]

    def tiers(self) -> tuple[Tier, ...]:
        return self._hot(), self._warm(), self._cold()

    def snapshot(self) -> dict[str, Any]:
        """Which state of the store was read. Answers whose snapshots have the same id saw the same events."""
        shards = [
            {"shard": state.shard, "settled": str(state.position), "upto": str(cut.last), "events": cut.events_total}
            for state, cut in zip(self.view.shards, self.shards, strict=True)
        ]
        held = sorted([*(one.segment_id for one in self.view.segments), *(one.file_id for one in self.view.files)])
        parts = [self.view.incarnation, *(f"{one['settled']} {one['upto']}" for one in shards), *held]
        identity = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
        view = {"incarnation": self.view.incarnation, "epoch": self.view.epoch, "segments": len(self.view.segments)}
        return {"id": identity, **view, "files": len(self.view.files), "shards": shards}

    def understood(self) -> dict[str, dict[str, Any]]:
        """The bounds that were found in the query, by relation; what is not bounded is left out."""
        return {relation: _bounds(bounds) for relation, bounds in self.bounds.items()}

    def _hot(self) -> Tier:
        pairs = [(state, cut) for state, cut in zip(self.view.shards, self.shards, strict=True)]
        wanted = [pair for pair in pairs if self.sources and (self.read_shards is None or pair[0].shard in self.read_shards)]
        left = len(pairs) - len(wanted)
        return Tier(
            tier="hot",
            read=len(wanted),
            pruned={"conversation" if self.sources else "not asked": left} if left else {},
            rows=self.hot_rows,
            bytes=sum(cut.bytes_total - state.bytes for state, cut in wanted),
            fresh_at=self.hot_newest_at,
        )

    def _warm(self) -> Tier:
        read = {one.segment_id: one for source in self.sources.values() for one in source.segments}
        left = [one for one in self.view.segments if one.segment_id not in read]
        settled_ms = max((state.position.ms for state in self.view.shards), default=0)
        return Tier(
            tier="warm",
            read=len(read),
            pruned=_counted(left, self._why_segment),
            rows=sum(one.rows for one in read.values()),
            bytes=sum(one.file_bytes for one in read.values()),
            fresh_at=_at(settled_ms * 1000) if settled_ms else None,
            names=tuple(read)[:NAMES_MAX],
        )

    def _cold(self) -> Tier:
        read = {one.file_id: one for source in self.sources.values() for one in source.files}
        left = [one for one in self.view.files if one.file_id not in read]
        newest_us = max((one.timestamp_max_us for one in self.view.files), default=None)
        return Tier(
            tier="cold",
            read=len(read),
            pruned=_counted(left, self._why_file),
            rows=sum(one.rows for one in read.values() if one.kind == "events"),
            bytes=sum(one.file_bytes for one in read.values()),
            fresh_at=None if newest_us is None else _at(newest_us),
            names=tuple(one.key for one in read.values())[:NAMES_MAX],
        )

    def _why_segment(self, segment: Segment) -> str:
        return _why(segment, self.bounds, self.bounds)

    def _why_file(self, file: ColdFile) -> str:
        asking = [relation for relation in self.bounds if file.kind in kinds_of(relation)]
        if self.bounds and not asking:
            return "rollups answer" if file.kind == "events" else "rows answer" if "events" in self.bounds else "not asked"
        return _why(file, self.bounds, asking)


def _why(extent: Segment | ColdFile, bounds: Mapping[str, Bounds], relations: Iterable[str]) -> str:
    """Why none of the relations reads it."""
    found = "not asked"
    for relation in relations:
        if bounds[relation].empty:
            return "no row can match"
        # A file that may hold such rows was left out because an index knows that it does not.
        found = outside(extent, bounds[relation], by_hour=relation in BY_HOUR) or "conversation"
    return found


def _counted(left: Iterable[Any], why: Callable[[Any], str]) -> dict[str, int]:
    return dict(Counter(why(one) for one in left).most_common())


def _bounds(bounds: Bounds) -> dict[str, Any]:
    if bounds == ANY_ROW:
        return {}
    found: dict[str, Any] = {}
    for name, us in (("time_min", bounds.time_min_us), ("time_max", bounds.time_max_us)):
        if us is not None:
            found[name] = _time_text(us)
    texts: dict[str, Texts] = {"conversation_id": bounds.conversations, "event_type": bounds.event_types}
    for name, text in texts.items():
        if text.values is not None:
            found[name] = sorted(text.values)[:NAMES_MAX]
        elif (text.low, text.high) != (None, None):
            found[name] = {"from": text.low, "to": text.high}
    return found


def _time_text(us: int) -> str:
    try:
        return _at(us).isoformat().replace("+00:00", "Z")
    except OverflowError:
        return f"{us} µs since 1970"


def _at(us: int) -> dt.datetime:
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=us)
