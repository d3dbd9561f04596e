"""Times as callers give them, as µs since the epoch. Pure."""

from __future__ import annotations

import datetime as dt
from typing import Final

from thermocline.errors import QueryRefused

Instant = dt.datetime | dt.date | int | str
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
US_MAX: Final = 253_402_300_800_000_000
"""The year 10000."""


def instant_us(value: Instant, name: str) -> int:
    """µs since the epoch of a datetime (without a zone: UTC), a date (its beginning), RFC 3339 text, or µs as an int.

    QueryRefused names the argument `name`.
    """
    if isinstance(value, bool) or not isinstance(value, dt.date | int | str):
        raise QueryRefused(f"{name} must be a datetime, RFC 3339 text or µs since the epoch, not {type(value).__name__}")
    if isinstance(value, int):
        if not 0 <= value < US_MAX:
            raise QueryRefused(f"{name} must be µs since 1970 and before the year 10000, not {value}")
        return value
    if isinstance(value, str):
        try:
            value = dt.datetime.fromisoformat(value)
        except ValueError as exc:
            raise QueryRefused(f"{name} is no time like 2026-11-20 or 2026-11-20T09:41:00Z: {value!r}") from exc
    elif not isinstance(value, dt.datetime):
        value = dt.datetime(value.year, value.month, value.day)
    aware = value if value.tzinfo is not None else value.replace(tzinfo=dt.UTC)
    return max(0, (aware - _EPOCH) // dt.timedelta(microseconds=1))
