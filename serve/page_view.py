"""HTML of the page: templates filled with plain data, everything escaped, and the headers that keep a browser to this server."""

from __future__ import annotations

import datetime as dt
import hashlib
import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlencode

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from .page_text import readable
from .problems import Problem
from .service import Service

FOLDER: Final = Path(__file__).parent
POLICY: Final = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'; img-src 'self' data:"
)
"""No script, style or image but those of this server, and none within a page."""
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "same-origin",  # under no-referrer a browser sends a form's Origin as null
    "Cache-Control": "no-store",
}
KEPT_S: Final = 31_536_000
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class Asset(NamedTuple):
    """A file of static/."""

    content: bytes
    media_type: str
    version: str


def _assets() -> dict[str, Asset]:
    found = {}
    for path in sorted((FOLDER / "static").iterdir()):
        content = path.read_bytes()
        media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        found[path.name] = Asset(content, media_type, hashlib.sha256(content).hexdigest()[:12])
    return found


ASSETS: Final = _assets()


def number(value: float | None) -> str:
    """1234567 → 1,234,567."""
    if value is None:
        return "–"
    return f"{int(value):,}" if float(value).is_integer() else f"{value:,.2f}"


def size(value: float | None) -> str:
    """Bytes in the unit that leaves one to four digits."""
    if value is None:
        return "–"
    for unit in _UNITS:
        if abs(value) < 1024 or unit == _UNITS[-1]:
            return f"{value:,.0f} {unit}" if unit == "B" or abs(value) >= 100 else f"{value:,.1f} {unit}"
        value /= 1024
    raise AssertionError


def span(seconds: float | None) -> str:
    """How long: 350 ms, 12.4 s, 3 min 20 s, 2 h 5 min, 4 d 3 h."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = int(seconds)
    for one, more, names in ((60, 3600, ("min", "s")), (3600, 86_400, ("h", "min")), (86_400, 1 << 62, ("d", "h"))):
        if whole < more:
            rest = whole % one // {60: 1, 3600: 60, 86_400: 3600}[one]
            return f"{whole // one} {names[0]}" + (f" {rest} {names[1]}" if rest else "")
    raise AssertionError


def usd(value: float | None) -> str:
    """Dollars, with as many digits as small sums need."""
    if value is None:
        return "–"
    if 0 < value < 0.0001:
        return "< $0.0001"
    return f"${value:,.2f}" if value >= 1 or value == 0 else f"${value:.4f}"


def clock(at: dt.datetime | None, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """A time in UTC."""
    return "–" if at is None else f"{at.astimezone(dt.UTC):{form}}"


def link(path: str, **values: Any) -> str:
    """An address of this server with these parameters; None is left out."""
    given = {name: value for name, value in values.items() if value is not None and value != ""}
    return f"{path}?{urlencode(given, quote_via=quote)}" if given else path


def wholly_quoted(text: str) -> str:
    """The text as one part of a path."""
    return quote(text, safe="")


def static(name: str) -> str:
    """The address of a file of static/, another one when the file changes."""
    return link(f"/static/{name}", v=ASSETS[name].version)


_TEMPLATES: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
_TEMPLATES.filters.update(
    number=number, size=size, span=span, usd=usd, clock=clock, readable=readable, wholly_quoted=wholly_quoted
)
_TEMPLATES.globals.update(link=link, static=static, counter=jinja2.utils.Namespace)


def filled(template: str, **values: Any) -> str:
    """The template's text."""
    return _TEMPLATES.get_template(template).render(**values)


def html(
    request: Request, template: str, *, code: int = 200, headers: Mapping[str, str] | None = None, **values: Any
) -> Response:
    """A page, or a part of one."""
    service: Service = request.app.state.service
    caller = request.scope["caller"]
    common = {
        "namespace": service.settings.namespace,
        "path": request.url.path,
        "who": caller.name if caller.name not in ("open", "local") else "",
        "locked": service.access.required,
    }
    return HTMLResponse(filled(template, **common, **values), code, {**HEADERS, **(headers or {})})


def is_part(request: Request) -> bool:
    """Whether a script of the page asks for a part of it."""
    return request.headers.get("hx-request") == "true"


def problem_page(request: Request, problem: Problem) -> Response:
    """A problem as people read it."""
    headers = problem.response().headers
    told = {name: headers[name] for name in ("retry-after",) if name in headers}
    template = "part_problem.html" if is_part(request) else "problem.html"
    return html(request, template, code=problem.status, headers=told, problem=problem.document())


async def asset(request: Request) -> Response:
    """A file of static/, kept by the browser for as long as its address is the same."""
    found = ASSETS.get(request.path_params["name"])
    if found is None:
        raise Problem(404, "not-found", "there is no such file")
    headers = {"Cache-Control": f"public, max-age={KEPT_S}, immutable", "Content-Type": found.media_type}
    return Response(found.content, headers=headers)
