"""Status and verification as rows and lines of text."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from .output import bytes_text

if TYPE_CHECKING:
    from thermocline.archiver.archive_pass import PassReport
    from thermocline.archiver.recover import Recovery
    from thermocline.archiver.verify import Verification
    from thermocline.archiver.worker import WorkReport
    from thermocline.demo import Counts
    from thermocline.query.status import ScrubStatus, Status

TIER_COLUMNS: Final = ("tier", "events", "files", "bytes", "bytes per event")
SUM_COLUMNS: Final = ("appended", "= hot", "+ warm", "+ kept", "+ sampled out", "+ erased", "+ rejected", "+ lost")


def tier_rows(found: Status) -> Iterator[tuple[object, ...]]:
    """A row per tier, in the order of TIER_COLUMNS."""
    for tier in found.tiers:
        each = round(tier.bytes / tier.events) if tier.events else None
        yield tier.tier, tier.events, None if tier.tier == "hot" else tier.files, bytes_text(tier.bytes), each


def cached_line(found: Status) -> str:
    return f"Cached: Redis still has {found.cached.events:,} of the settled events ({bytes_text(found.cached.bytes)})."


def status_lines(found: Status) -> Iterator[str]:
    """What the table of tiers does not say."""
    yield cached_line(found)
    redis = found.redis
    bound = f" of {bytes_text(redis.bytes_max)}" if redis.bytes_max else ""
    yield f"Redis {redis.version} at {redis.url}: {bytes_text(redis.used_bytes)}{bound} used; durability: {redis.durability}."
    if found.oldest_unsettled_s is not None:
        yield f"The oldest event that has not settled waits {found.oldest_unsettled_s:,.0f} s."
    if found.kept is not None:
        copies = f"{files_text(found.kept.files)} ({bytes_text(found.kept.bytes)})"
        yield f"Of the cold tier, {copies} are kept here until {_day(found.kept.until_us)}: `thermocline rehydrate --list`."
    if found.overdue is not None:
        yield f"Events of {found.overdue.oldest_day} on are older than the warm window and wait to be archived."
    if found.scrub is not None:
        yield scrub_line(found.scrub)
    if found.worker is not None and found.worker.get("mirrored_us"):
        yield mirror_line(found.worker)
    if found.rejected or found.lost:
        yield f"{found.rejected:,} events rejected, {found.lost:,} declared lost."
    yield f"Health of {found.namespace}: {found.health}."
    for reason in found.reasons:
        yield f"  {reason}"


def scrub_line(found: ScrubStatus) -> str:
    """How far reading everything again has come."""
    aside = (
        f"; {files_text(found.quarantined)} ({bytes_text(found.quarantined_bytes)}) in quarantine" if found.quarantined else ""
    )
    damaged = f"{found.damaged:,} damaged" if found.damaged else "nothing damaged"
    return f"Last scrubbed {_minute(found.passed_us)}, everything since {_minute(found.oldest_us)}: {damaged}{aside}."


def mirror_line(said: dict[str, Any]) -> str:
    """How far the mirror is, by what the worker last said."""
    waiting = said.get("mirror_waiting", 0)
    behind = (
        f"{_count(waiting, 'segment')} ({bytes_text(said['mirror_waiting_bytes'])}) wait" if waiting else "all segments are in it"
    )
    return f"Mirror: as of {_minute(said['mirrored_us'])}, {said['mirror_lag_s']:,.0f} s behind; {behind}."


def work_line(report: WorkReport) -> str:
    """What a pass of the worker did."""
    parts = []
    if report.settled_events:
        parts.append(f"settled {_count(report.settled_events, 'event')} ({_count(report.segments, 'segment')})")
    if report.rejected_events:
        parts.append(f"rejected {report.rejected_events:,} of them")
    if report.merges:
        parts.append(f"merged {_count(report.merged_events, 'event')}")
    if report.archived_events:
        kept = f"{report.archived_kept:,} of them kept in {_count(report.archived_files, 'file')}"
        parts.append(f"archived {_count(report.archived_events, 'event')} ({kept})")
    if report.compacted_files:
        parts.append(f"compacted {_count(report.compacted_files, 'file')} of the archive")
    if report.expired_events:
        parts.append(f"expired {_count(report.expired_events, 'event')}")
    if report.removed_objects:
        parts.append(f"removed {_count(report.removed_objects, 'object')} of the archive")
    if report.trimmed_blocks:
        parts.append(f"trimmed {_count(report.trimmed_blocks, 'block')}")
    if report.purged_files:
        parts.append(f"purged {_count(report.purged_files, 'file')}")
    return ", ".join(parts) or "nothing to do"


def pass_line(report: PassReport) -> str:
    """What a pass of the archive did."""
    kept = f"{report.kept:,} of them kept in {_count(report.files, 'file')}"
    batches = "" if report.batches == 1 else f", {report.batches:,} batches"
    return f"archived {_count(report.events, 'event')} ({kept}{batches})"


def compacted_line(report: PassReport) -> str:
    """What a pass of compacting did."""
    return f"{files_text(report.files_removed)} of the archive became {report.files:,}"


def files_text(count: int) -> str:
    return _count(count, "file")


def share_text(part: int, whole: int) -> str:
    """A part as percents of the whole; nothing when there is no whole."""
    if not whole:
        return ""
    share = 100 * part / whole
    return f"{share:.0f} %" if share >= 10 or not part else f"{share:.1f} %"


def statistics_line(found: Counts) -> str:
    """What became of the statistics when events were sampled."""
    if found.in_statistics != found.appended:
        return f"hourly_stats counts {found.in_statistics:,} of {found.appended:,} events: run `thermocline verify --deep`."
    gone = f", although {found.sampled_out:,} of them were sampled out" if found.sampled_out else ""
    return f"Statistics stay exact: hourly_stats counts {found.in_statistics:,} events, all that were appended{gone}."


def recovery_lines(found: Recovery) -> Iterator[str]:
    """What recovering found and did."""
    yield f"The ledger lists {_count(found.segments, 'segment')} with {_count(found.rows, 'event')} again."
    if found.batches:
        yield f"Batches of the archive listed with them: {found.batches:,}."
    if found.ledger_aside:
        yield f"The old one is now {found.ledger_aside}."
    if found.dropped:
        yield f"{_count(len(found.dropped), 'segment')} whose events others hold went to trash/."
    yield from (f"Not readable, left where it is: {problem}" for problem in found.unreadable)
    yield "`thermocline verify --deep` proves it."


def _day(us: int) -> str:
    return f"{dt.datetime.fromtimestamp(us / 1e6, dt.UTC):%Y-%m-%d}"


def _minute(us: int) -> str:
    return f"{dt.datetime.fromtimestamp(us / 1e6, dt.UTC):%Y-%m-%d %H:%M}"


def _count(number: int, unit: str) -> str:
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def sum_row(found: Verification) -> tuple[int, ...]:
    """The conservation sum over all shards, in the order of SUM_COLUMNS."""
    names = ("appended", "hot", "warm", "kept", "sampled_out", "erased", "rejected", "lost")
    return tuple(sum(getattr(shard, name) for shard in found.shards) for name in names)


def verdict_lines(found: Verification) -> Iterator[str]:
    """What the sums and files come to, and each problem."""
    rows = f"{found.rows:,} rows{', every one read' if found.deep else ''}"
    files = f", {found.files:,} archived files" if found.files else ""
    looked = f"{len(found.shards)} shards, {found.segments:,} segments{files}, {rows}"
    if found.ok:
        yield f"Every sum closes: {looked}."
    else:
        yield f"{len(found.problems)} problems in {looked}:"
    for problem in found.problems:
        yield f"  {problem}"
    for loss in found.losses:
        yield f"  declared lost: {loss.events:,} events of shard {loss.shard} ({loss.reason})"
