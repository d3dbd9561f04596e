"""`namespaces`: the stores of a data directory."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .options import settings_of
from .output import note

app = typer.Typer(help="List, create or drop the stores of a data directory.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="1 to 64 of a-z, 0-9, _ and -.")]


@app.command("list")
def list_(context: typer.Context) -> None:
    """List the namespaces of the data directory, one a line."""
    from thermocline.namespaces import names

    for name in names(settings_of(context)):
        sys.stdout.write(f"{name}\n")


@app.command()
def create(context: typer.Context, name: Name) -> None:
    """Make a namespace. Appending to one that is not there makes it too."""
    from thermocline.namespaces import create as create_namespace

    made = create_namespace(settings_of(context, namespace=name))
    note(f"{name} is made" if made else f"{name} was there already")


@app.command()
def drop(
    context: typer.Context,
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Yes, delete its events for good.")] = False,
) -> None:
    """Delete a namespace: its keys in Redis and its files. Its worker must be stopped."""
    from thermocline.namespaces import drop as drop_namespace

    if not yes:
        raise typer.BadParameter(f"this deletes every event of {name} for good: repeat with --yes", param_hint="--yes")
    dropped = drop_namespace(settings_of(context, namespace=name))
    note(f"{name} is gone: {dropped.keys:,} keys and {dropped.bytes:,} bytes")
