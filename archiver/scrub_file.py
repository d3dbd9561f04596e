"""Whether an object of the cold tier, or a local copy of one, is what was written; and if not, which rows are hit."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thermocline.errors import TierCorrupt, TierUnavailable
from thermocline.tiers.batch_files import sha256_of
from thermocline.tiers.damage import CONVERSATIONS_SHOWN_MAX, Damage, Part, Rows, joined
from thermocline.tiers.ledger import ColdFile
from thermocline.tiers.opening import Tiers
from thermocline.tiers.parquet_file import conversations_in, damaged_groups
from thermocline.tiers.quarantine import set_aside
from thermocline.tiers.segment_sum import forget

from .scrub_plan import COPY, FILE

RESTORE = "restore the object from a version or a copy: nothing else has these rows"
RESTORE_STATISTICS = "restore the object from a version or a copy: hourly_stats and conversation_summary need it"


def file_damage(tiers: Tiers, file: ColdFile) -> Damage | None:
    """What is wrong with an object; None when nothing is, or when it left the ledger meanwhile. TierUnavailable when the store
    does not answer."""
    try:
        with _local(tiers, file) as path:
            damage = _damage(file, path)
    except TierCorrupt as exc:
        problem = str(exc).removeprefix(f"{file.url}: ")
        damage = _whole(file, "the object is missing" if tiers.cold.size(file.key) is None else problem)
    return damage if damage is None or file in tiers.ledger.view().files else None


def copy_damage(tiers: Tiers, key: str) -> Damage | None:
    """What is wrong with the local copy of an object, which is then set aside: it is copied again when it is needed."""
    path = tiers.settings.namespace_dir / "cold" / key
    file = next((one for one in tiers.ledger.view().files if one.key == key), None)
    try:
        if file is None or _sum(path) == file.checksum:
            return None
        aside = set_aside(tiers.settings.namespace_dir, path)
    except FileNotFoundError:
        return None
    mended = f"the copy is now {aside}; the object itself is read instead"
    return Damage(item=f"{COPY} {key}", place=str(path), problem="the copy is not what the object is", events=0, mended=mended)


@contextmanager
def _local(tiers: Tiers, file: ColdFile) -> Iterator[Path]:
    """The object as a local file."""
    if tiers.cold.is_local:
        yield tiers.cold.path(file.key)
        return
    with tempfile.TemporaryDirectory(dir=tiers.settings.namespace_dir, prefix=f"spill-{os.getpid()}-scrub-") as folder:
        path = Path(folder) / "object.parquet"
        tiers.cold.fetch(file.key, path)
        yield path


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        forget(file.fileno())
    return sha256_of(path)


def _damage(file: ColdFile, path: Path) -> Damage | None:
    try:
        size, found = path.stat().st_size, _sum(path)
    except FileNotFoundError as exc:
        folder = path.parents[len(Path(file.key).parts) - 1]
        if not folder.is_dir():
            raise TierUnavailable(f"{folder} is not there: is the disk mounted?") from exc
        raise TierCorrupt(f"{file.url}: the object is missing") from exc
    except OSError as exc:
        return _whole(file, f"it cannot be read ({exc.strerror or exc})")
    if found == file.checksum:
        return None
    problem = f"its SHA-256 is {found}, {file.checksum} was written"
    if size != file.file_bytes:
        return _whole(file, f"it has {size:,} bytes, {file.file_bytes:,} were written")
    groups = damaged_groups(path)
    if groups is None:
        return _whole(file, f"{problem}; its footer cannot be read")
    item = f"{FILE} {file.file_id}"
    if not groups:
        hint = RESTORE if file.kind == "events" else RESTORE_STATISTICS
        told = f"{problem}; every page can be read: the damage is in a header or the footer"
        return Damage(item=item, place=file.url, problem=told, events=0, hint=hint)
    rows = joined([Rows(start=group.start, end=group.end) for group in groups])
    numbers = ", ".join(str(group.number) for group in groups[:20])
    problem += f"; a page is damaged in row group {numbers}: {groups[0].problem}"
    if file.kind != "events":
        return Damage(item=item, place=file.url, problem=problem, events=0, rows=rows, hint=RESTORE_STATISTICS)
    found_parts = conversations_in(path, [group.number for group in groups])
    parts = tuple(Part(conversation_id=one[0], seq_min=one[1], seq_max=one[2], events=one[3]) for one in found_parts)
    return Damage(
        item=item,
        place=file.url,
        problem=problem,
        events=sum(one.end - one.start for one in rows),
        rows=rows,
        parts=parts[:CONVERSATIONS_SHOWN_MAX],
        conversations=len(parts),
        hint=RESTORE,
    )


def _whole(file: ColdFile, problem: str) -> Damage:
    """The damage of a file of which nothing can be trusted."""
    if file.kind != "events":
        return Damage(item=f"{FILE} {file.file_id}", place=file.url, problem=problem, events=0, hint=RESTORE_STATISTICS)
    return Damage(
        item=f"{FILE} {file.file_id}",
        place=file.url,
        problem=f"{problem}; day {file.day}, conversations {file.conversation_min!r} to {file.conversation_max!r}",
        events=file.rows,
        rows=(Rows(start=0, end=file.rows),),
        hint=RESTORE,
    )
