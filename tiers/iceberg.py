"""The cold tier's Iceberg tables: one per kind of file, committed exactly once per archive batch, readable by any engine.

A commit, and what is there after a crash at each step:
1. pyiceberg writes manifests and a new version of the metadata: files nobody refers to, which `unreferenced` lists later
2. the catalog is moved from the old version to the new one, in one atomic step, and synced: this is the commit
3. the new version is copied to `latest.metadata.json`, for readers without the catalog, and `version-hint.text` names it: when
   that is missing the next `ensure` or `commit` does it

A commit that raised may have happened. So every commit looks for its batch in the table first, and after any error again.
Nothing here imports pyiceberg before it is used: that takes a second.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import msgspec

from thermocline.config import Settings
from thermocline.errors import ThermoclineError, TierCorrupt, TierUnavailable

from .cold import Cold, StoredObject
from .cold_schema import KINDS
from .whole_file import file_errors, sync

if TYPE_CHECKING:
    from .iceberg_catalog import TableCatalog
    from .iceberg_table import LoadedTable

FOLDER: Final = "iceberg/"
METADATA_END: Final = ".metadata.json"
_METADATA_NAME: Final = re.compile(r"iceberg/[^/]+/metadata/[^/]+(\.avro|\.metadata\.json)")


class IcebergTables:
    """Tables `<namespace>.<kind>` at `<cold.url>/iceberg/<kind>`. Thread-safe; one process commits at a time (the worker).

    Errors of every call: TierUnavailable (store or catalog away: the same call may succeed later), TierCorrupt (metadata that
    cannot be read, or does not fit), ConfigError (cold.catalog_url, cold.catalog_properties).
    """

    def __init__(self, cold: Cold, settings: Settings) -> None:
        self._cold = cold
        self._settings = settings
        self._file = settings.namespace_dir / "catalog.db" if settings.cold.catalog_url is None else None
        self._open: TableCatalog | None = None
        self._ensured: TableCatalog | None = None
        self._inode: int | None = None
        self._lock = threading.Lock()

    def ensure(self) -> None:
        """Make the tables that are not there, and bring properties and pointers up to date. Safe to repeat.

        A table that the catalog does not know but the store has a pointer for is made known again as the pointer has it: so
        a lost catalog costs nothing.
        """
        catalog = self._catalog()
        catalog.create_namespace()
        for kind in KINDS:
            table = catalog.find(kind) or self._register(catalog, kind) or catalog.create(kind)
            table = catalog.with_properties(kind, table)
            self._point(kind, table)
        self._ensured = catalog

    def ensure_once(self) -> None:
        """The same, unless it was done since the catalog was opened."""
        if self._ensured is not self._catalog():
            self.ensure()

    def commit(self, kind: str, batch_id: str, added: Sequence[str], removed: Sequence[str] = ()) -> str:
        """Make one snapshot that has the files `added` and no longer the files `removed`; its id.

        batch_id  becomes a property of the snapshot; a batch that the table has already changes nothing
        added     keys, `<kind>/…`, of Parquet files in the store, with field ids, each of one day if the table is split by day
        removed   keys of files of the current snapshot

        TierUnavailable says whether the commit may have happened; the same call again finds out. TierCorrupt: nothing was
        committed, as a file of `added` is there already or does not fit, or one of `removed` is not there.
        """
        assert (added or removed) and len({*added, *removed}) == len(added) + len(removed), "files, each once"
        assert all(_kind_of(key) == kind for key in (*added, *removed)), "removable seeks them by the kind in their key"
        table = self._catalog().load(kind)
        snapshot_id = table.batches().get(batch_id)
        if snapshot_id is None:
            urls = [self._cold.url_of(key) for key in added], [self._cold.url_of(key) for key in removed]
            try:
                table.add(batch_id, *urls)
            except Exception as error:
                table = self._after(error, kind, batch_id)
            snapshot_id = table.batches()[batch_id]
        self._make_durable()
        try:
            self._point(kind, table)
        except TierUnavailable as error:
            raise TierUnavailable(
                f"{kind}: batch {batch_id} is committed (snapshot {snapshot_id}), but readers without the catalog do not see it "
                f"yet ({error}): the same call again shows it to them"
            ) from error
        return snapshot_id

    def batches(self, kind: str) -> set[str]:
        """Batch ids in the snapshot history, as far back as it is kept."""
        return set(self._catalog().load(kind).batches())

    def keys(self, kind: str) -> set[str]:
        """Keys of the data files of the current snapshot."""
        return {self._cold.key_of(url) for url in self._catalog().load(kind).files()}

    def expire(self, kind: str, *, before_us: int, batches: Container[str]) -> int:
        """Forget snapshots made before that instant (µs) by one of `batches`; how many. The current one always stays.

        batches  those the ledger has: whether another batch was committed is asked of the history, so it must stay there
        """
        table = self._catalog().load(kind)
        count = table.expire(before_us=before_us, batches=batches)
        if count:
            self._point(kind, table)
        return count

    def unreferenced(self, *kinds: str) -> list[StoredObject]:
        """Objects below the folders of these tables, of all when none is named, that nothing in them refers to: left by failed
        commits and expired snapshots.

        Among them are the files of a commit under way: leave alone what was modified less than a grace ago.
        """
        # Listed first, or a commit between the two would look like litter.
        stored = list(self._cold.objects(_folder(*kinds) if len(kinds) == 1 else FOLDER))
        return [one for kind in kinds or KINDS for one in self._loose(kind, stored)]

    def _loose(self, kind: str, stored: Iterable[StoredObject]) -> list[StoredObject]:
        table = self._catalog().load(kind)
        kept = {*table.metadata_urls(), *map(self._cold.url_of, (_latest(kind), _hint(kind)))}
        urls = {self._cold.url_of(one.key): one for one in stored if one.key.startswith(_folder(kind))}
        loose = {url: one for url, one in urls.items() if url not in kept}
        # Ours put no data here. Another engine may, but not with these names: only then is it worth to read all manifests.
        doubtful = [url for url, one in loose.items() if not _METADATA_NAME.fullmatch(one.key)]
        data = table.referenced(doubtful)
        return [one for url, one in loose.items() if url not in data]

    def removable(self, keys: Iterable[str]) -> set[str]:
        """Those of these data files that no snapshot refers to; a key that does not begin with a kind is sought in all tables."""
        urls = {self._cold.url_of(key): key for key in keys}
        catalog, kept = self._catalog(), set[str]()
        for kind in KINDS:
            sought = [url for url, key in urls.items() if _kind_of(key) in (kind, None)]
            if sought:
                kept |= catalog.load(kind).referenced(sought)
        return {key for url, key in urls.items() if url not in kept}

    def metadata_url(self, kind: str) -> str:
        """URL of the current version of the metadata; it never changes, and is there until so many versions have followed."""
        return self._catalog().load(kind).metadata_url

    def close(self) -> None:
        """Let go of the catalog's connections; the next call opens them again."""
        with self._lock:
            if self._open is not None:
                self._open.close()
            self._open = None

    def _catalog(self) -> TableCatalog:
        """The catalog, opened anew when catalog.db is another file than it was."""
        from .iceberg_catalog import TableCatalog  # imports pyiceberg

        with self._lock:
            if self._open is None or self._inode != _inode(self._file):
                if self._open is not None:
                    self._open.close()
                self._open = TableCatalog(self._cold, self._settings)
                self._inode = _inode(self._file)
            return self._open

    def _make_durable(self) -> None:
        """SQLite commits by removing its journal, and does not wait for that to be on disk: after a loss of power the journal
        may be back, and the commit is undone. Before anything else says that it happened, the folder is synced."""
        if self._file is not None:
            with file_errors(str(self._file), setting="data_dir"):
                sync(self._file.parent)

    def _after(self, error: Exception, kind: str, batch_id: str) -> LoadedTable:
        """The table if the commit happened after all; else `error`, as one of ours that says what is known."""
        from .iceberg_errors import translation

        said = " ".join(str(error).split()) or type(error).__name__
        try:
            table = self._catalog().load(kind)
        except ThermoclineError as away:
            raise TierUnavailable(
                f"{kind}: batch {batch_id} may or may not be committed ({said}), and the table cannot be asked ({away}): "
                "commit it again, with the same id and files"
            ) from error
        if batch_id in table.batches():
            return table
        ours = translation(error, f"Iceberg table {kind}")
        if ours is None:
            raise error
        raise type(ours)(f"nothing of batch {batch_id} was committed: {ours}") from error

    def _point(self, kind: str, table: LoadedTable) -> None:
        """Copy the metadata to where readers without the catalog look, unless it is there.

        The hint comes last: it names the current version only when the copy is that version.
        """
        key = self._cold.key_of(table.metadata_url)
        hint = key.rpartition("/")[2].removesuffix(METADATA_END).encode()  # no newline: readers take it as it is
        with suppress(TierCorrupt):  # it is not there, or is not what was stored
            if self._cold.get(_hint(kind)) == hint:
                return
        self._cold.put(_latest(kind), self._cold.get(key), replace=True)
        self._cold.put(_hint(kind), hint, replace=True)

    def _register(self, catalog: TableCatalog, kind: str) -> LoadedTable | None:
        """Make known what the pointer has; None when there is no pointer.

        What is registered is a copy under a name of its own, as versions are removed when they are old and the pointer changes.
        """
        if self._cold.size(_latest(kind)) is None:
            return None
        content, where = self._cold.get(_latest(kind)), self._cold.url_of(_latest(kind))
        try:
            found = msgspec.json.decode(content, type=_Metadata)
            version = int(found.log[-1].file.rpartition("/")[2].partition("-")[0]) + 1 if found.log else 0
        except ValueError as error:  # msgspec's errors are ValueErrors
            raise TierCorrupt(
                f"{where} is no Iceberg metadata ({error}): put back the newest of the {METADATA_END} files beside it, "
                "by its number, and try again"
            ) from error
        if found.location != f"{self._cold.url}/{_folder(kind)}".rstrip("/"):
            raise TierCorrupt(
                f"{where} is of a table at {found.location}: Iceberg files name each other by full URL, so they cannot be moved; "
                "put them back where they were made"
            )
        key = f"{_folder(kind)}metadata/{version:05d}-{uuid4()}{METADATA_END}"
        self._cold.put(key, content)
        return catalog.register(kind, self._cold.url_of(key))


class _LogEntry(msgspec.Struct):
    file: str = msgspec.field(name="metadata-file")


class _Metadata(msgspec.Struct):
    """The part of Iceberg's table metadata that tells the place and the number of the version."""

    location: str
    log: list[_LogEntry] = msgspec.field(name="metadata-log", default_factory=list)


def _folder(kind: str) -> str:
    assert kind in KINDS, kind
    return f"{FOLDER}{kind}/"


def _kind_of(key: str) -> str | None:
    """The table a data file is in, if it is in one; None when its key does not say."""
    first = key.partition("/")[0]
    return first if first in KINDS else None


def _latest(kind: str) -> str:
    return f"{_folder(kind)}metadata/latest{METADATA_END}"


def _hint(kind: str) -> str:
    return f"{_folder(kind)}metadata/version-hint.text"


def is_pointer(key: str) -> bool:
    """Whether an object of the cold tier is one that is replaced: what names a table's newest metadata."""
    return key.endswith((f"/metadata/latest{METADATA_END}", "/metadata/version-hint.text"))


def _inode(path: Path | None) -> int | None:
    return path.stat().st_ino if path is not None and path.exists() else None


__all__ = ["IcebergTables"]
