"""Verify: prove that every acknowledged event is in exactly one place. Reads only; safe from any process, at any moment.

Per shard: appended = hot + warm + kept + sampled out + erased + rejected + declared lost. The ledger is read first, then Redis,
so hot is N of the cut less what the view says has settled: whatever producers append meanwhile is in both sides of the sum, and a
settle in between only moves events that this view still counts as hot. A sum that is short is a *gap*, one that is over an
*overlap*; files can show either while the other hides it, so each is also compared with what the ledger says of it.

deep  also reads every row: checksums, rollups, order, events stored twice, and the unsettled blocks in Redis
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from thermocline.errors import TierCorrupt, TierUnavailable
from thermocline.tiers.duplicates import duplicates
from thermocline.tiers.hot import ShardCut
from thermocline.tiers.ledger import Loss, Segment, ShardState, View
from thermocline.tiers.ledger_rows import events_by_shard
from thermocline.tiers.opening import Tiers

from .log_batch import read_batch
from .settle import mismatch
from .verify_cold import cold_problems

DUPLICATES_SHOWN_MAX = 20
VIEWS_MAX = 5


class ShardCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Where the events of one shard are."""

    shard: int
    appended: int
    """N in Redis and what was declared lost; what has settled when Redis does not answer."""
    hot: int
    warm: int
    kept: int
    sampled_out: int
    erased: int
    rejected: int
    lost: int

    @property
    def difference(self) -> int:
        """Events that are nowhere (negative: a gap) or counted twice (positive: an overlap)."""
        places = self.hot + self.warm + self.kept + self.sampled_out + self.erased + self.rejected + self.lost
        return places - self.appended


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What `verify` found."""

    deep: bool
    shards: tuple[ShardCheck, ...]
    segments: int
    files: int
    """Of the archive."""
    rows: int
    """In segments and archived events."""
    problems: tuple[str, ...]
    """One line each, with a hint; empty when all is well."""
    losses: tuple[Loss, ...]
    """Declared ones: acknowledged events that Redis lost, which no other tier had."""

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(tiers: Tiers, *, deep: bool = False) -> Verification:
    """Check conservation, the files, and what Redis holds. TierUnavailable only when the ledger cannot be read."""
    view, cut, problems = _view_and_cut(tiers)
    shards = conservation(view, cut)
    problems += sum_problems(shards)
    damaged: set[str] = set()
    problems += cold_problems(tiers, view, deep=deep)
    for segment in view.segments:
        found = _file_problems(tiers, segment, deep=deep)
        problems += found
        damaged.update([segment.segment_id] if found else [])
    if deep:
        problems += _duplicate_problems(tiers, damaged)
        problems += _log_problems(tiers) if cut is not None else []
    return Verification(
        deep=deep,
        shards=tuple(shards),
        segments=len(view.segments),
        files=len(view.files),
        rows=sum(segment.rows for segment in view.segments) + sum(one.rows for one in view.files if one.kind == "events"),
        problems=tuple(problems),
        losses=tuple(loss for loss in view.losses if loss.events),
    )


def conservation(view: View, cut: Sequence[ShardCut] | None) -> list[ShardCheck]:
    """The sum of every shard. Pure. Without a cut the part that Redis holds is left out on both sides."""
    warm = events_by_shard(view.segments)
    totals = {total.shard: total for total in view.totals}
    checks = []
    for state in view.shards:
        total = totals[state.shard]
        lost = sum(loss.events for loss in view.losses if loss.shard == state.shard)
        appended = cut[state.shard].events_total if cut is not None else state.events
        checks.append(
            ShardCheck(
                shard=state.shard,
                appended=appended + lost,
                hot=appended - state.events,
                warm=warm.get(state.shard, 0),
                kept=total.kept,
                sampled_out=total.sampled_out,
                erased=total.erased,
                rejected=state.rejected,
                lost=lost,
            )
        )
    return checks


def sum_problems(shards: Sequence[ShardCheck]) -> list[str]:
    """One line for every shard whose sum is off. Pure."""
    problems = []
    for one in shards:
        if one.hot < 0:
            problems.append(
                f"shard {one.shard}: Redis holds {-one.hot} events less than have settled: it came back older; "
                "run `thermocline worker`, which confirms it"
            )
        if one.difference < 0:
            problems.append(
                f"shard {one.shard}: gap: {-one.difference} of {one.appended} events are nowhere; "
                "look for a missing segment below, restore it from a copy"
            )
        if one.difference > 0:
            problems.append(
                f"shard {one.shard}: overlap: {one.difference} more events than the {one.appended} appended; "
                "`thermocline verify --deep` names those stored twice"
            )
    return problems


def _view_and_cut(tiers: Tiers) -> tuple[View, tuple[ShardCut, ...] | None, list[str]]:
    """The ledger, then Redis; looked at again when they do not fit, for another process may just confirm."""
    for _ in range(2):
        view = tiers.ledger.view()
        try:
            cut = tiers.hot.cut()
        except TierUnavailable as exc:
            return view, None, [f"hot is not counted: {exc}"]
        problem = mismatch(view, cut)
        if problem is None:
            break
    return view, cut, [] if problem is None else [str(problem)]


def _file_problems(tiers: Tiers, segment: Segment, *, deep: bool) -> list[str]:
    """What is wrong with a live segment's file. One that was merged away meanwhile is not missed."""
    found = tiers.warm.check(segment, deep=deep)
    of_ranges = sum(part.events for part in segment.ranges)
    if of_ranges != segment.rows:
        found.append(
            f"segment {segment.segment_id}: {segment.rows} rows, but its shards add up to {of_ranges}; run `thermocline recover`"
        )
    return found if found and segment in tiers.ledger.view().segments else []


