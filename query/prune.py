"""Find in the text of a query which rows it can use, so that segments without such rows are not read. Pure.

A bound counts for one reference of a relation if it follows from the WHERE (or an inner join's ON) of the SELECT the reference
stands in; of several references the union counts. What is not understood bounds nothing, so an answer never changes by it.
All bounds found are comparisons of a column with a value: they are never true of NULL, hence sound under outer joins too.
Names are resolved as DuckDB does: a column before an alias of the same name, case ignored. The session's time zone is UTC.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec
import sqlglot
from sqlglot import exp
from sqlglot.tokenizer_core import TokenType

from .bounds import ANY_ROW, HOUR_US, Bounds, Texts
from .named import columns_named
from .sums import SELECT_ARGS, TABLE_ARGS, sums_keys

Parameters = Sequence[Any] | Mapping[str, Any] | None

RELATIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "events": {"timestamp": "time", "conversation_id": "conversation", "event_type": "type"},
    "hourly_stats": {"hour": "time", "conversation_id": "conversation"},
    "conversation_summary": {"conversation_id": "conversation"},
    "usage": {"hour": "time", "conversation_id": "conversation", "event_type": "type"},
    "quantile_stats": {"hour": "time", "event_type": "type"},
    **{name: {"hour": "time", "event_type": "type"} for name in ("agent_stats", "model_stats", "tool_stats")},
}
"""Relation → the columns whose bounds the ledger knows about, and what they are."""
OF_USER: Final[Mapping[str, str]] = {"hour": "time"}
"""The same for a rollup of the user."""

QUERY_CHARS_MAX: Final = 100_000
"""Longer texts are not looked at."""
CLOCK_SLACK_US: Final = HOUR_US
"""now() in a query is bounded from below by the caller's clock less this: clocks are set back."""

DAY_US: Final = 24 * HOUR_US
_UNIT_US: Final = {
    "MICROSECOND": 1,
    "MILLISECOND": 1_000,
    "SECOND": 1_000_000,
    "MINUTE": 60_000_000,
    "HOUR": HOUR_US,
    "DAY": DAY_US,
    "WEEK": 7 * DAY_US,
}
_TRUNC_US: Final = {**_UNIT_US, "MONTH": 31 * DAY_US, "QUARTER": 92 * DAY_US, "YEAR": 366 * DAY_US}
"""The longest a unit can be: date_trunc(unit, t) is in (t - that, t]."""

_QUERY_STARTS: Final = {TokenType.SELECT, TokenType.WITH, TokenType.FROM, TokenType.L_PAREN}
_EXPLAIN: Final = re.compile(r"\s*EXPLAIN(\s+ANALYZE\b|\s*\(\s*(ANALYZE|FORMAT)\b[^()]*\))?(?=[\s(])", re.IGNORECASE)
_INSTANT: Final = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d{1,6})?)?)? ?(Z|[+-]\d\d(:\d\d)?)?", re.ASCII)
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_TEXTS: Final[Mapping[str, Callable[[Texts], Bounds]]] = {
    "conversation": lambda texts: Bounds(conversations=texts),
    "type": lambda texts: Bounds(event_types=texts),
}
_FLIPPED: Final[Mapping[type[exp.Expr], type[exp.Expr]]] = {
    exp.GT: exp.LT,
    exp.GTE: exp.LTE,
    exp.LT: exp.GT,
    exp.LTE: exp.GTE,
    exp.EQ: exp.EQ,
}


class Reading(msgspec.Struct, frozen=True):
    """What a query reads."""

    bounds: Mapping[str, Bounds]
    """For each relation the query may refer to; a relation not named here is not referred to."""
    not_pruned: str = ""
    """Why nothing could be said; empty when the query was understood."""
    sums_only: bool = False
    """Of hourly_stats nothing but sums by its keys is asked: rows that share their keys need not be one row."""
    hours_only: bool = False
    """And nothing by conversation: rows of one hour need not be told apart at all."""
    foreign: bool = False
    """It reads tables of the caller's too."""
    columns: frozenset[str] | None = None
    """Of events it can be about no others; None: about all."""


def everything(reason: str, of_user: Iterable[str] = ()) -> Reading:
    """The reading of a query nothing is known about. of_user: names of the user's rollups."""
    return Reading(dict.fromkeys([*RELATIONS, *of_user], ANY_ROW), reason)


