"""`store.estimate`: counts, sums, averages, distinct counts and quantiles of all events there ever were, with error bars.

What the rollups know is answered from them and exact. The rest is estimated from the events that were kept, and made to agree
with the rollups (calibrated.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from thermocline.errors import QueryRefused
from thermocline.tiers.rollups import QUANTILE_GAMMA, QUANTILE_ZERO_BUCKET

from .calibrated import KEYS, estimate_sql
from .coverage import EXACT, Coverage, Label
from .result import Result

_QUANTILE_KEYS: Final = ("hour", "day", "event_type")


class Asks(Protocol):
    """What runs the SQL: `Runner.sql`."""

    def __call__(self, query: str, parameters: Mapping[str, Any] | None = None) -> Result: ...


def estimate(
    asks: Asks, what: str, *, where: str = "", by: Sequence[str] = (), params: Mapping[str, Any] | None = None
) -> Result:
    """The answer to `what`, one row per group: the columns of `by`, then estimate, low, high, basis and kept.

    QueryRefused says what cannot be answered so.
    """
    from .measure import condition_of, measure_of  # with sqlglot, which takes long to import

    names = [by] if isinstance(by, str) else list(by)
    wrong = [name for name in names if name not in KEYS]
    if wrong or len(set(names)) != len(names):
        raise QueryRefused(f"by: {', '.join(wrong) or 'a name twice'}; estimates can be grouped by {', '.join(KEYS)}")
    if params is not None and not isinstance(params, Mapping):
        raise QueryRefused(f"params must be a dict (for $name), not {type(params).__name__}")
    measure, condition = measure_of(what), condition_of(where)
    if measure.kind == "quantile":
        query = _quantile(measure.value, measure.share, names, condition.of_quantiles())
    elif measure.kind == "distinct":
        query = _distinct(measure.value, names, condition.of_usage())
    elif not condition.asked and measure.total and (measure.kind != "avg" or measure.counted):
        query = _exact(measure.total, measure.counted if measure.kind == "avg" else "", names, condition.base_of_usage)
    else:
        total = "" if measure.kind in ("count", "avg") else measure.total
        asked = condition.asked or "true"
        query = estimate_sql(
            measure.kind, measure.value, total, names, condition.base or "true", condition.base_of_usage or "true", asked
        )
    found = asks(query, dict(params) if params else None)
    return Result(found.to_arrow(), _labelled(found, names))


def _labelled(found: Result, by: Sequence[str]) -> Coverage:
    """The coverage with the labels that the answer itself gives."""
    bases = set(found.to_arrow().column("basis").to_pylist())
    label: Label = "unknown" if "unknown" in bases else "estimated" if bases & {"estimated", "histogram"} else "exact"
    figures = ("estimate", "low", "high")
    labels = tuple((name, label if name in figures and name not in by else EXACT) for name in found.columns)
    return msgspec.structs.replace(found.coverage, columns=labels, units="")


def _columns(by: Sequence[str], day_of: str = "hour::DATE") -> tuple[str, str]:
    """(select list of the groups, GROUP BY and ORDER BY)."""
    columns = "".join(f"{day_of} AS day, " if name == "day" else f"{name}, " for name in by)
    return columns, f"GROUP BY {', '.join(by)} ORDER BY {', '.join(by)}" if by else ""


def _known(value: str, low: str = "", high: str = "") -> str:
    return f"{value} AS estimate, {low or value} AS low, {high or value} AS high, 'exact' AS basis"


def _exact(total: str, counted: str, by: Sequence[str], where: str) -> str:
    columns, grouped = _columns(by)
    value = f"(sum({total}) / nullif(sum({counted}), 0))::DOUBLE" if counted else f"coalesce(sum({total}), 0)::DOUBLE"
    return f"SELECT {columns}{_known(value)}, sum(events)::BIGINT AS kept FROM usage WHERE {where or 'true'} {grouped}"


def _distinct(value: str, by: Sequence[str], where: str) -> str:
    columns, grouped = _columns(by)
    counted = f"count(DISTINCT {'hour::DATE' if value == 'day' else value})::DOUBLE"
    return f"SELECT {columns}{_known(counted)}, sum(events)::BIGINT AS kept FROM usage WHERE {where or 'true'} {grouped}"


def _quantile(value: str, share: float, by: Sequence[str], where: str) -> str:
    """The value of the bucket that the rank falls in; its edges are the bounds."""
    wrong = [name for name in by if name not in _QUANTILE_KEYS]
    if wrong:
        raise QueryRefused(f"by: {', '.join(wrong)}; quantiles can be grouped by {', '.join(_QUANTILE_KEYS)}")
    columns, _ = _columns(by)
    names, order = ", ".join(by), f" ORDER BY {', '.join(by)}" if by else ""
    parts = f"PARTITION BY {names}" if by else ""
    gamma = repr(QUANTILE_GAMMA)
    middle, zero = f"2 * {gamma} ** bucket / ({gamma} + 1)", f"bucket = {QUANTILE_ZERO_BUCKET}"
    edges = [
        f"CASE WHEN {zero} THEN 0 ELSE {text} END::DOUBLE" for text in (middle, f"{gamma} ** (bucket - 1)", f"{gamma} ** bucket")
    ]
    return f"""
        SELECT {f"{names}, " if by else ""}{_known(*edges).replace("'exact'", "'histogram'")}, total::BIGINT AS kept FROM (
            SELECT *, sum(events) OVER ({parts} ORDER BY bucket) AS upto, sum(events) OVER ({parts}) AS total
            FROM (SELECT {columns}bucket, sum(events) AS events FROM quantile_stats
                  WHERE measure = '{value}' AND ({where or "true"}) GROUP BY ALL))
        QUALIFY row_number() OVER ({parts} ORDER BY upto >= greatest(ceil({share!r} * total), 1) DESC, bucket) = 1{order}"""
