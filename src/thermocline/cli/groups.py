"""Groups of consumers: `groups`, `parked`."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

import msgspec
import typer

from .options import ReportForm, ReportOption, settings_of
from .output import note, write_object, write_report

app = typer.Typer(invoke_without_command=True)


@app.callback()
def groups(context: typer.Context) -> None:
    """List the groups of consumers, or delete one."""
    if context.invoked_subcommand is None:
        _list(context, ReportForm.table)


@app.command("list")
def list_(context: typer.Context, output: ReportOption = ReportForm.table) -> None:
    """List the groups: how far behind each is, what it has pending and parked."""
    _list(context, output)


@app.command()
def delete(context: typer.Context, name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")]) -> None:
    """Forget a group, what it has pending and what it has parked. Events stay."""
    from thermocline.store import connect

    with connect(settings_of(context)) as store:
        store.delete_group(name)
    note(f"{name} is gone")


def parked(
    context: typer.Context,
    group: Annotated[str, typer.Argument(metavar="GROUP", help="Its name.")],
    again: Annotated[bool, typer.Option("--replay", help="Deliver all of them anew.")] = False,
    discard: Annotated[bool, typer.Option("--discard", help="Forget all of them. The events stay in the store.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many to show.")] = 100,
    output: ReportOption = ReportForm.table,
) -> None:
    """Show the events that a group has set aside."""
    from thermocline.store import connect

    if again and discard:
        raise typer.BadParameter("either --replay or --discard", param_hint="--replay")
    with connect(settings_of(context)) as store:
        if again:
            note(f"{store.replay_parked(group):,} events will be delivered again")
            return
        if discard:
            note(f"{store.discard_parked(group):,} parked events are forgotten")
            return
        found = store.parked(group, limit)
    if output is ReportForm.json:
        write_object([msgspec.to_builtins(one) for one in found])
        return
    rows = (
        (
            one.conversation_id,
            one.seq,
            one.deliveries,
            _whole(dt.datetime.fromtimestamp(one.parked_ms / 1000, dt.UTC)),
            one.reason,
        )
        for one in found
    )
    write_report(rows, ("conversation", "seq", "deliveries", "parked at", "reason"))


def _list(context: typer.Context, output: ReportForm) -> None:
    from thermocline.store import connect

    with connect(settings_of(context)) as store:
        found = store.groups()
    if output is ReportForm.json:
        write_object([msgspec.to_builtins(one) for one in found])
        return
    rows = (
        (one.name, ", ".join(one.event_types or ("all",)), one.lag_events, one.pending, one.parked, _whole(one.seen_at))
        for one in found
    )
    write_report(rows, ("group", "event types", "lag", "pending", "parked", "last asked"))


def _whole(at: dt.datetime) -> dt.datetime:
    return at.replace(microsecond=0)
