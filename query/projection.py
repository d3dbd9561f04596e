"""What a projection is: a named fold over the events of a conversation. Pure.

class Messages(Projection):
    name, version = "messages", 1

    def initial(self):
        return []

    def apply(self, state, event):
        return [*state, event["content"]] if event["event_type"] == "message.user" else state
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from thermocline.errors import QueryRefused

_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
Event = Mapping[str, Any]
"""A row of `events`: column → value; times are aware datetimes, metadata is JSON text or None."""


class Projection(ABC):
    """A fold: state = apply(apply(initial(), event 1), event 2) …, over a conversation's events in the order of seq.

    A state is plain data, what JSON gives back as it was: dicts with str keys, lists, str, int, float, bool, None. `apply` may
    change the state it is given, and returns the one that follows. It must depend on its arguments alone.
    """

    name: str = ""
    version: int | str = 1
    """Change it with the code: states of another version are not used."""

    @abstractmethod
    def initial(self) -> Any:
        """The state before the first event."""

    @abstractmethod
    def apply(self, state: Any, event: Event) -> Any:
        """The state after `event`."""

    gap: Any = None
    """None: IncompleteAnswer when events are missing, as a state made from a sample is not the state. A method
    gap(state, first_seq, last_seq): what follows when those events, both ends included, are not there any more; a gap may be told
    in pieces."""


def checked(projection: Any) -> Projection:
    """An object with name, version, initial and apply; given a class, what it makes. QueryRefused says what is wrong with it."""
    try:
        found = projection() if isinstance(projection, type) else projection
    except TypeError as exc:  # a method is missing, or its constructor wants arguments
        raise QueryRefused(f"projection {projection.__name__}: it cannot be made without arguments ({exc})") from exc
    if not all(callable(getattr(found, method, None)) for method in ("initial", "apply")):
        raise QueryRefused(f"{_shown(projection)} is no projection: it must have a name, initial() and apply(state, event)")
    name, version = getattr(found, "name", None), getattr(found, "version", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise QueryRefused(f"a projection's name must be like order-totals: {_NAME.pattern}, not {name!r}")
    if isinstance(version, bool) or not isinstance(version, int | str) or not 1 <= len(str(version)) <= 64:
        raise QueryRefused(f"projection {name!r}: version must be an int or a text of 1 to 64 characters, not {version!r}")
    good: Projection = found
    return good


def _shown(projection: Any) -> str:
    return str(getattr(projection, "__name__", None) or type(projection).__name__)


def encoded(projection: Projection, state: Any, *, bytes_max: int) -> bytes:
    """The state as JSON. QueryRefused when JSON does not give it back as it was, or it is too large."""
    try:
        found = msgspec.json.encode(state)
        same = msgspec.json.decode(found) == state
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError) as exc:
        raise QueryRefused(f"projection {projection.name!r}: its state is not plain data ({exc})") from exc
    if not same:
        raise QueryRefused(
            f"projection {projection.name!r}: its state is not what JSON gives back: use dicts with str keys, lists, str, "
            "int, finite float, bool and None"
        )
    if len(found) > bytes_max:
        raise QueryRefused(
            f"projection {projection.name!r}: its state has {len(found):,} bytes, more than query.state_bytes_max "
            f"({bytes_max:,}): keep less in it, or raise it"
        )
    return found
