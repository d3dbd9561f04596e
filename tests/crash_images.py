"""Crash images of a worker's life, each opened as the next worker would: `python -m tests.crash_images --images N --seed S`.

A real worker is traced (traced_worker.py, traced.py): every write, truncation, fsync and change of names below its data
directory. From the record a simulated disk (crash_disk.py) gives what a crash may leave: at every change what is there when the
process dies, and within a write; and when power is lost, four ways (Loss). An image is put where the worker had its data, and
Redis is given what it held then. Then:

1. it opens, every acknowledged event is answered once, statistics add up to them, `verify(deep=True)` has no problem
2. a worker does one pass, and the same holds
3. nothing is left over: what is on disk is what the ledger lists
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import xxhash

from tests.crash_disk import Change, Disk, Loss, Mark, Sync, Tree, Write
from tests.reporting import reported
from tests.servers import RedisServer, redis_binaries
from tests.traced import read_trace, run_traced
from tests.traced_worker import Moment, Recorded, names_in, settings_for_life
from thermocline.archiver import verify_cold
from thermocline.archiver.rejected import RejectedLog
from thermocline.archiver.worker import Worker
from thermocline.store import Store
from thermocline.tiers import duplicates
from thermocline.tiers.block import Position
from thermocline.tiers.cold_schema import KINDS
from thermocline.tiers.duck import connect
from thermocline.tiers.hot_keys import Keys
from thermocline.tiers.ledger import Segment
from thermocline.tiers.opening import Tiers, open_link, open_tiers

ROOT = Path(__file__).parents[1]
DIED = "died"
WITHIN = "within"
"""The process died: between two changes; within a write."""
PER_LIFE = 2000
"""Images of one worker's life at most."""
DEEP_EVERY = 5
PROBLEMS_MAX = 20
TO_BE_REJECTED = "settle will put it into rejected/"
STATISTICS = (
    "SELECT coalesce(sum(event_count), 0)::BIGINT FROM hourly_stats",
    "SELECT coalesce(sum(total_events), 0)::BIGINT FROM conversation_summary",
)
KINDS_OF_CRASH = (DIED, WITHIN, *(loss.value for loss in Loss))


class Image(NamedTuple):
    kind: str
    at: int
    """Changes before the crash."""
    next: str
    """The change that did not happen, or not to its end."""
    tree: Tree
    moment: Moment


class Verdict(msgspec.Struct, kw_only=True):
    """What came of a run."""

    seed: int
    lives: int = 0
    """Workers traced."""
    changes: int = 0
    images: dict[str, int] = {}
    """By kind; no two of one worker are the same."""
    events: int = 0
    """Acknowledged ones of each worker's life."""
    seconds: float = 0
    unopenable: int = 0
    """Opening it, asking it or the worker's pass raised an error."""
    lost: int = 0
    doubled: int = 0
    problems: list[str] = []


class Counts(msgspec.Struct):
    """What is wrong with one image."""

    unopenable: int = 0
    lost: int = 0
    doubled: int = 0
    problems: list[str] = []


