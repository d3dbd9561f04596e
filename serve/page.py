"""The page for people: its routes."""

from __future__ import annotations

from starlette.routing import BaseRoute

from .service import Service


def page_routes(service: Service) -> list[BaseRoute]:
    """Routes of the page, beside those of the API. Build each with `routing.route(path, endpoint, scope=…)`, which says who may."""
    return []
