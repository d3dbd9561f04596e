"""Which part of every shard's log a segment covers. Pure: what conservation is proved from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from thermocline.errors import TierCorrupt

from .block import Position
from .checksum import hash_sum, same_kind
from .ledger import Segment, ShardRange, ShardState
from .warm import Rejected


def settled_ranges(
    blocks: pa.Table, before: Sequence[ShardState], *, kept: Mapping[int, int] | None, rejected: Sequence[Rejected]
) -> tuple[ShardRange, ...]:
    """One range per shard in `blocks`, by shard: from its state `before` to its last block.

    kept  shard → rows that go into the segment; None means all events
    TierCorrupt when rows and rejected events are not the events of the blocks: then nothing may move.
    """
    states = {state.shard: state for state in before}
    lost: dict[int, int] = {}
    for one in rejected:
        lost[one.shard] = lost.get(one.shard, 0) + one.events
    events: dict[int, int] = {}
    last: dict[int, tuple[Position, int, int]] = {}
    names = ("shard", "position_ms", "position_seq", "events", "events_total", "bytes_total")
    for shard, ms, seq, count, events_upto, bytes_upto in zip(*(blocks[name].to_pylist() for name in names), strict=True):
        events[shard] = events.get(shard, 0) + count
        last[shard] = max(last.get(shard, (Position(0, 0), 0, 0)), (Position(ms, seq), events_upto, bytes_upto))
    ranges = []
    for shard, (upto, events_upto, bytes_upto) in sorted(last.items()):
        state, gone = states.get(shard, ShardState(shard=shard)), lost.get(shard, 0)
        rows = events[shard] if kept is None else kept.get(shard, 0)
        if rows + gone != events[shard]:
            raise TierCorrupt(
                f"shard {shard} up to {upto}: its blocks hold {events[shard]} events, but {rows} were parsed and {gone} "
                "rejected; nothing was settled; report this as a bug and keep the log"
            )
        ranges.append(
            ShardRange(
                shard=shard,
                after=state.position,
                upto=upto,
                events=rows,
                events_upto=events_upto,
                bytes_upto=bytes_upto,
                rejected_upto=state.rejected + gone,
            )
        )
    return tuple(ranges)


def merged_ranges(inputs: Sequence[Segment], kept: Mapping[int, int]) -> tuple[ShardRange, ...]:
    """The hull of the inputs' ranges per shard, with the rows this part keeps of each (`kept`: shard → rows)."""
    found: dict[int, list[ShardRange]] = {}
    for segment in inputs:
        for one in segment.ranges:
            found.setdefault(one.shard, []).append(one)
    ranges = []
    for shard, covered in sorted(found.items()):
        newest = max(covered, key=lambda one: (one.upto, one.events_upto, one.rejected_upto))
        ranges.append(
            ShardRange(
                shard=shard,
                after=min(one.after for one in covered),
                upto=newest.upto,
                events=kept.get(shard, 0),
                events_upto=newest.events_upto,
                bytes_upto=newest.bytes_upto,
                rejected_upto=newest.rejected_upto,
            )
        )
    return tuple(ranges)


def require_conserved(inputs: Sequence[Segment], outputs: Sequence[Segment]) -> None:
    """TierCorrupt unless the outputs of a merge hold exactly the rows of its inputs: count and sum of checksums.

    Checksums that another version of DuckDB made cannot be added up; then the count has to do.
    """
    rows = [sum(one.rows for one in side) for side in (inputs, outputs)]
    comparable = all(same_kind(one.checksum, outputs[0].checksum) for one in inputs)
    sums = [sum(hash_sum(one.checksum) for one in side) if comparable else 0 for side in (inputs, outputs)]
    if rows[0] != rows[1] or sums[0] != sums[1]:
        names = ", ".join(one.segment_id for one in inputs)
        raise TierCorrupt(
            f"merging {names}: {rows[1]} rows came out with checksum {sums[1]}, {rows[0]} with checksum {sums[0]} went in; "
            "the inputs are unchanged; run `thermocline verify --deep` to find the damaged one"
        )
