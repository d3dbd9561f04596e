"""A conversation once more, with the pauses between its events that there were."""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Callable, Iterator
from typing import Final

from thermocline.errors import QueryRefused

from .follow import Followed, Item, Tail

PAUSE_S_MAX: Final = 10.0


def replayed(
    tail: Tail,
    *,
    speed: float,
    until: dt.datetime | int | None,
    pause_s_max: float,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[Item]:
    """What `tail` has to give now, each event when it is due; gaps where events are missing. The tail is closed at the end.

    speed  2.0 halves the pauses; math.inf makes none
    until  a datetime: of the last event; a seq: the last one. Both included
    """
    last_at: dt.datetime | None = None
    due_s = monotonic()
    with tail:
        while True:
            items = tail.read(timeout_s=0)
            for item in items:
                seq, at = (item.event["seq"], item.event["timestamp"]) if isinstance(item, Followed) else (item.from_seq, None)
                if until is not None and (seq > until if isinstance(until, int) else at is not None and at > until):
                    return
                if at is not None:
                    if last_at is not None and not math.isinf(speed):
                        pause_s = min(pause_s_max, max(0.0, (at - last_at).total_seconds() / speed))
                        due_s = max(due_s, monotonic() - pause_s_max) + pause_s
                        if (left_s := due_s - monotonic()) > 0:
                            sleep(left_s)
                    last_at = at
                yield item
            if not items and tail.caught_up:
                return


def check_replay(speed: float, until: dt.datetime | int | None, pause_s_max: float) -> None:
    """QueryRefused when an argument is not what it should be."""
    if not isinstance(speed, int | float) or not speed > 0:
        raise QueryRefused(f"speed must be above 0 (math.inf: no pauses), not {speed!r}")
    if not pause_s_max >= 0:
        raise QueryRefused(f"pause_s_max must be 0 or more, not {pause_s_max!r}")
    if isinstance(until, dt.datetime) and until.tzinfo is None:
        raise QueryRefused("until must be an aware datetime: give its time zone")
