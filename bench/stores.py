"""Thermocline's side of a benchmark: settings, and one step of the worker at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from thermocline.archiver.archive import Archiver
from thermocline.archiver.lease import Lease
from thermocline.archiver.merge import Merger
from thermocline.archiver.purge import Purger
from thermocline.archiver.settle import Settler
from thermocline.archiver.trim import Trimmer
from thermocline.config import Settings, load
from thermocline.tiers.opening import Tiers, open_tiers

from .case import DAY_US
from .measure import Clock
from .servers import RedisServer

WARM_ONLY = {"window_days": 10_000}
"""Nothing is due for the archive but what a case archives by hand."""
KEEP_ALL = {"rules": [{"name": "all", "keep": True}]}
ROOM = {"unsettled_bytes_max": 16 << 30, "log_bytes_max": 16 << 30}
"""For what is about the way in: nothing settles meanwhile."""
SETTLE_WAIT_S = 30.0


def settings(folder: Path, server: RedisServer | None = None, *, url: str | None = None, **overrides: Any) -> Settings:
    """Settings of a store in `folder`, on `server`, or with a Redis of its own."""
    redis_url = url or (server.url if server is not None else None)
    chosen = {"data_dir": folder, "redis_url": redis_url, "warm": WARM_ONLY, **overrides}
    return load(chosen, environ={})


class Spent(msgspec.Struct, frozen=True):
    """What a step took for so many events."""

    events: int
    wall_s: float
    cpu_s: float
    kept: int = 0
    """Of an archive."""


class Steps:
    """The worker's steps one by one, each as long as there is something to do."""

    def __init__(self, tiers: Tiers) -> None:
        self.tiers = tiers
        self._lease = Lease(tiers.settings.namespace_dir, tiers.ledger)
        self.epoch = self._lease.epoch
        self._waited_s = 0.0
        self._settler = Settler(tiers, self.epoch, sleep=self._sleep)
        self._merger = Merger(tiers, self.epoch)
        self._trimmer = Trimmer(tiers)
        self._purger = Purger(tiers, self.epoch)

    def _sleep(self, pause_s: float) -> None:
        time.sleep(pause_s)
        self._waited_s += pause_s

    def settle(self) -> Spent:
        """Settle all that waits; pauses for Redis' disk are not counted."""
        clock, events, last_s = Clock(), 0, time.monotonic()
        self._waited_s = 0.0
        while True:
            step = self._settler.step(force=True)
            events += step.events
            if step.events:
                last_s = time.monotonic()
                if step.events >= step.waiting_events:
                    return Spent(events, clock.wall_s - self._waited_s, clock.cpu_s)
            elif not step.waiting_events:
                return Spent(events, clock.wall_s - self._waited_s, clock.cpu_s)
            elif time.monotonic() - last_s > SETTLE_WAIT_S:
                raise TimeoutError(f"{step.waiting_events:,} events did not settle within {SETTLE_WAIT_S:g} s")
            else:
                self._sleep(0.02)

    def merge(self, *, force: bool) -> Spent:
        """Every merge that is due, or possible; its events are those that were written again."""
        clock, events = Clock(), 0
        while merged := self._merger.step(force=force):
            events += merged.rows
        return Spent(events, clock.wall_s, clock.cpu_s)

    def archive(self, *, before_us: int | None = None) -> Spent:
        """Archive every day before that time, or all there is."""
        self.tiers.iceberg.ensure()  # made once in the life of a namespace
        before_us = before_us or time.time_ns() // 1000 + DAY_US
        archiver, clock, events, kept = Archiver(self.tiers, self.epoch), Clock(), 0, 0
        while batch := archiver.step(before_us=before_us):
            events, kept = events + batch.events_in, kept + batch.events_kept
        return Spent(events, clock.wall_s, clock.cpu_s, kept)

    def tidy(self) -> None:
        """Make room: in Redis and on disk."""
        self._trimmer.step()
        self._purger.step()

    def close(self) -> None:
        self._lease.release()


@contextmanager
def working(config: Settings) -> Iterator[Steps]:
    """A store opened for work."""
    with open_tiers(config) as tiers:
        steps = Steps(tiers)
        try:
            yield steps
        finally:
            steps.close()
