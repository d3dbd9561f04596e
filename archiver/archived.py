"""What is archived, as people look at it: batches, and the files of one."""

from __future__ import annotations

from typing import Final

import msgspec

from thermocline.errors import ConfigError
from thermocline.tiers.cold_schema import KINDS
from thermocline.tiers.ledger import ColdFile
from thermocline.tiers.opening import Tiers

_ORDER: Final = {kind: place for place, kind in enumerate(KINDS)}


class ArchivedBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A committed batch, and the part of its files that later batches have left."""

    batch_id: str
    kind: str
    """archive, compact or expire."""
    day: str
    """The earliest day of its events."""
    events_in: int
    events_kept: int
    rate_min: float
    """The lowest sample rate in it."""
    files: int
    bytes: int
    committed_us: int


def batches(tiers: Tiers) -> list[ArchivedBatch]:
    """All batches, oldest first."""
    files: dict[str, list[ColdFile]] = {}
    for file in tiers.ledger.view().files:
        files.setdefault(file.batch_id, []).append(file)
    return [
        ArchivedBatch(
            batch_id=row.batch_id,
            kind=row.kind,
            day=row.day,
            events_in=row.events_in,
            events_kept=row.events_kept,
            rate_min=row.rate_min,
            files=len(files.get(row.batch_id, [])),
            bytes=sum(file.file_bytes for file in files.get(row.batch_id, [])),
            committed_us=row.committed_us,
        )
        for row in tiers.ledger.batches()
    ]


def files_of(tiers: Tiers, batch: str) -> list[ColdFile]:
    """The files of a batch that are still live, events first, by day.

    batch  its id, or the beginning of it. ConfigError when none or several begin so
    """
    found = [row.batch_id for row in tiers.ledger.batches() if row.batch_id.startswith(batch)]
    if len(found) != 1 or not batch:
        problem = f"{len(found)} batches begin so" if found and batch else "there is no such batch"
        raise ConfigError(f"{batch!r}: {problem}; `thermocline archives list` lists them")
    live = [file for file in tiers.ledger.view().files if file.batch_id == found[0]]
    return sorted(live, key=lambda file: (_ORDER.get(file.kind, len(_ORDER)), file.day, file.file_id))


def unsettled_events(tiers: Tiers) -> int:
    """Events in Redis that have not settled: the archive does not see them yet. TierUnavailable."""
    settled = {state.shard: state.events for state in tiers.ledger.view().shards}
    return sum(max(0, cut.events_total - settled[cut.shard]) for cut in tiers.hot.cut())
