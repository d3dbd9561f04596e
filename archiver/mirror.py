"""Mirroring: copy sealed segments and snapshots of the ledger to warm.mirror, so that a whole disk may be lost.

1. copy the ledger as it is now to staging                  nothing
2. upload each of its segments that the mirror lacks        objects that no snapshot needs yet
3. upload the archive's objects that it lacks, if the archive is in the data directory      the same
4. upload rejected lines and the ledger, compressed         the same
5. upload the snapshot, which names all of these            done: it can be restored
6. now and then: remove older snapshots and what none needs     objects that no snapshot needs, until the next time

A step uploads one segment or object, so that moves go on in between. When a segment is merged away and purged before it was
uploaded, the ledger is copied anew. A segment whose bytes are not what was written is not uploaded, and the snapshot says that
it lacks it: scrub is what it needs.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import uuid_utils

from thermocline.errors import ConfigError, TierCorrupt
from thermocline.tiers.block import ORIGIN
from thermocline.tiers.cold_opening import open_store
from thermocline.tiers.ledger import Segment, View
from thermocline.tiers.ledger_sql import SqlLedger
from thermocline.tiers.mirror import (
    LEDGERS,
    REJECTED,
    Mirror,
    Mirrored,
    Snapshot,
    compress,
    is_of_store,
    newest_sound,
    segment_key,
)
from thermocline.tiers.opening import Tiers
from thermocline.tiers.segment_sum import read_sum, sum_of, write_sum
from thermocline.tiers.steps import Reach, named, unheard
from thermocline.tiers.whole_file import file_errors

from .mirror_archive import ArchiveMirror, is_mirrored
from .scrub_segment import has_rows

CLEAN_EVERY_S = 3600
CLEAN_AFTER_SNAPSHOTS = 20
"""The mirror is cleaned when either is over: where events always come in every look makes a snapshot."""
OBSERVED_EVERY_S = 60
"""How often a snapshot is made although only what Redis was seen to hold may have changed."""
LEDGER_NAME = "ledger.db"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot on its way."""

    view: View
    made_us: int
    ledger: Path | None


