"""A store with known contents in all tiers, which can be set back to what it was at any saved moment: files and Redis."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.servers import RedisServer
from tests.tidying import BucketCold
from tests.waiting import wait_until
from thermocline.config import Settings, load
from thermocline.ingest.append import Client
from thermocline.store import Store
from thermocline.tiers.cold_schema import KINDS
from thermocline.tiers.opening import Tiers, open_tiers
from thermocline.tiers.redis_link import Link

from .history import DAY_US, History

GRACE_S = 0.05
"""Every grace there is."""
EXPIRES_DAYS = 90
FILLER = "filler"
DATABASES = 32


class World:
    """One namespace below `folder`/work. Paths never change, as Iceberg tables know theirs: saving copies them away.

    work  may be a small file system of its own
    """

    def __init__(self, folder: Path, server: RedisServer) -> None:
        self.work = folder / "work"
        self._saved = folder / "saved"
        self._numbers: dict[str, int] = {}
        self._histories: dict[str, History] = {}
        self._link = Link(f"{server.url}?db=0", connect_timeout_s=5, timeout_s=30)
        self.settings = settings_of(self.work, f"{server.url}?db=0")
        self.now_us = time.time_ns() // 1000
        self.history = History()
        self.history.expired_before_us = (self.now_us // DAY_US - EXPIRES_DAYS) * DAY_US
        self.work.mkdir(exist_ok=True)
        self._saved.mkdir()

    @property
    def folder(self) -> Path:
        return self.settings.namespace_dir

    @property
    def filler(self) -> Path:
        return self.work / FILLER

    def save(self, name: str) -> None:
        """Remember what is now. Nothing may have the store open."""
        self._numbers[name] = len(self._numbers) + 1
        self._histories[name] = self.history.copy()
        shutil.copytree(self.work, self._saved / name)
        self._copy_redis(0, self._numbers[name])

    def restore(self, name: str) -> None:
        """Set everything back. Nothing may have the store open."""
        for path in self.work.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self._saved / name, self.work, dirs_exist_ok=True)
        self._copy_redis(self._numbers[name], 0)
        self.history = self._histories[name].copy()

    def append(self, tiers: Tiers, count: int, *, days_ago: float, days: float = 2, conversations: int = 7) -> None:
        first_us = int(self.now_us // DAY_US * DAY_US - days_ago * DAY_US)
        with Client(self.settings, tiers=tiers) as client:
            client.append_many(
                self.history.events(count, first_us=first_us, days=min(days, days_ago), conversations=conversations)
            )

    def mirror_objects(self) -> set[str]:
        root = self.work / "mirror"
        return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}

    def close(self) -> None:
        self._link.close()

    def _copy_redis(self, source: int, target: int) -> None:
        """Set database `target` to what `source` holds."""
        self._link.pipeline([("SELECT", target), ("FLUSHDB",), ("SELECT", source)])
        keys = self._link.call("KEYS", "*")
        pairs = [("COPY", key, key, "DB", target) for key in keys]
        self._link.pipeline([("SELECT", source), *pairs, ("SELECT", 0)])


def settings_of(work: Path, redis_url: str) -> Settings:
    return load(
        {
            "data_dir": str(work / "data"),
            "redis_url": redis_url,
            "cold_url": f"file://{work / 'bucket'}",
            "hot": {"shards": 4, "buckets": 64, "durable_lag_s": 0, "log_grace_s": 0, "cache_window_s": 0},
            "warm": {
                "fan_in": 2,
                "day_rows_min": 20,
                "rollup_rows_min": 60,
                "purge_grace_s": GRACE_S,
                "mirror": f"file://{work / 'mirror'}",
                "mirror_grace_s": GRACE_S,
                "mirror_snapshots": 2,
            },
            "cold": {"compact_files_min": 2, "purge_grace_s": GRACE_S, "retention_days": EXPIRES_DAYS},
            "sampling": {"rules": [{"name": "all", "rate": 1.0}]},
            "worker": {"failures_red": 1000},
        },
        environ={},
    )


@contextmanager
def opened(settings: Settings) -> Iterator[Tiers]:
    """The tiers as every process has them, with a cold tier that is not read as a folder, so that local copies matter."""
    with open_tiers(settings) as tiers:
        as_bucket(tiers, settings)
        yield tiers


def as_bucket(tiers: Tiers, settings: Settings) -> None:
    folder = Path(str(settings.cold_url).removeprefix("file://")) / settings.namespace
    tiers._cold = BucketCold(folder)


@contextmanager
def reader(settings: Settings) -> Iterator[Store]:
    tiers = open_tiers(settings)
    as_bucket(tiers, settings)
    with Store(tiers) as store:
        yield store


def wait_for_graces(began_s: float) -> None:
    """Return when everything that happened before that instant (monotonic) is older than all graces."""
    wait_until(lambda: time.monotonic() - began_s > 2 * GRACE_S, 10, "all graces are over")


def left_over(store: Store, settings: Settings) -> list[str]:
    """Files and objects that nothing needs, once everything was purged."""
    tiers, folder = store.tiers, settings.namespace_dir
    view = tiers.ledger.view()
    live = {f"{one.segment_id}{end}" for one in view.segments for end in (".duckdb", ".sum")}
    batches = {f"batches/{row.batch_id}.json" for row in tiers.ledger.batches()}
    objects = {file.key for file in view.files} | batches
    stored = {one.key for prefix in (*KINDS, "batches") for one in tiers.cold.objects(f"{prefix}/")}
    known = {"ledger.db", "ledger.db-wal", "ledger.db-shm", "catalog.db", "LOCK", "confirm.lock", "worker.json", "scrub.json"}
    known |= {"segments", "trash", "rejected", "cold"}
    names = {path.name for path in folder.iterdir() if ".old" not in path.name}
    unfinished = {str(path) for path in settings.data_dir.parent.rglob("*.tmp")}
    mine = {
        "segments": {path.name for path in (folder / "segments").iterdir()} ^ live,
        "objects": stored ^ objects,
        "trash": {path.name for path in folder.glob("trash/*")},
        "the namespace": names - known,
        "copies": {path.relative_to(folder / "cold").as_posix() for path in folder.glob("cold/**/*.parquet")} - objects,
        "unfinished files": unfinished,
    }
    return [f"left over or missing in {where}: {sorted(found)[:5]}" for where, found in mine.items() if found]


def iceberg_problems(store: Store) -> list[str]:
    """Where the Iceberg tables do not list what the ledger lists."""
    view = store.tiers.ledger.view()
    if not view.files:
        return []
    store.tiers.iceberg.ensure()  # a catalog that was lost knows them again
    found = []
    for kind in KINDS:
        wanted = {file.key for file in view.files if file.kind == kind}
        if store.tiers.iceberg.keys(kind) != wanted:
            found.append(f"the Iceberg table {kind} does not list what the ledger lists")
    return found


def as_json(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json")
