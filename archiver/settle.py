"""Settle: move what waits in Redis into one new segment.

Steps, and what a crash leaves after each:

1. read the blocks, check that none is missing      nothing (the next blocks are read while these are written)
2. write the segment under a temporary name          an orphan (.tmp), purged after the grace
3. rename it                                         an orphan segment, the same
4. append rejected lines to rejected/, fsync         lines of blocks that settle again, recognised by their position
5. one ledger transaction: segment, positions, N     done

Until 5 the events are in hot, from 5 on in warm. The blocks stay in Redis until trim drops them. When the outcome of 5 is
unknown, the next pass takes a fresh view and goes on from whatever the ledger says.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import msgspec
import uuid_utils

from thermocline.errors import TierCorrupt, TierUnavailable
from thermocline.tiers.hot import ShardCut
from thermocline.tiers.ledger import Segment, ShardState, View
from thermocline.tiers.opening import Tiers
from thermocline.tiers.steps import Reach, named, unheard
from thermocline.tiers.warm import Settled

from .durable import Cut, Durable
from .log_batch import Batch
from .plan import settle_due
from .read_ahead import ReadAhead
from .rejected import RejectedLog

OBSERVE_EVERY_S = 1
LOSSES_EVERY_S = 10
SIGHTINGS_MAX = 1000


class SettleReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one pass found and did."""

    waiting_events: int
    """Not settled when the pass began."""
    waiting_bytes: int
    oldest_wait_s: float
    """How long the worker has seen the oldest of them wait."""
    events: int = 0
    """Settled by this pass, rejected ones included."""
    rejected: int = 0
    segment: Segment | None = None
    full: str | None = None
    """Why nothing may settle: warm.bytes_max is reached."""


