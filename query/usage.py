"""What was used: events, tokens, cost and errors by month and model, from rollups, which sampling does not change."""

from __future__ import annotations

from typing import Final

from .result import Result
from .run import Runner

_SUMS: Final = ", ".join(
    f"sum({name})::{kind} AS {name}"
    for name, kind in {
        **dict.fromkeys(("events", "content_bytes", "input_tokens", "output_tokens"), "BIGINT"),
        "cost_usd": "DOUBLE",
        "errors": "BIGINT",
    }.items()
)


def usage(runner: Runner, conversation_id: str | None = None) -> Result:
    """Columns month, model, events, content_bytes, input_tokens, output_tokens, cost_usd, errors; the newest month first.

    Exact for everything ever appended that has not expired. conversation_id: of that conversation only
    """
    where, parameters = ("", None) if conversation_id is None else (" WHERE conversation_id = ?", [conversation_id])
    return runner.sql(
        f"SELECT date_trunc('month', hour) AS month, model, {_SUMS} FROM usage{where}"
        " GROUP BY ALL ORDER BY month DESC, cost_usd DESC, model",
        parameters,
    )
