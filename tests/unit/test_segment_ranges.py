"""Ranges: what a segment covers, and the refusal to move what does not add up."""

from __future__ import annotations

import pytest

from tests.block_tables import block, event, table
from thermocline.errors import TierCorrupt
from thermocline.tiers.block import Position
from thermocline.tiers.ledger import ShardRange, ShardState
from thermocline.tiers.segment_ranges import settled_ranges

BLOCKS = table([block([event()] * 3, number=4, shard=2), block([event()], number=9, shard=2), block([event()], shard=1)])


def test_a_shard_goes_on_from_its_state_to_its_last_block() -> None:
    before = [ShardState(shard=2, position=Position(3, 1), rejected=7)]
    sizes = {row["shard"]: row["bytes_total"] for row in BLOCKS.to_pylist()}
    assert settled_ranges(BLOCKS, before, kept=None, rejected=()) == (
        ShardRange(
            shard=1, after=Position(0, 0), upto=Position(1, 0), events=1, events_upto=1, bytes_upto=sizes[1], rejected_upto=0
        ),
        ShardRange(
            shard=2, after=Position(3, 1), upto=Position(9, 0), events=4, events_upto=4, bytes_upto=sizes[2], rejected_upto=7
        ),
    )


@pytest.mark.parametrize("kept", [{1: 1, 2: 3}, {1: 1, 2: 5}, {2: 4}, {}])
def test_events_that_are_neither_kept_nor_rejected_stop_the_settle(kept: dict[int, int]) -> None:
    with pytest.raises(TierCorrupt, match="nothing was settled"):
        settled_ranges(BLOCKS, [], kept=kept, rejected=())
