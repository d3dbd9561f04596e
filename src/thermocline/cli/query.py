"""Reading: `query`, `estimate`, `search`, `recent`, `conversations`."""

from __future__ import annotations

import datetime as dt
import shlex
from typing import TYPE_CHECKING, Annotated, Final

import typer

from .options import CoverageOption, Form, FormOption, settings_of
from .output import note, note_coverage, write_report, write_rows

if TYPE_CHECKING:
    import pyarrow as pa

CONTENT_MAX: Final = 120
"""Characters of content a table of events shows; the other forms give all."""

BRIEF: Final = ("seq", "timestamp", "event_type", "tool_name", "status", "content")
"""Columns that a table of events shows."""
OFTEN_EMPTY: Final = ("tool_name", "status")
"""Of these, the columns it leaves out when nothing is in them."""

FOUND: Final = ("timestamp", "conversation_id", "seq", "event_type", "snippet")
"""Columns that a table of found events shows."""

CONVERSATIONS: Final = """
SELECT conversation_id, started_at, ended_at, total_events, task_count, interventions
FROM conversation_summary WHERE $since IS NULL OR ended_at >= $since
ORDER BY ended_at DESC, conversation_id LIMIT $limit
"""


def query(
    context: typer.Context,
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One statement over events, hourly_stats, conversation_summary.")],
    output: FormOption = Form.table,
    complete: Annotated[bool, typer.Option("--complete", help="Fail rather than answer from a sample.")] = False,
    coverage: CoverageOption = False,
) -> None:
    """Run SQL over all tiers.

    What the answer rests on is one line on stderr, or all of it as JSON.
    """
    from thermocline.store import connect

    with connect(settings_of(context)) as store:
        answer = store.sql(sql, require="complete" if complete else None)
    write_rows(answer.to_arrow(), output)
    note_coverage(answer.coverage, full=coverage)


def a_time(text: str) -> dt.datetime:
    """What an option says; UTC without a zone."""
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError as exc:
        raise typer.BadParameter(f"{text!r} is no time like 2026-11-20 or 2026-11-20T09:41:00Z") from exc
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


def search(
    context: typer.Context,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Words that are all in the content, in any case.")],
    conversation: Annotated[str | None, typer.Option(help="Only this conversation.")] = None,
    event_type: Annotated[list[str] | None, typer.Option("--type", help="Only this event_type; may be given again.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only this agent_id.")] = None,
    tool: Annotated[str | None, typer.Option(help="Only this tool_name.")] = None,
    since: Annotated[
        dt.datetime | None, typer.Option(parser=a_time, metavar="TIME", help="Only from then on: RFC 3339, or a UTC day.")
    ] = None,
    until: Annotated[dt.datetime | None, typer.Option(parser=a_time, metavar="TIME", help="Only before then.")] = None,
    phrase: Annotated[bool, typer.Option("--phrase", help="The words one after the other.")] = False,
    whole_words: Annotated[bool, typer.Option("--whole-words", help="Not within longer words.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many events.")] = 20,
    before: Annotated[str | None, typer.Option(metavar="PLACE", help="Where an earlier search ended: its next page.")] = None,
    full: Annotated[bool, typer.Option("--full", help="All of content and metadata too; -o json, csv, arrow.")] = False,
    output: FormOption = Form.table,
    complete: Annotated[bool, typer.Option("--complete", help="Fail rather than answer from a sample or a part.")] = False,
) -> None:
    """Find the newest events that hold a text, over all tiers."""
    from thermocline.query.matching import Wanted
    from thermocline.store import connect

    with connect(settings_of(context)) as store:
        found = store.search(
            text,
            conversation_id=conversation,
            event_types=event_type or None,
            agent_id=agent,
            tool_name=tool,
            since=since,
            until=until,
            before=before,
            limit=limit,
            phrase=phrase,
            whole_words=whole_words,
            full=full,
            require="complete" if complete else None,
        )
    if output is Form.table:
        wanted = Wanted.of(text, phrase=phrase, whole_words=whole_words)
        rows = ([row[name] for name in FOUND] for row in found.to_arrow().to_pylist())
        write_report(rows, FOUND, spans=wanted.spans)
    else:
        write_rows(found.to_arrow(), output)
    note_coverage(found.coverage)
    if found.searched_from is not None:
        note(f"Nothing before {found.searched_from:%Y-%m-%d %H:%M:%S} UTC was looked at (query.search_rows_max).")
    if found.more is not None:
        note(f"To go on: --before {shlex.quote(found.more)}")


