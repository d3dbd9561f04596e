"""The ASGI application: all routes, behind the checks that every request passes."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from thermocline.errors import ThermoclineError

from . import conversations, events, health, openapi, query, tail
from .front import Front
from .page import on_unrouted, page_routes
from .problems import Problem, on_problem
from .routing import Scopes, route
from .service import Service


def api_routes() -> list[BaseRoute]:
    """The routes for programs."""
    return [
        route("/healthz", health.healthz, scope="open"),
        route("/readyz", health.readyz, scope="open"),
        route("/openapi.json", openapi.openapi, scope="open"),
        route("/metrics", health.metrics, scope="metrics"),
        route("/v1/status", health.status, scope="query"),
        route("/v1/events", events.append_events, scope="append", methods=["POST"]),
        route("/v1/conversations/{conversation_id:text}/events", conversations.conversation_events, scope="query"),
        route("/v1/tail", tail.tail, scope="query"),
        route("/v1/query", query.query, scope="query", methods=["POST"]),
        route("/v1/query/{query_id}", query.cancel, scope="query", methods=["DELETE"]),
    ]


def application(service: Service) -> ASGIApp:
    """The application over an opened service."""
    routes = [*api_routes(), *page_routes(service)]
    handlers = {Problem: on_problem, ThermoclineError: on_problem, HTTPException: on_unrouted}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    app.state.service = service
    app.state.queries = query.Queries()
    service.metrics.watch(service)
    return Front(app, service, Scopes(routes))
