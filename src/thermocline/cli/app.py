"""The app: its commands, and the options before them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from . import append, archive, configuration, demo, following, groups, mcp, namespaces, query, scrub, serve, tokens, upkeep
from .options import Chosen

GLOBAL_OPTIONS: Final = ("--config", "--data-dir", "--namespace")

app = typer.Typer(
    help="Event storage for AI agents: Redis Streams (hot), DuckDB files (warm), Parquet (cold), SQL over all of it.",
    epilog="--config, --data-dir and --namespace may stand before or after the command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"thermocline {version('thermocline')}\n")
        raise typer.Exit


@app.callback()
def start(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(help="Settings file. [default: $THERMOCLINE_CONFIG, else ./thermocline.toml]", show_default=False),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Where everything local is. [default: ./thermocline-data]", show_default=False),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option(help="Which store in it. [default: default]", show_default=False),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.obj = Chosen(config, data_dir, namespace)


app.command("demo")(demo.demo)
app.command("append")(append.append)
app.command("worker")(upkeep.worker)
app.command("serve")(serve.serve)
app.command("query")(query.query)
app.command("search")(query.search)
app.command("recent")(query.recent)
app.command("conversations")(query.conversations)
app.command("tail")(following.tail)
app.command("replay")(following.replay)
app.command("export")(following.export)
app.add_typer(groups.app, name="groups")
app.command("parked")(groups.parked)
app.command("status")(upkeep.status)
app.command("verify")(upkeep.verify)
app.command("scrub")(scrub.scrub)
app.command("archive")(archive.archive)
app.add_typer(archive.app, name="archives")
app.command("sample")(archive.sample)
app.command("compact")(archive.compact)
app.command("rehydrate")(archive.rehydrate)
app.command("recover")(upkeep.recover)
app.command("restore")(scrub.restore)
app.command("doctor")(configuration.doctor)
app.add_typer(configuration.app, name="config")
app.add_typer(namespaces.app, name="namespaces")
app.add_typer(tokens.app, name="tokens")
app.command("mcp")(mcp.mcp)
app.command("stop")(upkeep.stop)


def hoisted(arguments: Sequence[str]) -> list[str]:
    """The arguments with the global options and their values first, wherever they stood before a `--`."""
    front: list[str] = []
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--":
            rest += [argument, *waiting]
        elif argument in GLOBAL_OPTIONS:
            front += [argument, *(value for value in [next(waiting, None)] if value is not None)]
        elif argument.partition("=")[0] in GLOBAL_OPTIONS:
            front.append(argument)
        else:
            rest.append(argument)
    return front + rest
