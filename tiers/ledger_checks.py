"""What must be true of a move before the ledger takes it: nothing missing, nothing twice. Pure: values in, TierCorrupt out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thermocline.errors import TierCorrupt, TierUnavailable

from .ledger import Batch, ColdFile, Segment, ShardState
from .ledger_rows import events_by_shard


def progress(state: ShardState) -> tuple[Any, ...]:
    return state.position, state.events, state.bytes, state.rejected


def check_settle(segment: Segment | None, shards: Sequence[ShardState], old: Mapping[int, ShardState]) -> None:
    """TierCorrupt unless every shard goes on where it was and the segment holds just the events in between."""
    ranges = {part.shard: part for part in segment.ranges} if segment is not None else {}
    for new in shards:
        was = old[new.shard]
        if new.era != was.era:
            raise TierUnavailable(
                f"shard {new.shard} was confirmed anew (era {was.era}, not {new.era}) while it settled: read it again"
            )
        if new.position <= was.position or new.events <= was.events or new.bytes < was.bytes or new.rejected < was.rejected:
            raise TierCorrupt(
                f"shard {new.shard}: settled up to {was.position} with {was.events} events already, "
                f"so {new.position} with {new.events} would be an overlap"
            )
        part = ranges.pop(new.shard, None)
        if part is not None and (part.after, part.upto, part.events_upto, part.bytes_upto, part.rejected_upto) != (
            was.position,
            *progress(new),
        ):
            raise TierCorrupt(
                f"shard {new.shard}: settled up to {was.position}, but the segment covers {part}: a gap or an overlap"
            )
        held = part.events if part is not None else 0
        if held + new.rejected - was.rejected != new.events - was.events:
            raise TierCorrupt(
                f"shard {new.shard}: {new.events - was.events} events came in, "
                f"but the segment holds {held} and {new.rejected - was.rejected} were rejected"
            )
    if ranges:
        raise TierCorrupt(f"the segment covers shards {sorted(ranges)} whose new state was not given")
    if segment is not None and segment.rows != sum(part.events for part in segment.ranges):
        raise TierCorrupt(f"segment {segment.segment_id}: its ranges do not add up to its {segment.rows} rows")


def check_merge(inputs: Sequence[str], outputs: Sequence[Segment], live: Mapping[str, Segment]) -> None:
    """TierCorrupt unless the outputs hold just the events of live inputs."""
    gone = sorted(set(inputs) - live.keys())
    if gone or not inputs or len(set(inputs)) != len(inputs):
        raise TierCorrupt(f"merge of {len(inputs)} segments: {gone or 'each'} must be live, and given once")
    replaced = [live[segment_id] for segment_id in inputs]
    before, after = events_by_shard(replaced), events_by_shard(outputs)
    rows_before, rows_after = sum(segment.rows for segment in replaced), sum(segment.rows for segment in outputs)
    if before != after or rows_before != rows_after:
        raise TierCorrupt(f"merge: {rows_before} events in, {rows_after} out; by shard {before} in, {after} out")
    parts = sorted(output.part for output in outputs)
    if parts != list(range(1, len(outputs) + 1)) or any(set(output.inputs) != set(inputs) for output in outputs):
        raise TierCorrupt(f"merge {outputs[0].move_id}: its {len(outputs)} parts do not name the whole move")


def check_rebuilt(damaged: str, segment: Segment, live: Mapping[str, Segment]) -> None:
    """TierCorrupt unless a segment covers just what the live one covers that it takes the place of."""
    was = live.get(damaged)
    if was is None or (was.rows, was.ranges) != (segment.rows, segment.ranges):
        raise TierCorrupt(
            f"segment {segment.segment_id} does not hold what {damaged} holds, or that is not live; nothing was moved"
        )


def check_batch(batch: Batch, live: Mapping[str, Segment], files: Mapping[str, ColdFile]) -> None:
    """TierCorrupt unless all that a batch replaces is live and, shard by shard, what goes in comes out or is counted."""
    gone = sorted(set(batch.inputs) - live.keys()) + sorted(set(batch.removed) - files.keys())
    taken = sorted({file.file_id for file in batch.files} & files.keys())
    if gone or taken:
        raise TierCorrupt(f"batch {batch.batch_id}: {gone or taken} must {'be live' if gone else 'be new'}; nothing was moved")
    before = events_by_shard([live[segment_id] for segment_id in batch.inputs])
    after = events_by_shard(batch.rest)
    for total in batch.totals:
        after[total.shard] = after.get(total.shard, 0) + total.kept + total.sampled_out + total.erased
    if before != {shard: events for shard, events in after.items() if events}:
        raise TierCorrupt(f"batch {batch.batch_id}: by shard {before} events go in, {after} come out; nothing was moved")
    kept = sum(total.kept for total in batch.totals)
    rows_in = sum(files[file_id].rows for file_id in batch.removed if files[file_id].kind == "events")
    rows_out = sum(file.rows for file in batch.files if file.kind == "events")
    if rows_out - rows_in != kept:
        raise TierCorrupt(
            f"batch {batch.batch_id}: {rows_out} archived events for {rows_in}, but it states {kept} more; nothing was moved"
        )
