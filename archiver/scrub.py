"""Scrub: read stored objects again and compare every byte with what was written: segments, archive, local copies, logs, ledger.

Reads only; what is damaged is mended by mend.py, for who holds the lease. An object that leaves its tier meanwhile is not missed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from thermocline.errors import ConfigError, TierCorrupt, TierUnavailable
from thermocline.tiers.damage import Damage
from thermocline.tiers.opening import Tiers
from thermocline.tiers.scrub_state import change_state, read_state
from thermocline.tiers.whole_file import file_errors

from .scrub_blocks import log_damages
from .scrub_file import copy_damage, file_damage
from .scrub_ledger import ledger_damage
from .scrub_plan import COPY, FILE, LEDGER, LOG, SEGMENT, Item, due_items
from .scrub_segment import segment_damage
from .work_report import Progress

AGAIN_MAX = 20
"""Damaged objects that one pass of the worker looks at again."""
REMEMBERED_AT_ONCE = 50
"""Items read before scrub.json is written again."""
Mend = Callable[[Damage], Damage]


class Scrubbed(msgspec.Struct, frozen=True, kw_only=True):
    """What was read and found."""

    objects: dict[str, int] = {}
    """Kind of item → how many were read."""
    bytes: int = 0
    damages: tuple[Damage, ...] = ()
    """Those that were mended at once too."""
    unread: tuple[str, ...] = ()
    """What could not be looked at, and why."""

    @property
    def damaged(self) -> tuple[Damage, ...]:
        """What was not mended."""
        return tuple(one for one in self.damages if not one.mended)


class ScrubPass:
    """Some items, read one after the other; what was found is remembered in scrub.json.

    mend  given each damage, gives it back with what came of mending it
    """

    def __init__(
        self, tiers: Tiers, every: Sequence[Item], chosen: Sequence[Item], *, unread: Sequence[str] = (), mend: Mend | None = None
    ) -> None:
        self._tiers = tiers
        self._every = {item.key: item.created_us for item in every}
        self._chosen = deque(chosen)
        self._mend = mend
        self._objects: dict[str, int] = {}
        self._bytes = 0
        self._damages: list[Damage] = []
        self._unread = list(unread)
        self._new: dict[str, int] = {}
        self._found: list[Damage] = []

    def step(self) -> bool:
        """Read the next item; whether there are more. TierUnavailable when scrub.json cannot be written."""
        if self._chosen:
            self._read(self._chosen.popleft())
        if not self._chosen or len(self._new) >= REMEMBERED_AT_ONCE:
            self._remember()
        return bool(self._chosen)

    @property
    def report(self) -> Scrubbed:
        """What was found until now."""
        return Scrubbed(objects=dict(self._objects), bytes=self._bytes, damages=tuple(self._damages), unread=tuple(self._unread))

    def _read(self, item: Item) -> None:
        try:
            found = _damages(self._tiers, item)
        except (TierUnavailable, ConfigError, TierCorrupt) as exc:
            self._unread.append(f"{item.key} was not read: {exc}")
            return
        found = [self._mend(one) if self._mend is not None and not one.mended else one for one in found]
        self._damages += found
        self._found += [one for one in found if not one.mended]
        self._new[item.key] = time.time_ns() // 1000
        self._objects[item.kind] = self._objects.get(item.kind, 0) + 1
        self._bytes += item.bytes

    def _remember(self) -> None:
        folder, new, found = self._tiers.settings.namespace_dir, self._new, self._found
        self._new, self._found = {}, []
        with file_errors(str(folder), setting="data_dir"):
            change_state(folder, lambda state: state.after(self._every, new, found, now_us=time.time_ns() // 1000))


def scrub(tiers: Tiers, *, mend: Mend | None = None, progress: Callable[[Progress], None] = lambda _: None) -> Scrubbed:
    """Read everything there is. TierUnavailable only when the ledger or the folder cannot be used."""
    every, unread = items(tiers)
    work = ScrubPass(tiers, every, every, unread=unread, mend=mend)
    done, more = 0, True
    while more:
        progress(Progress(step="scrub", done=done, total=len(every)))
        more = work.step()
        done += 1
    return work.report


def due_pass(tiers: Tiers, *, mend: Mend | None = None, now_us: int | None = None) -> ScrubPass:
    """What the worker reads now: what is due, and what was damaged when it was last read."""
    settings = tiers.settings.worker
    every, unread = items(tiers)
    state = read_state(tiers.settings.namespace_dir)
    due = due_items(
        every,
        state.read,
        time.time_ns() // 1000 if now_us is None else now_us,
        period_us=int(settings.scrub_days * 86_400e6),
        every_us=int(settings.scrub_every_s * 1e6),
        bytes_max=settings.scrub_bytes_max,
    )
    damaged = {one.item for one in state.damaged}
    again = [item for item in every if item.key in damaged and item not in due][:AGAIN_MAX]
    return ScrubPass(tiers, every, [*again, *due], unread=unread, mend=mend)


def items(tiers: Tiers) -> tuple[list[Item], tuple[str, ...]]:
    """(everything that can be read, why something could not be listed)."""
    view = tiers.ledger.view()
    found = [Item(kind=SEGMENT, name=one.segment_id, bytes=one.file_bytes, created_us=one.created_us) for one in view.segments]
    found += [Item(kind=FILE, name=one.file_id, bytes=one.file_bytes, created_us=one.created_us) for one in view.files]
    found.append(Item(kind=LEDGER, name="ledger", bytes=tiers.ledger.bytes_used(), created_us=0))
    unread = []
    try:
        if view.files and not tiers.cold.is_local:
            folder = tiers.settings.namespace_dir / "cold"
            copied = [one for one in view.files if (folder / one.key).exists()]
            found += [Item(kind=COPY, name=one.key, bytes=one.file_bytes, created_us=one.created_us) for one in copied]
    except ConfigError as exc:
        unread.append(str(exc))
    try:
        cut = tiers.hot.cut()
        sizes = {one.shard: one.bytes_total - one.trimmed_bytes for one in cut if one.entries}
        found += [Item(kind=LOG, name=str(shard), bytes=size, created_us=0) for shard, size in sizes.items()]
    except TierUnavailable as exc:
        unread.append(f"the logs in Redis were not read: {exc}")
    return found, tuple(unread)


def _damages(tiers: Tiers, item: Item) -> list[Damage]:
    if item.kind == LOG:
        return log_damages(tiers, int(item.name))
    if item.kind == LEDGER:
        found = ledger_damage(tiers)
    elif item.kind == COPY:
        found = copy_damage(tiers, item.name)
    elif item.kind == FILE:
        file = next((one for one in tiers.ledger.view().files if one.file_id == item.name), None)
        found = file_damage(tiers, file) if file is not None else None
    else:
        segment = next((one for one in tiers.ledger.view().segments if one.segment_id == item.name), None)
        found = segment_damage(tiers, segment) if segment is not None else None
    return [] if found is None else [found]