def read(query: str, parameters: Parameters, *, now_us: int, of_user: Iterable[str] = ()) -> Reading:
    """The relations a query refers to, each with bounds that hold for every row it can use.

    now_us   µs since the epoch, not later than the start of the query
    of_user  names of the user's rollups
    """
    tree = parsed(query)
    relations = {**RELATIONS, **dict.fromkeys(of_user, OF_USER)}
    if isinstance(tree, str):
        return everything(tree, of_user)
    names = {cte.alias.lower() for cte in tree.find_all(exp.CTE)}
    if names & relations.keys():
        return everything("a WITH clause has the name of a relation", of_user)
    found: dict[str, Bounds] = {}
    sums: list[frozenset[str] | None] = []
    foreign = False
    for table in tree.find_all(exp.Table):
        problem = _opaque(table)
        if problem:
            return everything(problem, of_user)
        relation = table.name.lower()
        if relation in relations and isinstance(table.this, exp.Identifier):
            try:
                bounds = _Reference(table, relations[relation], parameters, now_us).bounds()
            except RecursionError:
                return everything("its conditions are nested too deep", of_user)
            found[relation] = found[relation] | bounds if relation in found else bounds
            sums += [sums_keys(table)] if relation == "hourly_stats" else []
        else:
            foreign = foreign or (relation not in names and not isinstance(table.this, exp.GenerateSeries))
    sums_only = bool(sums) and None not in sums
    hours_only = sums_only and all("conversation_id" not in (keys or ()) for keys in sums)
    return Reading(found, sums_only=sums_only, hours_only=hours_only, foreign=foreign, columns=columns_named(query, tree))


@lru_cache(maxsize=256)
def parsed(query: str) -> exp.Expr | str:
    """The tree of a single SELECT, or why there is none. Trees are shared: never change one."""
    query = _EXPLAIN.sub("", query)
    if len(query) > QUERY_CHARS_MAX:
        return f"the text is longer than {QUERY_CHARS_MAX} characters"
    try:
        tokens = sqlglot.tokenize(query, dialect="duckdb")
        if not tokens or tokens[0].token_type not in _QUERY_STARTS:
            return "not a SELECT"
        pieces, done, count = [], 0, 0
        for token, after in zip(tokens, [*tokens[1:], None], strict=True):
            if token.token_type is TokenType.PLACEHOLDER:
                if after is not None and after.start == token.end + 1 and after.token_type is TokenType.NUMBER:
                    return "parameters of the form ?1"
                count += 1
                pieces += [query[done : token.start], f"${count}"]
                done = token.end + 1
        statements = sqlglot.parse("".join(pieces) + query[done:], dialect="duckdb")
    except Exception:  # the parser only advises: whatever it cannot take is DuckDB's to judge, unpruned
        return "the text was not understood"
    tree = statements[0] if len(statements) == 1 else None
    if not isinstance(tree, exp.Select | exp.SetOperation | exp.Subquery):
        return "not a single SELECT"
    changes = (exp.DML, exp.DDL, exp.Command)
    if any(isinstance(node, changes) and not isinstance(node, exp.Query) for node in tree.walk()):
        return "a part of it changes something"
    return tree


def _opaque(table: exp.Table) -> str:
    """Why this place may read a relation without naming it; empty if it cannot."""
    if not isinstance(table.this, exp.Identifier):
        known = isinstance(table.this, exp.GenerateSeries | exp.ReadParquet | exp.ReadCSV)
        return "" if known else "a table function"
    if table.db or table.catalog:
        return "a name with its schema"
    if table.name.lower().startswith(("duckdb_", "pg_", "sqlite_")):
        return "a catalog table"
    return ""


class _Instant(NamedTuple):
    us: int
    soft: bool = False
    """Derived from now(): good as a lower bound alone."""