class Life:
    """A worker's life, traced, and its images, on `disk`. Folder, disk and server are used by nobody else."""

    def __init__(self, folder: Path, disk: Path, server: RedisServer, kind: str, seed: int) -> None:
        """folder, disk  not there yet"""
        folder.mkdir(parents=True)
        disk.mkdir()
        self.disk = disk
        self.settings = settings_for_life(disk / "data", server.url, kind)
        (folder / "settings.json").write_bytes(msgspec.json.encode(self.settings.model_dump(mode="json")))
        with closing(open_link(self.settings, None)) as link:
            link.call("FLUSHALL")
        command = [sys.executable, "-m", "tests.traced_worker", str(folder), kind, str(seed)]
        record = run_traced(command, folder / "record", cwd=ROOT)
        self.changes = read_trace(record, self.disk, folder / "marks")
        record.unlink()
        self.recorded = msgspec.msgpack.decode((folder / "redis.msgpack").read_bytes(), type=Recorded)
        self.different = self._replay()
        self._looked: dict[tuple[Segment, bool, str], list[str]] = {}

    def _replay(self) -> list[int]:
        """The numbers of the changes that make a difference. The simulated disk must come to what the real one holds; else the
        record has not everything."""
        disk = Disk()
        different = [at for at, change in enumerate(self.changes) if disk.apply(change)]
        real = {
            str(path.relative_to(self.disk)): path.read_bytes() if path.is_file() else None
            for path in self.disk.rglob("*")
            if not path.name.endswith("-shm")
        }
        found = disk.tree()
        wrong = sorted(path for path in {*real, *found} if real.get(path, b"-") != found.get(path, b"-"))
        assert not wrong, f"the record does not lead to what is there: {wrong}"
        return different

    def places(self) -> dict[str, list[int]]:
        """Kind of crash → the changes before which it may come; the end is one of them."""
        ends = [at + 1 for at in self.different]
        writes = [at for at in self.different if _is_long_write(self.changes[at])]
        died = [at + 1 for at in self.different if not isinstance(self.changes[at], Sync)]
        return {DIED: died, WITHIN: writes, **{loss.value: ends for loss in Loss}}

    def images(self, wanted: Collection[tuple[int, str]], dice: random.Random) -> Iterator[Image]:
        """Those at (change, kind), in the order of the worker's life."""
        at_change: dict[int, list[str]] = {}
        for at, kind in sorted(wanted):
            at_change.setdefault(at, []).append(kind)
        disk, moment = Disk(), Moment()
        for at, change in enumerate([*self.changes, Mark("")]):
            for kind in at_change.get(at, ()):
                yield Image(kind, at, _shown(change), _tree(disk, kind, change, dice), moment.copied())
            disk.apply(change)
            if isinstance(change, Mark) and change.text:
                moment.pass_by(change.text)

    def redis_at(self, moment: Moment) -> None:
        """Let Redis hold what it held then."""
        keys, kept = Keys(self.settings.namespace), self.recorded
        with closing(open_link(self.settings, None)) as link:
            names = names_in(link, keys.pattern())
            commands: list[Sequence[Any]] = [("DEL", *names)] if names else []
            if moment.rounds == 0:
                commands += [("HSET", keys.meta(shard), *kept.created[shard]) for shard in range(moment.made)]
            else:
                held = kept.rounds[moment.rounds - 1]
                commands += [("RESTORE", name, 0, dump) for name, dump in held.keys.items()]
                for shard, (log, count) in enumerate(zip(kept.logs, held.entries, strict=True)):
                    commands += _log(keys, shard, log[:count], moment.trimmed.get(shard, "0-0"))
            link.pipeline(commands)

    def events_at(self, moment: Moment) -> dict[tuple[str, int], str]:
        """What had been acknowledged: (conversation, seq) → content."""
        if moment.rounds == 0:
            return {}
        events = self.recorded.rounds[moment.rounds - 1].events
        return {(name, seq): content for name, found in events.items() for seq, content in found.items()}

    def remembering(self, look: Callable[..., list[str]]) -> Callable[..., list[str]]:
        """`look` at a segment, once for the same bytes: most images have most segments in common."""

        def check(segment: Segment, *, deep: bool) -> list[str]:
            path = self.settings.namespace_dir / "segments" / f"{segment.segment_id}.duckdb"
            if not path.exists():
                return look(segment, deep=deep)
            key = (segment, deep, xxhash.xxh128_hexdigest(path.read_bytes()))
            if key not in self._looked:
                self._looked[key] = look(segment, deep=deep)
            return list(self._looked[key])

        return check

    def put(self, tree: Tree) -> None:
        """Let the data directory be that tree."""
        shutil.rmtree(self.disk, ignore_errors=True)
        self.disk.mkdir()
        for name, content in tree.items():
            if content is None:
                (self.disk / name).mkdir()
            else:
                (self.disk / name).write_bytes(content)


def _log(keys: Keys, shard: int, entries: Sequence[tuple[bytes, list[bytes]]], trimmed: str) -> Iterator[Sequence[Any]]:
    """Commands that make a log of which what is not beyond `trimmed` was dropped."""
    if not entries:
        return
    after = Position.parse(trimmed)
    dropped_bytes = 0
    for entry, fields in entries:
        found = dict(zip(fields[::2], fields[1::2], strict=True))
        if Position.parse(entry) <= after:
            dropped_bytes = int(found[b"B"])
        yield ("XADD", keys.log(shard), entry, *fields)
    yield ("XTRIM", keys.log(shard), "MINID", str(after.next()))
    yield ("HSET", keys.meta(shard), "T", trimmed, "tB", dropped_bytes)


