"""Janitor: remove what the cold tier no longer needs. Deletions only, in this order, a bounded number in each pass:

snapshots  of the Iceberg tables, older than cold.snapshot_keep_days, whose batch the ledger has
orphans    objects a crash left of a batch that was given up, a cold.purge_grace_s ago
trash      objects that left the ledger a grace ago and that no snapshot refers to; then their trash rows
litter     of the Iceberg tables: what failed commits and expired snapshots left, a grace ago
uploads    begun a grace ago and never finished
copies     local ones of objects that are not needed any more

A crash leaves the rest for the next pass. An orphan is an object under our names that the ledger, read *after* the listing, does
not know: neither live nor in the trash, nor of a batch that was begun. Two kinds of those are never touched: what any Iceberg
snapshot shows, for then another ledger knew it (`unclaimed`: `recover` is what it needs), and what is older than this ledger
(`spared`). Objects with other names than ours are not looked at.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

import msgspec

from thermocline.errors import TierCorrupt
from thermocline.tiers.cold import StoredObject
from thermocline.tiers.cold_schema import DATA_PREFIXES, KINDS
from thermocline.tiers.ledger import View
from thermocline.tiers.opening import Tiers
from thermocline.tiers.steps import Reach, named, unheard

DELETES_MAX: Final = 1000
"""Objects of each sort that one pass removes."""
DAY_US: Final = 86_400_000_000
_PREFIXES: Final = (*DATA_PREFIXES, "batches/")
_OURS: Final = re.compile(
    rf"(?:(?:{'|'.join(KINDS)})/day=[-0-9]+/([0-9a-f]{{32}})-[0-9]+\.parquet|batches/([0-9a-f]{{32}})\.json)"
)
"""Keys of data objects and of descriptions, and the id of their batch."""


class Cleaned(msgspec.Struct, frozen=True, kw_only=True):
    """What one pass removed."""

    snapshots: int = 0
    objects: int = 0
    """Deleted after they left the ledger."""
    bytes: int = 0
    """Of all objects deleted, as far as they were listed."""
    orphans: int = 0
    litter: int = 0
    uploads: int = 0
    copies: int = 0
    unclaimed: int = 0
    """Objects that the Iceberg tables show and the ledger does not know, left where they are."""
    spared: int = 0
    """Other objects that are older than the ledger, left where they are."""

    @property
    def removed(self) -> int:
        """Objects."""
        return self.objects + self.orphans + self.litter


class Janitor:
    """Cleans the cold tier of one namespace for the worker that holds `epoch`."""

    def __init__(self, tiers: Tiers, epoch: int, *, reach: Reach = unheard) -> None:
        """reach  told the name of every step before and after it"""
        self._tiers = tiers
        self._epoch = epoch
        self._reach = reach
        self._settings = tiers.settings.cold

    def step(self, *, now_us: int | None = None) -> Cleaned:
        """One pass; nothing is opened while nothing was ever archived. Safe to repeat after a crash at any point.

        now_us  µs since the epoch, UTC

        TierUnavailable: the object store or a catalog; the next pass goes on. TierCorrupt: an Iceberg table cannot be read, or an
        object is both live and in the trash. LeaseHeld: another worker took over.
        """
        now_us = time.time_ns() // 1000 if now_us is None else now_us
        ledger = self._tiers.ledger
        if not ledger.batches() and not self._trash():
            return Cleaned()
        ledger.purged(self._epoch, ())  # LeaseHeld when another worker took over: objects have no epoch
        grace_us = now_us - int(self._settings.purge_grace_s * 1e6)
        listed = [one for prefix in _PREFIXES for one in self._tiers.cold.objects(prefix)]  # before the ledger is read
        batches = {row.batch_id for row in ledger.batches()}
        self._tiers.iceberg.ensure()
        with named(self._reach, "expire snapshots"):
            snapshots = self._expire_snapshots(now_us, batches)
        with named(self._reach, "delete orphans"):
            old = [one for one in listed if one.modified_us <= grace_us]
            orphans, unclaimed, spared = self._remove_orphans(old, batches, now_us)
        trash = self._empty_trash(grace_us)
        sizes = {one.key: one.size_bytes for one in listed}
        with named(self._reach, "delete litter"):
            litter = self._remove_litter(grace_us)
        with named(self._reach, "abandon uploads"):
            uploads = self._tiers.cold.abandon_uploads(before_us=grace_us)
        with named(self._reach, "let copies go"):
            copies = self._let_go(now_us, grace_us)
        return Cleaned(
            snapshots=snapshots,
            objects=len(trash),
            bytes=sum(sizes.get(key, 0) for key in trash) + sum(one.size_bytes for one in (*orphans, *litter)),
            orphans=len(orphans),
            litter=len(litter),
            uploads=uploads,
            copies=copies,
            unclaimed=unclaimed,
            spared=spared,
        )

    def _expire_snapshots(self, now_us: int, batches: set[str]) -> int:
        before_us = now_us - self._settings.snapshot_keep_days * DAY_US
        return sum(self._tiers.iceberg.expire(kind, before_us=before_us, batches=batches) for kind in KINDS)

    def _empty_trash(self, grace_us: int) -> list[str]:
        """Delete what left the ledger a grace ago and no snapshot needs; the keys."""
        due = {key: url for key, (url, left_us) in self._trash().items() if left_us <= grace_us}
        live = self._live(self._tiers.ledger.view()) & due.keys()
        if live:
            raise TierCorrupt(f"{sorted(live)}: both live and in the trash; nothing was removed")
        keys = list(islice(sorted(self._removable(due)), DELETES_MAX))
        if keys:
            with named(self._reach, "delete objects"):
                self._tiers.cold.delete(keys)
            with named(self._reach, "forget objects"):
                self._tiers.ledger.purged(self._epoch, [due[key] for key in keys])
        return keys

    def _remove_orphans(
        self, listed: Sequence[StoredObject], batches: set[str], now_us: int
    ) -> tuple[list[StoredObject], int, int]:
        """(objects deleted, how many other ledgers know, how many are older than this one)."""
        begun = {intent.batch_id for intent in self._tiers.ledger.intents()}
        known = self._live(self._tiers.ledger.view()) | self._trash().keys()
        unknown: dict[str, list[StoredObject]] = {}
        for one in listed:
            batch_id = _batch_of(one.key)
            described = one.key.startswith("batches/") and batch_id in batches
            if batch_id and batch_id not in begun and one.key not in known and not described:
                unknown.setdefault(batch_id, []).append(one)
        if not unknown:
            return [], 0, 0
        removable = self._removable(one.key for each in unknown.values() for one in each)
        published = set().union(*(self._tiers.iceberg.batches(kind) for kind in KINDS))
        created_us = int((self._tiers.ledger.identity() or {}).get("created_us", now_us))
        deleted: list[StoredObject] = []
        unclaimed = spared = 0
        for batch_id, objects in unknown.items():
            if batch_id in batches:  # listed once, and removed since by a batch that the ledger knows too
                deleted += [one for one in objects if one.key in removable]
            elif batch_id in published or any(one.key not in removable for one in objects):
                unclaimed += len(objects)
            elif any(one.modified_us < created_us for one in objects):
                spared += len(objects)
            else:
                deleted += objects
        deleted = deleted[:DELETES_MAX]
        self._tiers.cold.delete(one.key for one in deleted)
        return deleted, unclaimed, spared

    def _remove_litter(self, grace_us: int) -> list[StoredObject]:
        found = [one for one in self._tiers.iceberg.unreferenced() if one.modified_us <= grace_us]
        found = found[:DELETES_MAX]
        self._tiers.cold.delete(one.key for one in found)
        return found

    def _let_go(self, now_us: int, grace_us: int) -> int:
        """Remove local copies, but not those that a reader of an older view may still read."""
        recent = {key for key, (_, left_us) in self._trash().items() if left_us > grace_us}
        live = self._live(self._tiers.ledger.view()) | recent
        return self._tiers.copies.let_go(now_us=now_us, live=live, unfinished_before_us=grace_us)

    def _trash(self) -> dict[str, tuple[str, int]]:
        """key → (URL, when it left the ledger) of cold objects in the trash."""
        rows = [row for row in self._tiers.ledger.trash() if "://" in row.path]
        return {row.path.removeprefix("cold://"): (row.path, row.left_us) for row in rows}

    def _removable(self, keys: Iterable[str]) -> set[str]:
        wanted = list(keys)
        return self._tiers.iceberg.removable(wanted) if wanted else set()

    def _live(self, view: View) -> set[str]:
        return {file.key for file in view.files}


def _batch_of(key: str) -> str:
    """The id of the batch an object belongs to by its name; empty when that is none of ours."""
    match = _OURS.fullmatch(key)
    return (match[1] or match[2]) if match else ""