def estimate(
    context: typer.Context,
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="count(*), sum(x), avg(x), count(DISTINCT x), median(x), quantile(x, 0.95).")
    ],
    where: Annotated[str, typer.Option(metavar="CONDITION", help="Of these events only: a condition in SQL.")] = "",
    by: Annotated[
        list[str] | None,
        typer.Option(help="Of each hour, day, conversation_id, event_type, agent_id, model or tool_name; may be given again."),
    ] = None,
    output: FormOption = Form.table,
    coverage: CoverageOption = False,
) -> None:
    """Estimate over all events ever, with 95 % intervals.

    What rollups know is exact; the rest agrees with them.
    """
    from thermocline.store import connect

    with connect(settings_of(context)) as store:
        answer = store.estimate(what, where=where, by=by or ())
    write_rows(answer.to_arrow(), output)
    note_coverage(answer.coverage, full=coverage)


def recent(
    context: typer.Context,
    conversation: Annotated[str, typer.Argument(metavar="CONVERSATION", help="Its conversation_id.")],
    limit: Annotated[int, typer.Option(min=1, help="How many events.")] = 20,
    output: FormOption = Form.table,
    coverage: CoverageOption = False,
) -> None:
    """Show a conversation's newest events, oldest first."""
    from thermocline.store import connect

    with connect(settings_of(context)) as store:
        answer = store.recent(conversation, limit=limit)
    table = answer.to_arrow()
    if output is Form.table:
        write_report(*_brief(table))
    else:
        write_rows(table, output)
    note_coverage(answer.coverage, full=coverage)


def _brief(table: pa.Table) -> tuple[list[list[object]], list[str]]:
    """Rows and names of what fits on a line: whole seconds, the beginning of the content, no empty tool_name and status."""
    rows = [
        {
            "seq": row["seq"],
            "timestamp": row["timestamp"].replace(microsecond=0),
            "event_type": row["event_type"],
            "tool_name": row["tool_name"],
            "status": row["status"],
            "content": row["content"] if len(row["content"]) <= CONTENT_MAX else f"{row['content'][:CONTENT_MAX]}…",
        }
        for row in table.to_pylist()
    ]
    names = [name for name in BRIEF if name not in OFTEN_EMPTY or any(row[name] for row in rows)]
    return [[row[name] for name in names] for row in rows], names


def conversations(
    context: typer.Context,
    since: Annotated[
        dt.datetime | None,
        typer.Option(parser=a_time, metavar="TIME", help="Only those with an event at or after it: RFC 3339, or a UTC day."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many conversations.")] = 20,
    output: FormOption = Form.table,
) -> None:
    """List conversations, the newest activity first."""
    from thermocline.store import connect

    with connect(settings_of(context)) as store:
        answer = store.sql(CONVERSATIONS, {"since": since, "limit": limit})
    if output is Form.table:
        names = ("conversation_id", "ended_at", "took", "events", "tasks", "interventions")
        write_report((_conversation(*row) for row in answer), names)
    else:
        write_rows(answer.to_arrow(), output)
    note_coverage(answer.coverage)


def _conversation(name: str, start: dt.datetime, end: dt.datetime, *counts: int) -> tuple[object, ...]:
    """A row of CONVERSATIONS that fits on a line: whole seconds."""
    return name, end.replace(microsecond=0), dt.timedelta(seconds=round((end - start).total_seconds())), *counts
