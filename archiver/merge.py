"""Merge: write several segments again as fewer, larger, sorted ones with rollups.

Steps, and what a crash leaves after each:

1. write every output under a temporary name, rename it    orphans, purged after the grace
2. one ledger transaction: outputs in, inputs to the trash  done; the files of the inputs stay for the purge grace

Until 2 the inputs are live, from 2 on the outputs. A merge that a crash cut short is planned again from the ledger.
"""

from __future__ import annotations

import time

import msgspec
import uuid_utils

from thermocline.errors import TierCorrupt
from thermocline.tiers.opening import Tiers
from thermocline.tiers.steps import Reach, named, unheard

from .plan import due_merges


class Merged(msgspec.Struct, frozen=True, kw_only=True):
    """One merge that was done."""

    inputs: int
    outputs: int
    rows: int
    level: int


class Merger:
    """Merges the segments of one namespace for the worker that holds `epoch`."""

    def __init__(self, tiers: Tiers, epoch: int, *, reach: Reach = unheard) -> None:
        """reach  told the name of every step before and after it"""
        self._tiers = tiers
        self._reach = reach
        self._epoch = epoch
        self._set_aside: set[str] = set()

    def forget(self) -> None:
        """Try again what was set aside: something was mended."""
        self._set_aside.clear()

    def step(self, *, force: bool = False) -> Merged | None:
        """Do the most urgent merge; None when none is due.

        force  merge two segments of level 0 already

        TierCorrupt: an input is damaged. It is set aside until the worker starts again or something is mended, so that the others
        go on merging.
        LeaseHeld: another worker took over; nothing was changed.
        """
        now_us = time.time_ns() // 1000
        waiting = {segment_id for intent in self._tiers.ledger.intents() for segment_id in intent.inputs}
        segments = [one for one in self._tiers.ledger.view().segments if one.segment_id not in self._set_aside | waiting]
        due = due_merges(segments, now_us, self._tiers.settings.warm, level0_min=2 if force else None, merges_max=1)
        if not due:
            return None
        [merge] = due
        ids = [one.segment_id for one in merge.inputs]
        try:
            outputs = self._tiers.warm.write_merged(
                merge.inputs, level=merge.level, move_id=uuid_utils.uuid7().hex, created_us=now_us, reach=self._reach
            )
            with named(self._reach, "commit"):
                self._tiers.ledger.merged(self._epoch, ids, outputs, now_us=now_us)
        except TierCorrupt:
            self._set_aside.update(ids)
            raise
        return Merged(inputs=len(ids), outputs=len(outputs), rows=sum(one.rows for one in outputs), level=merge.level)
