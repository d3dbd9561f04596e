"""What one pass of the worker tells: how far it is, and what it did."""

from __future__ import annotations

import msgspec


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far `once` is: `total` is 0 where it is not known before."""

    step: str
    """settle, merge, archive, tidy or purge."""
    done: int
    total: int


class WorkReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `once` did."""

    settled_events: int = 0
    """Rejected ones included."""
    rejected_events: int = 0
    segments: int = 0
    """Written by settle."""
    merges: int = 0
    merged_events: int = 0
    trimmed_blocks: int = 0
    archived_events: int = 0
    """Moved to the cold tier, those that were sampled out included."""
    archived_kept: int = 0
    """Of them, those that are in its files."""
    archived_files: int = 0
    compacted_files: int = 0
    """Small files of the archive that became few."""
    expired_events: int = 0
    """Archived events that were older than cold.retention_days."""
    removed_objects: int = 0
    """Of the cold tier, that nothing needed any more."""
    purged_files: int = 0
    left_events: int = 0
    """Of those that were there at the start: not settled, because Redis did not have them on disk in time or warm is full."""
    problem: str | None = None
    """Why something was left."""

    def plus(self, **counts: int) -> WorkReport:
        """The report with so many more of each."""
        return msgspec.structs.replace(self, **{name: getattr(self, name) + more for name, more in counts.items()})

    def with_problem(self, problem: str) -> WorkReport:
        """The report with one more reason why something was left."""
        return msgspec.structs.replace(self, problem="; ".join([*filter(None, [self.problem]), problem]))
