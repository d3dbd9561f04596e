"""Trim: drop from Redis what has settled, and tell every shard what is settled, which is what its back-pressure counts.

What settled less than `log_grace_s` ago stays: a reader under way may still page through it. After that it stays for the cache
window, while the budget of all logs (`log_bytes_max`) lasts; what is settled gives way first, the oldest before the newest. How
long ago something settled is known from positions this worker noted by its own monotonic clock, never from a wall clock. A worker
that just started knows nothing yet and trims later. What a group of consumers still needs stays too, for a while (holds.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from thermocline.config import HotSettings
from thermocline.tiers.block import Position
from thermocline.tiers.groups import Groups
from thermocline.tiers.hot import ShardCut
from thermocline.tiers.ledger import ShardState
from thermocline.tiers.opening import Tiers
from thermocline.tiers.steps import Reach, named, unheard

from .holds import Holds

NOTES_MAX = 512


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What had settled at one moment."""

    at_s: float
    positions: tuple[Position, ...]
    bytes: tuple[int, ...]


def due_positions(notes: Sequence[Note], cut: Sequence[ShardCut], now_s: float, settings: HotSettings) -> list[Position | None]:
    """Up to where each shard's log is dropped now; None where nothing is. Pure.

    notes  oldest first
    cut    what Redis holds, by shard
    now_s  by the clock of the notes
    """
    graced = [note for note in notes if now_s - note.at_s >= settings.log_grace_s]
    if not graced:
        return [None] * len(cut)
    aged = [note for note in graced if now_s - note.at_s >= settings.cache_window_s]
    chosen = aged[-1] if aged else None
    if _kept_bytes(chosen, cut) > settings.log_bytes_max:
        younger = graced[len(aged) :]
        chosen = next((note for note in younger if _kept_bytes(note, cut) <= settings.log_bytes_max), graced[-1])
    due: list[Position | None] = []
    for shard, one in enumerate(cut):
        crowded = 2 * one.entries >= settings.unsettled_blocks_max
        note = graced[-1] if crowded else chosen
        due.append(note.positions[shard] if note is not None and note.positions[shard] > one.trimmed else None)
    return due


def _kept_bytes(note: Note | None, cut: Sequence[ShardCut]) -> int:
    """Payload left in all logs if they were dropped up to `note`."""
    if note is None:
        return sum(one.bytes_total - one.trimmed_bytes for one in cut)
    return sum(one.bytes_total - max(one.trimmed_bytes, note.bytes[shard]) for shard, one in enumerate(cut))


class Trimmer:
    """Trims the logs of one namespace for its worker."""

    def __init__(self, tiers: Tiers, *, monotonic: Callable[[], float] = time.monotonic, reach: Reach = unheard) -> None:
        """reach  told the name of every step before and after it"""
        self._tiers = tiers
        self._reach = reach
        self._settings = tiers.settings.hot
        self._monotonic = monotonic
        self._groups = Groups(tiers.hot)
        self._holds = Holds(self._settings)
        self._notes: list[Note] = []
        self._told: dict[int, tuple[int, int, int]] = {}

    def step(self) -> int:
        """One pass; entries dropped. Safe to repeat: only what the ledger says is settled is ever dropped."""
        states = self._tiers.ledger.view().shards
        self._note(states)
        cut = self._tiers.hot.cut()
        due = self._unheld(due_positions(self._notes, cut, self._monotonic(), self._settings), cut)
        return sum(self._trim(one, state, upto, cut, states) for one, state, upto in zip(cut, states, due, strict=True))

    def over_budget(self) -> bool:
        """Whether the logs hold more than they should, so that waiting for the log grace is worth it."""
        cut = self._tiers.hot.cut()
        return self._is_full(cut)

    def _is_full(self, cut: Sequence[ShardCut]) -> bool:
        return _kept_bytes(None, cut) > self._settings.log_bytes_max or any(
            2 * one.entries >= self._settings.unsettled_blocks_max for one in cut
        )

    def _unheld(self, due: list[Position | None], cut: Sequence[ShardCut]) -> list[Position | None]:
        """`due` without what groups of consumers still need."""
        if not any(due):
            return due
        holds = self._groups.holds()
        if not holds:
            return due
        now_ms = self._tiers.hot.facts().now_us // 1000
        limited = self._holds.limited(due, holds, now_s=self._monotonic(), now_ms=now_ms, full=self._is_full(cut))
        return [upto if upto is not None and upto > one.trimmed else None for upto, one in zip(limited, cut, strict=True)]

    def forget(self) -> None:
        """Tell every shard again at the next pass: Redis was restarted and may have forgotten."""
        self._told.clear()

    def _note(self, states: Sequence[ShardState]) -> None:
        positions = tuple(state.position for state in states)
        if self._notes and self._notes[-1].positions == positions:
            return
        self._notes.append(Note(at_s=self._monotonic(), positions=positions, bytes=tuple(state.bytes for state in states)))
        if len(self._notes) > NOTES_MAX:  # a note left out only makes what it covered stay a little longer
            half = NOTES_MAX // 2
            self._notes = self._notes[:half:2] + self._notes[half:]

    def _trim(
        self, one: ShardCut, state: ShardState, upto: Position | None, cut: Sequence[ShardCut], states: Sequence[ShardState]
    ) -> int:
        others = sum(
            max(0, other.bytes_total - settled.bytes)
            for other, settled in zip(cut, states, strict=True)
            if other.shard != one.shard
        )
        telling = (state.events, state.bytes, others)
        if upto is None and self._told.get(one.shard) == telling:
            return 0
        with named(self._reach, "trim"):
            dropped = self._tiers.hot.trim(
                one.shard, upto, settled_events=state.events, settled_bytes=state.bytes, others_bytes=others
            )
        self._told[one.shard] = telling
        return dropped