def check(life: Life, image: Image, *, deep: bool) -> Counts:
    """What is wrong with an image.

    deep  read every row again after the worker's pass, which has read back what it wrote itself
    """
    counts = Counts()
    life.put(image.tree)
    life.redis_at(image.moment)
    expected = life.events_at(image.moment)
    try:
        tiers = open_tiers(life.settings)
        tiers.warm.check = life.remembering(tiers.warm.check)  # type: ignore[method-assign]
        with Store(tiers) as store:
            store.status()
            _check_answers(store, expected, counts, "before any work")
            report = Worker(tiers).once()
            counts.problems += [report.problem] if report.problem else []
            _check_answers(store, expected, counts, "after a pass", deep=deep)
            counts.problems += left_over(tiers)
    except Exception as exc:
        counts.unopenable += 1
        counts.problems.append(f"{type(exc).__name__}: {exc}")
    return counts


def _check_answers(store: Store, expected: dict[tuple[str, int], str], counts: Counts, when: str, *, deep: bool = True) -> None:
    found: Counter[tuple[str, int, str]] = Counter(store.sql("SELECT conversation_id, seq, content FROM events").fetchall())
    wanted = {(*place, content) for place, content in expected.items()}
    lost, doubled = wanted - found.keys(), [row for row, times in found.items() if times > 1]
    problems = [f"{len(lost)} events lost"] * bool(lost) + [f"{len(doubled)} events doubled"] * bool(doubled)
    problems += [f"{row} was never appended" for row in sorted(found.keys() - wanted)[:3]]
    for query in STATISTICS:
        [(total,)] = store.sql(query).fetchall()
        problems += [f"{query}: {total}, not {len(wanted)}"] * (total != len(wanted))
    problems += [one for one in store.verify(deep=deep).problems if not one.endswith(TO_BE_REJECTED)]
    log = RejectedLog(store.settings.namespace_dir / "rejected")
    for state in store.tiers.ledger.view().shards:
        noted = log.counted(state.shard, Position(0, 0), state.position)
        if noted != state.rejected:
            problems.append(f"shard {state.shard}: {state.rejected} rejected events, {noted} of them in rejected/")
    counts.lost += len(lost)
    counts.doubled += len(doubled)
    counts.problems += [f"{when}: {problem}" for problem in problems]


def left_over(tiers: Tiers) -> list[str]:
    """Files that nothing refers to."""
    folder, view = tiers.settings.namespace_dir, tiers.ledger.view()
    segments = {f"{one.segment_id}{end}" for one in view.segments for end in (".duckdb", ".sum")}
    found = [f"segments/{path.name}" for path in folder.glob("segments/*") if path.name not in segments]
    found += [f"{path.relative_to(folder)}" for name in ("trash", "staging") for path in folder.glob(f"{name}/*")]
    found += [f"{path.relative_to(folder)}" for path in folder.rglob("*.tmp")] + [path.name for path in folder.glob("spill-*")]
    known = {file.key for file in view.files} | {row.path.removeprefix("cold://") for row in tiers.ledger.trash()}
    known |= {f"batches/{row.batch_id}.json" for row in tiers.ledger.batches()}
    found += [one.key for kind in (*KINDS, "batches") for one in tiers.cold.objects(f"{kind}/") if one.key not in known]
    if view.files:
        found += [one.key for kind in KINDS for one in tiers.iceberg.unreferenced(kind)]
    return [f"left over: {', '.join(sorted(set(found)))}"] if found else []


def run(folder: Path, *, seed: int, **images: int) -> Verdict:
    """Check so many images of lives of each kind: `warm=40, days=10, cold=20`."""
    verdict = Verdict(seed=seed)
    began_s = time.monotonic()
    server = RedisServer(redis_binaries()[-1], folder / "redis", options={"appendfsync": "always"})
    server.start()
    try:
        with one_duckdb(), in_memory() as disks:
            for kind, count in images.items():
                for first in range(0, count, PER_LIFE):
                    life_seed = seed + verdict.lives
                    life = Life(folder / f"life-{life_seed}", disks / f"{life_seed}", server, kind, life_seed)
                    verdict.lives += 1
                    verdict.changes += len(life.different)
                    verdict.events += len(life.events_at(Moment(rounds=len(life.recorded.rounds))))
                    run_life(life, min(count - first, PER_LIFE), verdict, f"{kind} life {life_seed}")
                    shutil.rmtree(life.disk)
                    print(f"{kind} life {life_seed}: {verdict.images}, {len(verdict.problems)} problems", file=sys.stderr)  # noqa: T201
    finally:
        server.stop()
    verdict.seconds = round(time.monotonic() - began_s, 1)
    return verdict


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder that is on no disk, if there is a place for such: crashes are simulated, and an fsync only takes time."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="thermocline-crash-", dir=place) as folder:
        yield Path(folder)


