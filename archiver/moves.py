"""Which segments are live, told from the files alone. Pure: what each file says of itself in, the live ones out.

Every output of a move names the move, its parts and its inputs (docs/formats.md, "Moves"). Purge removes orphans before inputs,
and inputs oldest first, so what is still there decides which moves count:

settle    its one part is there
merge     all its parts are there. Or some are not, and none of its inputs is either: then those parts were merged further and
          purged. Parts missing while an input is there are what a crash left of writing
conflict  a move that crashed before its transaction and the one that took its place: the one that was merged further counts, else
          the later one

Whether the choice was right is known from the sums: per shard, the events of the live segments and the rejected ones are N at the
last position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from thermocline.errors import TierCorrupt
from thermocline.tiers.ledger import Segment, ShardRange, ShardState


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What the files add up to."""

    live: tuple[Segment, ...]
    shards: tuple[ShardState, ...]


def reconstruct(files: Sequence[Segment], *, shards: int) -> Found:
    """The live segments and where every shard stands. TierCorrupt when the sums do not close, with what is missing."""
    problems: list[str] = []
    for newest_first in (True, False):
        live = _live(files, newest_first=newest_first)
        states = tuple(_state(shard, live) for shard in range(shards))
        problems = [problem for state in states for problem in _sum_problem(state, live)]
        if not problems:
            return Found(live=tuple(sorted(live, key=lambda one: one.segment_id)), shards=states)
    raise TierCorrupt("; ".join(problems) + ": put missing files back into segments/, then run `thermocline recover` again")


def _live(files: Sequence[Segment], *, newest_first: bool) -> list[Segment]:
    """Outputs of moves that count and that no other such move replaced."""
    there = {one.segment_id for one in files}
    used = {segment_id for one in files for segment_id in one.inputs}
    moves: dict[str, list[Segment]] = {}
    for one in files:
        moves.setdefault(one.move_id, []).append(one)
    whole = [parts for parts in moves.values() if _is_whole(parts, there)]
    whole.sort(key=lambda parts: parts[0].move_id, reverse=newest_first)
    whole.sort(key=lambda parts: not any(part.segment_id in used for part in parts))
    counting: list[Segment] = []
    taken: set[str] = set()
    settled: list[ShardRange] = []
    for parts in whole:
        first = parts[0]
        if taken.intersection(first.inputs) or (not first.inputs and any(_overlap(one, settled) for one in first.ranges)):
            continue
        counting += parts
        taken.update(first.inputs)
        settled += first.ranges if not first.inputs else ()
    return [one for one in counting if one.segment_id not in taken]


def _is_whole(parts: Sequence[Segment], there: set[str]) -> bool:
    return len(parts) == parts[0].parts or not there.intersection(parts[0].inputs)


def _overlap(one: ShardRange, others: Sequence[ShardRange]) -> bool:
    return any(one.shard == other.shard and one.after < other.upto and other.after < one.upto for other in others)


def _of_shard(shard: int, segments: Sequence[Segment]) -> Iterator[ShardRange]:
    return (part for segment in segments for part in segment.ranges if part.shard == shard)


def _state(shard: int, live: Sequence[Segment]) -> ShardState:
    """Where the newest live segment leaves a shard."""
    ranges = list(_of_shard(shard, live))
    if not ranges:
        return ShardState(shard=shard)
    last = max(ranges, key=lambda part: (part.upto, part.events_upto, part.rejected_upto))
    return ShardState(
        shard=shard,
        position=last.upto,
        events=last.events_upto,
        bytes=last.bytes_upto,
        rejected=last.rejected_upto,
        observed_events=last.events_upto,
        observed_position=last.upto,
    )


def _sum_problem(state: ShardState, live: Sequence[Segment]) -> list[str]:
    held = sum(part.events for part in _of_shard(state.shard, live)) + state.rejected
    if held == state.events:
        return []
    kind = "gap" if held < state.events else "overlap"
    return [f"{kind} in shard {state.shard}: the segments and rejected lines hold {held} of {state.events} events"]
