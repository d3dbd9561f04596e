"""The reader's cut: every acknowledged event exactly once, without locks on anything.

1. a view of the ledger: which segments there are, and up to which position each shard has settled
2. then a cut of Redis: the last entry of each shard at one instant
3. then the log's entries in between, page by page: those the reader does not have yet
4. then the trimmed positions again: beyond what was read means that entries settled and left meanwhile, so back to 1

An event moves from the log to a segment in one ledger transaction and leaves the log only later. Seen from a view, it is on
one side; because 2 comes after 1, whatever was acknowledged before 1 is on either.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence

import msgspec

from thermocline.config import MIB
from thermocline.errors import TierCorrupt, TierUnavailable
from thermocline.tiers.duck import Connection, DuckError
from thermocline.tiers.hot import ShardCut
from thermocline.tiers.ledger import Segment, View
from thermocline.tiers.opening import Tiers
from thermocline.tiers.user_rollups import Definition

from .attached import Attached, SegmentGone
from .tail import Hole, Tail, TailState


class Cut(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What one query sees. Valid until it is released."""

    view: View
    shards: tuple[ShardCut, ...]
    tail: TailState
    read: frozenset[int] | None
    """The shards whose events are in the tail; None: all."""
    taken_us: int
    """Before the view was taken: every event acknowledged by then is in it."""
    retries: int
    """Views given up because data moved meanwhile."""

    def has(self, shards: frozenset[int] | None) -> bool:
        """Whether the unsettled events of `shards` are in it, None being all."""
        return self.read is None or (shards is not None and shards <= self.read)


class Reader:
    """Cuts for one in-memory database, which holds the decoded tail and the attached segments. Thread-safe.

    con  not used by anyone else; other cursors of the same database run the queries
    """

    def __init__(self, tiers: Tiers, con: Connection) -> None:
        self._tiers = tiers
        self._lock = threading.Lock()
        self._tail = Tail(con, page_bytes_max=tiers.settings.hot.page_bytes_max)
        self._attached = Attached(con, tiers.warm)
        self._held: dict[int, Cut] = {}
        self._current: Cut | None = None
        self._begun = 0

    def take(self, shards: frozenset[int] | None = None) -> Cut:
        """A fresh cut; `release` it. TierUnavailable when Redis or the ledger is, or data moves faster than it can be read.

        shards  those whose unsettled events matter; None: all
        """
        asked = self._begun
        with self._lock:
            current = self._current
            if current is None or self._begun <= asked or not current.has(shards):
                self._begun += 1
                self._current = None
                self._current = current = self._fresh(shards)
            # else another thread began one after this call did: it is as fresh
            cut = msgspec.structs.replace(current)
            self._held[id(cut)] = cut
            return cut

    def attach(self, segments: Iterable[Segment]) -> frozenset[str]:
        """Make `segments` of a cut that is held readable; ids of all that carry rollups.TOTAL. SegmentGone: take another cut."""
        with self._lock:
            self._attached.add(segments)
            return self._attached.with_totals

    def rolled(self, definition: Definition) -> frozenset[str]:
        """Ids of the attached segments that store a rollup of the user."""
        with self._lock:
            found = self._attached.user_rollups.items()
            return frozenset(one for one, made in found if (definition.name, definition.hash) in made)

    def release(self, cut: Cut) -> None:
        """What only this cut used is let go."""
        with self._lock:
            del self._held[id(cut)]
            live = [*self._held.values(), *([self._current] if self._current is not None else [])]
            self._tail.keep_only(chunk for held in live for chunk in held.tail.chunks)
            self._attached.keep_only(segment.segment_id for held in live for segment in held.view.segments)

    def _fresh(self, read: frozenset[int] | None) -> Cut:
        hole: Hole | None = None
        retries, reconfirmed = 0, False
        while retries < self._tiers.settings.query.view_retries_max:
            taken_us = time.time_ns() // 1000
            view = self._tiers.ledger.view()
            try:
                shards = self._tiers.hot.cut()
                problem = _disagreement(view, shards)
            except TierUnavailable as exc:
                if reconfirmed:
                    raise TierUnavailable(f"{exc} (without it an answer would silently miss events)") from exc
                problem = str(exc)
            if problem:
                if reconfirmed:
                    raise TierUnavailable(problem)
                self._reconfirm()
                reconfirmed = True
                continue
            self._check_size(view, shards, read)
            try:
                tail = self._tail.advance(self._tiers.hot, view, shards, read)
                if tail is not None:
                    return Cut(view=view, shards=shards, tail=tail, read=read, taken_us=taken_us, retries=retries)
            except Hole as exc:
                hole = exc
            except DuckError as exc:
                raise TierUnavailable(
                    f"the unsettled events do not fit in memory ({first_line(exc)}): start `thermocline worker`, "
                    "or raise query.memory_bytes_max"
                ) from exc
            retries += 1
        if hole is not None:
            raise TierCorrupt(f"{hole}: nothing may have removed them; run `thermocline verify`") from hole
        behind = [state for state, shard in zip(view.shards, shards, strict=True) if shard.trimmed > state.position]
        if behind:
            raise TierCorrupt(
                f"the ledger is older than Redis: shard {behind[0].shard} has settled up to {behind[0].position}, "
                "but Redis has trimmed what comes after; run `thermocline recover`"
            )
        raise TierUnavailable(
            f"data moved while it was read, {retries} times in a row: "
            "raise hot.log_grace_s (how long readers have) or query.view_retries_max"
        )

    def _reconfirm(self) -> None:
        """Bring Redis back, or have it confirmed, if that is what it takes."""
        try:
            self._tiers.reconfirm()
        except TierUnavailable as exc:
            raise TierUnavailable(f"{exc} (without it an answer would silently miss events)") from exc

    def _check_size(self, view: View, shards: Sequence[ShardCut], read: frozenset[int] | None) -> None:
        pairs = zip(shards, view.shards, strict=True)
        waiting = sum(shard.bytes_total - state.bytes for shard, state in pairs if read is None or shard.shard in read)
        bytes_max = self._tiers.settings.query.tail_bytes_max
        if waiting > bytes_max:
            raise TierUnavailable(
                f"{waiting // MIB} MiB of events wait in Redis to be settled, more than query.tail_bytes_max "
                f"({bytes_max // MIB} MiB) allows a reader to hold: start `thermocline worker`, or raise it"
            )


def first_line(exc: BaseException) -> str:
    """The first paragraph of DuckDB's message, in one line."""
    return " ".join(str(exc).strip().split("\n\n", 1)[0].split())[:500]


def _disagreement(view: View, shards: Sequence[ShardCut]) -> str:
    """Why this Redis cannot be read with this ledger; empty when it can."""
    for state, shard in zip(view.shards, shards, strict=True):
        if shard.incarnation != view.incarnation:
            return (
                f"shard {shard.shard} of Redis holds incarnation {shard.incarnation}, the ledger expects {view.incarnation}: "
                "it was wiped or belongs to another store; check redis_url and data_dir"
            )
        if shard.last < state.position or shard.events_total < state.events:
            return f"shard {shard.shard} of Redis came back older: it ends at {shard.last}, {state.position} has settled"
    return ""


__all__ = ["Cut", "Reader", "SegmentGone", "first_line"]
