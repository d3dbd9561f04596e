"""Keeping a store: `worker`, `status`, `verify`, `recover`, `stop`."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import PARTLY, ReportForm, ReportOption, settings_of
from .output import note, write_lines, write_object, write_report
from .progress import work_progress
from .reports import SUM_COLUMNS, TIER_COLUMNS, recovery_lines, status_lines, sum_row, tier_rows, verdict_lines, work_line


def worker(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Do everything that is due, small amounts too, and end.")] = False,
) -> None:
    """Settle, merge, archive, trim and purge, until SIGTERM.

    One worker per namespace; a second one names the first and ends. --once exits with 3 when something could not be settled or
    archived yet.
    """
    from thermocline.archiver.worker import Worker
    from thermocline.masking import log_to_stderr
    from thermocline.tiers.opening import open_tiers

    settings = settings_of(context)
    if not once:
        log_to_stderr(settings)
    with open_tiers(settings) as tiers:
        work = Worker(tiers)
        if not once:
            work.run()
            return
        with work_progress() as show:
            report = work.once(show)
    note(work_line(report))
    if report.left_events:
        note(f"{report.left_events:,} events are left in Redis: {report.problem}")
    elif report.problem is not None:
        note(report.problem)
    if report.problem is not None:
        raise typer.Exit(PARTLY)


def status(
    context: typer.Context,
    check: Annotated[bool, typer.Option("--check", help="Exit code 1 if health is red.")] = False,
    output: ReportOption = ReportForm.table,
) -> None:
    """Show what each tier holds, what waits, and the health."""
    from thermocline.store import connect

    with connect(settings_of(context)) as store:
        found = store.status()
    if output is ReportForm.json:
        write_object(found.as_dict())
    else:
        write_report(tier_rows(found), TIER_COLUMNS)
        write_lines(status_lines(found))
    if check and found.health == "red":
        raise typer.Exit(1)


def verify(
    context: typer.Context,
    deep: Annotated[bool, typer.Option("--deep", help="Read every row too: checksums, rollups, doubled events.")] = False,
    output: ReportOption = ReportForm.table,
) -> None:
    """Prove that no event is lost or stored twice.

    Exit code 1 if a sum is off or a file is not what was written.
    """
    import msgspec

    from thermocline.store import connect

    with connect(settings_of(context)) as store:
        found = store.verify(deep=deep)
    if output is ReportForm.json:
        write_object({**msgspec.to_builtins(found), "ok": found.ok})
    else:
        write_report([sum_row(found)], SUM_COLUMNS)
        write_lines(verdict_lines(found))
    if not found.ok:
        raise typer.Exit(1)


def recover(
    context: typer.Context,
    force: Annotated[bool, typer.Option("--force", help="Even if there is a ledger: it is moved aside.")] = False,
) -> None:
    """Make a lost ledger again from the segments.

    The worker must be stopped. Exit code 3 if a segment could not be read.
    """
    from thermocline.archiver.recover import recover as recover_ledger

    found = recover_ledger(settings_of(context), force=force)
    write_lines(recovery_lines(found))
    if found.unreadable:
        raise typer.Exit(PARTLY)


def stop(context: typer.Context) -> None:
    """Stop the embedded Redis of the data directory.

    Its next user starts it again.
    """
    from thermocline.tiers import embedded

    settings = settings_of(context)
    if settings.redis_url is not None:
        note("redis_url is set: there is no embedded Redis to stop")
    elif embedded.stop(settings.data_dir):
        note("the embedded Redis is stopped")
    else:
        note("no embedded Redis was running")
