"""The parts of the worker's one pass that need another store: what cannot be used there is the report's problem, not an error."""

from __future__ import annotations

from collections.abc import Callable

from thermocline.errors import ConfigError, TierCorrupt, TierUnavailable

from .archive import Archiver
from .care import Care
from .tidy import Tidier
from .work_report import Progress, WorkReport


def archive_all(archiver: Archiver, report: WorkReport, tell: Callable[[Progress], None]) -> WorkReport:
    """Archive what is due."""
    try:
        while batch := archiver.step():
            report = report.plus(
                archived_events=batch.events_in, archived_kept=batch.events_kept, archived_files=len(batch.files)
            )
            tell(Progress(step="archive", done=report.archived_events, total=0))
    except (TierUnavailable, ConfigError) as exc:
        report = report.with_problem(f"nothing more was archived: {exc}")
    return report


def tidy_all(tidier: Tidier, report: WorkReport, tell: Callable[[Progress], None]) -> WorkReport:
    """Compact, expire and clean the archive."""
    try:
        while batch := tidier.rewrite():
            report = report.plus(
                compacted_files=len(batch.removed) if batch.files else 0, expired_events=batch.events_in - batch.events_kept
            )
            tell(Progress(step="tidy", done=report.compacted_files, total=0))
        report = report.plus(removed_objects=tidier.clean().removed)
    except (TierUnavailable, ConfigError) as exc:
        report = report.with_problem(f"the archive was not tidied: {exc}")
    return report


def mirror_all(care: Care, report: WorkReport, tell: Callable[[Progress], None]) -> WorkReport:
    """Copy what the mirror lacks; nothing without one."""
    done = 0
    try:
        while care.mirror():
            done += 1
            tell(Progress(step="mirror", done=done, total=0))
    except (TierUnavailable, TierCorrupt, ConfigError) as exc:
        report = report.with_problem(f"not everything was mirrored: {exc}")
    return report
