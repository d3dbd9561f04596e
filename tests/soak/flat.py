"""What grew, from samples taken at even intervals. Pure.

The first third of a run is not judged: until the first events have expired everything fills up. Of the rest, a series grew when
its median in the last third is above that in the middle third by more than a share of it and a slack, and the straight line
through both thirds (Theil-Sen: the median of all slopes, which no single peak moves) rises by as much. Both, because a saw's
median may be higher by chance, and a line through a step is steep though nothing grows any more.

What grows by the day for good reason (statistics are kept for ever, and so is a row per batch) is bounded by the day instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median

import msgspec


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """How much the name of a series that starts with `prefix` may grow from one third to the next; the longest prefix counts."""

    prefix: str
    share: float = 0.15
    slack: float
    per_day: float | None = None
    """Instead: how much more there may be each day."""


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """One series."""

    middle: float
    last: float
    """Medians of the thirds."""
    line: float
    """How much the line rises in a third."""
    allowed: float
    most: float

    @property
    def grew(self) -> bool:
        return self.last - self.middle > self.allowed and self.line > self.allowed


def growth(series: Sequence[float], bound: Bound, *, days: float) -> Growth:
    """How much one series grew; it has at least six values.

    days  that passed in a third
    """
    third = len(series) // 3
    assert third >= 2, "a run of at least six samples"
    middle, last = series[-2 * third : -third], series[-third:]
    allowed = bound.slack + (bound.share * median(middle) if bound.per_day is None else bound.per_day * days)
    line = _slope([*middle, *last]) * third
    return Growth(middle=median(middle), last=median(last), line=line, allowed=allowed, most=max(series))


def judge(samples: Sequence[Mapping[str, float]], bounds: Sequence[Bound], *, days: float) -> dict[str, Growth]:
    """Every series of the samples, by name. A name that is missing in a sample counts as 0; one without a bound is an error.

    days  that passed in a third
    """
    names = sorted({name for sample in samples for name in sample})
    return {name: growth([sample.get(name, 0) for sample in samples], bound_of(name, bounds), days=days) for name in names}


def bound_of(name: str, bounds: Sequence[Bound]) -> Bound:
    found = [bound for bound in bounds if name.startswith(bound.prefix)]
    assert found, f"no bound for {name}"
    return max(found, key=lambda bound: len(bound.prefix))


def _slope(values: Sequence[float]) -> float:
    """Theil-Sen: per step."""
    return median((after - before) / (right - left) for (left, before), (right, after) in combinations(enumerate(values), 2))
