"""`mcp`: the store as tools for agents."""

from __future__ import annotations

import typer

from .options import settings_of


def mcp(context: typer.Context) -> None:
    """Serve the store as MCP tools on stdin and stdout.

    For agents that look at their own past: recent_events, search_events,
    query_events, conversation_timeline. Your agent's program starts it.
    """
    from thermocline.serve.mcp import serve_stdio

    serve_stdio(settings_of(context))
