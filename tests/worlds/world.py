"""The real world: a store on Redis, DuckDB files and a folder as cold tier, whose moves can be broken off at any of their steps.

A move that breaks off raises Crash, which nothing of the product catches; then everything is dropped and opened again, as the
next process would find it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tests.archiving import Crash
from tests.killed import BATCH_STEPS, PURGE_STEPS
from tests.servers import RedisServer
from tests.tidying import BucketCold
from thermocline.archiver.archive import Archiver
from thermocline.archiver.archive_plan import DAY_US, cutoff_us
from thermocline.archiver.clocks import CLOCK_OFF_MAX_S
from thermocline.archiver.compact import Compactor
from thermocline.archiver.janitor import Janitor
from thermocline.archiver.merge import Merger
from thermocline.archiver.purge import Purger
from thermocline.archiver.recover import recover
from thermocline.archiver.rehydrate import rehydrate
from thermocline.archiver.settle import Settler
from thermocline.archiver.trim import Trimmer
from thermocline.archiver.worker import Worker
from thermocline.config import Settings, load
from thermocline.errors import TierUnavailable
from thermocline.ingest.append import Client
from thermocline.ingest.source import with_ingest
from thermocline.policy import SamplingSettings
from thermocline.store import Store
from thermocline.tiers import append_session
from thermocline.tiers.hot import OutcomeLost
from thermocline.tiers.ledger import Batch
from thermocline.tiers.opening import open_tiers
from thermocline.tiers.steps import named

SHARDS = 2
WINDOW_DAYS = 7
BRIEF_S = 0.15
"""The deadline of appends whose replies are all lost."""

_TOLD = {"warm": ("write_settled", "write_merged", "write_rest"), "ledger": ("settled", "merged"), "hot": ("trim",)}
"""Steps that the moves do not name themselves: methods of the tiers."""


def _around(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}{end}" for name in names for end in ("", " done"))


STEPS = {
    "settle": _around("write_settled", "settled"),
    "merge": _around("write_merged", "merged"),
    "trim": _around("trim"),
    "archive": (*BATCH_STEPS, *_around("write_rest")),
    "compact": BATCH_STEPS,
    "purge": PURGE_STEPS,
    "rehydrate": _around("fetch"),
}
"""Where a move can be broken off."""


class World:
    """One namespace, opened as producer, worker and reader at once."""

    def __init__(self, folder: Path, server: RedisServer, name: str, *, bucket: bool, cached: bool, **sections: Any) -> None:
        """bucket  whether the cold tier is read as one, through local copies
        cached  whether Redis keeps what has settled
        """
        self._bucket = folder / f"{name}-bucket" if bucket else None
        self._server = server
        self.begun_us, self._begun_s = time.time_ns() // 1000, time.monotonic()
        self.offset_us = 0
        self.monotonic_s = 0.0
        self.reached: list[str] = []
        self.breaking: str | None = None
        self.broken = False
        """Whether the last move was broken off."""
        self.settings = load(
            {
                "data_dir": folder,
                "namespace": name,
                "redis_url": server.url,
                "cold_url": None if self._bucket is None else f"file://{self._bucket}",
                "hot": {
                    "shards": SHARDS,
                    "buckets": 16,
                    "durable_lag_s": 0,
                    "log_grace_s": 0,
                    "cache_window_s": 3600 if cached else 0,
                    "timeout_s": 60,
                },
                "warm": {
                    "window_days": WINDOW_DAYS,
                    "fan_in": 2,
                    "day_rows_min": 4,
                    "purge_grace_s": 0,
                    "memory_bytes_max": 400 << 20,
                    "threads": 1,
                    **sections.pop("warm", {}),
                },
                "cold": {"compact_files_min": 2, "purge_grace_s": 0},
                "query": {"threads": 1},
                "ingest": {"deadline_s": 120},
                **sections,
            },
            environ={},
        )
        self._open()

    # Coming and going.

    def _open(self) -> None:
        self.tiers = open_tiers(self.settings)
        if self._bucket is not None:
            self.tiers._cold = BucketCold(self._bucket / self.settings.namespace)
        for tier, names in _TOLD.items():
            for name in names:
                self._tell(getattr(self.tiers, tier), name)
        self._tell(self.tiers.cold, "fetch")
        self.store = Store(self.tiers)
        self.client = Client(self.settings, tiers=self.tiers)
        self.take_over()

    def take_over(self) -> None:
        """Be the one worker: a new epoch, movers that know nothing."""
        epoch = self.tiers.ledger.take_epoch("worlds", time.time_ns() // 1000)
        monotonic = lambda: self.monotonic_s  # noqa: E731
        self.settler = Settler(self.tiers, epoch, monotonic=monotonic)
        self.merger = Merger(self.tiers, epoch)
        self.trimmer = Trimmer(self.tiers, monotonic=monotonic)
        self.archiver = Archiver(self.tiers, epoch, reach=self._reach)
        self.compactor = Compactor(self.tiers, epoch, reach=self._reach)
        self.purger = Purger(self.tiers, epoch, reach=self._reach)
        self.janitor = Janitor(self.tiers, epoch, reach=self._reach)

    def _tell(self, owner: object, name: str) -> None:
        """Let a method be a named step."""
        act = getattr(owner, name)

        def told(*args: Any, **kwargs: Any) -> Any:
            with named(self._reach, name):
                return act(*args, **kwargs)

        setattr(owner, name, told)

    def _reach(self, step: str) -> None:
        self.reached.append(step)
        if step == self.breaking:
            self.breaking = None
            raise Crash(step)

    def close(self) -> None:
        self.client.close()
        self.store.close()

    def reopen(self, settings: Settings | None = None) -> None:
        self.close()
        self.settings = settings or self.settings
        self._open()

    def end(self) -> None:
        """Leave nothing behind."""
        self.tiers.hot.drop()
        self.close()
        for folder in (self.settings.namespace_dir, self._bucket):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def restart_redis(self) -> None:
        """kill -9, and start it again."""
        self._server.kill()
        self._server.start()

    def lose_ledger(self) -> None:
        """The ledger is gone; a new one is made from the files."""
        self.close()
        for path in self.settings.namespace_dir.glob("ledger.db*"):
            path.unlink()
        recover(self.settings)
        self._open()

    def change_policy(self, rules: Any) -> None:
        self.reopen(self.settings.model_copy(update={"sampling": SamplingSettings(rules=rules)}))

    # Time.

    def now_us(self) -> int:
        """The worker's clock. It stays within its UTC day, so that no history goes over midnight by itself."""
        now_us = self.begun_us + int((time.monotonic() - self._begun_s) * 1e6)
        return min(now_us, (self.begun_us // DAY_US + 1) * DAY_US - 1) + self.offset_us

    @property
    def clock_is_off(self) -> bool:
        return abs(self.offset_us) > CLOCK_OFF_MAX_S * 1_000_000

    @property
    def cutoff_us(self) -> int:
        """What happened before may be archived."""
        return cutoff_us(self.now_us(), days=WINDOW_DAYS)

    @contextmanager
    def _worker_clock(self) -> Iterator[None]:
        with (
            mock.patch.object(time, "time_ns", lambda: self.now_us() * 1000),
            mock.patch.object(time, "time", lambda: self.now_us() / 1e6),
        ):
            yield

    # Moves.

    def move(self, act: Callable[[], Any], breaking: str | None = None) -> Any:
        """What `act` gives by the worker's clock; Crash when it is broken off, and then everything is opened again."""
        self.reached, self.breaking, self.broken = [], breaking, False
        try:
            with self._worker_clock():
                try:
                    return act()
                except TierUnavailable:  # Redis was restarted: the worker confirms it and tries again
                    self.tiers.reconfirm()
                    return act()
        except Crash:
            self.broken = True
            self.reopen()
            raise
        finally:
            self.breaking = None

    def settle(self) -> None:
        while self.settler.step(force=True).events:
            pass

    def merge(self) -> bool:
        return self.merger.step(force=True) is not None

    def archive(self) -> Batch | None:
        return self.archiver.step(before_us=self.cutoff_us)

    def clean(self) -> None:
        self.purger.step()
        self.janitor.step()

    def rehydrate(self, day_or_conversation: str, hours: int) -> None:
        rehydrate(self.tiers, day_or_conversation, until_us=self.now_us() + hours * 3_600_000_000)

    def work(self) -> None:
        """A whole pass of a worker. By a clock that is off it archives nothing by age, and says so."""
        report = Worker(self.tiers, monotonic=time.monotonic).once()
        assert report.problem is None or (self.clock_is_off and "clock" in report.problem), report.problem

    def archived_batches(self) -> int:
        return sum(batch.kind == "archive" for batch in self.tiers.ledger.batches())

    # Appends.

    @contextmanager
    def losing(self, faults: list[str], *, all_lost: bool = False) -> Iterator[Client]:
        """A client some of whose requests or replies get lost: those of `faults`, then, if so, all replies."""
        send = append_session.exchange_packed
        left = list(faults)

        def exchange(connection: Any, *args: Any, **kwargs: Any) -> Any:
            fault = left.pop(0) if left else "reply" if all_lost else ""
            if fault == "request":
                connection.disconnect()
                raise OutcomeLost("the request got lost")
            replies = send(connection, *args, **kwargs)
            if fault == "reply":
                connection.disconnect()
                raise OutcomeLost("the reply got lost")
            return replies

        hurried = with_ingest(self.settings, deadline_s=BRIEF_S) if all_lost else self.settings
        with mock.patch.object(append_session, "exchange_packed", exchange), Client(hurried, tiers=self.tiers) as client:
            yield client
