"""Cores that a benchmark keeps awake: by processes that give way to all others and end with it."""

from __future__ import annotations

import os

import psutil
import pytest

from bench import machine
from bench.awake import awake
from tests.waiting import wait_until


def idle() -> dict[int, frozenset[int]]:
    """Children of idle priority → the cores they may use."""
    found = {}
    for child in psutil.Process().children():
        try:
            if os.sched_getscheduler(child.pid) == os.SCHED_IDLE:
                found[child.pid] = frozenset(os.sched_getaffinity(child.pid))
        except ProcessLookupError:
            continue
    return found


def test_each_core_has_a_process_of_idle_priority_as_long_as_it_lasts() -> None:
    cores = {frozenset([core]) for core in os.sched_getaffinity(0)}
    with awake():
        wait_until(lambda: set(idle().values()) == cores, 10, "a process on each core")
    assert idle() == {}


def test_results_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "kept awake" not in machine.described()
    monkeypatch.setattr(machine, "kept_awake", True)
    assert "cores kept awake" in machine.described()
