"""Rows of the report: what was measured, its figure, and what it is read against."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import msgspec


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    what: str
    value: str
    against: str = ""


def percentile(samples: Sequence[float], fraction: float) -> float:
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * fraction))]


def latencies_s(call: Callable[[int], object], count: int) -> list[float]:
    """Seconds of each of `count` calls."""
    taken = []
    for number in range(count):
        begin = time.perf_counter()
        call(number)
        taken.append(time.perf_counter() - begin)
    return taken


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def spread(samples: Sequence[float], unit: str = "µs", factor: float = 1e6) -> str:
    return f"p50 {percentile(samples, 0.5) * factor:.0f} {unit}, p99 {percentile(samples, 0.99) * factor:.0f} {unit}"


def table(figures: Iterable[Figure]) -> str:
    """A Markdown table."""
    rows = ["| what | figure | against |", "|---|---|---|"]
    rows += [f"| {figure.what} | {figure.value} | {figure.against} |" for figure in figures]
    return "\n".join(rows)
