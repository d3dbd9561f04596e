"""Label each column of an answer that rests on a sample: exact, estimated or unknown. Pure.

exact      what it says of its row is what it would say had nothing been sampled out
estimated  a weighted estimate: est_count and its kin, sum(x / sample_rate), and what is computed from such
unknown    anything else computed from a part of the rows: an unweighted count, a maximum, a rank; or it was not understood

Only the text of the query is looked at. Rows that are missing do not change the label of those that are there: that some are is
what `Coverage.exact` says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlglot import exp

from thermocline.event import COLUMN_NAMES

from .prune import parsed
from .sums import SELECT_ARGS, TABLE_ARGS

if TYPE_CHECKING:
    from .coverage import Label

_ORDER: Final[tuple[Label, ...]] = ("exact", "estimated", "unknown")
_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "events": COLUMN_NAMES,
    "hourly_stats": ("hour", "conversation_id", "event_count", "total_bytes"),
    "conversation_summary": ("conversation_id", "started_at", "ended_at", "total_events", "task_count", "interventions"),
}
_AGGREGATES: Final = (exp.AggFunc, exp.AnonymousAggFunc)
_QUERIES: Final = (exp.Select, exp.SetOperation, exp.Subquery)


class _Rows(NamedTuple):
    """What a query or relation gives."""

    columns: tuple[tuple[str, Label], ...] | None
    """None: not known."""
    whole: bool
    """No row is missing."""

    def label(self, name: str) -> Label | None:
        """None when there is no such column."""
        if self.columns is None:
            return "unknown"
        return worst(label for column, label in self.columns if column == name) if name in dict(self.columns) else None


_NOTHING_KNOWN: Final = _Rows(None, False)


class _Unclear(Exception):
    """Internal: a construct that nothing is known about."""


def labels(query: str, names: Sequence[str], sampled: Collection[str]) -> tuple[Label, ...]:
    """One label for each column of the answer to `query`.

    names    of its columns
    sampled  relations of which rows are missing; of the other relations none is
    """
    unknown: tuple[Label, ...] = tuple("unknown" for _ in names)
    tree = parsed(query)
    if isinstance(tree, str):
        return unknown
    try:
        found = _query(tree, {}, sampled).columns
    except (_Unclear, RecursionError):
        return unknown
    return tuple(label for _, label in found) if found is not None and len(found) == len(names) else unknown


def worst(found: object) -> Label:
    """The least certain of some labels; exact of none."""
    return max(found, key=_ORDER.index, default="exact")  # type: ignore[call-overload,no-any-return]


def _query(node: exp.Expr, known: Mapping[str, _Rows], sampled: Collection[str]) -> _Rows:
    with_ = node.args.get("with_")
    if with_ is not None:
        if with_.args.get("recursive"):
            raise _Unclear
        for cte in with_.expressions:
            known = {**known, cte.alias.lower(): _renamed(_query(cte.this, known, sampled), cte)}
    if isinstance(node, exp.Subquery):
        return _query(node.this, known, sampled)
    if isinstance(node, exp.SetOperation):
        return _united(node, _query(node.left, known, sampled), _query(node.right, known, sampled))
    if not isinstance(node, exp.Select):
        raise _Unclear
    return _Select(node, known, sampled).rows()


def _renamed(rows: _Rows, node: exp.Expr) -> _Rows:
    alias = node.args.get("alias")
    names = [one.name.lower() for one in alias.args.get("columns") or ()] if isinstance(alias, exp.TableAlias) else []
    if not names or rows.columns is None:
        return rows
    labels_ = [label for _, label in rows.columns]
    old = [name for name, _ in rows.columns]
    return rows._replace(columns=tuple(zip([*names, *old[len(names) :]], labels_, strict=True)))


def _united(node: exp.SetOperation, left: _Rows, right: _Rows) -> _Rows:
    whole = left.whole and right.whole
    if left.columns is None or right.columns is None or len(left.columns) != len(right.columns) or node.args.get("by_name"):
        raise _Unclear
    if not isinstance(node, exp.Union) and not whole:
        return _Rows(tuple((name, "unknown") for name, _ in left.columns), False)
    pairs = zip(left.columns, right.columns, strict=True)
    return _Rows(tuple((name, worst((one, other))) for (name, one), (_, other) in pairs), whole)


class _Select:
    """One SELECT over its sources."""

    def __init__(self, select: exp.Select, known: Mapping[str, _Rows], sampled: Collection[str]) -> None:
        if any(value and name not in SELECT_ARGS for name, value in select.args.items()):
            raise _Unclear
        self._select, self._known, self._sampled = select, known, sampled
        joins: list[exp.Join] = []
        self._sources: dict[str, _Rows] = {}
        if select.args.get("from_") is not None:
            first = select.args["from_"].this
            joins = [*(first.args.get("joins") or []), *(select.args.get("joins") or [])]
            for one in (first, *(join.this for join in joins)):
                self._sources[one.alias_or_name.lower()] = self._source(one)
        self._whole = all(source.whole for source in self._sources.values())
        if not self._whole and any(join.method or join.side or join.kind not in ("", "INNER", "CROSS") for join in joins):
            raise _Unclear  # a row that is missing on one side changes the other
        self._usings = {name.name.lower() for join in joins for name in join.args.get("using") or ()}
        conditions = [join.args["on"] for join in joins if join.args.get("on")]
        conditions += [select.args[name].this for name in ("where", "having", "qualify") if select.args.get(name)]
        self._chosen = worst(self._of(one) for one in conditions)

    def _source(self, node: exp.Expr) -> _Rows:
        if isinstance(node, exp.Subquery):
            return _renamed(_query(node, self._known, self._sampled), node)
        if not isinstance(node, exp.Table) or any(value and name not in TABLE_ARGS for name, value in node.args.items()):
            return _NOTHING_KNOWN
        name = node.name.lower()
        if name in self._known:
            return _renamed(self._known[name], node)
        if name not in _COLUMNS or not isinstance(node.this, exp.Identifier):
            return _NOTHING_KNOWN
        return _renamed(_Rows(tuple((column, "exact") for column in _COLUMNS[name]), name not in self._sampled), node)

    def rows(self) -> _Rows:
        grouped = self._select.args.get("group") is not None
        columns: list[tuple[str, Label]] = []
        for one in self._select.expressions:
            columns += self._stars(one) or [(one.alias_or_name.lower(), self._of(one))]
        if self._chosen != "exact":
            columns = [(name, worst((label, self._chosen))) for name, label in columns]
        one_row = not grouped and any(self._aggregates(one) for one in self._select.expressions)
        return _Rows(tuple(columns), one_row or (self._whole and self._chosen == "exact"))

    def _stars(self, node: exp.Expr) -> list[tuple[str, Label]]:
        """The columns of `*` or `t.*`; empty for anything else."""
        star = node.this if isinstance(node, exp.Column) else node
        if not isinstance(star, exp.Star):
            return []
        if any(star.args.values()):
            raise _Unclear
        sources = (
            [self._sources.get(node.table.lower(), _NOTHING_KNOWN)] if isinstance(node, exp.Column) else [*self._sources.values()]
        )
        found: list[tuple[str, Label]] = []
        for source in sources:
            if source.columns is None:
                raise _Unclear
            already = {name for name, _ in found} & self._usings
            found += [column for column in source.columns if column[0] not in already]
        return found

    @staticmethod
    def _aggregates(node: exp.Expr) -> bool:
        """Whether it makes one row of many; functions that are not known may."""
        return any(
            (isinstance(part, _AGGREGATES) or _is_estimate(part))
            and part.find_ancestor(exp.Window, exp.Query) is node.find_ancestor(exp.Query)
            for part in node.walk()
        )

    def _of(self, node: exp.Expr) -> Label:
        if isinstance(node, exp.Column):
            return self._column(node)
        if isinstance(node, _QUERIES) or (isinstance(node, exp.In) and node.args.get("query")):
            inner = node.args["query"] if isinstance(node, exp.In) else node
            found = _query(inner, self._known, self._sampled)
            label = worst(one for _, one in found.columns or [("", "unknown")])
            label = "unknown" if label == "exact" and not found.whole else label
            return worst((label, self._of(node.this))) if isinstance(node, exp.In) else label
        inside = worst(self._of(part) for part in node.iter_expressions() if not isinstance(part, exp.Identifier))
        if self._whole:
            return inside
        if isinstance(node, exp.Sum) and (inside == "estimated" or (inside == "exact" and _weighted(node.this))):
            return "estimated"
        if _is_estimate(node):
            return worst((inside, "estimated"))
        if isinstance(node, (*_AGGREGATES, exp.Window, exp.Exists, exp.Anonymous)):
            return "unknown"
        return inside

    def _column(self, node: exp.Column) -> Label:
        if isinstance(node.this, exp.Star):
            return "exact"
        name, table = node.name.lower(), node.table.lower()
        if table and table in self._sources:
            return self._sources[table].label(name) or "unknown"
        found = [label for source in self._sources.values() if (label := source.label(table or name)) is not None]
        if found:
            return worst(found)
        aliases = [one for one in self._select.expressions if isinstance(one, exp.Alias) and one.alias.lower() == name]
        return self._of(aliases[0].this) if aliases and not table and aliases[0].this.find(exp.Column) is not node else "unknown"


def _is_estimate(node: exp.Expr) -> bool:
    return isinstance(node, exp.Anonymous) and str(node.this).lower() in ("est_count", "est_sum", "est_avg")


def _weighted(node: exp.Expr) -> bool:
    """Whether it is a value divided by the row's rate."""
    if isinstance(node, exp.Paren | exp.Cast):
        return _weighted(node.this)
    if isinstance(node, exp.Mul):
        return _weighted(node.left) != _weighted(node.right)
    by = node.right.unnest() if isinstance(node, exp.Div) else None
    return isinstance(by, exp.Column) and by.name.lower() == "sample_rate"
