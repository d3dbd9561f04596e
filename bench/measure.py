"""Measuring: percentiles, calls that take turns, what a process used. Ratios come from what was measured side by side."""

from __future__ import annotations

import gc
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import psutil

Call = Callable[[int], object]


def percentile(samples: Sequence[float], fraction: float) -> float:
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * fraction))]


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def interleaved_s(
    calls: dict[str, Call], count: int, *, warm_up: int = 20, before: Call = lambda _: None
) -> dict[str, list[float]]:
    """Seconds of each of `count` calls of each, one of each in turn, so that a machine that is slow for a while is slow for all.

    before  called once a turn, not timed

    Rubbish is collected before, not while, anything is timed.
    """
    for number in range(-warm_up, 0):
        before(number)
        for call in calls.values():
            call(number)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    with quiet():
        for number in range(count):
            before(number)
            for name, call in calls.items():
                begin = time.perf_counter()
                call(number)
                taken[name].append(time.perf_counter() - begin)
    return taken


@contextmanager
def quiet() -> Iterator[None]:
    """Python's collector rests meanwhile, for everyone alike."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def middle_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the ratios of what was measured together."""
    return median(one / other for one, other in zip(numerators, denominators, strict=True))


class Clock:
    """Wall and CPU seconds of this process since it was made."""

    def __init__(self) -> None:
        self._wall_s, self._cpu_s = time.perf_counter(), _cpu_s()

    @property
    def wall_s(self) -> float:
        return time.perf_counter() - self._wall_s

    @property
    def cpu_s(self) -> float:
        return _cpu_s() - self._cpu_s


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_bytes() -> int:
    """The most memory this process had resident so far."""
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak() -> None:
    """Let `peak_bytes` begin anew, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def resident_bytes(pid: int) -> int:
    """What a process has resident now; 0 when it is gone or this is not Linux."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def cpu_s_of(pid: int) -> float:
    """CPU seconds that a process has used so far."""
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


def forget_files(folder: Path) -> None:
    """Ask the kernel to drop a folder's files from its cache, so that the next read comes from disk."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in [one for one in folder.rglob("*") if one.is_file()]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def folder_bytes(folder: Path) -> int:
    return sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())


def shown_rate(events: float, taken_s: float) -> str:
    return f"{events / taken_s:,.0f} events/s"


def shown_time(value_s: float) -> str:
    if value_s < 0.001:
        return f"{value_s * 1e6:.0f} µs"
    if value_s < 1:
        return f"{value_s * 1e3:.2f} ms" if value_s < 0.01 else f"{value_s * 1e3:.0f} ms"
    return f"{value_s:.1f} s"


def spread(samples: Sequence[float]) -> str:
    return f"p50 {shown_time(percentile(samples, 0.5))}, p99 {shown_time(percentile(samples, 0.99))}"


def shown_count(events: int) -> str:
    """1 M, 100 k, 500."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if events >= size:
            return f"{events / size:g} {letter}"
    return str(events)
