"""The page for people: its routes. What each view shows comes from page_*.py as plain data; templates/ says how it looks."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pyarrow as pa
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from thermocline.demo import QUESTIONS
from thermocline.errors import ThermoclineError
from thermocline.event import INT64_MAX
from thermocline.ingest.validate import check_conversation_id
from thermocline.query.gaps import Gap

from . import page_conversations, page_timeline
from .conversations import number
from .page_console import ROWS_MAX, chart, table
from .page_login import form_of, login, logout
from .page_overview import PRICES, SPANS, Overview
from .page_view import asset, filled, html, is_part, problem_page
from .problems import Problem, on_problem, told, unrouted
from .query import Ask, answered_to
from .routing import route
from .rows import ARROW
from .service import Service
from .tail import followed

Endpoint = Callable[[Request], Awaitable[Response]]
QUERY_CHARS_MAX: Final = 64 << 10
DEADLINE_S: Final = 30.0


def page_routes(service: Service) -> list[BaseRoute]:
    """Routes of the page, beside those of the API. Each made by `routing.route(…, scope=…)`: who may."""
    overview = Overview(service.store, service.status)
    return [
        route("/", shown(functools.partial(home, overview)), scope="query"),
        route("/live", shown(functools.partial(live, overview)), scope="query"),
        route("/conversations", shown(conversations), scope="query"),
        route("/conversation", shown(conversation), scope="query"),
        route("/conversation/head", shown(conversation_head), scope="query"),
        route("/conversation/follow", follow, scope="query"),
        route("/sql", shown(console), scope="query", methods=["GET", "POST"]),
        route("/login", shown(login), scope="open", methods=["GET", "POST"]),
        route("/logout", shown(logout), scope="open", methods=["POST"]),
        route("/static/{name}", asset, scope="open"),
    ]


PAGES: Final = frozenset({"/", "/live", "/conversations", "/conversation", "/conversation/head", "/sql", "/login", "/logout"})
"""Routes whose problems are shown to people."""


def shown(endpoint: Endpoint) -> Endpoint:
    """The endpoint, its problems as a page."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Problem as problem:
            return problem_page(request, problem)
        except ThermoclineError as exc:
            return problem_page(request, told(request, exc))

    return answer


async def on_unrouted(request: Request, exc: Exception) -> Response:
    """Starlette's handler for its own errors: a page for a browser that was led astray, else a problem document."""
    asks_for_a_page = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/v1/")
    if isinstance(exc, HTTPException) and request.method == "GET" and asks_for_a_page:
        return problem_page(request, unrouted(request, exc))
    return await on_problem(request, exc)


async def home(overview: Overview, request: Request) -> Response:
    """The overview."""
    return await _overview(overview, request, "overview.html")


async def live(overview: Overview, request: Request) -> Response:
    """What of the overview changes."""
    return await _overview(overview, request, "part_overview.html")


async def _overview(overview: Overview, request: Request, template: str) -> Response:
    service: Service = request.app.state.service
    span = request.query_params.get("span", "hours")
    if span not in SPANS:
        raise Problem(400, "bad-request", f"span must be one of {', '.join(SPANS)}, not {span[:40]!r}")

    def read() -> dict[str, Any]:
        return {**overview.now(), "months": overview.costs(), "chart": overview.chart(span)}

    found = await service.read(read)
    return html(request, template, **found, span=span, spans=SPANS, prices=PRICES)


async def conversations(request: Request) -> Response:
    """The list of conversations, or what a search found in them."""
    service: Service = request.app.state.service
    asked = {name: request.query_params.get(name, "")[:1000] for name in ("q", "within", "before")}
    text, before = asked["q"].strip(), asked["before"]
    if asked["within"] == "content" and text:
        request.scope["audit"] = {"search": text}
        found = await service.read(lambda: page_conversations.found(service.store, text, before))
        return html(request, "search.html", text=text, within="content", **found)
    found = await service.read(lambda: page_conversations.listed(service.store, text, before))
    return html(request, "conversations.html", text=text, within="", before=before, **found)


