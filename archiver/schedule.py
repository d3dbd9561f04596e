"""When the worker's jobs run: each every so many seconds after it ended, sooner after a failure, all in one thread.

A job that failed is tried again after RETRY_FIRST_S, then after twice as long each time, and never later than its own interval.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from apscheduler.executors.debug import DebugExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

RETRY_FIRST_S: Final = 10
CLOCK_JUMP_S: Final = 1.5


class Job(NamedTuple):
    """What is done again and again."""

    act: Callable[[], None]
    every_s: float
    failures: Callable[[], int]
    """In a row until now; 0 when it worked."""
    at_once: bool = True
    """Whether it is due at the start."""


class Schedule:
    """Runs jobs in a thread of its own from `start` to `stop`, no two at a time."""

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._offset_s = wall() - monotonic()
        logging.getLogger("apscheduler").setLevel(logging.WARNING)  # it tells of every single job and run
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": DebugExecutor()},  # runs jobs in the scheduler's own thread, one after the other
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        for job in jobs:
            first = {"next_run_time": datetime.now(UTC)} if job.at_once else {}
            self._scheduler.add_job(job.act, _AfterEnd(job), **first)

    def start(self) -> None:
        self._scheduler.start()

    def stop(self) -> None:
        """No more runs; waits for the one in hand."""
        self._scheduler.shutdown()

    def follow_clock(self) -> float | None:
        """How many seconds the wall clock was set by since this was last asked, None when it was not; then every job runs now.

        The scheduler goes by that clock, and would wait for hours after a jump back.
        """
        offset_s = self._wall() - self._monotonic()
        moved_s = offset_s - self._offset_s
        if abs(moved_s) < CLOCK_JUMP_S:
            return None
        self._offset_s = offset_s
        for job in self._scheduler.get_jobs():
            job.modify(next_run_time=datetime.now(UTC))
        return moved_s


class _AfterEnd(BaseTrigger):  # type: ignore[misc]  # the library has no types
    """Due an interval after the last run ended, or after the pause that its failures ask for."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """See BaseTrigger. Its `now` is when the run began; asked after it, so what counts is the time it is."""
        return datetime.now(UTC) + timedelta(seconds=pause_s(self._job.failures(), self._job.every_s))


def pause_s(failures: int, every_s: float) -> float:
    """How long to wait after so many failures in a row."""
    if failures == 0:
        return every_s
    return float(min(every_s, RETRY_FIRST_S * 2 ** min(failures - 1, 30)))
