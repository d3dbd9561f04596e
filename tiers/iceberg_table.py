"""One Iceberg table as one version of its metadata has it: its batches, its files, and the next commit on it.

Manifests are read with a check: one that ends early is a short one to pyiceberg, and a file that it does not see would look
as if nothing referred to it any more. They never change, so `Manifests` keeps what was read of them.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Final

from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io.pyarrow import parquet_files_to_data_files
from pyiceberg.manifest import DataFile, ManifestContent, ManifestFile
from pyiceberg.table import Table, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.table.update.snapshot import ExpireSnapshots

from thermocline.errors import TierCorrupt

from .iceberg_errors import translated
from .kept import Kept

BATCH = "thermocline.batch-id"
"""Property of a snapshot: the archive batch that made it."""
LISTED_MAX: Final = 20_000
"""Manifests that lists are kept of: some 1 KB each, or far less when several lists have the same."""
NAMES_MAX: Final = 100_000
"""Names of data files that are kept of manifests: some 200 bytes each."""


class Manifests:
    """What was read of manifest lists and manifests: by their URL, up to a bound. Thread-safe."""

    def __init__(self) -> None:
        self.lists: Kept[Sequence[ManifestFile]] = Kept(LISTED_MAX)
        self.names: Kept[frozenset[str]] = Kept(NAMES_MAX)


class LoadedTable:
    """A table as it was when the catalog was asked. A commit moves this object on, too. Not thread-safe."""

    def __init__(self, table: Table, what: str, read: Manifests) -> None:
        """read  what other versions of the table have read already"""
        self._table = table
        self._what = what
        self._read = read

    @property
    def metadata_url(self) -> str:
        """Of the metadata file this object was read from; it never changes."""
        return self._table.metadata_location

    def batches(self) -> dict[str, str]:
        """Batch id → snapshot id of every snapshot that is kept."""
        marked = ((_batch(snapshot), str(snapshot.snapshot_id)) for snapshot in self._table.metadata.snapshots)
        return {batch: snapshot_id for batch, snapshot_id in marked if batch is not None}

    def files(self) -> dict[str, ManifestFile]:
        """URL → manifest of every data file of the current snapshot. TierCorrupt when its manifests cannot be right."""
        current = self._table.current_snapshot()
        if current is None:
            return {}
        return {url: manifest for manifest in self._manifests(current) for url in self._names(manifest)}

    def referenced(self, urls: Iterable[str]) -> set[str]:
        """Those of these data files that a snapshot refers to.

        Looks into the manifests of the oldest snapshots first, where files are that have left, until all are found.
        """
        sought, found, read = set(urls), set[str](), set[str]()
        for snapshot in sorted(self._table.metadata.snapshots, key=lambda one: one.timestamp_ms):
            if found == sought:
                break
            for manifest in self._manifests(snapshot):
                if manifest.manifest_path not in read and found != sought:
                    found |= sought & self._names(manifest)
                    read.add(manifest.manifest_path)
        return found

    def metadata_urls(self) -> set[str]:
        """All that belongs to the table except data files: versions of the metadata, manifest lists, manifests, statistics."""
        metadata = self._table.metadata
        found = {self.metadata_url, *(entry.metadata_file for entry in metadata.metadata_log)}
        found |= {statistics.statistics_path for statistics in (*metadata.statistics, *metadata.partition_statistics)}
        for snapshot in metadata.snapshots:
            found.add(snapshot.manifest_list)
            found |= {manifest.manifest_path for manifest in self._manifests(snapshot)}
        return found

    def add(self, batch_id: str, added: Sequence[str], removed: Iterable[str]) -> None:
        """Commit one snapshot. Whatever it raises, the commit may have happened.

        added    URLs of Parquet files that are in the store, of one day each when the table has days
        removed  URLs of files of the current snapshot
        """
        files = self.files()
        gone, twice = sorted(set(removed) - files.keys()), sorted(files.keys() & set(added))
        if gone or twice:
            raise TierCorrupt(
                f"{self._what}: batch {batch_id} is not possible: {twice or 'nothing'} is in the table already, "
                f"{gone or 'nothing'} that it replaces is not there"
            )
        entries = [file for manifest in {files[url] for url in removed} for file in self._entries(manifest)]
        leaving = {file.file_path: file for file in entries}
        with translated(self._what), _LightTransaction(self._table) as transaction:
            update = transaction.update_snapshot(snapshot_properties={BATCH: batch_id})
            producer = update.overwrite() if removed else update.merge_append()
            if removed:  # without a predicate it looks into no manifest of a table without partitions
                producer.delete_by_predicate(AlwaysTrue())
            with producer:
                for file in parquet_files_to_data_files(self._table.io, self._table.metadata, iter(added)):
                    producer.append_data_file(file)
                for url in removed:
                    producer.delete_data_file(leaving[url])

    def set_properties(self, wanted: Mapping[str, str]) -> None:
        """Commit those that differ, if any."""
        changed = {key: value for key, value in wanted.items() if self._table.properties.get(key) != value}
        if changed:
            with translated(self._what), self._table.transaction() as transaction:
                transaction.set_properties(changed)

    def expire(self, *, before_us: int, batches: Container[str]) -> int:
        """Forget snapshots of these batches that are older, but not what a branch or tag stands at; how many."""
        metadata = self._table.metadata
        held = {metadata.current_snapshot_id, *(ref.snapshot_id for ref in metadata.refs.values())}
        due = [
            snapshot.snapshot_id
            for snapshot in metadata.snapshots
            if snapshot.timestamp_ms * 1000 < before_us and snapshot.snapshot_id not in held and _batch(snapshot) in batches
        ]
        if due:
            with translated(self._what):
                ExpireSnapshots(_LightTransaction(self._table, autocommit=True)).by_ids(due).commit()
        return len(due)

    def _manifests(self, snapshot: Snapshot) -> Sequence[ManifestFile]:
        return self._read.lists.get(snapshot.manifest_list, lambda: self._list(snapshot))

    def _names(self, manifest: ManifestFile) -> frozenset[str]:
        """URLs of its data files."""
        return self._read.names.get(manifest.manifest_path, lambda: frozenset(file.file_path for file in self._entries(manifest)))

    def _list(self, snapshot: Snapshot) -> list[ManifestFile]:
        with translated(f"{self._what}, snapshot {snapshot.snapshot_id}"):
            manifests = snapshot.manifests(self._table.io)
        total = snapshot.summary["total-data-files"] if snapshot.summary is not None else None
        listed = sum(_live(manifest) for manifest in manifests if manifest.content == ManifestContent.DATA)
        if total is not None and int(total) != listed:
            raise TierCorrupt(f"{self._what}: {snapshot.manifest_list} lists {listed} files, the snapshot has {total}")
        return manifests

    def _entries(self, manifest: ManifestFile) -> list[DataFile]:
        with translated(f"{self._what}, manifest {manifest.manifest_path}"):
            entries = manifest.fetch_manifest_entry(self._table.io)
        if len(entries) != _live(manifest):
            raise TierCorrupt(f"{self._what}: {manifest.manifest_path} has {len(entries)} files, not {_live(manifest)}")
        return [entry.data_file for entry in entries]


class _LightTransaction(Transaction):
    """A transaction that copies the metadata only once it has changed it.

    pyiceberg copies it whole at every look, a dozen times in a commit: 15 ms each with 200 snapshots.
    """

    @property
    def table_metadata(self) -> TableMetadata:
        return super().table_metadata if self._updates else self._table.metadata


def _live(manifest: ManifestFile) -> int:
    return (manifest.added_files_count or 0) + (manifest.existing_files_count or 0)


def _batch(snapshot: Snapshot) -> str | None:
    return snapshot.summary[BATCH] if snapshot.summary is not None else None


__all__ = ["BATCH", "LoadedTable", "Manifests"]
