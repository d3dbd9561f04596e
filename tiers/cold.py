"""Contract of the cold tier's objects: a folder (cold_folder.py) or a bucket (cold_s3.py), told by the URL.

Data objects are immutable: a key is written once and never again. Keys are relative to the namespace's folder, parts joined
by `/`: `events/day=2026-11-13/<batch>-1.parquet`. Only `put` with `replace` changes an object; the pointers to the newest
Iceberg metadata are the only ones it is used for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec


class StoredObject(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    size_bytes: int
    modified_us: int


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What `probe` found about one ability of the store."""

    name: str
    """write, read, ranged read, list after write, conditional write, delete."""
    ok: bool
    detail: str
    """What was seen, and what to do when it is not ok."""


class Cold(Protocol):
    """Thread-safe. Every call ends within cold.deadline_s. Errors: TierUnavailable (gone, refused, slow, full: the same call may
    succeed later), TierCorrupt (an object is there that is not what it should be), ConfigError (keys or URL cannot be right)."""

    url: str
    """Of the namespace's folder, without secrets and without a slash at the end: file:///… or s3://bucket/…"""
    is_local: bool
    """Whether `path` gives the files themselves."""

    def url_of(self, key: str) -> str:
        """Absolute URL of an object: what the ledger and Iceberg know it by."""

    def key_of(self, url: str) -> str:
        """The key of one of our URLs. TierCorrupt when it lies elsewhere."""

    def path(self, key: str) -> Path:
        """Where the object is as a local file, when `is_local`."""

    def put_file(self, key: str, source: Path) -> None:
        """Store a local file, whole, under a key never used before; durable on return.

        Safe to repeat: when the key is there already its bytes are compared (sha256), and it is TierCorrupt if they differ.
        Whatever was there is never changed.
        """

    def put(self, key: str, content: bytes, *, replace: bool = False) -> None:
        """The same for bytes; with `replace` an object that is there is replaced, whole."""

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes from `offset` on. TierCorrupt when there is no such object."""

    def fetch(self, key: str, target: Path) -> None:
        """Copy an object to a local file, which is there whole or not at all."""

    def size(self, key: str) -> int | None:
        """Bytes; None when there is no such object."""

    def objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """Objects whose key starts so, by key."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there are no error."""

    def abandon_uploads(self, *, before_us: int) -> int:
        """End uploads that were begun before and never finished (temporary files, multipart uploads); how many."""

    def probe(self) -> list[Finding]:
        """Try what archive needs, with an object of its own that is removed again."""

    def close(self) -> None: ...
