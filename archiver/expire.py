"""Expire: event files whose whole UTC day is older than cold.retention_days leave the archive; 0 keeps them for ever.

batches.py has the steps and what a crash leaves. The events are counted per shard as erased, so that every appended event stays
accounted for. Rollups stay: statistics know all events there ever were. The objects are for janitor.py.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from thermocline.event import FORMAT
from thermocline.tiers.block import shard_of
from thermocline.tiers.ledger import Batch, ColdFile, ShardTotals
from thermocline.tiers.opening import Tiers
from thermocline.tiers.steps import Reach, unheard

from .archive_plan import cutoff_us
from .batches import Batches
from .clocks import require_clock
from .cold_inputs import DamagedFile, fetched, relation
from .compact import BATCH_FILES

FILES_MAX: Final = 256
"""In one batch."""


class Expirer:
    """Expires archived events of one namespace for the worker that holds `epoch`."""

    def __init__(self, tiers: Tiers, epoch: int, *, reach: Reach = unheard) -> None:
        """reach  told the name of every step before and after it"""
        self._tiers = tiers
        self._batches = Batches(tiers, epoch, reach=reach)
        self._reach = reach
        self._set_aside: set[str] = set()

    def step(self, *, now_us: int | None = None) -> Batch | None:
        """Let go of what one batch may hold; None when nothing is due.

        now_us  µs since the epoch, UTC

        TierUnavailable: the object store, or a clock that is wrong; the next pass tries again. TierCorrupt: a file is damaged, so
        that its events cannot be counted; it is set aside until the worker starts again. LeaseHeld: another worker took over.
        """
        self._batches.resume()
        gone = self.due(time.time_ns() // 1000 if now_us is None else now_us)
        if not gone:
            return None
        if now_us is None:
            require_clock(self._tiers.hot)
        with self._batches.begun("expire", [file.file_id for file in gone]) as batch_id:
            try:
                by_shard = self._counted(batch_id, gone)
            except DamagedFile as exc:
                self._set_aside.add(exc.file_id)
                raise
        batch = self._batch(batch_id, gone, by_shard)
        self._batches.commit(batch)
        return batch

    def due(self, now_us: int) -> list[ColdFile]:
        """The files the next batch removes, the oldest day first."""
        days = self._tiers.settings.cold.retention_days
        if not days:
            return []
        before_us = cutoff_us(now_us, days=days)
        old = [
            file
            for file in self._tiers.ledger.view().files
            if file.kind == "events" and file.timestamp_max_us < before_us and file.file_id not in self._set_aside
        ]
        chosen: list[ColdFile] = []
        bytes_left = BATCH_FILES * self._tiers.settings.cold.file_bytes_max
        for file in sorted(old, key=lambda file: (file.day, file.file_id))[:FILES_MAX]:
            bytes_left -= file.file_bytes
            if chosen and bytes_left < 0:
                break
            chosen.append(file)
        return chosen

    def _counted(self, batch_id: str, files: Sequence[ColdFile]) -> dict[int, int]:
        """shard → events of these files."""
        self._reach("write")
        folder = self._batches.staging(batch_id)
        found: dict[int, int] = {}
        with self._tiers.warm.reading((), task=f"counting the events of {len(files)} files") as (con, _):
            for file in files:
                path = fetched(self._tiers, con, file, folder)
                query = f"SELECT conversation_id, count(*) FROM {relation(path)} GROUP BY conversation_id"
                for conversation_id, events in con.execute(query).fetchall():
                    shard = shard_of(conversation_id, self._tiers.settings.hot.shards)
                    found[shard] = found.get(shard, 0) + events
                path.unlink()
        self._reach("write done")
        return found

    def _batch(self, batch_id: str, gone: Sequence[ColdFile], by_shard: dict[int, int]) -> Batch:
        made_by = {file.batch_id for file in gone}
        return Batch(
            format=FORMAT,
            batch_id=batch_id,
            kind="expire",
            day=gone[0].day,
            policy_hash="",
            rate_min=min((row.rate_min for row in self._tiers.ledger.batches() if row.batch_id in made_by), default=1.0),
            events_in=sum(file.rows for file in gone),
            events_kept=0,
            removed=tuple(file.file_id for file in gone),
            files=(),
            totals=tuple(ShardTotals(shard=shard, kept=-events, erased=events) for shard, events in sorted(by_shard.items())),
            created_us=time.time_ns() // 1000,
        )
