"""`demo`: real conversations through the tiers, in front of you."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Form, settings_of
from .output import console, write_report, write_rows
from .progress import shown_steps
from .reports import SUM_COLUMNS, TIER_COLUMNS, cached_line, statistics_line, sum_row, tier_rows, verdict_lines, work_line

if TYPE_CHECKING:
    from thermocline.config import Settings
    from thermocline.demo import Step
    from thermocline.store import Store


def demo(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE.ndjson", help="Your own events instead of the shipped conversations."),
    ] = None,
) -> None:
    """Take real conversations through the tiers.

    40 recorded runs of an airline agent, spread over the last ten days, are appended, settled, merged and, beyond a week,
    archived in the namespace `demo`, dropped and made anew each time, and asked about. Events of --input that have no timestamp
    are spread likewise.
    """
    from thermocline import demo as story
    from thermocline.store import connect

    settings = settings_of(context, **story.OVERRIDES)
    now_us = time.time_ns() // 1000
    events = story.sample_events(now_us) if file is None else story.own_events(file, now_us)
    if not events:
        raise typer.BadParameter(f"{file} holds no events", param_hint="--input")
    source = "40 recorded runs of an airline agent" if file is None else str(file)
    if len(events) == story.OWN_EVENTS_MAX:
        source += " (the demo takes no more; `thermocline append` takes all)"
    shown_steps(f"{source}: {len(events):,} events", ((_line(step), step.share) for step in story.run(settings, events)))
    with connect(settings) as store:
        for _ in _report(store):
            sys.stdout.write("\n")
    _say_next(settings, events[-1].conversation_id)


def _line(step: Step) -> str:
    if step.report is None:
        rest = "; these stay in Redis for now" if step.share == 1.0 else ""
        return f"append  {step.took_s:4.1f} s  {step.events:,} events{rest}"
    return f"work    {step.took_s:4.1f} s  {work_line(step.report)}"


def _report(store: Store) -> Iterator[None]:
    """Write the tables, yielding between them."""
    from thermocline.demo import QUESTIONS, counts

    screen = console()
    found, checked = store.status(), store.verify()
    screen.print("\n[bold]Where the events are[/]")
    write_report(tier_rows(found), TIER_COLUMNS)
    screen.print(cached_line(found))
    yield
    for question in QUESTIONS:
        screen.print(f"[bold]{question.title}[/]")
        screen.print(question.sql, style="dim", markup=False, soft_wrap=True)
        answer = store.sql(question.sql)
        write_rows(answer.to_arrow(), Form.table)
        screen.print(str(answer.coverage), markup=False)
        if not answer.coverage.exact:
            screen.print(statistics_line(counts(store, checked)), markup=False)
        yield
    screen.print("[bold]Is every event in exactly one place?[/]")
    write_report([sum_row(checked)], SUM_COLUMNS)
    for line in verdict_lines(checked):
        screen.print(line, markup=False)
    yield


def _say_next(settings: Settings, conversation_id: str) -> None:
    """What to type next, ready to be copied."""
    program = "thermocline" if shutil.which("thermocline") else _relative(Path(sys.executable).with_name("thermocline"))
    options = "" if settings.data_dir == Path("thermocline-data") else f" --data-dir {shlex.quote(str(settings.data_dir))}"
    ours = f"{program}{options} --namespace {settings.namespace}"
    screen = console()
    screen.print("[bold]Next[/]")
    for command in (
        f"{ours} recent {shlex.quote(conversation_id)} --limit 8",
        f'{ours} query "FROM conversation_summary LIMIT 5"',
        f"{ours} verify --deep",
        f"{program}{options} demo --input your-events.ndjson",
        f"{program} --help",
    ):
        screen.print(f"  {command}", markup=False, soft_wrap=True)


def _relative(path: Path) -> str:
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
