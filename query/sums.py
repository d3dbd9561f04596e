"""Find in the tree of a query whether it only adds values of hourly_stats up: the relation need not do so before then. Pure."""

from __future__ import annotations

from typing import Final

from sqlglot import exp

TABLE_ARGS: Final = {"this", "alias", "joins"}
SELECT_ARGS: Final = {
    *("with_", "expressions", "distinct", "from_", "joins", "where", "group"),
    *("having", "qualify", "windows", "order", "limit", "offset"),
}
_KEYS: Final = {"hour", "conversation_id"}
_VALUES: Final = {"event_count", "total_bytes"}
_UNKNOWN: Final = (exp.Star, exp.Window, exp.Anonymous, exp.AnonymousAggFunc, exp.Distinct, exp.Lambda, exp.Rand)


def sums_keys(table: exp.Table) -> frozenset[str] | None:
    """The keys of hourly_stats that the SELECT names, if it adds values up by them and asks for nothing else of this relation
    alone: it would answer the same if some rows were several that add up to them. None if it might not."""
    select = table.parent.parent if isinstance(table.parent, exp.From) else None
    if not isinstance(select, exp.Select) or any(value and name not in TABLE_ARGS for name, value in table.args.items()):
        return None
    if any((value and name not in SELECT_ARGS) or (name == "joins" and value) for name, value in select.args.items()):
        return None
    if table.args.get("alias") and table.args["alias"].args.get("columns"):
        return None
    parts = list(select.walk())
    if (
        any(isinstance(part, _UNKNOWN) and not _in_where(part) for part in parts)
        or sum(isinstance(part, exp.Query) for part in parts) != 1
    ):
        return None
    sums = [part for part in parts if isinstance(part, exp.Sum)]
    others = [part for part in parts if isinstance(part, exp.AggFunc) and not isinstance(part, exp.Sum | exp.Min | exp.Max)]
    if not sums or others or any(_value_of(part.this) is None for part in sums):
        return None
    names = {part.alias.lower() for part in select.expressions if part.alias}
    columns = [part for part in parts if isinstance(part, exp.Column)]
    if not all(isinstance(one.parent, exp.Sum) or one.name.lower() in {*_KEYS, *names} - _VALUES for one in columns):
        return None
    return frozenset(one.name.lower() for one in columns) & _KEYS


def _in_where(part: exp.Expr) -> bool:
    """Whether it is a function in WHERE, which cannot be an aggregate."""
    return isinstance(part, exp.Anonymous) and part.find_ancestor(exp.Where, exp.Filter, exp.Select).__class__ is exp.Where


def _value_of(node: exp.Expr) -> str | None:
    """The value column of hourly_stats that a node is."""
    return node.name.lower() if isinstance(node, exp.Column) and node.name.lower() in _VALUES else None
