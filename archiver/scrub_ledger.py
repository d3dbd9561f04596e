"""Whether the ledger is sound, and says of every segment what that says of itself."""

from __future__ import annotations

from pathlib import Path

from thermocline.errors import TierCorrupt
from thermocline.tiers.damage import Damage
from thermocline.tiers.opening import Tiers

from .scrub_plan import LEDGER

HINT = "stop the worker, then `thermocline recover --force` makes a new one from segments and archive"


def ledger_damage(tiers: Tiers) -> Damage | None:
    """What is wrong with the ledger; None when nothing is. Its pages and indexes, as far as SQLite checks them (PostgreSQL looks
    after its own), and its rows of segments, which stand in the segments too.

    A segment that is damaged itself is not held against the ledger. TierCorrupt when it cannot be read at all.
    """
    problem = tiers.ledger.problem()
    if not problem:
        for segment in tiers.ledger.view().segments:
            path = Path(tiers.warm.path(segment.segment_id))
            try:
                stored = tiers.warm.read_info(segment.segment_id)
            except TierCorrupt:
                continue
            differs = [
                name
                for name in segment.__struct_fields__
                if name != "file_bytes" and getattr(stored, name) != getattr(segment, name)
            ]
            if differs and segment in tiers.ledger.view().segments:
                problem = f"what it says of {path} is not what that says of itself: {', '.join(differs)}"
                break
    if not problem:
        return None
    return Damage(item=f"{LEDGER} ledger", place="the ledger", problem=problem, events=0, hint=HINT)
