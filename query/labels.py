"""Label each column of an answer that rests on a sample: exact, estimated or unknown. Pure.

exact      what it says of its row is what it would say had nothing been sampled out
estimated  a weighted estimate: est_count and its kin, sum(x / sample_rate), and what is computed from such
unknown    anything else computed from a part of the rows: an unweighted count, a maximum, a rank; or it was not understood

A weighted estimate needs rows that are still the sample, each with its rate: through sub-queries that select columns and rows by
what is exact, and joins with relations of which no row is missing. DISTINCT, LIMIT and grouping take that away; but counts and
sums grouped by the rate too may be weighed by it.

Only the text of the query is looked at. Rows that are missing do not change the label of those that are there: that some are is
what `Coverage.exact` says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlglot import exp

from thermocline.event import COLUMN_NAMES

from .label_rows import MARKS, NOTHING_KNOWN, Rows, Unclear, is_cut, renamed, united, worst
from .prune import parsed
from .sums import SELECT_ARGS, TABLE_ARGS

if TYPE_CHECKING:
    from .coverage import Label

_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "events": COLUMN_NAMES,
    "hourly_stats": ("hour", "conversation_id", "event_count", "total_bytes"),
    "conversation_summary": ("conversation_id", "started_at", "ended_at", "total_events", "task_count", "interventions"),
}
_AGGREGATES: Final = (exp.AggFunc, exp.AnonymousAggFunc)
_QUERIES: Final = (exp.Select, exp.SetOperation, exp.Subquery)
_ADDED_UP: Final = (exp.Sum, exp.Count)
_FIELDS: Final = ("estimate", "low", "high")
"""Of what est_count and its kin give."""
_OF_A_ROW: Final = frozenset(
    {
        *("strlen", "bit_length", "octet_length", "contains", "prefix", "suffix", "instr", "lcase", "ucase", "strip_accents"),
        *("regexp_matches", "regexp_full_match", "list_contains", "list_extract", "json_extract_string", "json_array_length"),
        *("json_keys", "json_type", "json_valid", "epoch_ms", "epoch_us", "epoch_ns", "time_bucket", "datepart", "datetrunc"),
    }
)
"""Functions of one row that the parser has no class for; any other unknown one may be an aggregate."""


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
    except (Unclear, RecursionError):
        return unknown
    return tuple(label for _, label in found) if found is not None and len(found) == len(names) else unknown


def _query(node: exp.Expr, known: Mapping[str, Rows], sampled: Collection[str]) -> Rows:
    with_ = node.args.get("with_")
    if with_ is not None:
        if with_.args.get("recursive"):
            raise Unclear
        for cte in with_.expressions:
            known = {**known, cte.alias.lower(): renamed(_query(cte.this, known, sampled), cte)}
    if isinstance(node, exp.Subquery):
        rows = _query(node.this, known, sampled)
        return Rows(rows.columns, rows.whole and rows.worst() == "exact", wide=rows.wide) if is_cut(node) else rows
    if isinstance(node, exp.SetOperation):
        return united(node, _query(node.left, known, sampled), _query(node.right, known, sampled))
    if not isinstance(node, exp.Select):
        raise Unclear
    return _Select(node, known, sampled).rows()


class _Column(NamedTuple):
    """One column of a SELECT."""

    name: str
    label: Label
    marks: frozenset[str] = frozenset()
    """Which of rates, sums and structs it is in."""


class _Select:
    """One SELECT over its sources."""

    def __init__(self, select: exp.Select, known: Mapping[str, Rows], sampled: Collection[str]) -> None:
        if any(value and name not in SELECT_ARGS for name, value in select.args.items()):
            raise Unclear
        self._select, self._known, self._sampled = select, known, sampled
        joins: list[exp.Join] = []
        self._sources: dict[str, Rows] = {}
        if select.args.get("from_") is not None:
            first = select.args["from_"].this
            joins = [*(first.args.get("joins") or []), *(select.args.get("joins") or [])]
            for one in (first, *(join.this for join in joins)):
                name = one.alias_or_name.lower() or f" {len(self._sources)}"
                if name in self._sources:
                    raise Unclear
                self._sources[name] = self._source(one)
        self._whole = all(source.whole for source in self._sources.values())
        if not self._whole and any(join.method or join.side or join.kind not in ("", "INNER", "CROSS") for join in joins):
            raise Unclear  # a row that is missing on one side changes the other
        self._usings = {name.name.lower() for join in joins for name in join.args.get("using") or ()}
        parts = [source for source in self._sources.values() if not source.whole]
        self._sample = parts[0] if len(parts) == 1 else NOTHING_KNOWN
        conditions = [join.args["on"] for join in joins if join.args.get("on")]
        conditions += [select.args[name].this for name in ("where", "having", "qualify") if select.args.get(name)]
        conditions += self._keys()
        self._chosen = worst(self._of(one) for one in conditions)

    def _source(self, node: exp.Expr) -> Rows:
        if isinstance(node, exp.Subquery):
            return renamed(_query(node, self._known, self._sampled), node)
        if not isinstance(node, exp.Table) or any(value and name not in TABLE_ARGS for name, value in node.args.items()):
            return NOTHING_KNOWN
        name = node.name.lower()
        if name in self._known:
            return renamed(self._known[name], node)
        if name not in _COLUMNS or not isinstance(node.this, exp.Identifier):
            return NOTHING_KNOWN
        columns: tuple[tuple[str, Label], ...] = tuple((column, "exact") for column in _COLUMNS[name])
        whole = name not in self._sampled
        drawn = name == "events" and not whole
        return renamed(Rows(columns, whole, drawn, frozenset({"sample_rate"}) if drawn else frozenset()), node)

    def rows(self) -> Rows:
        args = self._select.args
        grouped = args.get("group") is not None
        columns: list[_Column] = []
        wide = False
        for one in self._select.expressions:
            several = self._several(one)
            columns += several if several is not None else [self._one(one)]
            wide = wide or (several is None and _is_wide(one))
        if self._chosen != "exact":
            columns = [one._replace(label=worst((one.label, self._chosen))) for one in columns]
        one_row = not grouped and any(self._aggregates(one) for one in self._select.expressions)
        if self._chosen != "exact" and (args.get("having") or args.get("qualify")):
            one_row = False  # or none
        distinct, cut = args.get("distinct"), is_cut(self._select)
        if distinct is not None and distinct.args.get("on") and not self._whole:
            columns = [one._replace(label="unknown") for one in columns]  # which row is taken depends on those that are there
        ordered = worst(self._of(one.this) for one in (args["order"].expressions if cut and args.get("order") else ()))
        listed = tuple((one.name, one.label) for one in columns)
        whole = one_row or (self._whole and self._chosen == "exact" and ordered == "exact")
        if one_row or whole or self._chosen != "exact" or distinct is not None or cut or wide:
            return Rows(listed, whole, structs=_marked(columns, "structs"), wide=wide)
        if grouped and not any(self._is_rate(key) for key in self._keys()):
            return Rows(listed, whole, structs=_marked(columns, "structs"))
        drawn = self._sample.drawn and not grouped
        return Rows(
            listed, whole, drawn, _marked(columns, "rates"), _marked(columns, "sums"), structs=_marked(columns, "structs")
        )

    def _keys(self) -> list[exp.Expr]:
        """What is grouped by."""
        group = self._select.args.get("group")
        if group is None:
            return []
        items = self._select.expressions
        if group.args.get("all"):
            return [one for one in items if not self._aggregates(one) and self._several(one) is None]
        keys = [*group.expressions]
        for place, key in enumerate(keys):
            if isinstance(key, exp.Literal) and not key.is_string and 0 < int(key.this) <= len(items):
                keys[place] = items[int(key.this) - 1]
        return keys

    def _one(self, node: exp.Expr) -> _Column:
        """The column that an item of the list is, with what is known of it."""
        inner = node.this if isinstance(node, exp.Alias) else node
        marks = set()
        origin = self._origin(inner)
        if origin is not None:
            marks = {mark for mark in MARKS if origin[1] in getattr(origin[0], mark)}
        grouped = self._select.args.get("group") is not None
        if grouped:
            marks -= {"sums"}
            part = inner.this if isinstance(inner, exp.Filter) else inner
            where = inner.expression.this if isinstance(inner, exp.Filter) else None
            if self._adds_up(part) and (where is None or self._of(where) == "exact"):
                marks |= {"sums"}
        if _is_estimate(inner):
            marks |= {"structs"}
        return _Column(node.alias_or_name.lower(), self._of(node), frozenset(marks))

    def _adds_up(self, node: exp.Expr) -> bool:
        """Whether it is a count or a sum over rows of a sample, or of such."""
        if not isinstance(node, _ADDED_UP) or node.find(exp.Distinct):
            return False
        if isinstance(node.this, exp.Star):
            return self._sample.drawn
        if isinstance(node, exp.Sum) and self._is_sum(node.this):
            return True
        return self._sample.drawn and self._of(node.this) == "exact"

    def _several(self, node: exp.Expr) -> list[_Column] | None:
        """The columns of `*`, `t.*`, and of an estimate that is unnested; None for anything else."""
        if isinstance(node, exp.Explode) and not node.expressions:
            origin = self._origin(node.this)
            if _is_estimate(node.this) or (origin is not None and origin[1] in origin[0].structs):
                return [_Column(name, self._of(node.this)) for name in _FIELDS]
        star = node.this if isinstance(node, exp.Column) else node
        if not isinstance(star, exp.Star):
            return None
        if star.args.get("ilike"):
            raise Unclear
        table = node.table.lower() if isinstance(node, exp.Column) else ""
        if table and table not in self._sources:
            struct = exp.column(node.args["table"].copy())
            origin = self._origin(struct)
            if origin is None or origin[1] not in origin[0].structs or any(star.args.values()):
                raise Unclear
            return [_Column(name, origin[0].label(origin[1]) or "unknown") for name in _FIELDS]
        return self._but(star, self._all([self._sources[table]] if table else [*self._sources.values()]))

    def _all(self, sources: Sequence[Rows]) -> list[_Column]:
        found: list[_Column] = []
        for source in sources:
            if source.columns is None or source.wide:
                raise Unclear
            already = {one.name for one in found} & self._usings
            for name, label in source.columns:
                marks = frozenset(mark for mark in MARKS if name in getattr(source, mark))
                found += (
                    [] if name in already else [_Column(name, label, marks if source is self._sample else marks & {"structs"})]
                )
        return found

    def _but(self, star: exp.Star, columns: Sequence[_Column]) -> list[_Column]:
        """The columns of a star with EXCLUDE, REPLACE and RENAME."""
        left_out = {one.name.lower() for one in star.args.get("except_") or ()}
        replaced = {one.alias.lower(): self._one(one) for one in star.args.get("replace") or ()}
        renamed = {one.this.name.lower(): one.alias.lower() for one in star.args.get("rename") or ()}
        kept = [replaced.get(one.name, one) for one in columns if one.name not in left_out]
        return [one._replace(name=renamed.get(one.name, one.name)) for one in kept]

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
        if isinstance(node, exp.Star | exp.Columns):
            return worst(source.worst() for source in self._sources.values())
        if isinstance(node, _QUERIES) or (isinstance(node, exp.In) and node.args.get("query")):
            inner = node.args["query"] if isinstance(node, exp.In) else node
            found = _query(inner, self._known, self._sampled)
            label = worst(one for _, one in found.columns or [("", "unknown")])
            label = "unknown" if label == "exact" and not found.whole else label
            return worst((label, self._of(node.this))) if isinstance(node, exp.In) else label
        if self._whole and isinstance(node, exp.Count) and isinstance(node.this, exp.Star):
            return "exact"
        if not self._whole and (_is_estimate(node) or (isinstance(node, exp.Sum) and self._is_weighed(node.this))):
            return self._estimated(node)
        inside = worst(self._of(part) for part in node.iter_expressions() if not isinstance(part, exp.Identifier))
        if self._whole:
            return inside
        if isinstance(node, exp.Sum) and inside == "estimated":
            return "estimated"
        if isinstance(node, exp.Anonymous) and str(node.this).lower() in _OF_A_ROW:
            return inside
        if isinstance(node, (*_AGGREGATES, exp.Window, exp.Exists, exp.Anonymous)):
            return "unknown"
        return inside

    def _estimated(self, node: exp.Expr) -> Label:
        """The label of a sum of values divided by their rates, or of est_count and its kin."""
        if isinstance(node, exp.Sum):
            return "estimated"
        name = str(node.this).lower()
        place = 0 if name == "est_count" else 1
        if len(node.expressions) <= place or not self._is_rate(node.expressions[place]):
            return "unknown"
        values = [one for index, one in enumerate(node.expressions) if index != place]
        if self._sample.drawn:
            return worst(("estimated", *(self._of(one) for one in values)))
        added_up = all(self._is_sum(one) for one in values) and len(values) == {"est_sum": 1, "est_avg": 2}.get(name)
        return "estimated" if added_up else "unknown"

    def _is_weighed(self, node: exp.Expr) -> bool:
        """Whether it is a value divided by the row's rate."""
        if isinstance(node, exp.Paren | exp.Cast):
            return self._is_weighed(node.this)
        if isinstance(node, exp.Mul):
            sides = (node.left, node.right)
            return any(self._is_weighed(one) and self._of(other) == "exact" for one, other in (sides, sides[::-1]))
        if not isinstance(node, exp.Div) or not self._is_rate(node.right):
            return False
        return self._is_sum(node.left) or (self._sample.drawn and self._of(node.left) == "exact")

    def _is_rate(self, node: exp.Expr) -> bool:
        """Whether it is the rate of the sample's rows."""
        origin = self._origin(node)
        return origin is not None and origin[0] is self._sample and origin[1] in self._sample.rates

    def _is_sum(self, node: exp.Expr) -> bool:
        origin = self._origin(node)
        return origin is not None and origin[0] is self._sample and origin[1] in self._sample.sums

    def _origin(self, node: exp.Expr) -> tuple[Rows, str] | None:
        """The source and the name there of what is just a column; None when it is more, or not clear."""
        node = node.this if isinstance(node, exp.Alias) else node
        node = node.unnest()
        if not isinstance(node, exp.Column) or isinstance(node.this, exp.Star):
            return None
        name, table = node.name.lower(), node.table.lower()
        if table:
            return (self._sources[table], name) if table in self._sources else None
        found = [source for source in self._sources.values() if source.label(name) is not None]
        if found:
            return (found[0], name) if len(found) == 1 else None
        return next((self._origin(one) for one in self._aliased(node) if one.this.unnest() is not node), None)

    def _aliased(self, node: exp.Column) -> list[exp.Expr]:
        """The items of the list that have a column's name."""
        found = [one for one in self._select.expressions if isinstance(one, exp.Alias) and one.alias.lower() == node.name.lower()]
        return [one for one in found[:1] if one.this.find(exp.Column) is not node]

    def _column(self, node: exp.Column) -> Label:
        name, table = node.name.lower(), node.table.lower()
        if isinstance(node.this, exp.Star):
            return self._sources.get(table, NOTHING_KNOWN).worst()
        if table and table in self._sources:
            return self._sources[table].label(name) or "unknown"
        found = [label for source in self._sources.values() if (label := source.label(table or name)) is not None]
        if found:
            return worst(found)
        aliases = self._aliased(node) if not table else []
        return self._of(aliases[0].this) if aliases else "unknown"


def _marked(columns: Sequence[_Column], mark: str) -> frozenset[str]:
    """Names of columns that have a mark and are not there twice."""
    names = [one.name for one in columns]
    return frozenset(one.name for one in columns if mark in one.marks and names.count(one.name) == 1)


def _is_wide(node: exp.Expr) -> bool:
    """Whether it may be several columns."""
    matched = isinstance(node, exp.Predicate | exp.Not) and any(
        not isinstance(one.parent, exp.Count) for one in node.find_all(exp.Star)
    )
    return matched or node.find(exp.Columns, exp.Explode) is not None


def _is_estimate(node: exp.Expr) -> bool:
    return isinstance(node, exp.Anonymous) and str(node.this).lower() in ("est_count", "est_sum", "est_avg")
