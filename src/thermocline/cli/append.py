"""`append`: NDJSON from a file or a pipe into the store."""

from __future__ import annotations

import base64
import sys
import time
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from .options import PARTLY, settings_of
from .output import note

if TYPE_CHECKING:
    from thermocline.feed import Rejected


def append(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE|-", help="NDJSON: one event a line. - is stdin.")] = Path("-"),
    rejected: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Collect bad lines here with their reasons, and go on; exit code 3 if any."),
    ] = None,
) -> None:
    """Append events from NDJSON.

    Without --rejected the first bad line ends it: the error names the line, and how many events are stored.
    """
    from thermocline.feed import feed
    from thermocline.ingest.append import Client

    from .progress import append_progress

    settings = settings_of(context)
    begin = time.monotonic()
    with _opened(file) as stream, Client(settings) as client, append_progress(file) as show:
        if rejected is None:
            fed = feed(client, stream, progress=show)
        else:
            with rejected.open("wb") as kept:
                fed = feed(client, stream, progress=show, reject=lambda line: _keep(kept, line))
    took_s = time.monotonic() - begin
    parts = [f"{fed.appended:,} events appended in {took_s:.1f} s"]
    if fed.duplicates:
        parts.append(f"{fed.duplicates:,} were there already")
    if fed.rejected:
        parts.append(f"{fed.rejected:,} lines rejected, see {rejected}")
    note("; ".join(parts))
    if fed.rejected:
        raise typer.Exit(PARTLY)


def _opened(file: Path) -> FileIO:
    """The input, unbuffered. OSError names the file."""
    return FileIO(sys.stdin.fileno(), closefd=False) if str(file) == "-" else FileIO(file)


def _keep(kept: BinaryIO, rejected: Rejected) -> None:
    """One JSON object: number, reason, and the line as it was; what is not UTF-8 as base64."""
    import orjson

    record: dict[str, object] = {"line_number": rejected.number, "reason": rejected.reason}
    try:
        record["line"] = rejected.line.decode()
    except UnicodeDecodeError:
        record["line_base64"] = base64.b64encode(rejected.line).decode()
    kept.write(orjson.dumps(record) + b"\n")
    kept.flush()
