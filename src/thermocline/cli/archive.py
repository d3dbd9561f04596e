"""The cold tier: `archive`, `archives`, `sample`, `compact`, `rehydrate`."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Form, FormOption, settings_of
from .output import bytes_text, note, write_report, write_rows
from .reports import compacted_line, files_text, pass_line, share_text

if TYPE_CHECKING:
    from thermocline.archiver.archive_pass import DayForecast, PassReport, RuleForecast
    from thermocline.tiers.opening import Tiers

app = typer.Typer(help="See what is archived.", no_args_is_help=True)

BATCH_COLUMNS = ("batch", "kind", "day", "events_in", "kept", "rate_min", "files", "bytes", "committed_at")
FILE_COLUMNS = ("kind", "day", "rows", "bytes", "url")
DAYS_MAX = 36_500
ID_CHARACTERS_MIN = 8
"""Of a batch's id, those a table shows at least: as many as tell it from all others."""


def _day(text: str) -> dt.date:
    """The first day that is too young."""
    try:
        if text.isascii() and text.isdecimal():
            return dt.datetime.now(dt.UTC).date() - dt.timedelta(days=int(text))
        return dt.date.fromisoformat(text)
    except (ValueError, OverflowError) as exc:
        raise typer.BadParameter(f"{text!r} is neither a number of days nor a day like 2026-11-13") from exc


OlderThan = Annotated[
    dt.date | None,
    typer.Option(
        parser=_day,
        metavar="DAYS|DATE",
        help="What is due instead of warm.window_days: days older than this (0: all but today), or before this day, UTC.",
    ),
]


