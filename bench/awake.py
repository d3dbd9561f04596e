"""Cores that stay awake while something is measured. On a virtual machine a core that went to sleep for want of work may take
100 µs to wake, and every round trip between two processes pays for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_CODE = """
import os
os.sched_setaffinity(0, {{{core}}})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while os.getppid() == {parent}:
    for _ in range(10_000):
        os.sched_yield()
"""
"""Gives way at once to everything else, as it asks each time around whether somebody else wants the core: a kernel that does not
preempt lets its own threads wait for one that does not ask. Ends with who began it."""


@contextmanager
def awake() -> Iterator[None]:
    """One process of idle priority on each core. Linux only."""
    if not hasattr(os, "SCHED_IDLE"):
        raise SystemExit("--awake needs Linux: only there a process can have idle priority")
    codes = [_CODE.format(core=core, parent=os.getpid()) for core in os.sched_getaffinity(0)]
    processes = [subprocess.Popen([sys.executable, "-S", "-c", code]) for code in codes]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
