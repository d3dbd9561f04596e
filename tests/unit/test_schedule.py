"""When jobs run: at their interval while they work, sooner after a failure, with pauses that grow up to that interval."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from thermocline.archiver import schedule
from thermocline.archiver.schedule import RETRY_FIRST_S, Job, Schedule, pause_s


def test_a_job_that_works_runs_at_its_interval() -> None:
    assert pause_s(0, 1) == 1
    assert pause_s(0, 3600) == 3600


def test_pauses_double_with_every_failure_up_to_the_interval() -> None:
    assert [pause_s(failures, 3600) for failures in range(1, 5)] == [RETRY_FIRST_S * factor for factor in (1, 2, 4, 8)]
    assert pause_s(10, 3600) == pause_s(10_000, 3600) == 3600
    assert pause_s(1, 1) == 1


def test_a_job_that_fails_is_tried_again_with_longer_and_longer_pauses_and_then_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(schedule, "RETRY_FIRST_S", 0.05)
    runs: list[float] = []
    enough = threading.Event()

    def act() -> None:
        runs.append(time.monotonic())
        if len(runs) == 6:
            enough.set()

    running = Schedule([Job(act, 3600, lambda: 0 if len(runs) > 5 else len(runs))])
    running.start()
    assert enough.wait(20)
    running.stop()
    pauses = [after - before for before, after in itertools.pairwise(runs)]
    assert len(runs) == 6, "it went on as if it still failed"
    assert all(pause >= 0.05 * 2**number for number, pause in enumerate(pauses)), pauses


def test_a_job_that_is_not_due_at_once_waits_its_interval() -> None:
    first, second = threading.Event(), threading.Event()
    running = Schedule([Job(second.set, 0.3, lambda: 0, at_once=False), Job(first.set, 3600, lambda: 0)])
    begun_s = time.monotonic()
    running.start()
    assert first.wait(20)
    assert second.wait(20)
    assert time.monotonic() - begun_s >= 0.3
    running.stop()
