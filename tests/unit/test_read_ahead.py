"""What is read ahead is used when it fits, and a reading that fails says why when it is asked for."""

from __future__ import annotations

import pyarrow as pa
import pytest

from tests.blocks import FakeLogs, cut_of, rows_in_order
from thermocline.archiver.read_ahead import ReadAhead
from thermocline.config import load
from thermocline.errors import TierUnavailable
from thermocline.tiers.block import Position
from thermocline.tiers.ledger import ShardState

SETTINGS = load({"warm": {"settle_batch_events": 1000}}, environ={})


class FailingLogs(FakeLogs):
    """Blocks beyond 2-0 cannot be read until `answers`."""

    answers = False

    def page(self, shard: int, after: Position, upto: Position, *, bytes_max: int) -> pa.Table:
        if after >= Position(2, 0) and not self.answers:
            self.pages += 1
            raise TierUnavailable("Redis went away")
        return super().page(shard, after, min(upto, Position(2, 0)) if not self.answers else upto, bytes_max=bytes_max)


def test_what_could_not_be_read_ahead_is_told_when_it_is_wanted_and_read_once_it_can_be() -> None:
    rows = rows_in_order([500, 500, 500, 500])
    logs, cuts = FailingLogs(rows), [cut_of(rows)]
    ahead = ReadAhead(logs, SETTINGS)  # type: ignore[arg-type]
    first = ahead.batch("i", [ShardState(shard=0)], cuts)
    assert first.reached[0].position == Position(2, 0)
    moved = ShardState(shard=0, position=Position(2, 0), events=1000, bytes=20)
    with pytest.raises(TierUnavailable, match="Redis went away"):
        ahead.batch("i", [moved], cuts)
    logs.answers = True
    second = ahead.batch("i", [moved], cuts)
    assert (second.events, second.reached[0].position) == (1000, Position(4, 0))
