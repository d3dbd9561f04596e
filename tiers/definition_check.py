"""Whether a rollup of the settings is one whose parts add up, told from DuckDB's own tree of its SQL.

What is allowed is what cannot be wrong: one SELECT of `hour`, keys and plain aggregates from `events`, with WHERE and GROUP BY.
Each aggregate is merged as `merge` says, and `merge` has to fit: sums and counts by sum, min by min, max by max.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

from thermocline.config import RollupSettings
from thermocline.errors import ConfigError

from .duck import Connection, DuckError, connect
from .user_rollups import EVENT_COLUMNS, Definition, Output

_MERGES: Final = {
    **dict.fromkeys(
        ("sum", "sum_no_overflow", "kahan_sum", "fsum", "sumkahan", "count", "count_star", "count_if", "countif"), "sum"
    ),
    "min": "min",
    "max": "max",
}
_NUMBERS: Final = (
    "TINYINT",
    "SMALLINT",
    "INTEGER",
    "BIGINT",
    "HUGEINT",
    "UBIGINT",
    "UINTEGER",
    "USMALLINT",
    "UTINYINT",
    "DOUBLE",
    "FLOAT",
)
_OTHERS: Final = ("VARCHAR", "BOOLEAN", "DATE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE", "UUID")
_FORBIDDEN: Final = {"SUBQUERY": "a subquery", "WINDOW": "a window", "PARAMETER": "a parameter", "STAR": "*: name its columns"}
_MEMORY_BYTES: Final = 64 << 20


def checked(settings: Mapping[str, RollupSettings]) -> tuple[Definition, ...]:
    """The definitions of `[rollups.*]`. ConfigError names every key that is wrong and what to write instead."""
    key = tuple((name, one.sql, tuple(sorted(one.merge.items())), one.rows_max) for name, one in sorted(settings.items()))
    return _checked(key) if key else ()


@lru_cache(maxsize=16)
def _checked(settings: tuple[tuple[str, str, tuple[tuple[str, str], ...], int], ...]) -> tuple[Definition, ...]:
    problems, found = [], []
    con = connect(memory_bytes=_MEMORY_BYTES, threads=1)
    try:
        con.execute("SET enable_external_access = false")
        con.execute(f"CREATE TABLE events ({', '.join(f'{name} {kind}' for name, kind in EVENT_COLUMNS.items())})")
        functions = con.execute("SELECT function_name, function_type, stability FROM duckdb_functions()").fetchall()
        aggregates = frozenset(name for name, kind, _ in functions if kind == "aggregate")
        unsteady = frozenset(name for name, _, stability in functions if stability in ("VOLATILE", "CONSISTENT_WITHIN_QUERY"))
        for name, sql, merge, rows_max in settings:
            try:
                outputs = _outputs(con, sql, dict(merge), aggregates, unsteady)
            except _Wrong as exc:
                problems.append(f"rollups.{name}.{exc}")
                continue
            text = json.dumps([1, sql, merge])
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            found.append(Definition(name=name, sql=sql, outputs=tuple(outputs), rows_max=rows_max, hash=digest))
    finally:
        con.close()
    if problems:
        raise ConfigError(problems)
    return tuple(found)


class _Wrong(Exception):
    """The key below `rollups.<name>.`, and what is wrong with it."""


def _outputs(
    con: Connection, sql: str, merge: dict[str, str], aggregates: frozenset[str], unsteady: frozenset[str]
) -> list[Output]:
    select = _select(con, sql, unsteady)
    try:
        described = con.execute(f"DESCRIBE {sql}").fetchall()
    except DuckError as exc:
        raise _Wrong(f"sql: {_line(exc)}") from exc
    names = [str(row[0]) for row in described]
    for name in merge.keys() - set(names):
        raise _Wrong(f"merge.{name}: the SELECT gives no such column; it gives {', '.join(names)}")
    if len({name.lower() for name in names}) < len(names):
        raise _Wrong("sql: two of its columns have one name")
    outputs = []
    for name, kind, tree in zip(names, (str(row[1]) for row in described), select["select_list"], strict=True):
        if name in merge:
            _check_value(name, kind, tree, merge[name])
        else:
            _check_key(name, kind, tree, aggregates)
        outputs.append(Output(name, kind, merge.get(name, "")))
    if not any(one.name == "hour" and not one.merge for one in outputs):
        raise _Wrong("sql: must give the column hour, as `events` has it here: SELECT hour, … FROM events GROUP BY ALL")
    return outputs


def _select(con: Connection, sql: str, unsteady: frozenset[str]) -> dict[str, Any]:
    """The tree of one plain SELECT from events."""
    [(text,)] = con.execute("SELECT json_serialize_sql(?::VARCHAR)::VARCHAR", [sql]).fetchall()
    tree = json.loads(text)
    if tree["error"]:
        raise _Wrong(f"sql: {tree['error_message']}")
    nodes = [one["node"] for one in tree["statements"]]
    if len(nodes) != 1 or nodes[0]["type"] != "SELECT_NODE" or sql.rstrip().endswith(";"):
        raise _Wrong("sql: must be one SELECT, without a semicolon")
    [node] = nodes
    table = node["from_table"]
    if table["type"] != "BASE_TABLE" or (table["table_name"].lower(), table["schema_name"], table["catalog_name"]) != (
        "events",
        "",
        "",
    ):
        raise _Wrong("sql: must read events, and nothing else")
    extra = node["modifiers"] or node["having"] or node["qualify"] or node["sample"] or table["sample"] or node["cte_map"]["map"]
    if extra or len(node["group_sets"]) > 1:
        raise _Wrong("sql: may have WHERE and GROUP BY, nothing that looks at whole groups or results: parts would not add up")
    for part in _walk(node):
        if part.get("class") in _FORBIDDEN:
            raise _Wrong(f"sql: may not have {_FORBIDDEN[part['class']]}")
        if part.get("function_name") in unsteady:
            raise _Wrong(f"sql: {part['function_name']}() is not the same each time")
    found: dict[str, Any] = node
    return found


def _check_value(name: str, kind: str, tree: dict[str, Any], merge: str) -> None:
    function = tree.get("function_name", "") if tree.get("class") == "FUNCTION" else ""
    fits = _MERGES.get(function)
    if fits is None or tree.get("distinct"):
        raise _Wrong(
            f"sql: {name} must be a plain {', '.join(('sum', 'count', 'count_if', 'min'))} or max: of others parts do not add up"
        )
    if fits != merge:
        raise _Wrong(f'merge.{name}: {function} is merged by "{fits}", not "{merge}"')
    if not (kind in _NUMBERS or kind.startswith("DECIMAL(") or (merge != "sum" and kind in _OTHERS)):
        raise _Wrong(f"sql: {name} is {kind}, which cannot be merged: cast what is inside of {function}()")


def _check_key(name: str, kind: str, tree: dict[str, Any], aggregates: frozenset[str]) -> None:
    for part in _walk(tree):
        if part.get("function_name") in aggregates and part.get("class") == "FUNCTION":
            raise _Wrong(f'merge: {name} is an aggregate: say how its parts add up, {name} = "sum", "min" or "max"')
    if name == "hour" and (tree.get("class") != "COLUMN_REF" or tree["column_names"][-1].lower() != "hour"):
        raise _Wrong("sql: hour must be the column hour of events")
    if kind not in (*_NUMBERS, *_OTHERS) and not kind.startswith("DECIMAL("):
        raise _Wrong(f"sql: the key {name} is {kind}: cast it to VARCHAR")


def _walk(tree: Any) -> Iterator[dict[str, Any]]:
    waiting = [tree]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _line(exc: BaseException) -> str:
    return " ".join(str(exc).strip().split("\n\n", 1)[0].split())[:300]
