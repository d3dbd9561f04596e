"""What the tests of compact, expire and janitor share: an archive of many small files, and what must stay true of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from tests.archiving import Crash, settings_for, settle_all
from tests.servers import RedisServer
from thermocline.archiver.archive import Archiver
from thermocline.archiver.compact import Compactor
from thermocline.archiver.expire import Expirer
from thermocline.archiver.janitor import Cleaned, Janitor
from thermocline.archiver.settle import Settler
from thermocline.archiver.trim import Trimmer
from thermocline.ingest.append import Client
from thermocline.store import Store
from thermocline.tiers.cold_folder import FolderCold
from thermocline.tiers.cold_schema import KINDS
from thermocline.tiers.ledger import Batch, ColdFile, View
from thermocline.tiers.opening import open_tiers
from thermocline.tiers.steps import Reach

if TYPE_CHECKING:
    from tests.shelf import Shelf

DAY_US = 86_400_000_000
FILES_MIN = 3
CONTENTS = (
    "SELECT * FROM events ORDER BY conversation_id, seq",
    "SELECT * FROM hourly_stats ORDER BY ALL",
    "SELECT * FROM conversation_summary ORDER BY ALL",
)


class BucketCold(FolderCold):
    """A folder that is not read as one: as if it were a bucket."""

    is_local = False


class Archive:
    """A namespace whose events are archived round by round. A context manager.

    bucket    whether the folder of the cold tier is not read as one
    cold_url  of another store; default: a folder; empty: in the data directory
    shelf     has what an archive like this is after its first rounds
    """

    def __init__(
        self,
        folder: Path,
        server: RedisServer,
        *,
        bucket: bool = False,
        cold_url: str | None = None,
        shelf: Shelf | None = None,
        **sections: Mapping[str, Any],
    ) -> None:
        cold = {"compact_files_min": FILES_MIN, "purge_grace_s": 0, **sections.pop("cold", {})}
        self.bucket = folder / "bucket"
        url = f"file://{self.bucket}" if cold_url is None else cold_url or None
        self.settings = settings_for(folder, server, hot={"durable_lag_s": 0}, cold=cold, cold_url=url, **sections)
        self.now_us = time.time_ns() // 1000
        self._bucket = bucket
        self._shelf = shelf
        self.rounds = 0
        self.open()

    def open(self) -> None:
        """Open the store as a new process would, and take its lease."""
        self.tiers = open_tiers(self.settings)
        if self._bucket:
            self.tiers._cold = BucketCold(self.bucket / self.settings.namespace)
        self.epoch = self.tiers.ledger.take_epoch("test", self.now_us)
        self.store = Store(self.tiers)

    def close(self) -> None:
        self.store.close()
        self.tiers.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def archive_round(self, *, events: int = 60, days: int = 2, reach: Reach = lambda _: None) -> Batch:
        """Archive more events of the same old days and conversations; each round is a batch."""
        first_us = (self.now_us // DAY_US - 12) * DAY_US
        with Client(self.settings, tiers=self.tiers) as client:
            client.append_many(
                [
                    {
                        "conversation_id": f"c{number % 7}",
                        "event_type": ("output.chunk", "tool.call", "error")[number % 3],
                        "content": f"{self.rounds} {number}",
                        "task_id": f"task-{(number + self.rounds) % 4}",
                        "cost_usd": number / 7,
                        "input_tokens": number,
                        "duration_ms": number * 1.5,
                        "metadata": {"number": number},
                        "timestamp": first_us + number * days * DAY_US // events + self.rounds,
                    }
                    for number in range(events)
                ]
            )
        self.rounds += 1
        settle_all(Settler(self.tiers, self.epoch))
        batch = Archiver(self.tiers, self.epoch, reach=reach).step()
        assert batch is not None
        return batch

    def archive_rounds(self, count: int = FILES_MIN) -> None:
        if self._shelf is not None and self._is_empty():
            self._shelf.fill(self, count, bucket=self._bucket)
            return
        for _ in range(count):
            self.archive_round()

    def _is_empty(self) -> bool:
        view = self.tiers.ledger.view()
        return not view.segments and not view.files and not any(cut.events_total for cut in self.tiers.hot.cut())

    def trim(self) -> None:
        """Drop from Redis all that has settled, as when the cache window is over."""
        now_s = [0.0]
        trimmer = Trimmer(self.tiers, monotonic=lambda: now_s[0])
        trimmer.step()
        now_s[0] = 9000.0
        assert trimmer.step() > 0

    def compact(self, reach: Reach = lambda _: None) -> Batch | None:
        return Compactor(self.tiers, self.epoch, reach=reach).step()

    def expire(self, reach: Reach = lambda _: None) -> Batch | None:
        return Expirer(self.tiers, self.epoch, reach=reach).step()

    def clean(self, *, days: int = 0) -> Cleaned:
        """One pass of the janitor, so many days from now."""
        return Janitor(self.tiers, self.epoch).step(now_us=time.time_ns() // 1000 + days * DAY_US)

    def contents(self) -> list[Any]:
        """All rows of every relation, with the types of their columns."""
        return [self.store.sql(query).to_arrow() for query in CONTENTS]

    def view(self) -> View:
        """The ledger, but for the epoch."""
        return msgspec.structs.replace(self.tiers.ledger.view(), epoch=0)

    def files(self, kind: str) -> list[ColdFile]:
        return [file for file in self.view().files if file.kind == kind]

    def keys(self, *prefixes: str) -> set[str]:
        """Objects there are, but for those of the Iceberg tables."""
        return {one.key for prefix in prefixes or (*KINDS, "batches") for one in self.tiers.cold.objects(f"{prefix}/")}

    def objects(self, *, live: bool = False) -> dict[str, bytes]:
        """Data objects, those of live files or all that there are, and their bytes."""
        keys = {file.key for file in self.view().files} if live else self.keys(*KINDS)
        return {key: self.tiers.cold.get(key) for key in sorted(keys)}

    def live_keys(self) -> set[str]:
        """Those of live files and of the descriptions of batches."""
        live = {file.key for file in self.view().files}
        return live | {f"batches/{row.batch_id}.json" for row in self.tiers.ledger.batches()}

    def check(self) -> None:
        """Every file is sound, all sums close, and Iceberg shows just what the ledger lists."""
        assert self.store.verify(deep=True).problems == ()
        for kind in KINDS:
            assert self.tiers.iceberg.keys(kind) == {file.key for file in self.files(kind)}, kind
        assert self.tiers.ledger.intents() == []
        assert list(self.settings.namespace_dir.glob("staging/*")) == []

    def check_clean(self) -> None:
        """No object is left that is not live."""
        assert self.keys() == self.live_keys()
        assert [row for row in self.tiers.ledger.trash() if "://" in row.path] == []


def breaking_at(step: str, error: BaseException | None = None) -> Reach:
    """Ends there: as a crash, or with an error."""

    def reach(reached: str) -> None:
        if reached == step:
            raise error or Crash

    return reach
