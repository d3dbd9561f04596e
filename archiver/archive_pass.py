"""Passes over the archive that a person asks for: archive or compact, batch after batch until nothing is due; and forecasts."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import msgspec

from thermocline.errors import ConfigError
from thermocline.tiers.ledger import Batch, Segment
from thermocline.tiers.opening import Tiers

from .archive import Archiver
from .archive_plan import DAY_US, cutoff_us, due_segments
from .archive_source import ArchiveSource
from .care import mirror_of
from .compact import Compactor
from .lease import Lease

_ALL = 1 << 62
"""More rows than there are, and later than every event."""


class PassProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a pass is. Rows are those of segments, of which some may be too young and are written again."""

    step: str
    """What it is at: write, upload, describe, publish, commit."""
    batches: int
    """Archived so far."""
    rows: int
    rows_total: int


class PassReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a pass did, or had done when it was broken off."""

    batches: int = 0
    events: int = 0
    kept: int = 0
    files: int = 0
    """Written."""
    files_removed: int = 0
    """Replaced by them."""


class DayForecast(msgspec.Struct, frozen=True, kw_only=True):
    """What archiving would keep of a day. Bytes are those of content and metadata."""

    day: str
    events: int
    bytes: int
    events_kept: int
    bytes_kept: int


class RuleForecast(msgspec.Struct, frozen=True, kw_only=True):
    """What the policy would keep of the events of one type that one rule takes."""

    event_type: str
    rule: str
    events: int
    bytes: int
    events_kept: int
    bytes_kept: int


def before_of(day: dt.date | None, *, now_us: int, window_days: int) -> int:
    """µs since the epoch before which events are due.

    day  the first that is too young, in UTC; None: what the warm window says
    ConfigError: a day that is not here yet
    """
    if day is None:
        return cutoff_us(now_us, days=window_days)
    before_us = (day - dt.date(1970, 1, 1)).days * DAY_US
    if before_us > now_us:
        raise ConfigError(f"{day} is not here yet: only days that are over (UTC) can be archived")
    return before_us


def archive(
    tiers: Tiers,
    before_us: int,
    *,
    progress: Callable[[PassProgress], None] = lambda _: None,
    done: Callable[[PassReport], None] = lambda _: None,
) -> PassReport:
    """Take the worker's lease and archive until nothing is due.

    done  told what is archived after every batch: an error ends the pass, and what was archived until then stays

    LeaseHeld: a worker is at the namespace. Other errors are those of `Archiver.step`.
    """
    report = PassReport()
    rows = {one.segment_id: one.rows for one in due(tiers, before_us)}
    total = sum(rows.values())
    left = total

    def tell(step: str) -> None:
        progress(PassProgress(step=step.removesuffix(" done"), batches=report.batches, rows=total - left, rows_total=total))

    lease = Lease(tiers.settings.namespace_dir, tiers.ledger)
    try:
        with mirror_of(tiers) as mirrorer:
            while mirrorer is not None and mirrorer.step():
                pass
            archiver = Archiver(tiers, lease.epoch, mirror=mirrorer, reach=tell)
            while batch := archiver.step(before_us=before_us):
                left -= sum(rows.get(segment_id, 0) for segment_id in batch.inputs)
                report = _with(report, batch)
                done(report)
    finally:
        lease.release()
    return report


def compact(
    tiers: Tiers,
    *,
    progress: Callable[[PassProgress], None] = lambda _: None,
    done: Callable[[PassReport], None] = lambda _: None,
) -> PassReport:
    """Take the worker's lease and make few files of many small ones, until nothing is due. Otherwise like `archive`."""
    report = PassReport()

    def tell(step: str) -> None:
        progress(PassProgress(step=step.removesuffix(" done"), batches=report.batches, rows=0, rows_total=0))

    lease = Lease(tiers.settings.namespace_dir, tiers.ledger)
    try:
        compactor = Compactor(tiers, lease.epoch, reach=tell)
        while batch := compactor.step():
            report = _with(report, batch)
            done(report)
    finally:
        lease.release()
    return report


def due(tiers: Tiers, before_us: int) -> list[Segment]:
    """All segments a pass would archive events of, oldest first."""
    rest_rows_max = tiers.settings.cold.remainder_rows_max
    return due_segments(tiers.ledger.view().segments, before_us, rest_rows_max=rest_rows_max, rows_max=_ALL)


def held_up(tiers: Tiers, before_us: int) -> list[Segment]:
    """Segments with due events that a pass leaves alone: they have too many rows, of which some are too young."""
    ready = {one.segment_id for one in due(tiers, before_us)}
    found = tiers.ledger.view().segments
    return [one for one in found if one.timestamp_min_us < before_us and one.segment_id not in ready]


def forecast_days(tiers: Tiers, before_us: int) -> list[DayForecast]:
    """What a pass would archive and keep, by day; [] when nothing is due. Changes nothing."""
    segments = due(tiers, before_us)
    if not segments:
        return []
    with ArchiveSource(tiers, segments, before_us) as source:
        rows = source.dry_run_days(tiers.settings.policy)
    return [msgspec.convert(dict(zip(DayForecast.__struct_fields__, row, strict=True)), DayForecast) for row in rows]


def forecast_rules(tiers: Tiers, before_us: int | None) -> list[RuleForecast]:
    """What the policy would keep, by event type and rule; [] when there are no such events. Changes nothing.

    before_us  as for `archive`; None: of all that is warm, as if it were due today
    """
    segments = list(tiers.ledger.view().segments) if before_us is None else due(tiers, before_us)
    if not segments:
        return []
    with ArchiveSource(tiers, segments, _ALL if before_us is None else before_us) as source:
        rows = source.dry_run(tiers.settings.policy)
    return [
        RuleForecast(event_type=event_type, rule=rule, events=events, bytes=size, events_kept=events_kept, bytes_kept=bytes_kept)
        for event_type, rule, events, size, _, _, events_kept, bytes_kept in rows
    ]


def _with(report: PassReport, batch: Batch) -> PassReport:
    return PassReport(
        batches=report.batches + 1,
        events=report.events + batch.events_in,
        kept=report.kept + batch.events_kept,
        files=report.files + len(batch.files),
        files_removed=report.files_removed + len(batch.removed),
    )