class Mirrorer:
    """Mirrors one namespace for its worker. Its warm.mirror is set."""

    def __init__(self, tiers: Tiers, *, monotonic: Callable[[], float] = time.monotonic, reach: Reach = unheard) -> None:
        """reach  told the name of every step before and after it"""
        settings = tiers.settings
        assert settings.warm.mirror is not None
        self._tiers = tiers
        self._monotonic = monotonic
        self._reach = reach
        self._staging = settings.namespace_dir / "staging-mirror"
        self._mirror = Mirror(open_store(settings.warm.mirror, settings, setting="warm.mirror"))
        self._archive = ArchiveMirror(tiers.cold, self._mirror) if is_mirrored(settings) else None
        self._stored: dict[str, int] | None = None
        self._target: Target | None = None
        self._last: tuple[View, float] | None = None
        self._cleaned_s = -1e9
        self._uncleaned = 0
        """Snapshots made since."""
        self._ours = False
        self.damaged: frozenset[str] = frozenset()
        """Segments of the newest snapshot, or of the one on its way, of which no copy can be made."""
        self.mirrored_us = 0
        """When the ledger was as the newest snapshot has it; 0 before the first of this process."""

    def step(self) -> bool:
        """Upload the next segment, or what completes a snapshot; whether there is more to do now.

        TierUnavailable: the mirror does not answer; the next step goes on.
        """
        if self._target is None and not self._begin():
            self._clean()
            return False
        target = self._target
        assert target is not None
        missing = [one for one in self._missing(target.view) if one.segment_id not in self.damaged]
        try:
            if missing:
                self._upload(missing[0])
                return True
            if self._archive is not None and self._archive.is_waiting:
                with named(self._reach, "upload object"):
                    self._archive.step()
                return True
            self._complete(target)
        except FileNotFoundError:
            return self._pass_over_gone(target)
        self._clean()
        return self._changed(self._tiers.ledger.view())

    def waiting(self) -> dict[str, Any]:
        """For worker.json: what has no copy yet, and since when everything has."""
        view = self._tiers.ledger.view()
        left = self._missing(view) if self._stored is not None else list(view.segments)
        lag_us = 0
        if self._changed(view) or self._target is not None:
            lag_us = time.time_ns() // 1000 - self.mirrored_us if self.mirrored_us else 0
        return {
            "mirrored_us": self.mirrored_us,
            "mirror_lag_s": round(lag_us / 1e6, 1),
            "mirror_waiting": len(left),
            "mirror_waiting_bytes": sum(one.file_bytes for one in left),
        }

    def lacking(self) -> set[str]:
        """Ids of the live segments that the newest snapshot made here does not have."""
        safe = {one.segment_id for one in self._last[0].segments} - self.damaged if self._last is not None else set()
        return {one.segment_id for one in self._tiers.ledger.view().segments} - safe

    def copy(self, segment: Segment) -> None:
        """Upload a segment that is about to become live. TierUnavailable: the mirror does not answer; TierCorrupt: its bytes are
        not what was written."""
        if self._stored is None:
            self._stored = self._mirror.segments()
        self._upload(segment)
        if segment.segment_id in self.damaged:
            raise TierCorrupt(f"segment {segment.segment_id} is not what was written: nothing was changed")

    def fetch(self, segment: Segment, target: Path) -> str:
        """Copy a segment's file from the mirror; its sum. TierCorrupt when the copy is not that file."""
        key = segment_key(segment.segment_id)
        self._mirror.store.fetch(key, target)
        found = sum_of(target)
        stated = _stated_sum(Path(self._tiers.warm.path(segment.segment_id)))
        if found != stated and (stated is not None or not has_rows(self._tiers, segment, target)):
            raise TierCorrupt(f"{self._mirror.store.url_of(key)} is not what was written either")
        return found

    def close(self) -> None:
        self._drop_target()
        self._mirror.close()

    def _begin(self) -> bool:
        """Copy the ledger to staging; False when nothing changed since the last snapshot."""
        view = self._tiers.ledger.view()
        if not self._changed(view):
            return False
        self._require_ours(view)
        with file_errors(str(self._staging), setting="data_dir"):
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging.mkdir(parents=True)
            made_us = time.time_ns() // 1000
            copy = self._staging / LEDGER_NAME
            with named(self._reach, "copy ledger"):
                is_copied = self._tiers.ledger.copy_to(copy)
        if is_copied:
            view = _view_of(copy, self._tiers.settings.namespace_dir.name)
        self.damaged = frozenset()
        if self._archive is not None:
            self._archive.look()
        self._target = Target(view=view, made_us=made_us, ledger=copy if is_copied else None)
        return True

    def _require_ours(self, view: View) -> None:
        """ConfigError when the mirror is another store's: what a new disk holds must not take the place of what was lost."""
        newest, _ = newest_sound(self._mirror, self._mirror.snapshots(), lambda _: "") if not self._ours else (None, ())
        if newest is not None:
            incarnations = {view.incarnation, (self._tiers.ledger.identity() or {}).get("previous", "")} - {""}
            if not is_of_store(newest, incarnations, {one.segment_id for one in view.segments}):
                raise ConfigError(
                    f"warm.mirror: {self._mirror.url} has another store, of {newest.events:,} events, and is left as it is. If "
                    f"the disk was lost: stop the worker and all that append, move {self._tiers.settings.namespace_dir} away and "
                    "run `thermocline restore`; else give this store another warm.mirror"
                )
        self._ours = True

    def _changed(self, view: View) -> bool:
        if self._last is None:
            return True
        before, at_s = self._last
        if _without_observed(view) != _without_observed(before):
            return True
        if self.damaged and self._monotonic() - at_s >= OBSERVED_EVERY_S:  # it may have been mended under the same name
            return True
        return view.shards != before.shards and self._monotonic() - at_s >= OBSERVED_EVERY_S

    def _missing(self, view: View) -> list[Segment]:
        if self._stored is None:
            self._stored = self._mirror.segments()
        return [one for one in view.segments if self._stored.get(one.segment_id) != one.file_bytes]

    def _pass_over_gone(self, target: Target) -> bool:
        """A file is not there: leave it out if it is live all the same; else it was merged away and purged, so begin anew."""
        live = {one.segment_id for one in self._tiers.ledger.view().segments}
        wanted = {one.segment_id for one in target.view.segments} - self.damaged
        gone = {segment_id for segment_id in wanted if not Path(self._tiers.warm.path(segment_id)).exists()}
        if gone and gone <= live:
            self.damaged |= gone
        else:
            self._drop_target()
        return bool(gone)

    def _upload(self, segment: Segment) -> None:
        path = Path(self._tiers.warm.path(segment.segment_id))
        if sum_of(path) != self._sealed_sum(segment):
            self.damaged |= {segment.segment_id}
            return
        with named(self._reach, "upload object"):
            self._mirror.put_segment(segment.segment_id, path)
        assert self._stored is not None
        self._stored[segment.segment_id] = segment.file_bytes

    def _complete(self, target: Target) -> None:
        settings = self._tiers.settings
        snapshot_id = uuid_utils.uuid7().hex
        ledger, ledger_sum, packed = None, "", self._staging / "ledger.db.zst"
        with file_errors(str(self._staging), setting="data_dir"):
            rejected = [_rejected(path) for path in sorted((settings.namespace_dir / "rejected").glob("*.ndjson"))]
            if target.ledger is not None:
                ledger_sum = sum_of(target.ledger)
                compress(target.ledger, packed)
                ledger = _object(packed, f"{snapshot_id}.db.zst", f"{LEDGERS}{snapshot_id}.db.zst")
        sums = {one.segment_id: self._sealed_sum(one) for one in target.view.segments if one.segment_id not in self.damaged}
        self.damaged |= {segment_id for segment_id, found in sums.items() if not found}
        segments = tuple(
            Mirrored(name=one.segment_id, key=segment_key(one.segment_id), bytes=one.file_bytes, sum=sums[one.segment_id])
            for one in target.view.segments
            if one.segment_id not in self.damaged
        )
        snapshot = Snapshot(
            snapshot_id=snapshot_id,
            namespace=settings.namespace,
            made_us=target.made_us,
            shards=settings.hot.shards,
            buckets=settings.hot.buckets,
            events=sum(state.events for state in target.view.shards),
            rows=sum(one.rows for one in target.view.segments),
            ledger=ledger,
            ledger_sum=ledger_sum,
            segments=segments,
            lacking=tuple(sorted(self.damaged)),
            rejected=tuple(one for one, _ in rejected),
            incarnation=target.view.incarnation,
            archive_url=self._tiers.cold.url if self._archive is not None and target.view.files else "",
        )
        with named(self._reach, "upload snapshot"):
            self._mirror.put_snapshot(snapshot, packed if ledger is not None else None, rejected)
        self._last, self.mirrored_us = (target.view, self._monotonic()), target.made_us
        self._uncleaned += 1
        self._drop_target()

    def _sealed_sum(self, segment: Segment) -> str:
        """What a segment's file should hash to; empty when nothing says so and its rows are not those that were written.
        FileNotFoundError when it is gone."""
        path = Path(self._tiers.warm.path(segment.segment_id))
        path.stat()
        found = _stated_sum(path)
        if found is None:  # from before there were sums
            if self._tiers.warm.check(segment, deep=True):
                return ""
            found = sum_of(path)
            write_sum(path, found)
        return found

    def _clean(self) -> None:
        if self._monotonic() - self._cleaned_s < CLEAN_EVERY_S and self._uncleaned < CLEAN_AFTER_SNAPSHOTS:
            return
        assert self._last is not None, "there is a snapshot"
        warm = self._tiers.settings.warm
        before_us = time.time_ns() // 1000 - int(warm.mirror_grace_s * 1e6)
        with named(self._reach, "clean mirror"):
            removed = self._mirror.clean(keep=warm.mirror_snapshots, before_us=before_us)
            if self._archive is not None and self._tiers.ledger.view().files == self._last[0].files:
                self._archive.clean(before_us=before_us)
        self._cleaned_s, self._uncleaned = self._monotonic(), 0
        if removed:
            self._stored = self._mirror.segments()

    def _drop_target(self) -> None:
        self._target = None
        shutil.rmtree(self._staging, ignore_errors=True)


def _stated_sum(path: Path) -> str | None:
    """What a segment's file should hash to; None when its sum file is missing or damaged."""
    try:
        return read_sum(path)
    except TierCorrupt:
        return None


def _view_of(copy: Path, namespace: str) -> View:
    ledger = SqlLedger(f"sqlite:///{copy.resolve()}", folder=copy.parent / namespace)
    try:
        return ledger.view()
    finally:
        ledger.checkpoint()
        ledger.close()


def _without_observed(view: View) -> View:
    shards = tuple(msgspec.structs.replace(one, observed_events=0, observed_position=ORIGIN) for one in view.shards)
    return msgspec.structs.replace(view, epoch=0, shards=shards)


def _object(path: Path, name: str, key: str) -> Mirrored:
    return Mirrored(name=name, key=key, bytes=path.stat().st_size, sum=sum_of(path))


def _rejected(path: Path) -> tuple[Mirrored, Path]:
    """A file of rejected lines. It grows, so its size is part of the key."""
    size = path.stat().st_size
    return _object(path, path.name, f"{REJECTED}{path.stem}.{size}.ndjson"), path
