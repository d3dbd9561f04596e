"""Read the next blocks to settle from the shards' logs, and check that none is missing.

N counts every event ever appended to a shard, so every block must start at the N where the one before it ended. A block whose
checksum is wrong (`fault`) may state anything: its numbers are taken from its neighbours instead, which are sound.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from thermocline.errors import TierCorrupt
from thermocline.tiers.block import Position
from thermocline.tiers.hot import BLOCKS_SCHEMA, Hot, ShardCut
from thermocline.tiers.ledger import ShardState


class Reached(msgspec.Struct, frozen=True, kw_only=True):
    """Where reading a shard's log has come to."""

    position: Position
    events: int
    bytes: int


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Blocks of one settle."""

    blocks: pa.Table
    """BLOCKS_SCHEMA, every shard contiguous from its state."""
    reached: dict[int, Reached]
    """shard → end of its blocks; shards without blocks are left out."""
    events: int
    bytes: int


def read_batch(
    hot: Hot,
    states: Sequence[ShardState],
    upto: Sequence[ShardCut],
    *,
    first_shard: int,
    events_max: int,
    bytes_max: int,
    page_bytes_max: int,
) -> Batch:
    """Blocks after `states` and up to the cut `upto`, a page of each shard in turn from `first_shard` on, until enough.

    At least one block if there is one, and whole blocks only. TierCorrupt when events are missing between two blocks.
    """
    reached = {state.shard: Reached(position=state.position, events=state.events, bytes=state.bytes) for state in states}
    start = dict(reached)
    turns = deque(cut.shard for cut in upto if cut.last > reached[cut.shard].position)
    turns.rotate(-sum(shard < first_shard for shard in turns))
    tables: list[pa.Table] = []
    events = size = 0
    while turns and events < events_max and size < bytes_max:
        shard = turns.popleft()
        before = reached[shard]
        page = _sound_page(hot, before, upto[shard], bytes_max=min(page_bytes_max, bytes_max - size))
        fitting = _fitting(page, before, events_max - events, bytes_max - size) or (0 if tables else 1)
        if fitting:
            tables.append(page.slice(0, fitting))
            reached[shard] = after = _end(page, fitting - 1)
            events, size = events + after.events - before.events, size + after.bytes - before.bytes
        if fitting < page.num_rows:
            break
        if reached[shard].position < upto[shard].last:
            turns.append(shard)
    return Batch(
        blocks=pa.concat_tables(tables) if tables else BLOCKS_SCHEMA.empty_table(),
        reached={shard: end for shard, end in reached.items() if end != start[shard]},
        events=events,
        bytes=size,
    )


def _sound_page(hot: Hot, before: Reached, upto: ShardCut, *, bytes_max: int) -> pa.Table:
    """The next page of a shard with numbers that follow each other. TierCorrupt at a hole."""
    page = hot.page(upto.shard, before.position, upto.last, bytes_max=bytes_max)
    if page.num_rows == 0:
        raise _hole(upto.shard, before, f"the log holds nothing up to {upto.last}, where N is {upto.events_total}")
    if page["fault"].null_count < page.num_rows:
        page = _mended(hot, page, before, upto)
    events, totals, sizes = (page[name].to_numpy() for name in ("events", "events_total", "bytes_total"))
    jumps = np.flatnonzero(totals != np.append(before.events, totals[:-1]) + events)
    back = np.flatnonzero(sizes < np.append(before.bytes, sizes[:-1]))
    for index in (*jumps[:1], *back[:1]):
        last = _end(page, int(index) - 1) if index else before
        found = (
            f"the block at {_end(page, int(index)).position} with {events[index]} events has N {totals[index]}, B {sizes[index]}"
        )
        raise _hole(upto.shard, last, found)
    return page


def _mended(hot: Hot, page: pa.Table, before: Reached, upto: ShardCut) -> pa.Table:
    """The page with numbers for its faulty blocks that fit between the sound ones.

    Of several in a row each counts one event, and the last of them what is left, however the log is paged.
    """
    sound = pc.is_null(page["fault"]).to_pylist()
    events, totals, sizes = (page[name].to_pylist() for name in ("events", "events_total", "bytes_total"))
    payloads = pc.binary_length(page["payload"]).to_pylist()
    last_events, last_bytes = before.events, before.bytes
    index = 0
    while index < len(sound):
        if sound[index]:
            last_events, last_bytes = totals[index], sizes[index]
            index += 1
            continue
        end = next((later for later in range(index, len(sound)) if sound[later]), len(sound))
        beyond = 0
        if end < len(sound):
            next_events, next_bytes = totals[end] - events[end], sizes[end] - payloads[end]
        else:
            next_events, next_bytes, beyond = _start_of_next(hot, _end(page, end - 1).position, upto)
        in_a_row = end - index + beyond
        if next_events - last_events < in_a_row:
            after = Reached(position=_end(page, index).position, events=last_events, bytes=last_bytes)
            raise _hole(upto.shard, after, f"{in_a_row} damaged blocks, but N goes on at {next_events}")
        for faulty in range(index, end):
            events[faulty] = 1 if beyond or faulty < end - 1 else next_events - last_events
            last_events += events[faulty]
            totals[faulty], sizes[faulty] = last_events, max(last_bytes, next_bytes)
        last_bytes = max(last_bytes, next_bytes)
        index = end
    for name, values in (("events", events), ("events_total", totals), ("bytes_total", sizes)):
        number = BLOCKS_SCHEMA.get_field_index(name)
        page = page.set_column(number, BLOCKS_SCHEMA.field(number), pa.array(values, pa.int64()))
    return page


def _start_of_next(hot: Hot, after: Position, upto: ShardCut) -> tuple[int, int, int]:
    """(N, B) before the first sound block after `after`, or of the cut when there is none; damaged blocks passed over."""
    passed = 0
    while after < upto.last:
        page = hot.page(upto.shard, after, upto.last, bytes_max=1)
        for index in range(page.num_rows):
            if page["fault"][index].as_py() is None:
                end = _end(page, index)
                size = len(page["payload"][index].as_py().encode())
                return end.events - page["events"][index].as_py(), end.bytes - size, passed
            passed += 1
        if page.num_rows == 0:
            break
        after = _end(page, page.num_rows - 1).position
    return upto.events_total, upto.bytes_total, passed


def _fitting(page: pa.Table, before: Reached, events_max: int, bytes_max: int) -> int:
    """How many of the first blocks fit."""
    fit = (page["events_total"].to_numpy() <= before.events + events_max) & (
        page["bytes_total"].to_numpy() <= before.bytes + bytes_max
    )
    return int(np.argmin(fit)) if not fit.all() else len(fit)


def _end(page: pa.Table, index: int) -> Reached:
    position = Position(page["position_ms"][index].as_py(), page["position_seq"][index].as_py())
    return Reached(position=position, events=page["events_total"][index].as_py(), bytes=page["bytes_total"][index].as_py())


def _hole(shard: int, last: Reached, found: str) -> TierCorrupt:
    return TierCorrupt(
        f"hole in shard {shard} after {last.position}, where N is {last.events}: {found}. "
        "Settling stops here and changes nothing; keep the log, and see docs/operations.md"
    )
