"""`state`: what a projection makes of a conversation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import settings_of
from .output import note, write_object


def _projection(place: str) -> Any:
    """What `module:name` names; modules beside the working directory are found."""
    from importlib import import_module

    module, _, name = place.partition(":")
    if not module or not name:
        raise typer.BadParameter(f"{place!r} is not like module:Name", param_hint="--projection")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as exc:
        raise typer.BadParameter(f"{place!r}: {exc}", param_hint="--projection") from exc
    finally:
        sys.path.pop(0)


def state(
    context: typer.Context,
    conversation: Annotated[str, typer.Argument(metavar="CONVERSATION", help="Its conversation_id.")],
    projection: Annotated[str, typer.Option(metavar="MODULE:NAME", help="Where in Python the projection is.")],
    at_seq: Annotated[int | None, typer.Option(min=0, help="The state after this event; default: the newest.")] = None,
    versions: Annotated[bool, typer.Option("--versions", help="List the states that are kept instead.")] = False,
) -> None:
    """Show a conversation's state, as JSON."""
    from thermocline.store import connect

    found = _projection(projection)
    with connect(settings_of(context)) as store:
        known = store.register(found)
        if versions:
            import msgspec

            write_object([msgspec.to_builtins(one) for one in store.states_kept(conversation, projection=known.name)])
            return
        answer = store.state(conversation, projection=known, at_seq=at_seq)
    write_object(answer.state)
    gaps = "" if answer.complete else f", {len(answer.gaps)} gaps"
    note(f"{answer.projection} (version {answer.version}) of {conversation} at seq {answer.seq}{gaps}")
