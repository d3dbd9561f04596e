"""The mirror of a namespace: copies of sealed segments and snapshots of the ledger in an object store (warm.mirror).

`mirror/segments/<id>.duckdb`, `mirror/rejected/<day>.<bytes>.ndjson`, `mirror/ledger/<snapshot>.db.zst` and
`mirror/snapshots/<snapshot>.json`, the last of which names all that belongs to it and is written last: what it names is there.
`mirror/archive/<key>` are the objects of an archive in the data directory, whose names the ledger has.
Keys are given out once; names of snapshots are UUIDv7, so they sort by time. Nothing but `clean` deletes, and it never takes what
a snapshot needs that is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa

from thermocline.errors import TierCorrupt
from thermocline.event import FORMAT

from .cold import Cold, StoredObject
from .segment_sum import sum_of

SEGMENTS: Final = "mirror/segments/"
SNAPSHOTS: Final = "mirror/snapshots/"
LEDGERS: Final = "mirror/ledger/"
REJECTED: Final = "mirror/rejected/"
ARCHIVE: Final = "mirror/archive/"
DELETES_MAX: Final = 1000
"""Objects of each kind that one cleaning removes."""
PIECE_BYTES: Final = 1 << 20


class Mirrored(msgspec.Struct, frozen=True, kw_only=True):
    """One object of a snapshot."""

    name: str
    """Segment id, or name of the file."""
    key: str
    bytes: int
    sum: str
    """XXH128 of its bytes."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What a namespace was at one moment."""

    format: str = FORMAT
    snapshot_id: str
    """UUIDv7 hex."""
    namespace: str
    made_us: int
    """Everything that had settled by then is in it."""
    shards: int
    buckets: int
    events: int
    """That have left the logs: settled, archived and rejected ones."""
    rows: int
    """In its segments."""
    ledger: Mirrored | None
    """Compressed; None when the ledger is in PostgreSQL, which is not copied."""
    ledger_sum: str
    """XXH128 of the ledger before it was compressed."""
    segments: tuple[Mirrored, ...]
    lacking: tuple[str, ...] = ()
    """Ids of segments it should have, and of which there was no sound file."""
    rejected: tuple[Mirrored, ...]
    incarnation: str = ""
    """Of Redis, as the ledger knew it; empty in snapshots of earlier versions."""
    archive_url: str = ""
    """Of the archive whose objects are below `mirror/archive/`; empty when it lies elsewhere and is not copied."""


