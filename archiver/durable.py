"""What Redis certainly has on disk, so that settling never passes it: a segment must not outlive a log that came back older.

Under `always` an acknowledged block is on disk, and a Redis without an append-only file (or one that leaves fsync to the system)
never promises more than memory: there everything may be settled. Under `everysec` it is proved with *marks*, not with clocks of
two machines. A mark is a cut, taken before Redis said that no fsync was running and the last write was fine. Redis writes its
buffer to the file at the end of every turn of its event loop, and postpones that only while an fsync runs, so

1. when the mark's answer was sent, all of its cut had been written (the same turn writes before it answers),
2. the next fsync starts at most a second later, in the first turn that finds the second over, and covers it.

An answer that comes `durable_lag_s` (2 s) after the mark, by the worker's monotonic clock, is a turn that finds the second over,
even if Redis was stopped meanwhile. When the answer after that one says again that no fsync is running, that fsync has ended.

No clock of ours but the monotonic one takes part. Redis itself starts its fsyncs by its wall clock: set back, it makes none
until that clock has caught up, and nobody can tell. Losing power then may take from Redis what has settled: confirm.py sees that
the log ends before the settled position, and lets it go on from there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from thermocline.config import HotSettings
from thermocline.tiers.hot import Hot, ServerFacts, ShardCut

SAMPLES_MAX = 20
SAMPLE_EVERY_S = 0.01
MARKS_PER_LAG = 100

Cut = tuple[ShardCut, ...]


class Mark(NamedTuple):
    at_s: float
    """Monotonic, after the answer."""
    run_id: str
    cut: Cut


class Durable:
    """The marks of one worker on one Redis."""

    def __init__(
        self,
        hot: Hot,
        settings: HotSettings,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._hot = hot
        self._lag_s = settings.durable_lag_s
        self._monotonic = monotonic
        self._sleep = sleep
        self._marks: deque[Mark] = deque()
        self._candidate: Mark | None = None
        self.run_id = ""
        """Of the server that was asked last."""

    def candidate(self, cut: Cut) -> Cut | None:
        """Note `cut`, taken just now; the newest cut that `prove` may find to be on disk, None when it is too early for any."""
        facts = self._hot.facts()
        self.run_id = facts.run_id
        if not needs_proof(facts):
            self._marks.clear()
            self._candidate = None
            return cut
        self._forget_others(facts, cut)
        now_s = self._monotonic()
        if facts.disk_ok and (not self._marks or self._is_news(cut, now_s)):
            self._marks.append(Mark(now_s, facts.run_id, cut))
        oldest_s = now_s - self._lag_s
        while len(self._marks) > 1 and self._marks[1].at_s <= oldest_s:
            self._marks.popleft()
        self._candidate = self._marks[0] if self._marks and self._marks[0].at_s <= oldest_s else None
        return self._candidate.cut if self._candidate is not None else None

    def prove(self) -> bool:
        """Whether all of the last candidate is on disk now. Waits 0.2 s at most for an fsync that is running."""
        if self._candidate is None:
            return True
        self._hot.facts()  # a turn of the event loop that starts the fsync, if it has not started yet
        for _ in range(SAMPLES_MAX):
            facts = self._hot.facts()
            if facts.run_id != self._candidate.run_id:
                return False
            if facts.disk_ok:
                return True
            self._sleep(SAMPLE_EVERY_S)
        return False

    def _is_news(self, cut: Cut, now_s: float) -> bool:
        """Whether a mark is worth keeping: something was appended since the last, which is not too young."""
        last = self._marks[-1]
        return last.cut != cut and now_s - last.at_s >= self._lag_s / MARKS_PER_LAG

    def _forget_others(self, facts: ServerFacts, cut: Cut) -> None:
        """Drop marks of a server that was restarted since, or of shards confirmed anew."""
        if self._marks:
            last = self._marks[-1]
            same_shards = [(one.incarnation, one.era) for one in last.cut] == [(one.incarnation, one.era) for one in cut]
            if last.run_id != facts.run_id or not same_shards:
                self._marks.clear()


def needs_proof(facts: ServerFacts) -> bool:
    """Whether Redis acknowledges before it has written to disk, and will have soon."""
    return facts.append_only and facts.append_fsync == "everysec"
