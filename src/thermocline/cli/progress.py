"""What is going on, on stderr: a bar when somebody watches, a line now and then otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .output import note

if TYPE_CHECKING:
    from thermocline.archiver.archive_pass import PassProgress
    from thermocline.archiver.worker import Progress as WorkProgress
    from thermocline.feed import Fed

LINE_EVERY_S: Final = 5.0
"""How often a log that nobody watches gets a line."""


@contextmanager
def append_progress(file: Path) -> Iterator[Callable[[Fed], None]]:
    """A function that shows how far an append is."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    total = file.stat().st_size if file.is_file() else None
    columns = [
        TextColumn("appending"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)

        def show(fed: Fed) -> None:
            progress.update(task, completed=fed.bytes_read, description=fed.waiting or f"{fed.appended:,} events")

        yield show


@contextmanager
def work_progress() -> Iterator[Callable[[WorkProgress], None]]:
    """A function that shows what the worker does; silent when nobody watches."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), console=Console(stderr=True), transient=True
    ) as progress:
        task = progress.add_task("settle", total=None)

        def show(work: WorkProgress) -> None:
            progress.update(task, description=f"{work.step} {work.done:,}", completed=work.done, total=work.total or None)

        yield show


@contextmanager
def pass_progress(what: str) -> Iterator[Callable[[PassProgress], None]]:
    """A function that shows how far a pass of the archive is: a bar, or a line now and then when nobody watches."""
    if not sys.stderr.isatty():
        yield _pass_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = [SpinnerColumn(), TextColumn(what), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()]
    with Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def show(one: PassProgress) -> None:
            what = f"batch {one.batches + 1}: {one.step}"
            progress.update(task, completed=one.rows, total=one.rows_total or None, description=what)

        yield show


def _pass_lines() -> Callable[[PassProgress], None]:
    said = time.monotonic()

    def show(one: PassProgress) -> None:
        nonlocal said
        if time.monotonic() - said >= LINE_EVERY_S:
            looked = f"; {one.rows:,} of {one.rows_total:,} events looked at" if one.rows_total else ""
            note(f"batch {one.batches + 1}: {one.step}{looked}")
            said = time.monotonic()

    return show


def shown_steps(title: str, steps: Iterable[tuple[str, float]]) -> None:
    """Do `steps`: a line for each as it is done, and below them, when somebody watches, the share of all that is done."""
    if not sys.stderr.isatty():
        note(title)
        for line, _ in steps:
            note(f"  {line}")
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TimeElapsedColumn

    screen = Console(stderr=True, highlight=False)
    screen.print(f"[bold]{title}[/]")
    with Progress(SpinnerColumn(), BarColumn(), TimeElapsedColumn(), console=screen, transient=True) as progress:
        task = progress.add_task("", total=1.0)
        for line, share in steps:
            progress.console.print(f"  {line}", markup=False)
            progress.update(task, completed=share)


def _lines() -> Callable[[Fed], None]:
    said = time.monotonic()
    waiting = ""

    def show(fed: Fed) -> None:
        nonlocal said, waiting
        if fed.waiting and fed.waiting != waiting:
            note(fed.waiting)
        elif time.monotonic() - said >= LINE_EVERY_S:
            note(f"{fed.appended:,} events appended")
            said = time.monotonic()
        waiting = fed.waiting

    return show
