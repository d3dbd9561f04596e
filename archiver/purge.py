"""Purge: remove the files that no reader needs any longer.

trash       a file that left the ledger is unlinked after the purge grace, then its trash row is dropped
orphans     a file in segments/ that the ledger does not know is what a crash left of a move: moved to trash/ after the grace,
            unlinked after another one
drafts      a file <namespace>/*.tmp is what a crash left of one that is written whole and renamed: unlinked after the grace

A segment's sum goes with it. trash/quarantine/, where damaged files are kept, is never touched. A file is only ever touched
when the ledger, read *after* the folder, does not list it. Files older than the ledger itself are left alone: that ledger was
made anew beside them, and `recover` is what they need. While a batch of the archive is begun, its segments look like orphans:
then none is moved. Objects of the cold tier are for janitor.py. Orphans go first, then trash in the order it left: so no output
of a merge that never counted outlives the inputs it was made from, which `recover` relies on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from thermocline.errors import TierCorrupt, TierUnavailable
from thermocline.tiers.opening import Tiers
from thermocline.tiers.segment_sum import SUM_SUFFIX, sum_path
from thermocline.tiers.steps import Reach, named, unheard
from thermocline.tiers.whole_file import UNFINISHED

DAY_US = 86_400_000_000


class Purged(msgspec.Struct, frozen=True, kw_only=True):
    """What one pass removed."""

    files: int = 0
    """Unlinked after they left the ledger."""
    bytes: int = 0
    orphans: int = 0
    """Moved from segments/ to trash/."""
    removed: int = 0
    """Orphans unlinked from trash/."""
    unclaimed: int = 0
    """Files older than the ledger, left where they are."""


class Purger:
    """Purges one namespace for the worker that holds `epoch`."""

    def __init__(self, tiers: Tiers, epoch: int, *, reach: Reach = unheard) -> None:
        """reach  told the name of every step before and after it"""
        self._tiers = tiers
        self._epoch = epoch
        self._reach = reach
        self._folder = tiers.settings.namespace_dir
        self._grace_us = int(tiers.settings.warm.purge_grace_s * 1e6)

    def step(self, *, now_us: int | None = None) -> Purged:
        """One pass. Safe to repeat after a crash at any point.

        now_us  µs since the epoch, UTC
        """
        now_us = time.time_ns() // 1000 if now_us is None else now_us
        try:
            with named(self._reach, "move orphans"):
                moved, unclaimed = self._move_orphans(now_us)
            with named(self._reach, "remove orphans"):
                removed = self._remove_orphans(now_us)
            files, size = self._purge_trash(now_us)
            return Purged(files=files, bytes=size, orphans=moved, unclaimed=unclaimed, removed=removed)
        except OSError as exc:
            raise TierUnavailable(
                f"{exc.filename or self._folder}: {exc.strerror}: this user must own the data directory"
            ) from exc

    def _purge_trash(self, now_us: int) -> tuple[int, int]:
        """Unlink what left the ledger a grace ago; how many files and bytes."""
        local = [row for row in self._tiers.ledger.trash() if "://" not in row.path]
        due = [row.path for row in local if self._is_old(row.left_us, now_us)]
        if not due:
            return 0, 0
        live = {f"segments/{one.segment_id}.duckdb" for one in self._tiers.ledger.view().segments}
        if live.intersection(due):
            raise TierCorrupt(f"{sorted(live.intersection(due))}: both live and in the trash; nothing was removed")
        size = count = 0
        with named(self._reach, "unlink"):
            for path in due:
                with_size = _size(self._folder / path)
                if with_size is not None:
                    size, count = size + with_size, count + 1
                    (self._folder / path).unlink(missing_ok=True)
                sum_path(self._folder / path).unlink(missing_ok=True)
        with named(self._reach, "forget files"):
            self._tiers.ledger.purged(self._epoch, due)
        return count, size

    def _is_old(self, since_us: int, now_us: int) -> bool:
        """Whether the grace is over. What is from after tomorrow is from a clock that was wrong, and would stay for years."""
        return since_us <= now_us - self._grace_us or since_us > now_us + DAY_US

    def _move_orphans(self, now_us: int) -> tuple[int, int]:
        """Move old files the ledger does not know to trash/; how many, and how many are older than the ledger."""
        old = [path for path, mtime_us in _files(self._folder / "segments") if self._is_old(mtime_us, now_us)]
        if not old or self._tiers.ledger.intents():
            return 0, 0
        known = {one.segment_id for one in self._tiers.ledger.view().segments}
        known.update(Path(row.path).stem for row in self._tiers.ledger.trash())
        created_us = int((self._tiers.ledger.identity() or {}).get("created_us", now_us))
        moved = unclaimed = 0
        for path in old:
            is_sum = path.suffix == SUM_SUFFIX
            if is_sum or path.suffix == ".duckdb":
                if path.stem in known:
                    continue
                if path.stat().st_mtime_ns // 1000 < created_us:
                    unclaimed += not is_sum
                    continue
            target = self._folder / "trash" / path.name
            target.parent.mkdir(exist_ok=True)
            path.replace(target)
            os.utime(target, ns=(now_us * 1000, now_us * 1000))
            moved += not is_sum
        return moved, unclaimed

    def _remove_orphans(self, now_us: int) -> int:
        """Unlink what lay in trash/ for a grace, and drafts that nobody has written to for as long."""
        beside = [one for one in _files(self._folder) if one[0].suffix == UNFINISHED]
        old = [path for path, mtime_us in (*_files(self._folder / "trash"), *beside) if self._is_old(mtime_us, now_us)]
        for path in old:
            path.unlink(missing_ok=True)
        return sum(path.suffix != SUM_SUFFIX for path in old)


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    """The files of a folder and when each was last written, µs; nothing when the folder is not there."""
    if not folder.is_dir():
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        try:
            if entry.is_file(follow_symlinks=False):
                yield Path(entry.path), entry.stat(follow_symlinks=False).st_mtime_ns // 1000
        except FileNotFoundError:
            continue


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
