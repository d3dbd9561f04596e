"""Bounds on the rows a query can use, and which segments and files may hold such rows. Pure: values in, values out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol, TypeVar

import msgspec

HOUR_US: Final = 3_600_000_000


class Texts(msgspec.Struct, frozen=True):
    """What one text column may be: one of `values` (None: any), within low to high (None: open), both ends included."""

    values: frozenset[str] | None = None
    low: str | None = None
    high: str | None = None

    @classmethod
    def of(cls, values: Iterable[str]) -> Texts:
        found = frozenset(values)
        return cls(found, min(found, default=None), max(found, default=None))

    @property
    def empty(self) -> bool:
        return self.values == frozenset() or (self.low is not None and self.high is not None and self.low > self.high)

    def __and__(self, other: Texts) -> Texts:
        values = self.values if other.values is None else other.values if self.values is None else self.values & other.values
        lows = [low for low in (self.low, other.low) if low is not None]
        highs = [high for high in (self.high, other.high) if high is not None]
        return Texts(values, max(lows, default=None), min(highs, default=None))

    def __or__(self, other: Texts) -> Texts:
        values = None if self.values is None or other.values is None else self.values | other.values
        low = None if self.low is None or other.low is None else min(self.low, other.low)
        high = None if self.high is None or other.high is None else max(self.high, other.high)
        return Texts(values, low, high)

    def may_hold(self, low: str, high: str) -> bool:
        """Whether a value within low to high can be one of these."""
        if (self.low is not None and high < self.low) or (self.high is not None and low > self.high):
            return False
        return self.values is None or any(low <= value <= high for value in self.values)


class Bounds(msgspec.Struct, frozen=True):
    """Every row a query can use satisfies these; the default holds for any row. Times are µs, both ends included."""

    time_min_us: int | None = None
    time_max_us: int | None = None
    conversations: Texts = Texts()
    event_types: Texts = Texts()

    @property
    def empty(self) -> bool:
        """No row satisfies them."""
        crossed = self.time_min_us is not None and self.time_max_us is not None and self.time_min_us > self.time_max_us
        return crossed or self.conversations.empty or self.event_types.empty

    def __and__(self, other: Bounds) -> Bounds:
        """Bounds of rows that satisfy both."""
        lows = [low for low in (self.time_min_us, other.time_min_us) if low is not None]
        highs = [high for high in (self.time_max_us, other.time_max_us) if high is not None]
        return Bounds(
            max(lows, default=None),
            min(highs, default=None),
            self.conversations & other.conversations,
            self.event_types & other.event_types,
        )

    def __or__(self, other: Bounds) -> Bounds:
        """Bounds of rows that satisfy either."""
        if self.empty or other.empty:
            return other if self.empty else self
        open_low = self.time_min_us is None or other.time_min_us is None
        open_high = self.time_max_us is None or other.time_max_us is None
        return Bounds(
            None if open_low else min(self.time_min_us or 0, other.time_min_us or 0),
            None if open_high else max(self.time_max_us or 0, other.time_max_us or 0),
            self.conversations | other.conversations,
            self.event_types | other.event_types,
        )


ANY_ROW: Final = Bounds()


class Extent(Protocol):
    """What the ledger says of a segment's or file's rows."""

    @property
    def timestamp_min_us(self) -> int: ...
    @property
    def timestamp_max_us(self) -> int: ...
    @property
    def conversation_min(self) -> str: ...
    @property
    def conversation_max(self) -> str: ...
    @property
    def event_types(self) -> tuple[str, ...] | None: ...


E = TypeVar("E", bound=Extent)


def chosen(extents: Iterable[E], bounds: Bounds, *, by_hour: bool = False) -> list[E]:
    """Those that may hold a row within `bounds`, order kept.

    by_hour  the time bounds are on the start of the event's hour, as in hourly_stats
    """
    if bounds == ANY_ROW:
        return list(extents)
    if bounds.empty:
        return []
    return [extent for extent in extents if not outside(extent, bounds, by_hour=by_hour)]


def outside(extent: Extent, bounds: Bounds, *, by_hour: bool = False) -> str:
    """Why it holds no row within `bounds`: "time", "conversation" or "event type"; empty when it may hold one."""
    time_min_us, time_max_us = extent.timestamp_min_us, extent.timestamp_max_us
    if by_hour:
        time_min_us, time_max_us = time_min_us // HOUR_US * HOUR_US, time_max_us // HOUR_US * HOUR_US
    if bounds.time_min_us is not None and time_max_us < bounds.time_min_us:
        return "time"
    if bounds.time_max_us is not None and time_min_us > bounds.time_max_us:
        return "time"
    if not bounds.conversations.may_hold(extent.conversation_min, extent.conversation_max):
        return "conversation"
    types = extent.event_types
    return "" if types is None or any(bounds.event_types.may_hold(name, name) for name in types) else "event type"
