"""Restore: make a namespace's folder again from its mirror, on a machine that has nothing of it.

1. the newest snapshot of which everything is in the mirror         nothing
2. segments, rejected lines, the ledger and an archive that was in the data directory into <namespace>.restoring, each
   compared with its sum                                            a folder that is begun anew
3. one rename                                                                                          done, but for 4 and 5
4. the archive went on after the snapshot: recover, with every segment of the mirror      run `thermocline recover --force`
5. a Redis that lives went on, and has dropped blocks that settled after the snapshot: they are counted as rejected, by name
                                                                                          settle says so and stops

An archive elsewhere (cold_url) is where it was. Redis is started or asked when the namespace is opened, and confirmed as
after a restart.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import msgspec

from thermocline.config import Settings
from thermocline.errors import ConfigError, TierCorrupt
from thermocline.tiers.batch_files import sha256_of
from thermocline.tiers.cold_opening import open_cold, open_store
from thermocline.tiers.ledger import View
from thermocline.tiers.ledger_sql import SqlLedger
from thermocline.tiers.mirror import ARCHIVE, SEGMENTS, Mirror, Mirrored, Snapshot, decompress, newest_sound
from thermocline.tiers.segment_sum import sum_of, sum_path, write_sum
from thermocline.tiers.side_by_side import side_by_side
from thermocline.tiers.steps import Reach, named, unheard
from thermocline.tiers.whole_file import file_errors, sync

from .lease import Lock
from .mirror_archive import is_mirrored
from .recover import recover
from .restore_hot import Skipped, skip_dropped
from .work_report import Progress

AT_ONCE = 4
"""Objects fetched side by side."""
LEDGER_BYTES_MAX = 16 << 30
SUFFIX = ".restoring"


class Restoration(msgspec.Struct, frozen=True, kw_only=True):
    """What `restore` did."""

    snapshot_id: str
    made_us: int
    """Everything that had settled by then is there again."""
    segments: int
    rows: int
    bytes: int
    """Fetched."""
    passed_over: tuple[str, ...]
    """Newer snapshots that could not be used, and why."""
    missing: tuple[str, ...]
    """What is not there: of the segments (with --partial), and of the archive."""
    recovered: bool
    """Whether the archive had gone on, so that the ledger was made anew from segments and archive."""
    skipped: tuple[Skipped, ...]
    """What Redis had dropped as settled and the mirror did not have yet."""


def restore(
    settings: Settings,
    url: str,
    *,
    partial_: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    reach: Reach = unheard,
) -> Restoration:
    """Make the namespace of `settings` from the mirror at `url`.

    partial_  when no snapshot is whole: take the newest and leave out what is missing
    reach     told the name of every step before and after it

    ConfigError: the namespace is there already, or the settings do not fit. TierCorrupt: there is no snapshot that is whole; it
    says what is missing. TierUnavailable: the mirror. Nothing is left then but a folder that the next try begins anew.
    """
    folder = settings.namespace_dir
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: restore only makes a namespace that is not there; move it away first")
    mirror = Mirror(open_store(url, settings, setting="--from"))
    try:
        keys = mirror.snapshots()
        there = mirror.segments()  # after the snapshots: a worker may go on, and what one of them names is there when it is
        work = folder.with_name(folder.name + SUFFIX)
        with file_errors(str(work), setting="data_dir"):
            with named(reach, "fetch"):
                _begin(work)
                snapshot, passed_over, other_bytes = _fetched(
                    settings, mirror, keys, there, work, partial_=partial_, progress=progress
                )
            with named(reach, "rename"):
                if folder.exists():
                    folder.rmdir()
                work.rename(folder)
                sync(folder.parent)
        wanted = [one for one in snapshot.segments if there.get(one.name) == one.bytes]
        view = _view(settings) if snapshot.ledger is not None else None
        missing, ahead = _archive(settings, view) if view is not None else ([], False)
        if ahead:
            _recover_with_all(settings, mirror, there)
        with named(reach, "skip what Redis dropped"):
            skipped = skip_dropped(settings)
    finally:
        mirror.close()
    lacking = [f"segment {one.name} ({one.bytes:,} bytes)" for one in snapshot.segments if one not in wanted]
    lacking += [f"segment {segment_id}" for segment_id in snapshot.lacking]
    return Restoration(
        snapshot_id=snapshot.snapshot_id,
        made_us=snapshot.made_us,
        segments=len(wanted),
        rows=snapshot.rows,
        bytes=other_bytes + sum(one.bytes for one in wanted),
        passed_over=tuple(passed_over),
        missing=(*lacking, *missing),
        recovered=ahead,
        skipped=tuple(skipped),
    )


def _begin(work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    for name in ("segments", "trash", "rejected"):
        (work / name).mkdir(parents=True)


def _fetched(
    settings: Settings,
    mirror: Mirror,
    keys: Sequence[str],
    there: dict[str, int],
    work: Path,
    *,
    partial_: bool,
    progress: Callable[[Progress], None],
) -> tuple[Snapshot, Sequence[str], int]:
    """(the snapshot that was fetched, why newer ones were not, bytes fetched beside its segments). An object that is not what
    was written is taken out of `there`, and the choice made again."""
    unusable: dict[str, str] = {}
    while True:
        snapshot, passed_over = _chosen(mirror, keys, there, unusable, partial_=partial_)
        _check_settings(settings, snapshot, partial_=partial_)
        wanted = [one for one in snapshot.segments if there.get(one.name) == one.bytes]
        damaged = _fetch_all(mirror, wanted, work, progress)
        for name in damaged:
            there.pop(name)
        if damaged and not partial_:
            continue
        try:
            for one in snapshot.rejected:
                mirror.fetch(one, work / "rejected" / one.name)
            archived = _fetch_archive(mirror, work / "cold") if is_mirrored(settings) else 0
            return snapshot, passed_over, archived + _fetch_ledger(mirror, snapshot, work)
        except TierCorrupt as exc:
            unusable[snapshot.snapshot_id] = str(exc)


def _chosen(
    mirror: Mirror, keys: Sequence[str], there: dict[str, int], unusable: dict[str, str], *, partial_: bool
) -> tuple[Snapshot, Sequence[str]]:
    """The snapshot to restore, and why newer ones are not."""
    chosen, problems = newest_sound(mirror, keys, lambda one: unusable.get(one.snapshot_id) or _lacking(one, there))
    if chosen is not None:
        return chosen, problems
    if not problems:
        raise ConfigError(f"--from: there is no snapshot in {mirror.url}: is it what warm.mirror was, without the namespace?")
    if partial_:
        newest, _ = newest_sound(mirror, keys, lambda one: unusable.get(one.snapshot_id, ""))
        if newest is not None:
            return newest, problems
    raise TierCorrupt(
        f"{mirror.url}: of {len(problems)} snapshots none is whole; the newest is {problems[0]}. Put the objects back, "
        "or add --partial to restore without them"
    )


def _lacking(snapshot: Snapshot, there: dict[str, int]) -> str:
    """What a snapshot names that the mirror does not have; empty when that is nothing."""
    gone = [f"segment {one.name}" for one in snapshot.segments if there.get(one.name) != one.bytes]
    gone += [f"segment {segment_id} (damaged before it was copied)" for segment_id in snapshot.lacking]
    return f"{len(gone)} of {len(snapshot.segments)} segments are missing: {', '.join(gone[:20])}" if gone else ""


def _check_settings(settings: Settings, snapshot: Snapshot, *, partial_: bool) -> None:
    problems = []
    for key in ("shards", "buckets"):
        mine, theirs = getattr(settings.hot, key), getattr(snapshot, key)
        if mine != theirs:
            problems.append(f"hot.{key} is {mine}, but the store was created with {theirs}: set hot.{key} = {theirs}")
    if snapshot.namespace != settings.namespace:
        problems.append(f"the mirror is of namespace {snapshot.namespace!r}: add --namespace {snapshot.namespace}")
    if snapshot.archive_url and is_mirrored(settings) and not partial_:
        place = open_cold(settings).url
        if place != snapshot.archive_url:
            problems.append(
                f"the archive was in {snapshot.archive_url}, and its tables name it so, but would be in {place}: set data_dir to "
                "where it was, or add --partial, and it can be read but not added to"
            )
    if problems:
        raise ConfigError(problems)


def _fetch_archive(mirror: Mirror, folder: Path) -> int:
    """Fetch the objects of an archive that was in the data directory; their bytes. The ledger has their sums."""
    found = list(mirror.store.objects(ARCHIVE))
    tasks = [partial(mirror.store.fetch, one.key, folder / one.key.removeprefix(ARCHIVE)) for one in found]
    for one in found:
        (folder / one.key.removeprefix(ARCHIVE)).parent.mkdir(parents=True, exist_ok=True)
    side_by_side(tasks, at_once=AT_ONCE)
    return sum(one.size_bytes for one in found)


def _fetch_all(mirror: Mirror, wanted: Sequence[Mirrored], work: Path, progress: Callable[[Progress], None]) -> list[str]:
    """Fetch the segments that are not there yet; ids of those that are not what was written."""
    done: list[str] = []
    damaged: list[str] = []

    def fetch(one: Mirrored) -> None:
        target = work / "segments" / f"{one.name}.duckdb"
        if not sum_path(target).exists():
            try:
                mirror.fetch(one, target)
                write_sum(target, one.sum)
            except TierCorrupt:
                damaged.append(one.name)
        done.append(one.name)
        progress(Progress(step="restore", done=len(done), total=len(wanted)))

    side_by_side([partial(fetch, one) for one in wanted], at_once=AT_ONCE)
    return damaged


def _fetch_ledger(mirror: Mirror, snapshot: Snapshot, work: Path) -> int:
    """The bytes fetched."""
    if snapshot.ledger is None:
        return 0
    packed, target = work / "ledger.db.zst", work / "ledger.db"
    mirror.fetch(snapshot.ledger, packed)
    decompress(packed, target, bytes_max=LEDGER_BYTES_MAX)
    packed.unlink()
    found = sum_of(target)
    if found != snapshot.ledger_sum:
        target.unlink()
        raise TierCorrupt(f"the ledger's sum is {found}, {snapshot.ledger_sum} was written")
    sync(target)
    return snapshot.ledger.bytes


def _view(settings: Settings) -> View:
    ledger = _ledger(settings)
    try:
        return ledger.view()
    finally:
        ledger.close()


def _ledger(settings: Settings) -> SqlLedger:
    folder = settings.namespace_dir
    return SqlLedger(settings.ledger_url or f"sqlite:///{folder.resolve()}/ledger.db", folder=folder)


def _archive(settings: Settings, view: View) -> tuple[list[str], bool]:
    """(objects of the archive that are missing, whether it has batches that the ledger does not know)."""
    cold = open_cold(settings)
    ledger = _ledger(settings)
    try:
        described = {Path(one.key).stem for one in cold.objects("batches/") if one.key.endswith(".json")}
        ahead = bool(described - {row.batch_id for row in ledger.batches()} - {one.batch_id for one in ledger.intents()})
        if not view.files:
            return [], ahead
        kinds = sorted({one.kind for one in view.files})
        there = {one.key for kind in kinds for one in cold.objects(f"{kind}/")}
        missing = [f"{one.url} ({one.rows:,} rows)" for one in view.files if one.key not in there]
        if is_mirrored(settings):
            missing += [
                f"{one.url} ({one.rows:,} rows): the copy is not what was written"
                for one in view.files
                if one.key in there and sha256_of(cold.path(one.key)) != one.checksum
            ]
        return missing, ahead
    finally:
        ledger.close()
        cold.close()


def _recover_with_all(settings: Settings, mirror: Mirror, there: dict[str, int]) -> None:
    """Make the ledger anew from the archive and every segment that the mirror has."""
    folder = settings.namespace_dir / "segments"
    with ExitStack() as stack:
        stack.enter_context(Lock(settings.namespace_dir, role="restore"))
        for segment_id in there:
            target = folder / f"{segment_id}.duckdb"
            if not target.exists():
                mirror.store.fetch(f"{SEGMENTS}{segment_id}.duckdb", target)
    recover(settings, force=True)


def restored_line(found: Restoration) -> str:
    """What was restored, in a line."""
    made = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(found.made_us / 1e6))
    return f"Restored as of {made}: {found.rows:,} events in {found.segments:,} segments, {found.bytes:,} bytes fetched."
