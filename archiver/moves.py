"""Which segments are live, told from the files alone. Pure: what each file says of itself in, the live ones out.

Every output of a move names the move, its parts and its inputs (docs/formats.md, "Moves"). Purge removes orphans before inputs,
and inputs oldest first, so what is still there decides which moves count:

settle    its one part is there
merge     all its parts are there. Or some are not, and none of its inputs is either: then those parts were merged further and
          purged. Parts missing while an input is there are what a crash left of writing
archive   its batch is published (batches.py): its inputs are archived, and what it wrote again of them is live. Not published:
          what it wrote does not count
conflict  a move that crashed before its transaction and the one that took its place: the one that was merged further counts, else
          the later one

Whether the choice was right is known from the sums: per shard, the events of the live segments, the archived and the rejected
ones are N at the last position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from thermocline.errors import TierCorrupt
from thermocline.tiers.ledger import Batch, Segment, ShardRange, ShardState

_REST = "archive:"


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What the files add up to."""

    live: tuple[Segment, ...]
    shards: tuple[ShardState, ...]


def rest_move_id(batch_id: str) -> str:
    """The move of the segments an archive batch writes again, told from a merge by its name."""
    return f"{_REST}{batch_id}"


def reconstruct(files: Sequence[Segment], *, shards: int, batches: Sequence[Batch] = ()) -> Found:
    """The live segments and where every shard stands. TierCorrupt when the sums do not close, with what is missing.

    batches  those of the archive that are published
    """
    published = {rest_move_id(one.batch_id) for one in batches}
    archived = {segment_id for one in batches for segment_id in one.inputs}
    counting = [one for one in files if not one.move_id.startswith(_REST) or one.move_id in published]
    problems: list[str] = []
    for newest_first in (True, False):
        live = _live(counting, archived, newest_first=newest_first)
        states = tuple(_state(shard, live, batches) for shard in range(shards))
        problems = [problem for state in states for problem in _sum_problem(state, live, batches)]
        if not problems:
            return Found(live=tuple(sorted(live, key=lambda one: one.segment_id)), shards=states)
    raise TierCorrupt("; ".join(problems) + ": put missing files back into segments/, then run `thermocline recover` again")


def _live(files: Sequence[Segment], archived: set[str], *, newest_first: bool) -> list[Segment]:
    """Outputs of moves that count and that no other such move replaced."""
    there = {one.segment_id for one in files}
    used = {segment_id for one in files for segment_id in one.inputs}
    moves: dict[str, list[Segment]] = {}
    for one in files:
        moves.setdefault(one.move_id, []).append(one)
    whole = [parts for parts in moves.values() if parts[0].move_id.startswith(_REST) or _is_whole(parts, there)]
    whole.sort(key=lambda parts: parts[0].move_id, reverse=newest_first)
    whole.sort(key=lambda parts: not any(part.segment_id in used | archived for part in parts))
    counting: list[Segment] = []
    taken: set[str] = set(archived)
    settled: list[ShardRange] = []
    for parts in whole:
        first = parts[0]
        rest = first.move_id.startswith(_REST)
        if not rest and (
            taken.intersection(first.inputs) or (not first.inputs and any(_overlap(one, settled) for one in first.ranges))
        ):
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


def _state(shard: int, live: Sequence[Segment], batches: Sequence[Batch]) -> ShardState:
    """Where the newest live segment or archived batch leaves a shard."""
    ranges = [*_of_shard(shard, live), *(part for batch in batches for part in batch.ranges if part.shard == shard)]
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


def _sum_problem(state: ShardState, live: Sequence[Segment], batches: Sequence[Batch]) -> list[str]:
    totals = [one for batch in batches for one in batch.totals if one.shard == state.shard]
    archived = sum(one.kept + one.sampled_out + one.erased for one in totals)
    held = sum(part.events for part in _of_shard(state.shard, live)) + archived + state.rejected
    if held == state.events:
        return []
    kind = "gap" if held < state.events else "overlap"
    where = "the segments, the archive and rejected lines" if batches else "the segments and rejected lines"
    return [f"{kind} in shard {state.shard}: {where} hold {held} of {state.events} events"]
