"""Every move as one call, with work for each of its steps."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from tests.archiving import Crash, corrupt_block
from tests.killed import LATER_US
from tests.tidying import breaking_at
from thermocline.archiver.archive import Archiver
from thermocline.archiver.compact import Compactor
from thermocline.archiver.expire import Expirer
from thermocline.archiver.janitor import Janitor
from thermocline.archiver.lease import Lease
from thermocline.archiver.merge import Merger
from thermocline.archiver.mirror import Mirrorer
from thermocline.archiver.purge import Purger
from thermocline.archiver.recover import recover
from thermocline.archiver.rehydrate import rehydrate
from thermocline.archiver.restore import restore
from thermocline.archiver.settle import Settler
from thermocline.archiver.trim import Trimmer
from thermocline.config import Settings
from thermocline.ingest.append import Client
from thermocline.tiers.block import shard_of
from thermocline.tiers.opening import Tiers
from thermocline.tiers.steps import Reach, unheard

from .history import DAY_US
from .world import EXPIRES_DAYS, World, opened, wait_for_graces

Pass = Callable[[], object]
BROKEN = "broken"
"""The conversation whose block is damaged in Redis: none of its lines can be used."""


@contextmanager
def mover(move: str, settings: Settings, reach: Reach = unheard) -> Iterator[Pass]:
    """What does all of a move that is due, at each call, as one process that holds the lease."""
    if move == "recover":
        yield lambda: recover(settings, force=True, reach=reach)
    elif move == "restore":
        yield lambda: _restore(settings, reach)
    elif move == "rehydrate":
        with opened(settings) as tiers:
            until_us = time.time_ns() // 1000 + DAY_US
            yield lambda: rehydrate(tiers, "c1", until_us=until_us, reach=reach)
    else:
        with opened(settings) as tiers, Lease(settings.namespace_dir, tiers.ledger) as lease:
            yield pass_of(move, tiers, lease.epoch, reach)


def pass_of(move: str, tiers: Tiers, epoch: int, reach: Reach = unheard) -> Pass:
    """The same with tiers that are open and an epoch that was taken."""
    later_us = time.time_ns() // 1000 + LATER_US
    match move:
        case "settle":
            settler = Settler(tiers, epoch, reach=reach)
            return lambda: _all(lambda: settler.step(force=True).events)
        case "trim":
            return Trimmer(tiers, reach=reach).step
        case "merge":
            merger = Merger(tiers, epoch, reach=reach)
            return lambda: _all(lambda: merger.step(force=True))
        case "archive":
            return _repeated(Archiver(tiers, epoch, reach=reach).step)
        case "compact":
            return _repeated(Compactor(tiers, epoch, reach=reach).step)
        case "expire":
            return _repeated(Expirer(tiers, epoch, reach=reach).step)
        case "purge":
            purger = Purger(tiers, epoch, reach=reach)
            return lambda: purger.step(now_us=later_us)
        case "clean":
            janitor = Janitor(tiers, epoch, reach=reach)
            return lambda: janitor.step(now_us=later_us)
        case "mirror":
            mirrorer = Mirrorer(tiers, reach=reach)
            return lambda: (_all(mirrorer.step), mirrorer.step())  # it cleans when there is nothing to copy
    raise ValueError(move)


def _repeated(step: Callable[[], object]) -> Pass:
    return lambda: _all(step)


def _all(step: Callable[[], object]) -> None:
    while step():
        pass


def _restore(settings: Settings, reach: Reach) -> None:
    """Unless it was done: a namespace that is there is not restored."""
    folder = settings.namespace_dir
    if not folder.exists() or not any(folder.iterdir()):
        restore(settings, str(settings.warm.mirror), reach=reach)


def do(move: str, world: World) -> None:
    """All of a move, undisturbed."""
    with mover(move, world.settings) as act:
        act()


def prepare(world: World, moves: Iterable[str]) -> None:
    """Save a store for each of these moves, named like it: contents in all tiers, and work for each of the move's steps."""
    with opened(world.settings) as tiers:
        world.append(tiers, 60, days_ago=12)
    for move in ("settle", "trim", "archive"):
        do(move, world)
    _settled(world, 80)
    _settled(world, 20)
    do("merge", world)
    _purge(world)
    do("mirror", world)
    _settled(world, 20)
    with opened(world.settings) as tiers:
        world.append(tiers, 30, days_ago=1)
    world.save("base")
    for move in moves:
        world.restore("base")
        _WORK[move](world)
        world.save(move)


