"""Following and taking out: `tail`, `replay`, `export`."""

from __future__ import annotations

import datetime as dt
import math
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from .options import ReportForm, ReportOption, settings_of
from .output import note
from .query import a_time

if TYPE_CHECKING:
    from thermocline.query.follow import Item, Tail
    from thermocline.store import Store

AGAIN_S: Final = 1.0
"""How long `tail -f` waits before it looks again for a store that is away."""

NEWEST: Final = """
SELECT min(ingested_at), min(seq) FROM (
    SELECT ingested_at, seq FROM events WHERE $name IS NULL OR conversation_id = $name
    ORDER BY ingested_at DESC, seq DESC LIMIT $lines)
"""

ConversationOption = Annotated[str | None, typer.Argument(metavar="[CONVERSATION]", help="Only this one.")]
TypesOption = Annotated[
    list[str] | None, typer.Option("--type", metavar="NAME", help="Only events of it; * for any text. Repeat for more.")
]


class ExportForm(StrEnum):
    """How events are written."""

    ndjson = "ndjson"
    parquet = "parquet"
    cloudevents = "cloudevents"
    batch = "cloudevents-batch"


def tail(
    context: typer.Context,
    conversation: ConversationOption = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as events are appended, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="How many of the newest events to begin with.")] = 10,
    start: Annotated[
        str | None,
        typer.Option(metavar="PLACE", help="Instead: begin, now, a time, a position, or a seq of the conversation."),
    ] = None,
    types: TypesOption = None,
    output: ReportOption = ReportForm.table,
) -> None:
    """Show the newest events, and go on with -f.

    -o json writes one object a line: an event, or a gap where events are missing. The position where it ended, which --start
    takes, is a line on stderr.
    """
    from thermocline.errors import TierUnavailable
    from thermocline.store import connect

    with connect(settings_of(context)) as store:
        begun = _newest(store, conversation, lines) if start is None else _place(start)
        found: Tail = store.tail(conversation, event_types=types, start=begun)
        away = ""
        try:
            while True:
                try:
                    items = found.read(timeout_s=1.0 if follow else 0)
                    away = ""
                except TierUnavailable as exc:
                    if not follow:
                        raise
                    if not away:
                        note(f"{exc}; waiting")
                    away = str(exc)
                    time.sleep(AGAIN_S)
                    continue
                for item in items:
                    _write(item, output)
                if items:
                    sys.stdout.flush()
                elif found.caught_up and not follow:
                    break
        except KeyboardInterrupt:
            note("")
        finally:
            note(f"position: {found.position}")


def replay(
    context: typer.Context,
    conversation: Annotated[str, typer.Argument(metavar="CONVERSATION", help="Its conversation_id.")],
    speed: Annotated[float, typer.Option(min=0, help="2 halves the pauses; 0 makes none.")] = 1.0,
    start: Annotated[int, typer.Option("--from", min=1, metavar="SEQ", help="The first event.")] = 1,
    until: Annotated[int | None, typer.Option(min=1, metavar="SEQ", help="The last one. [default: the last there is]")] = None,
    pause_max: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="No pause is longer.")] = 10.0,
    output: ReportOption = ReportForm.table,
) -> None:
    """Show a conversation with the pauses it had."""
    from thermocline.store import connect

    with connect(settings_of(context)) as store:
        items = store.replay(conversation, speed=speed or math.inf, until=until, from_seq=start, pause_s_max=pause_max)
        for item in items:
            _write(item, output)
            sys.stdout.flush()


def export(
    context: typer.Context,
    target: Annotated[Path, typer.Argument(metavar="FILE|-", help="Replaced when all is written. - is stdout.")],
    form: Annotated[ExportForm, typer.Option("--format", help="ndjson is what `append` takes.")] = ExportForm.ndjson,
    conversation: Annotated[str | None, typer.Option(metavar="NAME", help="Only this one.")] = None,
    since: Annotated[
        dt.datetime | None, typer.Option(parser=a_time, metavar="TIME", help="Only events from then on: RFC 3339, or a UTC day.")
    ] = None,
    until: Annotated[dt.datetime | None, typer.Option(parser=a_time, metavar="TIME", help="Only events before it.")] = None,
    types: TypesOption = None,
) -> None:
    """Write events to a file, by conversation and seq.

    What they rest on is one line on stderr.
    """
    from thermocline.store import connect

    with connect(settings_of(context)) as store:
        to_stdout = str(target) == "-"
        done = store.export(
            sys.stdout.buffer if to_stdout else target,
            format=form.value,
            conversation_id=conversation,
            since=since,
            until=until,
            event_types=types,
        )
        sys.stdout.flush()
    note(f"{done.events:,} events in {done.bytes:,} bytes. {done.coverage}")


def _newest(store: Store, conversation: str | None, lines: int) -> str | dt.datetime | int:
    """Where the newest `lines` events begin."""
    if lines == 0:
        return "now"
    found = store.sql(NEWEST, {"name": conversation, "lines": lines}).fetchone()
    if found is None or found[0] is None:
        return "begin"
    begun: dt.datetime | int = found[0] if conversation is None else found[1]
    return begun


def _place(text: str) -> str | dt.datetime | int:
    """What --start says."""
    if text.isdecimal() and len(text) < 20:
        return int(text)
    if text in ("begin", "now") or text.startswith("t1."):
        return text
    return a_time(text)


def _write(item: Item, output: ReportForm) -> None:
    from thermocline.query.gaps import Gap

    if output is ReportForm.json:
        sys.stdout.write(_json(item) + "\n")
    elif isinstance(item, Gap):
        count = item.to_seq - item.from_seq + 1
        sys.stdout.write(
            f"-- {item.conversation_id} {item.from_seq} to {item.to_seq}: {count:,} events {item.reason.replace('_', ' ')}\n"
        )
    else:
        event = item.event
        content = _shown(event["content"])
        tool = f" {event['tool_name']}" if event["tool_name"] else ""
        place = f"{_shown(event['conversation_id'])} {event['seq']}"
        sys.stdout.write(f"{event['timestamp']:%Y-%m-%d %H:%M:%S}  {place}  {_shown(event['event_type'] + tool)}  {content}\n")


def _shown(text: str) -> str:
    """In one line, without what a terminal would obey."""
    return "".join(char if char.isprintable() else "·" for char in " ".join(text.split()))


def _json(item: Item) -> str:
    """One line."""
    import orjson

    from thermocline.query.gaps import Gap

    if isinstance(item, Gap):
        values: dict[str, Any] = {"gap": item._asdict()}
    else:
        values = dict(item.event)
        if values["metadata"] is not None and "\n" not in values["metadata"]:
            values["metadata"] = orjson.Fragment(values["metadata"])
        values["position"] = item.position
    return orjson.dumps(values, option=orjson.OPT_UTC_Z).decode()