@contextmanager
def one_duckdb() -> Iterator[None]:
    """Let `verify` use the same DuckDB for every image: starting one takes longer than what it is asked."""
    with connect(memory_bytes=256 << 20, threads=1) as shared:
        names = [(duplicates, "connect"), (verify_cold, "connect")]
        before = [getattr(module, name) for module, name in names]
        try:
            for module, name in names:
                setattr(module, name, lambda **_: shared.cursor())
            yield
        finally:
            for (module, name), found in zip(names, before, strict=True):
                setattr(module, name, found)


def run_life(life: Life, count: int, verdict: Verdict, what: str) -> None:
    """Check so many of its images, or as many as differ."""
    dice = random.Random(what)
    seen: set[str] = set()
    plan = planned(life.places(), count, dice)
    while plan and len(seen) < count:
        now, plan = plan[: count - len(seen)], plan[count - len(seen) :]
        for image in life.images(now, dice):
            digest = _digest(image)
            if digest in seen:
                continue
            seen.add(digest)
            _count(
                verdict,
                image.kind,
                check(life, image, deep=len(seen) % DEEP_EVERY == 0),
                f"{what}, {image.kind} at {image.at} (next: {image.next})",
            )
            if len(verdict.problems) >= PROBLEMS_MAX:
                return


def _count(verdict: Verdict, kind: str, found: Counts, where: str) -> None:
    verdict.images[kind] = verdict.images.get(kind, 0) + 1
    verdict.unopenable += found.unopenable
    verdict.lost += found.lost
    verdict.doubled += found.doubled
    verdict.problems += [f"{where}: {problem}" for problem in found.problems]


def planned(places: dict[str, list[int]], count: int, dice: random.Random) -> list[tuple[int, str]]:
    """Where crashes come: of every kind as many, but each prefix once if there is room for twice as many images as prefixes."""
    shuffled = {kind: dice.sample(found, len(found)) for kind, found in places.items()}
    chosen = [(at, DIED) for at in shuffled[DIED]] if count >= 2 * len(shuffled[DIED]) else []
    kinds = [kind for kind in KINDS_OF_CRASH if not (chosen and kind == DIED)]
    rest: list[tuple[int, str]] = []
    for number in range(max(len(found) for found in shuffled.values())):
        rest += [(shuffled[kind][number], kind) for kind in kinds if number < len(shuffled[kind])]
    return chosen + rest


def _tree(disk: Disk, kind: str, change: Change, dice: random.Random) -> Tree:
    if kind == DIED:
        return disk.tree()
    return disk.within(change, dice) if kind == WITHIN else disk.after_power_loss(Loss(kind), dice)


def _digest(image: Image) -> str:
    digest = xxhash.xxh128(msgspec.json.encode(image.moment))
    for name, content in image.tree.items():
        digest.update(f"{name}\0{-1 if content is None else len(content)}\0".encode())
        digest.update(content or b"")
    return digest.hexdigest()


def _is_long_write(change: Change) -> bool:
    return isinstance(change, Write) and len(change.data) > 4096


def _shown(change: Change) -> str:
    fields = (f"{len(value)} bytes" if isinstance(value, bytes) else str(value) for value in change)
    return f"{type(change).__name__} {' '.join(fields)}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash_images", description="Open what crashes of a worker may leave.")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--days", type=float, default=0.2, help="share of them that is of lives with segments of one day")
    parser.add_argument("--cold", type=float, default=0.15, help="share of them that is of lives with an archive")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    cold = round(options.images * options.cold)
    days = round(options.images * options.days)
    with tempfile.TemporaryDirectory(prefix="thermocline-crash-") as folder:
        verdict = run(Path(folder), seed=options.seed, warm=options.images - days - cold, days=days, cold=cold)
    return reported(verdict)


if __name__ == "__main__":
    sys.exit(main())