def _duplicate_problems(tiers: Tiers, damaged: Collection[str]) -> list[str]:
    """Events stored twice, by name. Looked for again, without damaged files, when one is gone or cannot be read."""
    problem = ""
    left_out: Collection[str] = ()
    for _ in range(VIEWS_MAX):
        segments = [one for one in tiers.ledger.view().segments if one.segment_id not in left_out]
        try:
            found = duplicates(tiers.warm, segments, tiers.settings.warm, limit=DUPLICATES_SHOWN_MAX)
        except (TierUnavailable, TierCorrupt) as exc:
            problem = f"events stored twice were not looked for: {exc}"
            left_out = damaged
            continue
        return [
            f"overlap: event {one.seq} of conversation {one.conversation_id!r} is stored {len(one.segment_ids)} times, "
            f"in {', '.join(sorted(set(one.segment_ids)))}; keep all copies and report it"
            for one in found
        ]
    return [problem]


def _log_problems(tiers: Tiers) -> list[str]:
    """Holes and damaged blocks among what has not settled. Begun again when trim overtakes the reading."""
    problems: list[str] = []
    for _ in range(VIEWS_MAX):
        view = tiers.ledger.view()
        try:
            cut = tiers.hot.cut()
            return _walk_logs(tiers, view, cut)
        except TierUnavailable as exc:
            return [f"the unsettled blocks were not read: {exc}"]
        except TierCorrupt as exc:
            problems = [str(exc)]
            if all(passed <= state.position for passed, state in zip(tiers.hot.trimmed(), view.shards, strict=True)):
                return problems
    return problems


def _walk_logs(tiers: Tiers, view: View, cut: Sequence[ShardCut]) -> list[str]:
    """Damaged blocks up to the cut, one line each. TierCorrupt at a hole."""
    problems: list[str] = []
    states: list[ShardState] = list(view.shards)
    warm = tiers.settings.warm
    while any(one.last > state.position for one, state in zip(cut, states, strict=True)):
        batch = read_batch(
            tiers.hot,
            states,
            cut,
            first_shard=0,
            events_max=warm.settle_batch_events,
            bytes_max=warm.settle_batch_bytes,
            page_bytes_max=tiers.settings.hot.page_bytes_max,
        )
        for block in batch.blocks.filter(batch.blocks["fault"].is_valid()).to_pylist():
            problems.append(
                f"shard {block['shard']}: the block at {block['position_ms']}-{block['position_seq']} with {block['events']} "
                f"events is damaged ({block['fault']}): settle will put it into rejected/"
            )
        for shard, end in batch.reached.items():
            moved = {"position": end.position, "events": end.events, "bytes": end.bytes}
            states[shard] = msgspec.structs.replace(states[shard], **moved)
    return problems