class _Reference:
    """One reference of a relation, in the SELECT it stands in."""

    def __init__(self, table: exp.Table, columns: Mapping[str, str], parameters: Parameters, now_us: int) -> None:
        self._table = table
        self._alias = table.alias_or_name.lower()
        self._columns = columns
        self._parameters = parameters
        self._now_us = now_us - CLOCK_SLACK_US

    def bounds(self) -> Bounds:
        select = self._select()
        if select is None:
            return ANY_ROW
        first = select.args["from_"].this
        joins = [*(first.args.get("joins") or []), *(select.args.get("joins") or [])]
        if not self._plain(select, joins):
            return ANY_ROW
        names = [source.alias_or_name.lower() for source in (first, *(join.this for join in joins))]
        if names.count(self._alias) != 1:
            return ANY_ROW
        inner = all(not join.side for join in joins)
        self._unqualified = inner or not any(join.args.get("using") for join in joins)
        bounds = ANY_ROW
        if select.args.get("where"):
            bounds &= self._of(select.args["where"].this)
        for join in joins:
            if join.args.get("on") and (not join.side or (join.side == "LEFT" and join.this is self._table)):
                bounds &= self._of(join.args["on"])
        return bounds

    def _select(self) -> exp.Select | None:
        """The SELECT whose FROM or JOIN names this reference; None when it is wrapped in something else."""
        place = self._table.parent
        if isinstance(place, exp.Join):
            place = place.parent
            if isinstance(place, exp.Table):  # FROM a JOIN b, without SELECT: the joins hang on the table
                place = place.parent
        if isinstance(place, exp.From):
            place = place.parent
        return place if isinstance(place, exp.Select) and place.args.get("from_") else None

    def _plain(self, select: exp.Select, joins: Sequence[exp.Join]) -> bool:
        """Whether nothing in the SELECT looks at rows before its WHERE does."""
        if any(value and name not in TABLE_ARGS for name, value in self._table.args.items()):
            return False
        if self._table.args.get("alias") and self._table.args["alias"].args.get("columns"):
            return False
        if any(value and name not in SELECT_ARGS for name, value in select.args.items()):
            return False
        return all(
            not join.method and join.kind in ("", "INNER", "CROSS", "OUTER") and join.side in ("", "LEFT", "RIGHT", "FULL")
            for join in joins
        )

    def _of(self, node: exp.Expr) -> Bounds:
        """Bounds that hold where `node` is true."""
        if isinstance(node, exp.Paren):
            return self._of(node.this)
        if isinstance(node, exp.And):
            return self._of(node.left) & self._of(node.right)
        if isinstance(node, exp.Or):
            return self._of(node.left) | self._of(node.right)
        if isinstance(node, exp.Between) and not node.args.get("symmetric"):
            return self._compared(exp.GTE, node.this, node.args["low"]) & self._compared(exp.LTE, node.this, node.args["high"])
        if isinstance(node, exp.In) and node.expressions and not node.args.get("query"):
            return self._listed(node.this, node.expressions)
        flipped = _FLIPPED.get(type(node))
        if flipped is None:
            return ANY_ROW
        bounds = self._compared(type(node), node.this, node.expression)
        return bounds if bounds != ANY_ROW else self._compared(flipped, node.expression, node.this)

    def _listed(self, left: exp.Expr, values: Sequence[exp.Expr]) -> Bounds:
        """Bounds where `left` equals one of `values`."""
        texts = [self._text(value) for value in values]
        what = self._column(left)
        if what in _TEXTS and None not in texts:
            return _TEXTS[what](Texts.of(text for text in texts if text is not None))
        either = self._compared(exp.EQ, left, values[0])
        for value in values[1:]:
            if either == ANY_ROW:
                break
            either |= self._compared(exp.EQ, left, value)
        return either

    def _compared(self, sign: type[exp.Expr], left: exp.Expr, right: exp.Expr) -> Bounds:
        """Bounds where `left sign right` is true, if `left` is a column (or a truncated time) and `right` a value."""
        column, span_us = _truncated(left)
        what = self._column(column)
        if what == "time":
            return self._time(sign, self._instant(right, date_only=isinstance(left, exp.Cast)), span_us)
        text = self._text(right)
        if what not in _TEXTS or span_us or text is None:
            return ANY_ROW
        above = sign in (exp.GT, exp.GTE)
        texts = Texts.of([text]) if sign is exp.EQ else Texts(low=text) if above else Texts(high=text)
        return _TEXTS[what](texts)

    def _column(self, node: exp.Expr) -> str:
        """What a column of this reference is; empty for anything else."""
        if not isinstance(node, exp.Column) or not isinstance(node.this, exp.Identifier) or node.args.get("db"):
            return ""
        if node.table.lower() != self._alias if node.table else not self._unqualified:
            return ""
        return self._columns.get(node.name.lower(), "")

    @staticmethod
    def _time(sign: type[exp.Expr], value: _Instant | None, span_us: int) -> Bounds:
        """Bounds on t where trunc(t) `sign` value, trunc(t) in (t - span_us, t]; span 0: t itself."""
        if value is None:
            return ANY_ROW
        low = high = None
        if sign in (exp.EQ, exp.GTE, exp.GT):
            low = value.us + (1 if sign is exp.GT and not span_us else 0)
        if sign in (exp.EQ, exp.LTE, exp.LT) and not value.soft:
            high = value.us + (span_us - 1 if span_us else -1 if sign is exp.LT else 0)
        return Bounds(time_min_us=low, time_max_us=high)

    def _parameter(self, node: exp.Expr) -> Any:
        if not isinstance(node, exp.Placeholder) or not node.this or self._parameters is None:
            return None
        if isinstance(self._parameters, Mapping):
            return self._parameters.get(str(node.this))
        index = int(node.this) - 1 if str(node.this).isdecimal() else -1
        return self._parameters[index] if 0 <= index < len(self._parameters) else None

    def _text(self, node: exp.Expr) -> str | None:
        if isinstance(node, exp.Literal):
            return str(node.this) if node.is_string else None
        value = self._parameter(node)
        return value if type(value) is str else None

    def _instant(self, node: exp.Expr, *, date_only: bool = False, offset: bool = True) -> _Instant | None:
        """The instant a value is; None if that is not certain.

        date_only  text is taken as DATE: only the plain form YYYY-MM-DD is certain
        offset     whether text may carry a UTC offset
        """
        if isinstance(node, exp.Paren):
            return self._instant(node.this, date_only=date_only, offset=offset)
        text = self._text(node)
        if text is not None:
            return _parse_instant(text, date_only=date_only, offset=offset)
        if isinstance(node, exp.Placeholder):
            return _of_python(self._parameter(node))
        if type(node) is exp.Cast:
            return self._cast(node)
        if isinstance(node, exp.Add | exp.Sub):
            return self._shifted(node)
        if isinstance(node, exp.Anonymous) and str(node.this).lower() == "make_timestamptz" and len(node.expressions) == 1:
            return self._microseconds(node.expressions[0])
        name = str(node.this).lower() if isinstance(node, exp.Anonymous) and not node.expressions else ""
        if (isinstance(node, exp.CurrentTimestamp) and not node.this) or name in ("now", "get_current_timestamp"):
            return _Instant(self._now_us, soft=True)
        if isinstance(node, exp.CurrentDate) and not node.this:
            return _Instant(self._now_us // DAY_US * DAY_US, soft=True)
        return None

    def _microseconds(self, node: exp.Expr) -> _Instant | None:
        """The instant that a whole number of µs since the epoch is."""
        value = self._parameter(node)
        if isinstance(node, exp.Literal) and not node.is_string and str(node.this).isdecimal():
            value = int(node.this)
        return _Instant(value) if type(value) is int else None

    def _cast(self, node: exp.Cast) -> _Instant | None:
        kind = node.to.this
        if kind == exp.DType.DATE:
            inner = self._instant(node.this, date_only=True)
            return inner and inner._replace(us=inner.us // DAY_US * DAY_US)
        if kind in (exp.DType.TIMESTAMPTZ, exp.DType.TIMESTAMP, exp.DType.TIMESTAMPNTZ):
            return self._instant(node.this, offset=kind == exp.DType.TIMESTAMPTZ)
        return None

    def _shifted(self, node: exp.Add | exp.Sub) -> _Instant | None:
        if self._text(node.this) is not None:
            return None
        base, by = self._instant(node.this), node.expression
        amount, unit = None, ""
        if isinstance(by, exp.Interval) and by.this is not None and by.args.get("unit"):
            amount, unit = by.this.unnest(), by.args["unit"].name.upper().rstrip("S")
        elif isinstance(by, exp.ToDays):
            amount, unit = by.this, "DAY"
        elif isinstance(node.this, exp.CurrentDate) and isinstance(by, exp.Literal) and not by.is_string:
            amount, unit = by, "DAY"
        if base is None or unit not in _UNIT_US or not isinstance(amount, exp.Literal) or not str(amount.this).isdecimal():
            return None
        shift_us = int(amount.this) * _UNIT_US[unit]
        return base._replace(us=base.us + (shift_us if isinstance(node, exp.Add) else -shift_us))


def _truncated(node: exp.Expr) -> tuple[exp.Expr, int]:
    """(column, span) of `column`, `column::DATE` and `date_trunc(unit, column)`; span 0 is the column itself."""
    if type(node) is exp.Cast and node.to.this == exp.DType.DATE:
        return node.this, DAY_US
    if isinstance(node, exp.TimestampTrunc | exp.DateTrunc) and not node.args.get("zone"):
        span_us = _TRUNC_US.get(node.args["unit"].name.upper(), 0)
        return (node.this, span_us) if span_us else (node, 0)
    return node, 0


def _parse_instant(text: str, *, date_only: bool, offset: bool) -> _Instant | None:
    match = (_DATE if date_only else _INSTANT).fullmatch(text)
    if match is None or (not date_only and match[4] and (not offset or not match[1])):
        return None
    try:
        return _of_python(dt.datetime.fromisoformat(text.replace(" ", "T", 1).replace(" ", "")))
    except ValueError:
        return None


def _of_python(value: Any) -> _Instant | None:
    """The instant of a datetime or date; what has no time zone is UTC, as in the session."""
    if isinstance(value, dt.datetime):
        aware = value if value.tzinfo is not None else value.replace(tzinfo=dt.UTC)
        return _Instant((aware - _EPOCH) // dt.timedelta(microseconds=1))
    if isinstance(value, dt.date):
        return _Instant((value - _EPOCH.date()).days * DAY_US)
    return None
