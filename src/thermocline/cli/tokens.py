"""`tokens`: who may use the server of a data directory, and for what."""

from __future__ import annotations

import datetime as dt
import getpass
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import ReportForm, ReportOption, settings_of
from .output import note, write_object, write_report

if TYPE_CHECKING:
    from thermocline.config import Settings
    from thermocline.serve.tokens import Token

app = typer.Typer(help="Say who may use `thermocline serve`, and for what.", no_args_is_help=True)

DAY_S = 86_400


@app.callback()
def tokens() -> None:
    """Say who may use `thermocline serve`, and for what."""


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who or what will use it.")],
    scope: Annotated[list[str], typer.Option(help="append, query or admin (all); may be repeated.")],
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAMESPACE", help="A namespace it is good for; may be repeated. [default: all]")
    ] = None,
    days: Annotated[float | None, typer.Option(min=0, help="How long it is good. [default: until revoked]")] = None,
) -> None:
    """Make a token and print it.

    It is shown this once: only its hash is kept. A running server takes it at once.
    """
    from thermocline.serve.tokens import create as create_token

    settings = settings_of(context)
    lives_s = None if days is None else int(days * DAY_S)
    made = create_token(settings.data_dir, name, scope, namespaces=only or (), lives_s=lives_s)
    _record(settings, "tokens create", made.token)
    sys.stdout.write(f"{made.text}\n")
    until = "until it is revoked" if made.token.expires_s is None else f"until {_day(made.token.expires_s)}"
    note(f"{name}: {', '.join(made.token.scopes)}, {until}; this is the only time it is shown")


@app.command("list")
def list_(context: typer.Context, output: ReportOption = ReportForm.table) -> None:
    """List all tokens ever made, oldest first, without their secrets."""
    from thermocline.serve.tokens import listed

    found = [_row(token) for token in listed(settings_of(context).data_dir)]
    if output is ReportForm.json:
        write_object(found)
    else:
        columns = ("id", "name", "scopes", "namespaces", "created", "expires", "state")
        write_report([[_cell(row[column]) for column in columns] for row in found], columns)


@app.command()
def revoke(context: typer.Context, which: Annotated[str, typer.Argument(metavar="NAME|ID", help="Which token.")]) -> None:
    """End a token. A running server refuses it from its next request on."""
    from thermocline.serve.tokens import revoke as revoke_token

    settings = settings_of(context)
    token = revoke_token(settings.data_dir, which)
    _record(settings, "tokens revoke", token)
    note(f"{token.name} ({token.id}) is revoked")


def _record(settings: Settings, action: str, token: Token) -> None:
    from thermocline.serve.audit import Audit

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        user = "?"
    Audit(settings).write(caller=f"cli:{user}", action=action, token=token.id, name=token.name, scopes=list(token.scopes))


def _row(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "scopes": list(token.scopes),
        "namespaces": list(token.namespaces) or ["all"],
        "created": _day(token.created_s),
        "expires": None if token.expires_s is None else _day(token.expires_s),
        "state": token.state(time.time()),
    }


def _cell(value: Any) -> Any:
    return ", ".join(value) if isinstance(value, list) else value


def _day(at_s: int) -> str:
    return f"{dt.datetime.fromtimestamp(at_s, dt.UTC):%Y-%m-%dT%H:%M:%SZ}"
