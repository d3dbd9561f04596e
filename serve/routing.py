"""Routes that say who may use them: none is served without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from starlette.convertors import PathConvertor, register_url_convertor
from starlette.routing import BaseRoute, Match, Mount, Route

OPEN: Final = "open"
SCOPE_ATTRIBUTE: Final = "needed_scope"


class TextConvertor(PathConvertor):
    """`{name:text}`: anything, slashes and line breaks too, so that what is wrong with it is said by whoever reads it."""

    regex = "(?s:.*)"


register_url_convertor("text", TextConvertor())


def route(path: str, endpoint: Any, *, scope: str, methods: Sequence[str] = ("GET",)) -> Route:
    """A route. scope: append, query or admin, of the caller's token; `open`: nobody is asked; `metrics`: open on loopback."""
    made = Route(path, endpoint, methods=list(methods))
    setattr(made, SCOPE_ATTRIBUTE, scope)
    return made


def mount(path: str, app: Any, *, scope: str, name: str = "") -> Mount:
    """A folder of files, say, and who may read it."""
    made = Mount(path, app, name=name or None)
    setattr(made, SCOPE_ATTRIBUTE, scope)
    return made


class Scopes:
    """(method, path) → (route, scope)."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        bare = [found for found in routes if not hasattr(found, SCOPE_ATTRIBUTE)]
        assert not bare, f"routes that do not say who may use them: {bare}"
        self._routes = routes

    def __call__(self, method: str, path: str) -> tuple[str, str]:
        """The route's path and scope; ("", "open") when there is none. A wrong method needs what the right one needs."""
        asked: dict[str, Any] = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
        partly: tuple[str, str] | None = None
        for found in self._routes:
            match, _ = found.matches(asked)
            if match is not Match.NONE:
                answer = (str(getattr(found, "path", "")), str(getattr(found, SCOPE_ATTRIBUTE)))
                if match is Match.FULL:
                    return answer
                partly = partly or answer
        return partly or ("", OPEN)
