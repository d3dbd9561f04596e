"""`serve`: the store over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import settings_of
from .output import note


def serve(
    context: typer.Context,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. [default: serve.host, 127.0.0.1]", show_default=False)
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0 is a free one. [default: serve.port, 8700]", show_default=False)
    ] = None,
    no_worker: Annotated[bool, typer.Option("--no-worker", help="Another process runs the worker.")] = False,
) -> None:
    """Serve the store over HTTP, until SIGTERM.

    Appends, queries, tails and the page. Runs the worker too, unless another has the namespace. Without tokens only this
    machine can reach it.
    """
    from thermocline.serve.server import serve as serve_store
    from thermocline.serve_settings import effective

    settings = settings_of(context)
    chosen = effective(settings.serve, host=host, port=port, worker=False if no_worker else None)
    serve_store(settings.model_copy(update={"serve": chosen}), ready=lambda url: note(f"listening on {url}"))
