"""What `store.estimate` is asked for, read from its text: the measure, and which part of the condition the rollups know. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import sqlglot
from sqlglot import exp

from thermocline.errors import QueryRefused

from .calibrated import HOUR, KEYS

_TOTALS: Final[Mapping[str, tuple[str, str]]] = {
    "duration_ms": ("duration_ms_sum", "duration_count"),
    "cost_usd": ("cost_usd", ""),
    "input_tokens": ("input_tokens", ""),
    "output_tokens": ("output_tokens", ""),
    "strlen(content)": ("content_bytes", "events"),
}
"""SQL of a value → columns of usage: its sum, and of how many events."""
_HISTOGRAMS: Final = ("duration_ms", "input_tokens", "output_tokens")
_FORMS: Final = "count(*), sum(x), avg(x), count(DISTINCT x), median(x) or quantile(x, 0.95)"
_OF_QUANTILES: Final = {"hour", "day", "event_type"}


class Measure(NamedTuple):
    kind: Any
    """count, sum, avg, distinct or quantile."""
    value: str = "1"
    total: str = ""
    """The column of usage that is its sum over all events."""
    counted: str = ""
    """The column that is the number of events it was summed over; of an average alone."""
    share: float = 0


class Condition(NamedTuple):
    """A condition on events in two parts, both of which must hold; empty: nothing."""

    base: str = ""
    """What is about keys of the rollups alone."""
    base_of_usage: str = ""
    """The same on usage."""
    asked: str = ""
    keys: frozenset[str] = frozenset()

    def of_usage(self) -> str:
        """The condition on usage. QueryRefused when the rollups do not know it."""
        if self.asked:
            raise QueryRefused(f"where: the rollups do not know {self.asked}; they have {', '.join(KEYS)}")
        return self.base_of_usage

    def of_quantiles(self) -> str:
        """The condition on quantile_stats. QueryRefused when that does not know it."""
        if self.asked or not self.keys <= _OF_QUANTILES:
            raise QueryRefused(f"where: the histograms are by {', '.join(sorted(_OF_QUANTILES))} alone")
        return self.base_of_usage


def measure_of(text: str) -> Measure:
    """QueryRefused unless it is one of _FORMS."""
    node = _parsed(text, "what")
    if isinstance(node, exp.Count) and isinstance(node.this, exp.Star):
        return Measure("count", "1", "events")
    if isinstance(node, exp.Count) and isinstance(node.this, exp.Distinct) and len(node.this.expressions) == 1:
        name = node.this.expressions[0].name.lower()
        if name in KEYS:
            return Measure("distinct", name)
        raise QueryRefused(f"what: the rollups can count distinct {', '.join(KEYS)}; not {name}")
    if isinstance(node, exp.Sum | exp.Avg) and not isinstance(node.this, exp.Distinct):
        value = node.this.sql(dialect="duckdb")
        total, counted = _TOTALS.get(value.lower(), ("", ""))
        return Measure("sum", value, total) if isinstance(node, exp.Sum) else Measure("avg", value, total, counted)
    if isinstance(node, exp.Median | exp.Quantile | exp.PercentileCont):
        value = node.this.sql(dialect="duckdb").lower()
        share = "0.5" if isinstance(node, exp.Median) else (node.args.get("quantile") or node.expression).sql()
        if value not in _HISTOGRAMS:
            raise QueryRefused(f"what: there are histograms of {', '.join(_HISTOGRAMS)}; not of {value}")
        try:
            return Measure("quantile", value, share=_within(float(share)))
        except ValueError as exc:
            raise QueryRefused(f"what: {share} is no share from 0 to 1") from exc
    raise QueryRefused(f"what: {text!r} is none of {_FORMS}")


def _within(share: float) -> float:
    if not 0 <= share <= 1:
        raise ValueError
    return share


def condition_of(text: str) -> Condition:
    """The condition, divided. QueryRefused when it is not one."""
    if not text.strip():
        return Condition()
    base: list[exp.Expr] = []
    asked: list[exp.Expr] = []
    keys: set[str] = set()
    tree = _parsed(text, "where")
    for part in tree.flatten() if isinstance(tree, exp.And) else [tree]:
        names = {column.name.lower() for column in part.find_all(exp.Column)}
        plain = not any(isinstance(one, exp.Query | exp.AggFunc | exp.Window) for one in part.walk())
        if plain and names and names <= KEYS.keys():
            base.append(part)
            keys |= names
        else:
            asked.append(part)
    of_events = {"hour": HOUR, "day": f"{HOUR}::DATE"}
    return Condition(_joined(base, of_events), _joined(base, {"day": "hour::DATE"}), _joined(asked, of_events), frozenset(keys))


def _joined(parts: list[exp.Expr], meanings: Mapping[str, str]) -> str:
    """The parts as one condition, with the columns that have a meaning replaced by it."""
    texts = []
    for part in parts:

        def replaced(node: exp.Expr) -> exp.Expr:
            meaning = meanings.get(node.name.lower()) if isinstance(node, exp.Column) else None
            return node if meaning is None else sqlglot.parse_one(f"({meaning})", dialect="duckdb")

        texts.append(f"({part.copy().transform(replaced).sql(dialect='duckdb')})")
    return " AND ".join(texts)


def _parsed(text: str, name: str) -> exp.Expr:
    try:
        node = sqlglot.parse_one(f"SELECT {text}", dialect="duckdb")
    except Exception as exc:  # whatever it cannot take
        raise QueryRefused(f"{name}: {text!r} was not understood") from exc
    if (
        not isinstance(node, exp.Select)
        or {name for name, value in node.args.items() if value} != {"expressions"}
        or len(node.expressions) != 1
    ):
        raise QueryRefused(f"{name}: {text!r} was not understood")
    found: exp.Expr = node.expressions[0].unalias()
    return found