class Settler:
    """Settles one namespace for the worker that holds `epoch`. One pass at a time."""

    def __init__(
        self,
        tiers: Tiers,
        epoch: int,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        reach: Reach = unheard,
    ) -> None:
        """reach  told the name of every step before and after it"""
        self._tiers = tiers
        self._reach = reach
        self._settings = tiers.settings.warm
        self._epoch = epoch
        self._monotonic = monotonic
        self._durable = Durable(tiers.hot, tiers.settings.hot, monotonic=monotonic, sleep=sleep)
        self._rejected = RejectedLog(tiers.settings.namespace_dir / "rejected")
        self._sightings: deque[tuple[float, tuple[int, ...]]] = deque()
        self._observed_s = self._losses_s = -1e9
        self._read_ahead = ReadAhead(tiers.hot, tiers.settings)

    @property
    def run_id(self) -> str:
        """Which run of Redis the last pass saw; '' before the first."""
        return self._durable.run_id

    def step(self, *, force: bool = False) -> SettleReport:
        """One pass: settle one batch if it is due, or whatever may be settled when `force`.

        TierUnavailable: something does not answer, or Redis has to be confirmed; the next pass may succeed. TierCorrupt: events
        are missing or the ledger and Redis are not of one kind; no later pass may go on. LeaseHeld: another worker took over.
        """
        view, cut = self._view_and_cut()
        self._observe(view, cut)
        self._report_losses(view)
        waiting = _waiting(view, cut, self._oldest_wait_s(view, cut))
        candidate = self._durable.candidate(cut)
        if candidate is None:
            return waiting
        settled = _waiting(view, candidate, waiting.oldest_wait_s)
        if not settled.waiting_events or not (force or self._is_due(settled)):
            return waiting
        full = self._full()
        if full is not None:
            return msgspec.structs.replace(waiting, full=full)
        return self._settle(view, candidate, waiting) if self._durable.prove() else waiting

    def _settle(self, view: View, upto: Cut, waiting: SettleReport) -> SettleReport:
        with named(self._reach, "read blocks"):
            batch = self._read_ahead.batch(view.incarnation, view.shards, upto)
        now_us = time.time_ns() // 1000
        before = {state.shard: state for state in view.shards}
        settled = self._tiers.warm.write_settled(
            batch.blocks, view.shards, move_id=uuid_utils.uuid7().hex, created_us=now_us, reach=self._reach
        )
        with named(self._reach, "log rejected"):
            self._rejected.append(settled.rejected, before, now_us=now_us)
        with named(self._reach, "commit"):
            self._tiers.ledger.settled(self._epoch, settled.segment, states_after(before, batch, settled), now_us=now_us)
        rejected = sum(one.events for one in settled.rejected)
        return msgspec.structs.replace(waiting, events=batch.events, rejected=rejected, segment=settled.segment)

    def _view_and_cut(self) -> tuple[View, Cut]:
        """The ledger's view and, after it, what Redis holds. A mismatch is looked at twice: another process may just confirm."""
        view, cut = self._tiers.ledger.view(), self._tiers.hot.cut()
        if mismatch(view, cut) is not None:
            view, cut = self._tiers.ledger.view(), self._tiers.hot.cut()
        problem = mismatch(view, cut)
        if problem is not None:
            raise problem
        return view, cut

    def _is_due(self, settled: SettleReport) -> bool:
        return settle_due(settled.waiting_events, settled.waiting_bytes, settled.oldest_wait_s, self._settings)

    def _full(self) -> str | None:
        limit = self._settings.bytes_max
        used = self._tiers.warm.bytes_used() if limit else 0
        if used < limit or not limit:
            return None
        return f"segments take {used} bytes, warm.bytes_max is {limit}: raise it, or remove what you do not need"

    def _observe(self, view: View, cut: Cut) -> None:
        """Tell the ledger how far the shards were seen, at most once a second: what proves a loss later."""
        if self._monotonic() - self._observed_s < OBSERVE_EVERY_S:
            return
        grown = {
            one.shard: (one.events_total, one.last)
            for one, state in zip(cut, view.shards, strict=True)
            if one.events_total > state.observed_events
        }
        if grown:
            self._tiers.ledger.observed(grown, eras={one.shard: one.era for one in cut}, now_us=time.time_ns() // 1000)
            self._observed_s = self._monotonic()

    def _report_losses(self, view: View) -> None:
        """Carry losses that producers found into the ledger."""
        if self._monotonic() - self._losses_s < LOSSES_EVERY_S:
            return
        self._losses_s = self._monotonic()
        known = {(loss.shard, loss.era): loss.reported for loss in view.losses}
        reported: dict[tuple[int, int], int] = {}
        for (shard, era, _), events in self._tiers.hot.reported_losses().items():
            reported[shard, era] = reported.get((shard, era), 0) + events
        news = {key: events for key, events in reported.items() if events > known.get(key, 0)}
        if news:
            self._tiers.ledger.losses_reported(news)

    def _oldest_wait_s(self, view: View, cut: Cut) -> float:
        """How long ago the worker first saw an event that has still not settled."""
        now_s, totals = self._monotonic(), tuple(one.events_total for one in cut)
        if not self._sightings or self._sightings[-1][1] != totals:
            self._sightings.append((now_s, totals))
        while self._sightings and all(
            seen <= state.events for seen, state in zip(self._sightings[0][1], view.shards, strict=True)
        ):
            self._sightings.popleft()
        if len(self._sightings) > SIGHTINGS_MAX:  # settling is held up: only the oldest and the newest matter
            self._sightings = deque([self._sightings[0], *list(self._sightings)[SIGHTINGS_MAX // 2 :]])
        return now_s - self._sightings[0][0] if self._sightings else 0.0


def states_after(before: Mapping[int, ShardState], batch: Batch, settled: Settled) -> list[ShardState]:
    """The states of the shards a batch moves."""
    rejected: dict[int, int] = {}
    for one in settled.rejected:
        rejected[one.shard] = rejected.get(one.shard, 0) + one.events
    return [
        msgspec.structs.replace(
            before[shard],
            position=end.position,
            events=end.events,
            bytes=end.bytes,
            rejected=before[shard].rejected + rejected.get(shard, 0),
        )
        for shard, end in sorted(batch.reached.items())
    ]


def mismatch(view: View, cut: Sequence[ShardCut]) -> TierUnavailable | TierCorrupt | None:
    """Why this Redis cannot be settled into this ledger, if so."""
    for one, state in zip(cut, view.shards, strict=True):
        if one.incarnation != view.incarnation:
            return TierUnavailable(
                f"Redis holds incarnation {one.incarnation}, the ledger knows {view.incarnation}: to be confirmed"
            )
        if one.era != state.era:
            return TierUnavailable(f"shard {one.shard} is in era {one.era} in Redis, {state.era} in the ledger: to be confirmed")
        if one.events_total < state.events or one.last < state.position:
            return TierUnavailable(
                f"shard {one.shard} ends at {one.last} with {one.events_total} events in Redis, but {state.events} up to "
                f"{state.position} have settled: Redis came back older, to be confirmed"
            )
        if one.trimmed > state.position:
            return TierCorrupt(
                f"shard {one.shard} is trimmed up to {one.trimmed}, but the ledger says that only {state.position} has settled: "
                "the ledger is older than Redis; stop the worker and run `thermocline recover`"
            )
    return None


def _waiting(view: View, cut: Cut, oldest_wait_s: float) -> SettleReport:
    """What of `cut` has not settled."""
    pairs = list(zip(cut, view.shards, strict=True))
    return SettleReport(
        waiting_events=sum(max(0, one.events_total - state.events) for one, state in pairs),
        waiting_bytes=sum(max(0, one.bytes_total - state.bytes) for one, state in pairs),
        oldest_wait_s=oldest_wait_s,
    )
