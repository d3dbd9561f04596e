"""Compact: small files of the archive become few. batches.py has the steps and what a crash leaves; compact_plan.py says which
files, and how often a byte is rewritten.

A batch is as many groups as are due, up to 8 x cold.file_bytes_max and cold.archive_rows_max. Every input is fetched and checked
in full before it is rewritten. Event files of a day become one file with the same rows, to the bit; rollups of a kind become one
file whose rows are added up by their keys. What went in is compared with what came out: events by a sum over their rows' hashes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from thermocline.errors import TierCorrupt
from thermocline.event import FORMAT
from thermocline.tiers.batch_files import BatchFiles, Part, Staged
from thermocline.tiers.duck import Connection
from thermocline.tiers.ledger import Batch, ColdFile
from thermocline.tiers.opening import Tiers
from thermocline.tiers.parquet_file import facts_of
from thermocline.tiers.steps import Reach, unheard

from .batches import Batches
from .cold_inputs import DamagedFile, fetched, relation
from .compact_plan import Group, due_groups, hull
from .compact_source import selects, sums

BATCH_FILES: Final = 8
"""Files of full size that one batch may rewrite, about."""


class Compactor:
    """Compacts one namespace for the worker that holds `epoch`."""

    def __init__(self, tiers: Tiers, epoch: int, *, reach: Reach = unheard) -> None:
        """reach  told the name of every step before and after it"""
        self._tiers = tiers
        self._cold = tiers.settings.cold
        self._batches = Batches(tiers, epoch, reach=reach)
        self._reach = reach
        self._set_aside: set[str] = set()

    def step(self) -> Batch | None:
        """Compact what one batch may hold; None when nothing is due.

        TierUnavailable: the object store, or space on disk; the next pass tries again. TierCorrupt: a file is damaged; it is set
        aside until the worker starts again. LeaseHeld: another worker took over. In all cases readers see what they saw.
        """
        self._batches.resume()
        groups = self.due()
        if not groups:
            return None
        inputs = [file for group in groups for file in group.files]
        with self._batches.begun("compact", [file.file_id for file in inputs]) as batch_id:
            try:
                staged = self._write(batch_id, groups)
            except DamagedFile as exc:
                self._set_aside.add(exc.file_id)
                raise
            except TierCorrupt:
                self._set_aside.update(file.file_id for file in inputs)
                raise
            self._batches.upload(staged)
        batch = self._batch(batch_id, inputs, [one.file for one in staged])
        self._batches.commit(batch)
        return batch

    def due(self) -> list[Group]:
        """What the next batch rewrites."""
        return due_groups(
            self._tiers.ledger.view().files,
            files_min=self._cold.compact_files_min,
            small_bytes_max=self._cold.small_file_bytes_max,
            file_bytes_max=self._cold.file_bytes_max,
            rows_max=self._cold.archive_rows_max,
            batch_bytes_max=BATCH_FILES * self._cold.file_bytes_max,
            taken=self._set_aside,
        )

    def _write(self, batch_id: str, groups: Sequence[Group]) -> list[Staged]:
        """Write the files of a batch; its inputs are there only meanwhile."""
        self._reach("write")
        folder = self._batches.staging(batch_id)
        fetching = folder / "inputs"
        with self._tiers.warm.reading((), task=f"compacting {sum(len(group.files) for group in groups)} files") as (con, _):
            fetching.mkdir()
            paths = [[fetched(self._tiers, con, file, fetching) for file in group.files] for group in groups]
            files = BatchFiles(
                con,
                folder,
                batch_id=batch_id,
                cold_url=self._tiers.cold.url,
                ranges=hull([facts_of(path).get("thermocline.ranges", "[]") for each in paths for path in each]),
                created_us=time.time_ns() // 1000,
                bytes_max=self._cold.file_bytes_max,
            )
            for group, inputs in zip(groups, paths, strict=True):
                written = len(files.staged)
                rows = relation(*inputs)
                found = selects(con, group.kind, rows, self._tiers.settings.warm)
                files.write(Part(group.kind, select, group.day) for select in found)
                _require_same(con, group, inputs, files.staged[written:])
            shutil.rmtree(fetching)
        self._reach("write done")
        return files.staged

    def _batch(self, batch_id: str, inputs: Sequence[ColdFile], outputs: Sequence[ColdFile]) -> Batch:
        made_by = {file.batch_id for file in inputs}
        events = sum(file.rows for file in inputs if file.kind == "events")
        return Batch(
            format=FORMAT,
            batch_id=batch_id,
            kind="compact",
            day=min(file.day for file in inputs),
            policy_hash="",
            rate_min=min((row.rate_min for row in self._tiers.ledger.batches() if row.batch_id in made_by), default=1.0),
            events_in=events,
            events_kept=events,
            removed=tuple(file.file_id for file in inputs),
            files=tuple(outputs),
            totals=(),
            created_us=time.time_ns() // 1000,
        )


def _require_same(con: Connection, group: Group, inputs: Sequence[Path], outputs: Sequence[Staged]) -> None:
    """TierCorrupt unless what was written says the same as what was read; of events row by row."""
    before = sums(con, group.kind, relation(*inputs))
    after = sums(con, group.kind, relation(*(one.path for one in outputs)))
    if before != after:
        raise TierCorrupt(
            f"compacting {len(group.files)} files of {group.kind}: {before} went in, {after} came out; nothing was changed: "
            "check memory and disk, then run `thermocline verify --deep`"
        )
