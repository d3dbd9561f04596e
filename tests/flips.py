"""A store with something in every tier, and bits of it flipped: what the tests of scrub share."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from tests.archiving import append, settle_all
from tests.tidying import Archive
from thermocline.archiver.settle import Settler
from thermocline.tiers.opening import Tiers
from thermocline.tiers.scrub_state import FILE_NAME, LOCK_NAME


def fill(archive: Archive, *, segments: int = 6, blocks: int = 12) -> None:
    """Something archived, some segments, one of them merged, and blocks that have not settled."""
    archive.archive_rounds(2)
    settler = Settler(archive.tiers, archive.epoch)
    for number in range(segments):
        append(archive.tiers, 40, start=40 * number)
        settle_all(settler)
    merged(archive, 2)
    for number in range(blocks):
        append(archive.tiers, 3, conversations=1, start=10_000 + 3 * number)


def merged(archive: Archive, count: int) -> None:
    """Merge the first `count` segments, so that one has rollups."""
    inputs = archive.tiers.ledger.view().segments[:count]
    now_us = time.time_ns() // 1000
    made = archive.tiers.warm.write_merged(inputs, level=1, move_id=f"{now_us:032x}", created_us=now_us)
    archive.tiers.ledger.merged(archive.epoch, [one.segment_id for one in inputs], made, now_us=now_us)


def files_of(archive: Archive) -> dict[str, Path]:
    """Item → file, of every segment and object."""
    view = archive.tiers.ledger.view()
    found = {f"segment {one.segment_id}": Path(archive.tiers.warm.path(one.segment_id)) for one in view.segments}
    base = archive.bucket / archive.settings.namespace
    return found | {f"file {one.file_id}": base / one.key for one in view.files}


def flip(path: Path, chance: random.Random) -> int:
    """Flip one bit of a file where `chance` says; its place."""
    content = bytearray(path.read_bytes())
    place = chance.randrange(len(content))
    content[place] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    return place


def flip_blocks(tiers: Tiers, chance: random.Random, count: int) -> tuple[set[str], dict[int, list[Any]]]:
    """Flip one bit in each of `count` log entries, anywhere in their names and values; (their places, the logs as they were)."""
    logs = {
        cut.shard: tiers.hot.link.call("XRANGE", tiers.hot.keys.log(cut.shard), "-", "+")
        for cut in tiers.hot.cut()
        if cut.entries
    }
    every = [(shard, number) for shard, entries in logs.items() for number in range(len(entries))]
    chosen = set(chance.sample(every, count))
    places = set()
    for shard, entries in logs.items():
        changed = []
        for number, (entry_id, fields) in enumerate(entries):
            flat = list(fields)
            if (shard, number) in chosen:
                places.add(f"shard {shard}, block {entry_id.decode()}")
                _flip_one(flat, chance)
            changed.append((entry_id, flat))
        write_log(tiers, shard, changed)
    return places, logs


def _flip_one(flat: list[bytes], chance: random.Random) -> None:
    place = chance.randrange(sum(map(len, flat)))
    for index, part in enumerate(flat):
        if place < len(part):
            raw = bytearray(part)
            raw[place] ^= 1 << chance.randrange(8)
            flat[index] = bytes(raw)
            return
        place -= len(part)


def write_log(tiers: Tiers, shard: int, entries: list[Any]) -> None:
    """Make a shard's log hold just these entries."""
    log = tiers.hot.keys.log(shard)
    tiers.hot.link.call("DEL", log)
    for entry_id, fields in entries:
        tiers.hot.link.call("XADD", log, entry_id, *fields)


def forget_scrubs(archive: Archive) -> None:
    for name in (FILE_NAME, LOCK_NAME):
        (archive.settings.namespace_dir / name).unlink(missing_ok=True)
