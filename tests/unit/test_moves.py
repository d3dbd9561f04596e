"""Which segments are live, told from the files: after any history of settles, merges, purges and crashes."""

from __future__ import annotations

import random

import msgspec
import pytest

from tests.segments import advanced, covering, merged_from, segment
from thermocline.archiver.moves import reconstruct
from thermocline.errors import TierCorrupt
from thermocline.tiers.block import Position
from thermocline.tiers.ledger import Segment, ShardState

SHARDS = 3
GRACE = 5


class World:
    """A ledger and a folder that move as the archiver moves them; time is the number of steps done."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.now = 0
        self.states = [ShardState(shard=shard) for shard in range(SHARDS)]
        self.live: dict[str, Segment] = {}
        self.files: dict[str, tuple[Segment, int]] = {}
        self.trash: list[tuple[int, str]] = []

    def step(self) -> None:
        self.now += 1
        act = self.draw.choice([self.settle, self.settle, self.merge, self.merge, self.purge])
        act()

    def settle(self) -> None:
        moving = [state for state in self.states if self.draw.random() < 0.7] or self.states[:1]
        after = [advanced(state, self.draw.randrange(1, 9), rejected=self.draw.randrange(2)) for state in moving]
        made = segment(covering(moving, after))
        self._write(made)
        if self.draw.random() < 0.25:  # killed before the transaction
            return
        for state in after:
            self.states[state.shard] = state
        self.live[made.segment_id] = made

    def merge(self) -> None:
        if len(self.live) < 2:
            return
        inputs = self.draw.sample(
            sorted(self.live.values(), key=lambda one: one.segment_id), self.draw.randrange(2, min(5, len(self.live)) + 1)
        )
        total: dict[int, int] = {}
        for one in inputs:
            for part in one.ranges:
                total[part.shard] = total.get(part.shard, 0) + part.events
        shares: list[dict[int, int]] = [{} for _ in range(self.draw.randrange(1, 4))]
        for shard, events in total.items():
            cuts = sorted(self.draw.randrange(events + 1) for _ in shares[1:])
            for share, low, high in zip(shares, [0, *cuts], [*cuts, events], strict=True):
                share[shard] = high - low
        outputs = merged_from(inputs, level=1, shares=shares)
        killed = self.draw.random()
        for output in outputs[: self.draw.randrange(len(outputs)) if killed < 0.15 else None]:
            self._write(output)
        if killed < 0.3:
            return
        for one in inputs:
            del self.live[one.segment_id]
            self.trash.append((self.now, one.segment_id))
        self.live.update({one.segment_id: one for one in outputs})

    def purge(self) -> None:
        """Orphans first, then trash, oldest first; cut short anywhere."""
        known = self.live.keys() | {segment_id for _, segment_id in self.trash}
        due = [segment_id for segment_id, (_, at) in self.files.items() if segment_id not in known and at <= self.now - GRACE]
        due += [segment_id for at, segment_id in self.trash if at <= self.now - GRACE]
        for segment_id in due[: self.draw.randrange(len(due) + 1)]:
            del self.files[segment_id]
            self.trash = [row for row in self.trash if row[1] != segment_id]

    def _write(self, made: Segment) -> None:
        self.files[made.segment_id] = (made, self.now)


def held(segments: list[Segment]) -> dict[int, int]:
    total: dict[int, int] = {}
    for one in segments:
        for part in one.ranges:
            total[part.shard] = total.get(part.shard, 0) + part.events
    return {shard: events for shard, events in total.items() if events}


@pytest.mark.parametrize("seed", range(60))
def test_every_history_is_reconstructed_so_that_the_sums_close(seed: int) -> None:
    """What a crash left before its transaction may count, if it is whole: its events have then settled once, in it."""
    world = World(seed)
    for _ in range(80):
        world.step()
        files = [made for made, _ in world.files.values()]
        found = reconstruct(files, shards=SHARDS)
        for state, known in zip(found.shards, world.states, strict=True):
            assert state.position >= known.position
            assert state.events >= known.events
        events = held(list(found.live))
        for state in found.shards:
            assert events.get(state.shard, 0) + state.rejected == state.events
        orphans = {made.segment_id for made in files} - world.live.keys() - {row[1] for row in world.trash}
        if not orphans:
            assert set(found.live) == set(world.live.values())


def settled(*counts: int) -> list[Segment]:
    """Settles of shard 0, one after the other."""
    made, state = [], ShardState(shard=0)
    for events in counts:
        after = advanced(state, events)
        made.append(segment(covering([state], [after])))
        state = after
    return made


def test_no_files_are_an_empty_store() -> None:
    found = reconstruct([], shards=2)
    assert found.live == ()
    assert found.shards == (ShardState(shard=0), ShardState(shard=1))


def test_the_last_position_comes_with_its_counters() -> None:
    files = settled(3, 4)
    [state] = reconstruct(files, shards=1).shards
    assert (state.position, state.events, state.bytes) == (Position(7, 0), 7, 700)
    assert (state.observed_events, state.observed_position) == (7, Position(7, 0))


def test_a_merge_that_lacks_a_part_counts_when_its_inputs_are_gone_for_then_the_part_was_merged_further() -> None:
    inputs = settled(3, 4)
    one, two = merged_from(inputs, level=1, shares=[{0: 5}, {0: 2}])
    [last] = merged_from([one], level=2, shares=[{0: 5}])
    assert set(reconstruct([two, last], shards=1).live) == {two, last}


def test_a_merge_that_lacks_a_part_does_not_count_while_an_input_is_there() -> None:
    inputs = settled(3, 4)
    one, _ = merged_from(inputs, level=1, shares=[{0: 5}, {0: 2}])
    assert set(reconstruct([*inputs, one], shards=1).live) == set(inputs)


def test_of_two_whole_merges_of_the_same_inputs_the_one_merged_further_counts_else_the_later() -> None:
    inputs = settled(3, 4)
    [first] = merged_from(inputs, level=1, shares=[{0: 7}])
    [second] = merged_from(inputs, level=1, shares=[{0: 7}])
    assert reconstruct([*inputs, first, second], shards=1).live == (second,)
    [further] = merged_from([first], level=2, shares=[{0: 7}])
    assert reconstruct([*inputs, first, second, further], shards=1).live == (further,)


def test_of_two_settles_of_the_same_blocks_the_one_the_others_go_on_from_counts() -> None:
    """The later one by its id; if a clock was set back between them, the one with which the sums close."""
    start = ShardState(shard=0)
    short, long = advanced(start, 2), advanced(start, 5)
    crashed = segment(covering([start], [short]))
    taken = segment(covering([start], [long]))
    then = segment(covering([long], [advanced(long, 1)]))
    assert set(reconstruct([crashed, taken, then], shards=1).live) == {taken, then}
    early = msgspec.structs.replace(taken, segment_id="0" * 32, move_id="0" * 32)
    assert set(reconstruct([crashed, early, then], shards=1).live) == {early, then}


def test_a_missing_file_is_a_gap_that_is_named() -> None:
    first, _, third = settled(3, 4, 5)
    with pytest.raises(TierCorrupt, match=r"gap in shard 0: .* hold 8 of 12 events: put missing files back"):
        reconstruct([first, third], shards=1)


def test_more_events_than_were_appended_are_an_overlap() -> None:
    [made] = settled(3)
    copy = msgspec.structs.replace(made, segment_id="f" * 32, inputs=("x",))
    with pytest.raises(TierCorrupt, match="overlap in shard 0"):
        reconstruct([made, copy], shards=1)
