"""Mirroring of an archive that lies in the data directory: its objects, copied below `mirror/archive/` (warm.mirror).

An archive elsewhere (cold_url) is not copied. Data comes first, then what describes it, then the pointers of the Iceberg
tables, so that what is there can be read whenever the copying ends. One object a step, so that moves go on in between.
"""

from __future__ import annotations

from collections import deque

from thermocline.config import Settings
from thermocline.tiers.cold import Cold
from thermocline.tiers.iceberg import is_pointer
from thermocline.tiers.mirror import ARCHIVE, DELETES_MAX, Mirror


def is_mirrored(settings: Settings) -> bool:
    """Whether the archive of these settings is copied to their mirror, if they have one."""
    return settings.cold_url is None


class ArchiveMirror:
    """Copies the objects of one local archive. Errors are those of Cold."""

    def __init__(self, cold: Cold, mirror: Mirror) -> None:
        self._cold = cold
        self._mirror = mirror
        self._stored: set[str] | None = None
        self._pointers: dict[str, bytes] = {}
        """As they were last copied."""
        self._waiting: deque[str] = deque()

    def look(self) -> None:
        """Find what is to be copied now."""
        if self._stored is None:
            self._stored = {one.key.removeprefix(ARCHIVE) for one in self._mirror.store.objects(ARCHIVE)}
        keys = [one.key for one in self._cold.objects()]
        self._waiting = deque(sorted((key for key in keys if is_pointer(key) or key not in self._stored), key=_rank))

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to copy."""
        return bool(self._waiting)

    def step(self) -> None:
        """Copy the next object."""
        key = self._waiting[0]
        if not self._cold.path(key).exists():  # purged since
            pass
        elif is_pointer(key):
            self._copy_pointer(key)
        else:
            self._mirror.store.put_file(ARCHIVE + key, self._cold.path(key))
            assert self._stored is not None
            self._stored.add(key)
        self._waiting.popleft()

    def _copy_pointer(self, key: str) -> None:
        content = self._cold.get(key)
        if self._pointers.get(key) != content:
            self._mirror.store.put(ARCHIVE + key, content, replace=True)
            self._pointers[key] = content

    def clean(self, *, before_us: int) -> int:
        """Remove copies, older than `before_us`, of objects that the archive has no more; how many. For when the newest snapshot
        has the files that the ledger has."""
        kept = {one.key for one in self._cold.objects()}
        copies = self._mirror.store.objects(ARCHIVE)
        doomed = [one.key for one in copies if one.key.removeprefix(ARCHIVE) not in kept and one.modified_us < before_us]
        self._mirror.store.delete(doomed[:DELETES_MAX])
        if doomed:
            self._stored = None
        return len(doomed[:DELETES_MAX])


def _rank(key: str) -> tuple[int, str]:
    """The order in which objects are copied."""
    if is_pointer(key):
        return 3, key
    return (2 if key.startswith("batches/") else 1 if "/metadata/" in key else 0), key
