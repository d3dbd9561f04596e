"""Which groups of consumers hold a log: nothing that a live group has not had is trimmed, for a while.

A group holds what it has not taken, or has pending, for `hot.hold_s_max` (anew when the worker starts) and while the logs are
within `log_bytes_max`. Then the log is trimmed all the same, and the group goes on from segments. A group of which no consumer
asked for so long, by Redis' clock, holds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from thermocline.config import HotSettings
from thermocline.tiers.block import Position
from thermocline.tiers.groups import Hold


class Holds:
    """Remembers since when each group has held something, by the worker's monotonic clock."""

    def __init__(self, settings: HotSettings) -> None:
        self._settings = settings
        self._since_s: dict[str, float] = {}

    def limited(
        self, due: Sequence[Position | None], holds: Mapping[int, Sequence[Hold]], *, now_s: float, now_ms: int, full: bool
    ) -> list[Position | None]:
        """`due` with what groups hold left out.

        now_s   by the worker's clock
        now_ms  by Redis' clock
        full    whether the logs hold more than they should: then nothing holds them
        """
        holding = {
            hold.group
            for shard, upto in enumerate(due)
            for hold in holds.get(shard, ())
            if upto is not None and hold.position < upto and self._is_live(hold, now_ms)
        }
        self._since_s = {group: self._since_s.get(group, now_s) for group in holding}
        late = {group for group, since_s in self._since_s.items() if now_s - since_s >= self._settings.hold_s_max}
        limited: list[Position | None] = []
        for shard, upto in enumerate(due):
            if upto is None or full:
                limited.append(upto)
                continue
            held = [
                hold.position for hold in holds.get(shard, ()) if hold.group in holding - late and self._is_live(hold, now_ms)
            ]
            limited.append(min([upto, *held]))
        return limited

    def _is_live(self, hold: Hold, now_ms: int) -> bool:
        """Whether a consumer of it asked lately."""
        return now_ms - hold.seen_ms < 1000 * self._settings.hold_s_max
