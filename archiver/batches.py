"""Batches of the cold tier: how one becomes visible, exactly once, whatever happens on the way.

Steps, and what a crash leaves after each:

1. intend     the ledger knows that a batch is begun      its inputs wait; the next start gives it up
2. write      files in staging/, read back                the same
3. upload     every file under a new key                  the same; the objects are orphans (janitor)
4. describe   batches/<batch>.json                        from here on the next start finishes it
5. publish    one Iceberg snapshot per kind of file       other engines see the files, our readers the inputs: both are right
6. commit     one ledger transaction                      done; the staged rollups become local copies

4 to 6 can be repeated: an object that is there with the same bytes is not written again, a snapshot with the batch's id is found
in the table's history, and the ledger knows its batches.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import uuid_utils

from thermocline.errors import TierCorrupt
from thermocline.event import FORMAT
from thermocline.tiers.batch_files import Staged
from thermocline.tiers.cold_schema import KINDS
from thermocline.tiers.iceberg import IcebergTables
from thermocline.tiers.ledger import Batch, ColdFile, Intent
from thermocline.tiers.opening import Tiers
from thermocline.tiers.steps import Reach, named, unheard
from thermocline.tiers.whole_file import file_errors


def key_of(batch_id: str) -> str:
    """The object that describes a batch."""
    return f"batches/{batch_id}.json"


def decoded(content: bytes, *, key: str) -> Batch:
    """What `describe` wrote. TierCorrupt when it is something else."""
    try:
        batch = msgspec.json.decode(content, type=Batch)
    except msgspec.MsgspecError as exc:
        raise TierCorrupt(f"{key} does not describe a batch ({exc}): restore it from a copy") from exc
    if batch.format != FORMAT:
        raise TierCorrupt(f"{key} has format {batch.format!r}, this version knows {FORMAT!r}: upgrade Thermocline")
    return batch


class Batches:
    """Batches of one namespace, for the worker that holds `epoch`."""

    def __init__(self, tiers: Tiers, epoch: int, *, reach: Reach = unheard) -> None:
        self._tiers = tiers
        self._epoch = epoch
        self._reach = reach
        self._folder = tiers.settings.namespace_dir.absolute() / "staging"

    def begin(self, kind: str, inputs: Sequence[str]) -> str:
        """The id of a new batch that replaces `inputs`."""
        batch_id = uuid_utils.uuid7().hex
        with named(self._reach, "intend"):
            intent = Intent(batch_id=batch_id, kind=kind, inputs=tuple(inputs), begun_us=time.time_ns() // 1000)
            self._tiers.ledger.intend(self._epoch, intent)
        return batch_id

    @contextmanager
    def begun(self, kind: str, inputs: Sequence[str]) -> Iterator[str]:
        """The id of a new batch that is written inside; given up when that raises an Exception."""
        batch_id = self.begin(kind, inputs)
        try:
            yield batch_id
        except Exception:
            self.give_up(batch_id)
            raise

    def staging(self, batch_id: str) -> Path:
        """An empty folder for its files."""
        folder = self._folder / batch_id
        with file_errors(str(folder), setting="data_dir"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        return folder

    def give_up(self, batch_id: str) -> None:
        """Forget a batch that was not described; what it wrote is removed or an orphan."""
        with named(self._reach, "give up"):
            self._tiers.ledger.give_up(self._epoch, batch_id)
            shutil.rmtree(self._folder / batch_id, ignore_errors=True)

    def upload(self, staged: Sequence[Staged]) -> None:
        with named(self._reach, "upload"):
            for one in staged:
                with named(self._reach, "upload file"):
                    self._tiers.cold.put_file(one.key, one.path)

    def commit(self, batch: Batch) -> None:
        """Describe, publish and commit a batch whose files are uploaded."""
        with named(self._reach, "describe"):
            self._tiers.cold.put(key_of(batch.batch_id), msgspec.json.format(msgspec.json.encode(batch), indent=1))
        self._finish(batch)

    def resume(self) -> list[Batch]:
        """Finish what was described, give up what was not; the batches finished. Errors are those of the cold tier."""
        finished = []
        for intent in self._tiers.ledger.intents():
            key = key_of(intent.batch_id)
            if self._tiers.cold.size(key) is None:
                self._require_unpublished(intent.batch_id)
                self.give_up(intent.batch_id)
                continue
            batch = decoded(self._tiers.cold.get(key), key=key)
            self._finish(batch)
            finished.append(batch)
        if self._folder.is_dir():
            shutil.rmtree(self._folder, ignore_errors=True)
        return finished

    def _require_unpublished(self, batch_id: str) -> None:
        """TierCorrupt when other engines see a batch whose description is gone, TierUnavailable when that cannot be told: a disk
        that is not mounted has no descriptions either."""
        self._tiers.iceberg.ensure()
        if any(batch_id in self._tiers.iceberg.batches(kind) for kind in KINDS):
            url = self._tiers.cold.url_of(key_of(batch_id))
            raise TierCorrupt(f"{url} is gone, but the batch is published: restore it from a copy")

    def _finish(self, batch: Batch) -> None:
        with named(self._reach, "publish"):
            live = {file.file_id: file for file in self._tiers.ledger.view().files}
            snapshot_id = publish(self._tiers.iceberg, batch, live, reach=self._reach)
        with named(self._reach, "commit"):
            self._tiers.ledger.committed(self._epoch, batch, snapshot_id=snapshot_id, now_us=time.time_ns() // 1000)
        with named(self._reach, "keep copies"):
            self._copy_rollups(batch)

    def _copy_rollups(self, batch: Batch) -> None:
        """Let the staged rollups be the local copies, as far as they are still there."""
        folder = self._folder / batch.batch_id
        for file in batch.files:
            path = folder / f"{file.file_id}.parquet"
            if file.kind != "events" and path.exists():
                self._tiers.copies.take(file.key, path)
        shutil.rmtree(folder, ignore_errors=True)


PUBLISHED = (*(kind for kind in KINDS if kind != "rollup_conversation"), "rollup_conversation")
"""The order in which a batch's files become visible to other engines."""


def publish(iceberg: IcebergTables, batch: Batch, files: Mapping[str, ColdFile], *, reach: Reach = unheard) -> str | None:
    """Commit a batch to the Iceberg tables, a snapshot each; the id of that of the events, if they change. Safe to repeat.

    files  id → file, of those that the batch removes
    """
    removed = [files[file_id] for file_id in batch.removed if file_id in files]
    snapshot_id = None
    iceberg.ensure_once()
    for kind in PUBLISHED:
        added = [file.key for file in batch.files if file.kind == kind]
        gone = [file.key for file in removed if file.kind == kind]
        if added or gone:
            with named(reach, "publish table"):
                found = iceberg.commit(kind, batch.batch_id, added, gone)
            snapshot_id = found if kind == "events" else snapshot_id
    return snapshot_id
