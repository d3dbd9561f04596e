"""Whether this machine's clock may decide how old something is: only while Redis' clock says nearly the same.

A clock that is years ahead would make every event old enough to be sampled, and every archived day old enough to expire.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final

from thermocline.errors import TierUnavailable
from thermocline.tiers.hot import Hot

CLOCK_OFF_MAX_S: Final = 3600
"""What is decided by age is decided in days."""


def require_clock(hot: Hot) -> None:
    """TierUnavailable, naming both, when the clocks of this machine and of Redis are more than an hour apart."""
    theirs_s, ours_s = hot.facts().now_us / 1e6, time.time_ns() / 1e9
    if abs(theirs_s - ours_s) > CLOCK_OFF_MAX_S:
        raise TierUnavailable(
            f"this machine's clock says {_shown(ours_s)}, Redis' {_shown(theirs_s)}: nothing is archived or expires by age until "
            "they agree; set the wrong one (NTP)"
        )


def _shown(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