def _settled(world: World, count: int, *, days_ago: float = 4, days: float = 2) -> None:
    with opened(world.settings) as tiers:
        world.append(tiers, count, days_ago=days_ago, days=days)
    do("settle", world)
    do("trim", world)


def _purge(world: World) -> None:
    for move in ("purge", "clean", "purge"):  # orphans lie in trash/ for a grace
        do(move, world)
        wait_for_graces(time.monotonic())


def _for_settle(world: World) -> None:
    with opened(world.settings) as tiers:
        with Client(world.settings, tiers=tiers) as client:
            client.append_many([{"conversation_id": BROKEN, "event_type": "output.chunk", "content": "lost"}])
        corrupt_block(tiers, -1, shard=shard_of(BROKEN, world.settings.hot.shards))


def _for_trim(world: World) -> None:
    do("settle", world)


def _for_merge(world: World) -> None:
    do("settle", world)
    do("trim", world)


def _for_archive(world: World) -> None:
    """With a batch that crashed before it was described, and events in its segment that are too young."""
    _settled(world, 40, days_ago=9, days=4)
    with opened(world.settings) as tiers, Lease(world.folder, tiers.ledger) as lease:
        try:
            Archiver(tiers, lease.epoch, reach=breaking_at("upload done")).step()
        except Crash:
            return
    raise AssertionError("it did not crash")


def _for_compact(world: World) -> None:
    _settled(world, 40, days_ago=12)
    do("archive", world)


def _for_expire(world: World) -> None:
    _settled(world, 40, days_ago=EXPIRES_DAYS + 20)
    do("archive", world)


def _for_purge(world: World) -> None:
    """With segments that were merged away, and what crashes left: half a segment, a whole one, one in trash/."""
    do("settle", world)
    do("trim", world)
    do("merge", world)
    [segment, *_] = sorted((world.folder / "segments").glob("*.duckdb"))
    (world.folder / "segments" / f"{'01' * 16}.tmp").write_bytes(b"half a segment")
    (world.folder / "segments" / f"{'02' * 16}.duckdb").write_bytes(segment.read_bytes())
    (world.folder / "segments" / f"{'02' * 16}.sum").write_text("its sum")
    (world.folder / "trash" / f"{'03' * 16}.duckdb").write_bytes(segment.read_bytes())


def _for_clean(world: World) -> None:
    """With objects that were compacted away, those of a batch that was given up, and unfinished uploads and copies."""
    _for_archive(world)
    do("archive", world)
    do("compact", world)
    bucket = world.work / "bucket" / world.settings.namespace
    for folder in (bucket / "events", world.folder / "cold"):
        (folder / f"{'04' * 16}.tmp").write_bytes(b"half a file")
    do("rehydrate", world)


def _for_mirror(world: World) -> None:
    """With segments that were merged away, so that there is something to clean."""
    do("settle", world)
    do("trim", world)
    for _ in range(world.settings.warm.mirror_snapshots):
        _settled(world, 4, days_ago=3)
        do("mirror", world)
    do("merge", world)


def _for_rehydrate(world: World) -> None:
    for path in (world.folder / "cold").rglob("*.parquet"):
        path.unlink()


def _for_recover(world: World) -> None:
    """With segments that are not live any more beside those that are."""
    do("settle", world)
    do("merge", world)


def _for_restore(world: World) -> None:
    do("settle", world)
    do("trim", world)
    do("mirror", world)
    shutil.rmtree(world.folder)


_WORK: dict[str, Callable[[World], None]] = {
    "settle": _for_settle,
    "trim": _for_trim,
    "merge": _for_merge,
    "archive": _for_archive,
    "compact": _for_compact,
    "expire": _for_expire,
    "purge": _for_purge,
    "clean": _for_clean,
    "mirror": _for_mirror,
    "rehydrate": _for_rehydrate,
    "recover": _for_recover,
    "restore": _for_restore,
}