def archive(
    context: typer.Context,
    older_than: OlderThan = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be archived and kept, by day.")] = False,
    once: Annotated[bool, typer.Option("--once", help="One pass, until nothing is due: the default.")] = False,
    output: FormOption = Form.table,
) -> None:
    """Archive the days that are due.

    Their events become sampled Parquet files with exact statistics. The worker does the same by itself and must not run
    meanwhile; --dry-run changes nothing and may be used any time.
    """
    from thermocline.archiver.archive_pass import archive as archive_due
    from thermocline.archiver.archive_pass import before_of, forecast_days
    from thermocline.tiers.opening import open_tiers

    from .progress import pass_progress

    settings = settings_of(context)
    before_us = before_of(older_than, now_us=time.time_ns() // 1000, window_days=settings.warm.window_days)
    with open_tiers(settings) as tiers:
        if dry_run:
            _write_days(forecast_days(tiers, before_us), output)
            _note_left(tiers, before_us)
            return
        with pass_progress("archiving") as show:
            _run(lambda done: archive_due(tiers, before_us, progress=show, done=done), pass_line)
        _note_left(tiers, before_us)


def compact(context: typer.Context) -> None:
    """Make few files of the archive's many small ones.

    As far as it is due: cold.compact_files_min of them. The worker does the same by itself and must not run meanwhile.
    """
    from thermocline.archiver.archive_pass import compact as compact_due
    from thermocline.tiers.opening import open_tiers

    from .progress import pass_progress

    with open_tiers(settings_of(context)) as tiers, pass_progress("compacting") as show:
        _run(lambda done: compact_due(tiers, progress=show, done=done), compacted_line)


def _run(act: Callable[[Callable[[PassReport], None]], object], line: Callable[[PassReport], str]) -> None:
    """Make a pass, and say what it did, also when an error ended it half-way."""
    reports: list[PassReport] = []
    try:
        act(reports.append)
    finally:
        if reports:
            note(line(reports[-1]))
    if not reports:
        note("nothing is due")


def sample(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Needed: sampling itself is what `archive` does.")] = False,
    older_than: OlderThan = None,
    every: Annotated[bool, typer.Option("--all", help="All that is warm, as if it were due today.")] = False,
    output: FormOption = Form.table,
) -> None:
    """Show what sampling would keep, by event type and rule.

    Of the events that are due. Nothing is changed.
    """
    from thermocline.archiver.archive_pass import before_of, forecast_rules
    from thermocline.tiers.opening import open_tiers

    if not dry_run:
        raise typer.BadParameter("sampling happens in `thermocline archive`: repeat with --dry-run to see what it would keep")
    if every and older_than is not None:
        raise typer.BadParameter("give either --all or --older-than", param_hint="--all")
    settings = settings_of(context)
    before_us = before_of(older_than, now_us=time.time_ns() // 1000, window_days=settings.warm.window_days)
    with open_tiers(settings) as tiers:
        _write_rules(forecast_rules(tiers, None if every else before_us), output)
        _note_left(tiers, None if every else before_us)


@app.callback()
def archives() -> None:
    """See what is archived."""


@app.command("list")
def list_(context: typer.Context, output: FormOption = Form.table) -> None:
    """List the batches of the archive, oldest first.

    A table shows the beginning of their ids, which `archives show` takes.
    """
    from thermocline.archiver.archived import batches
    from thermocline.tiers.opening import open_tiers

    with open_tiers(settings_of(context)) as tiers:
        found = batches(tiers)
    rows = [
        (
            one.batch_id,
            one.kind,
            one.day,
            one.events_in,
            one.events_kept,
            one.rate_min,
            one.files,
            one.bytes,
            _at(one.committed_us),
        )
        for one in found
    ]
    if output is Form.table:
        size = _told_apart([one.batch_id for one in found])
        shown = [
            (one.batch_id[:size], *row[1:5], f"{one.rate_min:.2f}", one.files, bytes_text(one.bytes), f"{row[8]:%Y-%m-%d}")
            for one, row in zip(found, rows, strict=True)
        ]
        write_report(shown, ("batch", "kind", "day", "events", "kept", "rate", "files", "bytes", "committed"))
    else:
        _write_values(rows, BATCH_COLUMNS, output)


@app.command()
def show(
    context: typer.Context,
    batch: Annotated[str, typer.Argument(metavar="BATCH", help="Its id, or the beginning of it.")],
    output: FormOption = Form.table,
) -> None:
    """Show the files of a batch."""
    from thermocline.archiver.archived import files_of
    from thermocline.tiers.opening import open_tiers

    with open_tiers(settings_of(context)) as tiers:
        found = files_of(tiers, batch)
    rows = [(file.kind, file.day, file.rows, file.file_bytes, file.url) for file in found]
    if output is Form.table:
        write_report([(*row[:3], bytes_text(row[3]), row[4]) for row in rows], FILE_COLUMNS)
    else:
        _write_values(rows, FILE_COLUMNS, output)
    if not rows:
        note("all its files were replaced by later batches")


def rehydrate(
    context: typer.Context,
    what: Annotated[
        str | None,
        typer.Argument(metavar="DAY|CONVERSATION", help="A UTC day like 2026-11-13, or a conversation_id.", show_default=False),
    ] = None,
    days: Annotated[float, typer.Option("--for", metavar="DAYS", min=0, help="How long the copies are kept.")] = 7,
    listed: Annotated[bool, typer.Option("--list", help="Show the copies that are kept.")] = False,
    output: FormOption = Form.table,
) -> None:
    """Make local copies of archived events.

    Those of a day or of a conversation, kept for a while, so that queries do not wait for S3.
    """
    from thermocline.archiver.rehydrate import rehydrate as copy_events
    from thermocline.tiers.opening import open_tiers

    if listed == (what is not None):
        raise typer.BadParameter("give either a day, a conversation or --list", param_hint="DAY|CONVERSATION")
    now_us = time.time_ns() // 1000
    with open_tiers(settings_of(context)) as tiers:
        if what is None:
            _write_copies(tiers, now_us, output)
            return
        until_us = now_us + int(min(days, DAYS_MAX) * 86_400_000_000)
        found = copy_events(tiers, what, until_us=until_us)
    if not found.files:
        note(f"nothing is archived of {what}")
    elif found.is_local:
        note(f"{files_text(found.files)} with {bytes_text(found.bytes)}: local already, the cold tier is a folder")
    else:
        until = f"{_at(until_us):%Y-%m-%d %H:%M}"
        note(f"{files_text(found.files)} with {bytes_text(found.bytes)}: copied, and kept until {until} UTC")


def _write_copies(tiers: Tiers, now_us: int, form: Form) -> None:
    from thermocline.archiver.rehydrate import kept_copies

    rows = [(one.day, one.rows, one.bytes, _at(one.until_us), one.key) for one in kept_copies(tiers, now_us=now_us)]
    columns = ("day", "rows", "bytes", "kept_until", "key")
    if form is Form.table:
        write_report([(*row[:2], bytes_text(row[2]), f"{row[3]:%Y-%m-%d %H:%M}", row[4]) for row in rows], columns)
    else:
        _write_values(rows, columns, form)


def _write_days(found: list[DayForecast], form: Form) -> None:
    if form is not Form.table:
        columns = ("day", "events", "bytes", "events_kept", "bytes_kept")
        _write_values([tuple(getattr(one, name) for name in columns) for one in found], columns, form)
        return
    rows: list[tuple[object, ...]] = [(one.day, one.events, bytes_text(one.bytes), *_shares(one)) for one in found]
    if rows:
        rows.append(("all", *_total(found)))
    else:
        note("nothing is due")
    write_report(rows, ("day", "events", "bytes", "kept", "share", "kept bytes", "share"))


def _write_rules(found: list[RuleForecast], form: Form) -> None:
    if form is not Form.table:
        columns = ("event_type", "rule", "events", "bytes", "events_kept", "bytes_kept")
        _write_values([tuple(getattr(one, name) for name in columns) for one in found], columns, form)
        return
    rows: list[tuple[object, ...]] = [
        (one.event_type, one.rule, one.events, bytes_text(one.bytes), *_shares(one)) for one in found
    ]
    names = ("event_type", "rule", "events", "bytes", "kept", "share", "kept bytes", "share")
    if rows:
        rows.append(("all", "", *_total(found)))
    else:
        note("there are no such events")
    write_report(rows, names)


def _shares(one: DayForecast | RuleForecast) -> tuple[object, ...]:
    return _kept(one.events, one.bytes, one.events_kept, one.bytes_kept)


def _total(found: Sequence[DayForecast | RuleForecast]) -> tuple[object, ...]:
    names = ("events", "bytes", "events_kept", "bytes_kept")
    events, size, kept, kept_size = (sum(getattr(one, name) for one in found) for name in names)
    return events, bytes_text(size), *_kept(events, size, kept, kept_size)


def _kept(events: int, size: int, kept: int, kept_size: int) -> tuple[object, ...]:
    return kept, share_text(kept, events), bytes_text(kept_size), share_text(kept_size, size)


def _write_values(rows: list[tuple[Any, ...]], columns: tuple[str, ...], form: Form) -> None:
    import pyarrow as pa

    write_rows(pa.table({name: [row[place] for row in rows] for place, name in enumerate(columns)}), form)


def _note_left(tiers: Tiers, before_us: int | None) -> None:
    """Say which events were not looked at, and what helps."""
    from thermocline.archiver.archive_pass import held_up
    from thermocline.archiver.archived import unsettled_events

    waiting = unsettled_events(tiers)
    if waiting:
        note(f"{waiting:,} events are still in Redis and not looked at: `thermocline worker` settles them")
    large = [] if before_us is None else held_up(tiers, before_us)
    if large:
        rows = sum(one.rows for one in large)
        note(f"{rows:,} events wait, old and young in the same segments: `thermocline worker` merges them by day first")


def _told_apart(ids: list[str]) -> int:
    """How many characters tell the ids apart."""
    size = ID_CHARACTERS_MIN
    while len({one[:size] for one in ids}) < len(ids):
        size += 1
    return size


def _at(us: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(us / 1e6, dt.UTC)
