"""Which seqs a reader that follows does not get, and why: told of as a Gap in the place where they are missing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from thermocline.tiers.block import ERA_SEQ_STEP
from thermocline.tiers.ledger import ShardTotals, View

CONVERSATIONS_MAX: Final = 100_000
"""Whose last seq is remembered; of others it is looked up when there may be a gap."""
Reason = Literal["sampled_out", "expired", "lost", "rejected", "unknown"]


class Gap(NamedTuple):
    """Events of one conversation that are not in the store: `from_seq` to `to_seq`, both included."""

    conversation_id: str
    from_seq: int
    to_seq: int
    reason: Reason
    """sampled_out: the archive kept a sample. expired: archived, and older than cold.retention_days. lost: numbers that a Redis
    which came back older, or was wiped, may have given. rejected: lines that cannot be read (`rejected/`). unknown: none of
    these; run `thermocline verify`."""
    position: str
    """Resumes after it."""


class Continuity:
    """The last seq of the conversations that were met. Not thread-safe."""

    def __init__(self) -> None:
        self._last: OrderedDict[str, int] = OrderedDict()

    def known(self, conversation_id: str) -> int | None:
        return self._last.get(conversation_id)

    def note(self, conversation_id: str, seq: int) -> None:
        """Everything up to `seq` was read or told of."""
        self._last[conversation_id] = seq
        self._last.move_to_end(conversation_id)
        if len(self._last) > CONVERSATIONS_MAX:
            self._last.popitem(last=False)

    def unknown(self, met: Sequence[tuple[str, int]]) -> dict[str, int]:
        """conversation → first seq met, of those whose event before it is neither known nor there at all."""
        found: dict[str, int] = {}
        for conversation_id, seq in met:
            if conversation_id not in self._last and conversation_id not in found:
                found[conversation_id] = seq
        return {name: seq for name, seq in found.items() if seq > 1}


def may_lack(view: View, shard: int) -> bool:
    """Whether events of the shard that have settled may be gone."""
    state, totals = view.shards[shard], _totals(view, shard)
    return bool(state.rejected or state.era or totals.sampled_out or totals.erased)


def reason_of(view: View, conversation_id: str, shard: int, from_seq: int, to_seq: int, *, first: bool) -> Reason:
    """Why events of a conversation that have settled are gone, as far as the ledger tells.

    first  whether no event from before the gap is there
    """
    state, totals = view.shards[shard], _totals(view, shard)
    if state.era and to_seq - from_seq + 1 >= ERA_SEQ_STEP:
        return "lost"
    archived = any(
        file.kind == "rollup_hourly" and file.conversation_min <= conversation_id <= file.conversation_max for file in view.files
    )
    if archived and totals.erased and (first or not totals.sampled_out):
        return "expired"
    if archived and totals.sampled_out:
        return "sampled_out"
    return "rejected" if state.rejected else "lost" if state.era else "unknown"


def _totals(view: View, shard: int) -> ShardTotals:
    return next((totals for totals in view.totals if totals.shard == shard), ShardTotals(shard=shard))
