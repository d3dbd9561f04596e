"""What an answer rests on: the receipt every result carries. Pure."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final, Literal

import msgspec

from .receipt import Evidence, Tier

Label = Literal["exact", "estimated", "unknown"]
EXACT: Final = "exact"
SAMPLE: Final = "sample"
UNITS_TOLD: Final = {
    "conversation": "Whole conversations were sampled: for right intervals add up by conversation_id first (docs/estimates.md)",
    "unknown": "An older policy sampled some of it: if whole conversations, add up by conversation_id first (docs/estimates.md)",
}
COLUMNS_SHOWN_MAX: Final = 12
"""Of a wider answer the line does not name the columns."""


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """Where the rows of one answer came from, and what it can be trusted for.

    Rows are events in the segments and files that were read, before the query's own WHERE.
    """

    taken_at: dt.datetime
    """Every event acknowledged before this is in the answer."""
    relations: dict[str, Literal["exact", "sample"]]
    """Each relation the query could see: computed from all events, or from a sample of them."""
    cached_rows: int = 0
    """Events that Redis answered for by itself, settled or not; the tiers were not asked then."""
    hot_rows: int
    """Events not yet settled."""
    hot_newest_at: dt.datetime | None
    """When the newest of them was ingested; None when all have settled."""
    warm_rows: int
    cold_rows: int
    sampled_rows: int
    """Of `cold_rows`, those that stand for others too: their sample_rate is below 1."""
    segments_read: int
    segments_pruned: int
    files_read: int
    files_pruned: int
    rollup_files_read: int = 0
    """Of `files_read`: statistics made from all archived events before they were sampled."""
    rejected: int
    """Unsettled events that cannot be read and are in no answer; settle will set them aside."""
    lost: int
    """Acknowledged events the ledger declares lost, ever."""
    retries: int
    """Views taken and given up because data moved meanwhile."""
    lacking: str = ""
    """What rollups of the user leave out, because it was archived before they were defined; empty when they lack nothing."""
    not_pruned: str = ""
    """Why every segment was read; empty when the query's bounds were understood."""
    columns: tuple[tuple[str, Label], ...] = ()
    """(name, label) of each column of the answer. exact: what it says of its row would be the same had nothing been sampled out.
    estimated: a weighted estimate. unknown: computed from the part of the rows that was kept, or not understood."""
    units: str = ""
    """Of an answer that rests on a sample and has intervals: what was kept or dropped as one, as far as the policy in force says:
    "event", "conversation" or "unknown"."""
    cached_bytes: int = 0
    """Size of what Redis answered by itself."""
    evidence: Evidence | None = None
    """What tiers, snapshot and bounds are worked out from."""

    @property
    def exact(self) -> bool:
        """Whether nothing in the answer is an estimate."""
        return self.sampled_rows == 0 and SAMPLE not in self.relations.values() and not self.lacking

    @property
    def reason(self) -> str:
        """Why the answer is not exact; empty when it is."""
        if self.exact:
            return ""
        names = ", ".join(name for name, label in self.relations.items() if label == SAMPLE)
        if not names:
            return self.lacking
        more = f"; {self.lacking}" if self.lacking else ""
        if not self.sampled_rows:
            return (
                f"archived {names} it asks for may be sampled out: hourly_stats and conversation_summary count all of them{more}"
            )
        return f"{self.sampled_rows:,} archived rows of {names} are a sample: weigh each by 1 / sample_rate{more}"

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """What was read of each tier, what was left out and why, how large it is and how fresh."""
        if self.evidence is not None:
            return self.evidence.tiers()
        if not self.cached_rows:
            return ()
        rows, newest_at = self.cached_rows, self.hot_newest_at
        return (Tier(tier="hot", read=1, pruned={}, rows=rows, bytes=self.cached_bytes, fresh_at=newest_at),)

    @property
    def bytes(self) -> int:
        """Size of everything that was read: of files, and of the log's unsettled part."""
        return sum(tier.bytes for tier in self.tiers)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain values for JSON: times as RFC 3339 text."""
        plain = {name: getattr(self, name) for name in self.__struct_fields__ if name not in ("evidence", "columns")}
        found = {"exact": self.exact, "reason": self.reason, **plain, "bytes": self.bytes, "tiers": self.tiers}
        found["columns"] = [{"name": name, "label": label} for name, label in self.columns]
        found["snapshot"] = None if self.evidence is None else self.evidence.snapshot()
        found["bounds"] = {} if self.evidence is None else self.evidence.understood()
        return dict(msgspec.to_builtins(found))

    def _verdict(self) -> str:
        if self.exact:
            return "Exact."
        return f"Incomplete: {self.lacking}." if self.reason == self.lacking else f"An estimate: {self.reason}."

    def __str__(self) -> str:
        if self.cached_rows:
            return f"{self.cached_rows:,} events as of {_clock(self.taken_at)} UTC, all from Redis. Exact."
        events = f"{self.hot_rows + self.warm_rows + self.cold_rows:,} events"
        events += " and the rollups of archived ones" if self.rollup_files_read else ""
        parts = [f"{events} as of {_clock(self.taken_at)} UTC"]
        parts.append(f"{self.hot_rows:,} hot" + (f" (newest {_clock(self.hot_newest_at)})" if self.hot_newest_at else ""))
        parts.append(f"{self.warm_rows:,} warm in {_of(self.segments_read, self.segments_pruned, 'segment')}")
        if self.rollup_files_read == self.files_read > 0:
            parts.append(f"all archived ones in {_of(self.files_read, self.files_pruned, 'file')}")
        elif self.files_read or self.files_pruned:
            parts.append(f"{self.cold_rows:,} cold in {_of(self.files_read, self.files_pruned, 'file')}")
        text = f"{parts[0]}: {', '.join(parts[1:])}. {self._verdict()}"
        text += self._labelled()
        if self.units in ("conversation", "unknown"):
            text += f" {UNITS_TOLD[self.units]}."
        if self.not_pruned:
            text += f" Nothing pruned: {self.not_pruned}."
        if self.rejected:
            text += f" {self.rejected:,} unsettled events cannot be read and are left out."
        if self.lost:
            text += f" {self.lost:,} acknowledged events are declared lost."
        if self.retries:
            text += f" Data moved meanwhile: view {self.retries + 1}."
        return text

    def _labelled(self) -> str:
        """The columns that are not exact; all estimated ones first."""
        if self.exact or len(self.columns) > COLUMNS_SHOWN_MAX:
            return ""
        parts = []
        for wanted in ("estimated", "unknown"):
            names = [name for name, label in self.columns if label == wanted]
            parts += [f"{wanted.capitalize()}: {', '.join(names)}"] if names else []
        return f" {'. '.join(parts)}." if parts else ""


def _of(read: int, pruned: int, unit: str) -> str:
    total = read + pruned
    return f"{read} of {total} {unit}{'' if total == 1 else 's'}"


def _clock(at: dt.datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}"
