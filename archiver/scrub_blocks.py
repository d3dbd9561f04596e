"""Whether the blocks in a shard's log, settled and not, are still what was appended."""

from __future__ import annotations

from typing import Final

from thermocline.tiers.block import Position
from thermocline.tiers.damage import Damage, Part
from thermocline.tiers.log_page import EntryFault
from thermocline.tiers.opening import Tiers

from .scrub_plan import LOG

ENTRIES_AT_ONCE: Final = 64
"""A block is at most a MiB."""
DAMAGES_MAX: Final = 1000
"""Named of one shard in one pass."""


def log_damages(tiers: Tiers, shard: int) -> list[Damage]:
    """Damaged blocks of one shard's log, oldest first, at most DAMAGES_MAX. TierUnavailable when Redis does not answer.

    A block that has settled is said to be mended: its events are elsewhere, and the next trim drops it.
    """
    cut = tiers.hot.cut()[shard]
    after, found = cut.trimmed, list[EntryFault]()
    while after < cut.last and len(found) < DAMAGES_MAX:
        faults, after, count = tiers.hot.faults(shard, after, cut.last, entries_max=ENTRIES_AT_ONCE)
        found += faults
        if not count:
            break
    if not found:
        return []
    settled = tiers.ledger.view().shards[shard].position
    trimmed = tiers.hot.trimmed()[shard]
    return [_damage(shard, one, settled) for one in found[:DAMAGES_MAX] if Position.parse(one.position) > trimmed]


def _damage(shard: int, fault: EntryFault, settled: Position) -> Damage:
    place = f"shard {shard}, block {fault.position.decode()}"
    item = f"{LOG} {shard}"
    if Position.parse(fault.position) <= settled:
        mended = "nothing is lost: it has settled before (into a segment, or into rejected/ if it was damaged by then)"
        return Damage(item=item, place=place, problem=fault.problem, events=0, mended=mended)
    last = fault.seq_first + fault.events - 1
    part = Part(conversation_id=fault.conversation_id, seq_min=fault.seq_first, seq_max=last, events=fault.events)
    return Damage(
        item=item,
        place=place,
        problem=fault.problem,
        events=max(1, fault.events),
        parts=(part,) if fault.events else (),
        conversations=1 if fault.events else 0,
        hint="settle puts its lines into rejected/; append them again from where they came"
        if fault.events
        else "settle stops at it; keep the log, and see docs/operations.md",
    )
