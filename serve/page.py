"""The page for people: its routes."""

from __future__ import annotations

from starlette.routing import BaseRoute

from .service import Service


def page_routes(service: Service) -> list[BaseRoute]:
    """Routes of the page, beside those of the API. Each made by `routing.route(…, scope=…)`: who may."""
    return []
