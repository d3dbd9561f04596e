"""The cold files of a query: from where they are read, and which of them a conversation is in.

Nothing is opened for a store without cold files: neither the object store nor what reads it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from thermocline.errors import TierCorrupt, TierUnavailable
from thermocline.tiers.duck import Connection, duckdb_errors, quoted
from thermocline.tiers.ledger import ColdFile
from thermocline.tiers.opening import Tiers
from thermocline.tiers.whole_file import is_of_full_disk

from .attached import SegmentGone
from .bounds import Bounds
from .relations import Sources

INDEX_FILES_MIN: Final = 4
"""From so many candidate files on it pays to ask the rollups which of them hold a conversation."""
INDEX_CONVERSATIONS_MAX: Final = 100


class Archived:
    """Cold files as one in-memory database reads them. Thread-safe."""

    def __init__(self, tiers: Tiers, con: Connection) -> None:
        """con  of the database that runs the queries"""
        self._tiers = tiers
        self._con = con
        self._lock = threading.Lock()
        self._remote_ready = False

    def place(self, file: ColdFile) -> str:
        """What DuckDB reads a file by: a path, or an address that `prepare` made readable."""
        return self._tiers.copies.place(file.key)

    def prepare(self, sources: Iterable[Sources]) -> None:
        """Make the files readable: rollups as local copies if the disk has room for them, events where they are. Errors are those
        of `Cold`."""
        files = [file for source in sources for file in source.files]
        if not files or self._tiers.cold.is_local:
            return
        try:
            self._tiers.copies.ensure(file.key for file in files if file.kind != "events")
        except TierUnavailable as exc:
            if not is_of_full_disk(exc):
                raise
        with self._lock:
            if not self._remote_ready:
                from thermocline.tiers.cold_reading import ColdFiles  # with fsspec, which a store without S3 never needs

                self._remote = ColdFiles(self._tiers.cold)
                self._con.register_filesystem(self._remote)
                self._remote_ready = True
            self._remote.know({file.key: file.file_bytes for file in files})

    def failure(self, sources: Iterable[Sources], exc: BaseException) -> Exception | None:
        """Why a query over these could not read its files, if that is why `exc` was raised. SegmentGone: take another cut."""
        files = [file for source in sources for file in source.files]
        remote = self._remote.failure_in(f"{exc} {exc.__cause__}") if self._remote_ready else None
        if files and isinstance(remote, TierCorrupt | None):
            listed = {file.file_id for file in self._tiers.ledger.view().files}
            for file in files:
                lost = self._tiers.cold.is_local and not Path(self.place(file)).exists()
                if file.file_id not in listed or lost:
                    return SegmentGone(file.url)
        return remote

    def narrowed(self, sources: Mapping[str, Sources], bounds: Mapping[str, Bounds]) -> dict[str, Sources]:
        """The sources without event files that hold none of the conversations asked for, by the conversation rollups."""
        found = dict(sources)
        events, wanted = sources.get("events"), bounds.get("events", Bounds()).conversations.values
        if events is None or wanted is None or len(wanted) > INDEX_CONVERSATIONS_MAX or len(events.files) < INDEX_FILES_MIN:
            return found
        spans = self._spans(wanted)
        files = tuple(
            file
            for file in events.files
            if any(begin <= file.timestamp_max_us and end >= file.timestamp_min_us for begin, end in spans)
        )
        found["events"] = msgspec.structs.replace(events, files=files, thinned=events.thinned and bool(spans))
        return found

    def _spans(self, conversations: Iterable[str]) -> list[tuple[int, int]]:
        """When the conversations had archived events: first and last µs, one pair per batch and conversation."""
        names = sorted(conversations)
        index = [file for file in self._tiers.ledger.view().files if file.kind == "rollup_conversation"]
        index = [file for file in index if any(file.conversation_min <= name <= file.conversation_max for name in names)]
        if not index:
            return []
        self.prepare([Sources(files=tuple(index))])
        places = ", ".join(quoted(self.place(file)) for file in index)
        con = self._con.cursor()
        try:
            with duckdb_errors("the rollups of archived conversations", reading=True):
                return con.execute(
                    f"SELECT epoch_us(started_at), epoch_us(ended_at) FROM read_parquet([{places}], hive_partitioning = false)"
                    f" WHERE conversation_id IN ({', '.join(map(quoted, names))})"
                ).fetchall()
        finally:
            con.close()
