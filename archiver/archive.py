"""Archive: move what is older than the warm window into sampled Parquet files. batches.py has the steps and what a crash leaves.

A batch is as many segments as have due events, up to a bound. Its events become one file or more for each UTC day, sampled by
the policy; its rollups and decisions, made before sampling from all its events, one file of each kind. Events of its segments
that are too young are written again as segments of their own, which are listed in the same ledger transaction.

With a mirror, only what its newest snapshot has is archived, and segments of young events are copied to it before the batch is
published. So, if the disk is lost, there is a file for everything up to the snapshot that is not in the archive, and Redis has
the rest: an archive that is ahead of the snapshot leaves no gap.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import msgspec

from thermocline.errors import TierCorrupt
from thermocline.event import FORMAT
from thermocline.tiers.batch_files import BatchFiles
from thermocline.tiers.block import shard_of
from thermocline.tiers.checksum import hash_sum
from thermocline.tiers.ledger import Batch, Segment, ShardTotals
from thermocline.tiers.opening import Tiers
from thermocline.tiers.segment_ranges import merged_ranges
from thermocline.tiers.steps import Reach, unheard

from .archive_plan import cutoff_us, due_segments
from .archive_source import ArchiveSource
from .batches import Batches
from .clocks import require_clock
from .mirror import Mirrorer
from .moves import rest_move_id


class Archiver:
    """Archives one namespace for the worker that holds `epoch`."""

    def __init__(self, tiers: Tiers, epoch: int, *, mirror: Mirrorer | None = None, reach: Reach = unheard) -> None:
        """mirror  of warm.mirror, if that is set: what its newest snapshot lacks is not archived
        reach   told the name of every step before and after it
        """
        self._tiers = tiers
        self._mirror = mirror
        self._settings = tiers.settings
        self._batches = Batches(tiers, epoch, reach=reach)
        self._reach = reach
        self._set_aside: set[str] = set()

    def step(self, *, before_us: int | None = None) -> Batch | None:
        """Archive one batch; None when nothing is due.

        before_us  events with an earlier timestamp are due, whole UTC days; default: what is older than the warm window

        TierUnavailable: the object store, space on disk, or a wrong clock; the next pass tries again. TierCorrupt: an input is
        damaged; its segments are set aside until the worker starts again. LeaseHeld: another worker took over.
        """
        self._batches.resume()
        by_age = before_us is None
        if before_us is None:
            before_us = cutoff_us(time.time_ns() // 1000, days=self._settings.warm.window_days)
        inputs = self.due(before_us)
        if not inputs:
            return None
        if by_age:
            require_clock(self._tiers.hot)
        batch_id = self._batches.begin("archive", [one.segment_id for one in inputs])
        try:
            batch = self._write(batch_id, inputs, before_us)
        except BaseException as exc:
            if isinstance(exc, TierCorrupt):
                self._set_aside.update(one.segment_id for one in inputs)
            if isinstance(exc, Exception):
                self._batches.give_up(batch_id)
            raise
        self._batches.commit(batch)
        return batch

    def due(self, before_us: int) -> list[Segment]:
        """The segments the next batch is made of."""
        cold = self._settings.cold
        return due_segments(
            self._tiers.ledger.view().segments,
            before_us,
            rest_rows_max=cold.remainder_rows_max,
            rows_max=cold.archive_rows_max,
            taken=self._set_aside | (self._mirror.lacking() if self._mirror is not None else set()),
        )

    def _write(self, batch_id: str, inputs: Sequence[Segment], before_us: int) -> Batch:
        """Write and upload the files of a batch."""
        now_us = time.time_ns() // 1000
        self._reach("write")
        rest = self._tiers.warm.write_rest(
            inputs,
            from_us=before_us,
            level=max(one.level for one in inputs),
            move_id=rest_move_id(batch_id),
            created_us=now_us,
            reach=self._reach,
        )
        if self._mirror is not None:
            for one in rest:
                self._mirror.copy(one)
        with ArchiveSource(self._tiers, inputs, before_us) as source:
            by_conversation = source.counted()
            _require_split(inputs, rest, by_conversation.rows, by_conversation.hashes)
            events_in = self._by_shard(by_conversation.events)
            ranges = merged_ranges(inputs, events_in)
            files = BatchFiles(
                source.con,
                self._batches.staging(batch_id),
                batch_id=batch_id,
                cold_url=self._tiers.cold.url,
                ranges=_shown([(one.shard, str(one.after), str(one.upto)) for one in ranges]),
                created_us=now_us,
                bytes_max=self._settings.cold.file_bytes_max,
            )
            policy = self._settings.policy
            files.write(source.parts(policy, self._settings))
            kept = self._by_shard(source.kept(files))
            rate_min = source.rate_min()
        self._reach("write done")
        self._batches.upload(files.staged)
        found = [one.file for one in files.staged]
        return Batch(
            format=FORMAT,
            batch_id=batch_id,
            kind="archive",
            day=min(file.day for file in found),
            policy_hash=policy.hash,
            rate_min=rate_min,
            events_in=sum(events_in.values()),
            events_kept=sum(kept.values()),
            inputs=tuple(one.segment_id for one in inputs),
            rest=tuple(rest),
            files=tuple(found),
            totals=tuple(
                ShardTotals(shard=shard, kept=kept.get(shard, 0), sampled_out=events - kept.get(shard, 0))
                for shard, events in sorted(events_in.items())
            ),
            ranges=ranges,
            created_us=now_us,
        )

    def _by_shard(self, by_conversation: Mapping[str, int]) -> dict[int, int]:
        found: dict[int, int] = {}
        for conversation_id, events in by_conversation.items():
            shard = shard_of(conversation_id, self._settings.hot.shards)
            found[shard] = found.get(shard, 0) + events
        return found


def _require_split(inputs: Sequence[Segment], rest: Sequence[Segment], rows: int, hashes: int) -> None:
    """TierCorrupt unless due rows and rest are exactly the rows of the inputs: count and sum of hashes."""
    total = sum(one.rows for one in inputs)
    left = rows + sum(one.rows for one in rest)
    comparable = len({one.checksum.partition(":")[0] for one in (*inputs, *rest)}) == 1
    sums = [sum(hash_sum(one.checksum) for one in inputs), hashes + sum(hash_sum(one.checksum) for one in rest)]
    if total != left or (comparable and sums[0] != sums[1]):
        raise TierCorrupt(
            f"archiving {', '.join(one.segment_id for one in inputs)}: {left} rows came out of {total}, or others; "
            "the segments are unchanged; run `thermocline verify --deep` to find the damaged one"
        )


def _shown(ranges: Sequence[tuple[int, str, str]]) -> str:
    return msgspec.json.encode(ranges).decode()