class Mirror:
    """The objects of one namespace's mirror. Errors are those of Cold."""

    def __init__(self, store: Cold) -> None:
        self.store = store

    @property
    def url(self) -> str:
        return self.store.url

    def segments(self) -> dict[str, int]:
        """Segment id → bytes, of every copy."""
        return {Path(one.key).stem: one.size_bytes for one in self.store.objects(SEGMENTS) if one.key.endswith(".duckdb")}

    def put_segment(self, segment_id: str, path: Path) -> None:
        self.store.put_file(segment_key(segment_id), path)

    def put_snapshot(self, snapshot: Snapshot, ledger: Path | None, rejected: Iterable[tuple[Mirrored, Path]]) -> None:
        """Store what a snapshot names beside its segments, then the snapshot. A crash before that leaves objects that no snapshot
        needs."""
        for one, path in rejected:
            self.store.put_file(one.key, path)
        if snapshot.ledger is not None and ledger is not None:
            self.store.put_file(snapshot.ledger.key, ledger)
        content = msgspec.json.format(msgspec.json.encode(snapshot), indent=1)
        self.store.put(f"{SNAPSHOTS}{snapshot.snapshot_id}.json", content)

    def snapshots(self) -> list[str]:
        """Keys of the snapshots, newest first."""
        return sorted((one.key for one in self.store.objects(SNAPSHOTS) if one.key.endswith(".json")), reverse=True)

    def snapshot(self, key: str) -> Snapshot:
        """TierCorrupt when it is not what was written, or of a format this version does not know."""
        try:
            found = msgspec.json.decode(self.store.get(key), type=Snapshot)
        except msgspec.MsgspecError as exc:
            raise TierCorrupt(f"{self.store.url_of(key)}: cannot be read ({exc})") from exc
        if found.format != FORMAT:
            raise TierCorrupt(f"{self.store.url_of(key)}: its format is {found.format!r}, this version knows {FORMAT!r}")
        return found

    def fetch(self, one: Mirrored, target: Path) -> None:
        """Copy an object to a local file. TierCorrupt when it is gone, or not what was written; there is no file then."""
        self.store.fetch(one.key, target)
        found = sum_of(target)
        if found != one.sum:
            target.unlink()
            raise TierCorrupt(f"{self.store.url_of(one.key)}: its sum is {found}, {one.sum} was written")

    def clean(self, *, keep: int, before_us: int) -> int:
        """Remove snapshots but for the newest `keep`, and what none of those needs and is older than `before_us`; how
        many objects.

        Nothing is removed when a snapshot that is kept cannot be read.
        """
        self.store.abandon_uploads(before_us=before_us)
        keys = self.snapshots()
        kept = [self.snapshot(key) for key in keys[:keep]]
        if not kept:
            return 0
        doomed = keys[keep:][-DELETES_MAX:]
        self.store.delete(doomed)
        needed = {one.key for snapshot in kept for one in (*snapshot.segments, *snapshot.rejected)}
        needed.update(snapshot.ledger.key for snapshot in kept if snapshot.ledger is not None)
        removed = len(doomed)
        for folder in (SEGMENTS, LEDGERS, REJECTED):
            old = _older(self.store.objects(folder), needed, before_us)[:DELETES_MAX]
            self.store.delete(old)
            removed += len(old)
        return removed

    def close(self) -> None:
        self.store.close()


def _older(objects: Iterator[StoredObject], needed: set[str], before_us: int) -> list[str]:
    return [one.key for one in objects if one.key not in needed and one.modified_us < before_us]


def segment_key(segment_id: str) -> str:
    return f"{SEGMENTS}{segment_id}.duckdb"


def newest_sound(
    mirror: Mirror, keys: Sequence[str], problem_of: Callable[[Snapshot], str]
) -> tuple[Snapshot | None, Sequence[str]]:
    """(the first snapshot of `keys` without a problem, what was wrong with those before it)."""
    problems: list[str] = []
    for key in keys:
        try:
            found = mirror.snapshot(key)
            problem = problem_of(found)
        except TierCorrupt as exc:
            problem = str(exc)
        if not problem:
            return found, problems
        problems.append(f"{Path(key).stem}: {problem}")
    return None, problems


def is_of_store(snapshot: Snapshot, incarnations: Collection[str], segment_ids: Collection[str]) -> bool:
    """Whether a snapshot is an earlier state of the store that has, or had, these."""
    names = {one.name for one in snapshot.segments}
    return snapshot.incarnation in incarnations or not names.isdisjoint(segment_ids) or snapshot.events == 0


def compress(source: Path, target: Path) -> None:
    """Write a file again, with zstd."""
    with source.open("rb") as file, pa.CompressedOutputStream(str(target), "zstd") as packed:
        while piece := file.read(PIECE_BYTES):
            packed.write(piece)


def decompress(source: Path, target: Path, *, bytes_max: int) -> None:
    """The reverse. TierCorrupt when it is not whole, or becomes larger than `bytes_max`."""
    size = 0
    try:
        with pa.CompressedInputStream(str(source), "zstd") as packed, target.open("wb") as file:
            while piece := packed.read(PIECE_BYTES):
                size += len(piece)
                if size > bytes_max:
                    raise TierCorrupt(f"{source}: it becomes larger than {bytes_max:,} bytes")
                file.write(piece)
    except (OSError, pa.ArrowException) as exc:
        raise TierCorrupt(f"{source}: cannot be decompressed ({exc})") from exc