async def conversation(request: Request) -> Response:
    """A conversation's timeline."""
    service: Service = request.app.state.service
    store = service.store
    name = check_conversation_id(request.query_params.get("id", ""))
    request.scope["audit"] = {"conversation_id": name}
    given = request.query_params
    seq = number(request, "seq", default=1, least=1, most=INT64_MAX - 1) if "seq" in given else None
    before = number(request, "before", default=1, least=2, most=INT64_MAX) if "before" in given and seq is None else None

    def read() -> dict[str, Any] | None:
        found = page_timeline.summary(store, name)
        if found is None:
            return None
        part = page_timeline.part(store, name, seq=seq, before=before)
        return {"summary": found, "part": part, "places": page_timeline.places(store, name, part.first)}

    found = await service.read(read)
    if found is None:
        raise Problem(404, "not-found", f"there is no conversation {name!r}")
    return html(request, "conversation.html", name=name, newest=seq is None and before is None, **found)


async def conversation_head(request: Request) -> Response:
    """What stands above a timeline, as it is now."""
    service: Service = request.app.state.service
    name = check_conversation_id(request.query_params.get("id", ""))
    first = number(request, "first", default=1, least=1, most=INT64_MAX >> 1)

    def read() -> dict[str, Any]:
        return {
            "summary": page_timeline.summary(service.store, name),
            "places": page_timeline.places(service.store, name, first),
        }

    return html(request, "part_conversation_head.html", name=name, **await service.read(read))


async def follow(request: Request) -> Response:
    """The events of a conversation from `seq` on, as server-sent events that hold pieces of the page."""
    name = check_conversation_id(request.query_params.get("id", ""))
    seq = number(request, "seq", default=1, least=1, most=INT64_MAX - 1)

    def piece(item: Any) -> tuple[str, str]:
        entry = page_timeline.gap_of(item) if isinstance(item, Gap) else page_timeline.followed(item.event)
        return "entry", filled("part_entry.html", entry=entry, name=name)

    return await followed(request, name, types=None, start=request.headers.get("last-event-id") or seq, shown=piece)


async def console(request: Request) -> Response:
    """The SQL console; after its form was sent with the answer, or what is wrong with the query."""
    template = "part_result.html" if is_part(request) else "console.html"
    service: Service = request.app.state.service
    around: dict[str, Any] = {"questions": QUESTIONS, "relations": await service.read(service.store.relations)}
    if request.method != "POST":
        return html(request, "console.html", sql=request.query_params.get("q", "")[:QUERY_CHARS_MAX], result=None, **around)
    sql = (await form_of(request)).get("sql", "").replace("\r\n", "\n")
    result: dict[str, Any]
    try:
        result = await _asked(request, sql)
        status = 200
    except (Problem, ThermoclineError) as exc:
        problem = exc if isinstance(exc, Problem) else told(request, exc)
        result, status = {"problem": problem.document()}, 200 if is_part(request) else problem.status
    return html(request, template, code=status, sql=sql, result=result, **around)


async def _asked(request: Request, sql: str) -> dict[str, Any]:
    service: Service = request.app.state.service
    ask = Ask(sql=sql, rows_max=service.settings.serve.page_rows_max, deadline_s=DEADLINE_S)
    answered = await answered_to(request, ask, ARROW, uuid.uuid4().hex)

    def read() -> dict[str, Any]:
        with answered.file, pa.ipc.open_stream(answered.file) as stream:
            found = stream.read_all()
        return {
            "problem": None,
            "table": table(found),
            "chart": chart(found),
            "truncated": answered.truncated,
            "coverage": str(answered.coverage),
            "exact": answered.coverage.exact,
            "shown_max": ROWS_MAX,
        }

    return await service.read(read)
