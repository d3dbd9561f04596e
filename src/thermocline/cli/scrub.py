"""Stored data that is damaged or gone: `scrub`, `restore`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .options import PARTLY, ReportForm, ReportOption, settings_of
from .output import bytes_text, note, write_lines, write_object
from .progress import work_progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thermocline.archiver.scrub import Scrubbed


def scrub(context: typer.Context, output: ReportOption = ReportForm.table) -> None:
    """Read everything again and mend what is damaged.

    Every byte of it; the worker does the same, a share at a time. Names damaged objects, their rows and conversations.
    Exit code 1 if something stays damaged, 3 if something could not be read.
    """
    import msgspec

    from thermocline.archiver.care import scrub_now
    from thermocline.tiers.opening import open_tiers

    with open_tiers(settings_of(context)) as tiers, work_progress() as show:
        found, held = scrub_now(tiers, progress=show)
    if output is ReportForm.json:
        write_object({**msgspec.to_builtins(found), "ok": not found.damaged})
    else:
        write_lines(scrub_lines(found))
    for problem in (*found.unread, *filter(None, [held])):
        note(problem)
    if found.damaged:
        raise typer.Exit(1)
    if found.unread:
        raise typer.Exit(PARTLY)


def restore(
    context: typer.Context,
    url: Annotated[str, typer.Option("--from", metavar="URL", help="What warm.mirror was: s3:// or file:// folder.")],
    partial: Annotated[bool, typer.Option("--partial", help="Leave out what the mirror does not have.")] = False,
) -> None:
    """Make a lost namespace again from its mirror.

    Refuses one that is there. Exit code 3 if something is missing.
    """
    from thermocline.archiver.restore import restore as restore_namespace
    from thermocline.archiver.restore import restored_line

    with work_progress() as show:
        found = restore_namespace(settings_of(context), url, partial_=partial, progress=show)
    write_lines([restored_line(found)])
    write_lines(f"A newer snapshot cannot be used: {problem}" for problem in found.passed_over)
    if found.recovered:
        write_lines(["The archive had gone on since: the ledger was made anew from it and the segments."])
    write_lines(f"Missing: {one}" for one in found.missing)
    for one in found.skipped:
        write_lines([f"Gone: {one.events:,} events of shard {one.shard}, which Redis had dropped; rejected/ says so."])
    write_lines(["`thermocline verify --deep` proves it. What was acknowledged and not settled by then is as Redis has it."])
    if found.missing:
        raise typer.Exit(PARTLY)


def scrub_lines(found: Scrubbed) -> Iterator[str]:
    """What was read, and each damage with what is gone."""
    names = {"segment": "segments", "file": "archived files", "copy": "local copies", "log": "logs in Redis", "ledger": "ledger"}
    read = ", ".join(f"{found.objects.get(kind, 0):,} {name}" for kind, name in names.items() if found.objects.get(kind))
    mended = len(found.damages) - len(found.damaged)
    verdict = f"{len(found.damaged):,} damaged" if found.damaged else "nothing is damaged"
    yield f"Read {read or 'nothing'} ({bytes_text(found.bytes)}): {verdict}{f', {mended:,} mended' if mended else ''}."
    for damage in found.damages:
        yield from (f"  {line}" for line in damage.lines())
