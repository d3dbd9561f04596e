"""Rollups of the settings: what is taken, what is refused and by which key, and that the parts of what is taken add up."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sampling import T0_US
from thermocline.config import load
from thermocline.errors import ConfigError
from thermocline.tiers.definition_check import checked
from thermocline.tiers.duck import connect
from thermocline.tiers.opening import definitions_of
from thermocline.tiers.user_rollups import EVENT_COLUMNS, create

GOOD = "SELECT hour, tool_name, count(*) AS calls, sum(cost_usd) AS cost, max(content) AS last FROM events GROUP BY ALL"
MERGE = {"calls": "sum", "cost": "sum", "last": "max"}


def settings(sql: str = GOOD, merge: dict[str, Any] | None = None, name: str = "calls") -> Any:
    return load({"rollups": {name: {"sql": sql, "merge": MERGE if merge is None else merge}}}, environ={})


def test_a_definition_is_its_columns_with_types_and_how_they_merge() -> None:
    [found] = definitions_of(settings())
    assert [(one.name, one.sql_type, one.merge) for one in found.outputs] == [
        ("hour", "TIMESTAMP WITH TIME ZONE", ""),
        ("tool_name", "VARCHAR", ""),
        ("calls", "BIGINT", "sum"),
        ("cost", "DOUBLE", "sum"),
        ("last", "VARCHAR", "max"),
    ]
    assert found.relation == "rollup_calls"
    [same] = definitions_of(settings(name="other"))
    [changed] = definitions_of(settings(GOOD.replace("content", "model")))
    assert found.hash == same.hash != changed.hash
    assert definitions_of(load(environ={})) == ()


@pytest.mark.parametrize(
    ("sql", "merge", "problem"),
    [
        (
            "SELECT hour, count(*) AS n FROM events GROUP BY ALL",
            {"m": "sum"},
            r"rollups.calls.merge.m: .*no such column.*hour, n",
        ),
        (
            "SELECT hour, count(*) AS n FROM events GROUP BY ALL",
            {"n": "max"},
            r'merge.n: count_star is merged by "sum", not "max"',
        ),
        (
            "SELECT hour, count(*) AS n, max(seq) AS m FROM events GROUP BY ALL",
            {"n": "sum"},
            r"rollups.calls.merge: m is an aggr",
        ),
        (
            "SELECT tool_name, count(*) AS n FROM events GROUP BY ALL",
            {"n": "sum"},
            r"rollups.calls.sql: must give the column hour",
        ),
        ("SELECT now() AS hour, count(*) AS n FROM events GROUP BY ALL", {"n": "sum"}, r"now\(\) is not the same each time"),
        ("SELECT hour, avg(cost_usd) AS n FROM events GROUP BY ALL", {"n": "sum"}, r"n must be a plain sum"),
        ("SELECT hour, count(DISTINCT model) AS n FROM events GROUP BY ALL", {"n": "sum"}, r"n must be a plain sum"),
        ("SELECT hour, sum(seq) + 1 AS n FROM events GROUP BY ALL", {"n": "sum"}, r"n must be a plain sum"),
        ("SELECT hour, count(*) AS n FROM events GROUP BY ALL LIMIT 3", {"n": "sum"}, r"may have WHERE and GROUP BY"),
        ("SELECT hour, count(*) AS n FROM events GROUP BY ALL HAVING n > 1", {"n": "sum"}, r"may have WHERE and GROUP BY"),
        ("SELECT hour, sum(seq) OVER () AS n FROM events", {"n": "sum"}, r"may not have a window"),
        ("SELECT hour, (SELECT 1) AS k, count(*) AS n FROM events GROUP BY ALL", {"n": "sum"}, r"may not have a subquery"),
        ("SELECT *, 1 AS n FROM events", {"n": "sum"}, r"may not have \*"),
        ("SELECT hour, count(*) AS n FROM read_text('/etc/passwd')", {"n": "sum"}, r"must read events, and nothing else"),
        ("SELECT hour, count(*) AS n FROM events JOIN events e USING (seq) GROUP BY ALL", {"n": "sum"}, r"must read events"),
        ("SELECT hour, count(*) AS n FROM other GROUP BY ALL", {"n": "sum"}, r"must read events"),
        ("SELECT hour, nothing, count(*) AS n FROM events GROUP BY ALL", {"n": "sum"}, r"rollups.calls.sql: .*nothing"),
        ("SELECT hour, count(* AS n FROM events", {"n": "sum"}, r"rollups.calls.sql: syntax error"),
        ("SELECT 1; SELECT hour FROM events", {"n": "sum"}, r"must be one SELECT"),
        ("SELECT hour, [model] AS k, count(*) AS n FROM events GROUP BY ALL", {"n": "sum"}, r"the key k is VARCHAR\[\]"),
        ("SELECT hour, max([model]) AS n FROM events GROUP BY ALL", {"n": "max"}, r"n is VARCHAR\[\], which cannot be merged"),
    ],
)
def test_what_might_not_add_up_is_refused_by_its_key(sql: str, merge: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        definitions_of(settings(sql, merge))


@pytest.mark.parametrize(
    ("rollups", "problem"),
    [
        ({"calls": {"sql": "DROP TABLE events", "merge": {"n": "sum"}}}, r"rollups.calls.sql"),
        ({"calls": {"sql": GOOD, "merge": {"n": "avg"}}}, r"rollups.calls.merge.n"),
        ({"calls": {"sql": GOOD, "merge": MERGE, "rows_max": 0}}, r"rollups.calls.rows_max"),
        ({"calls": {"sql": GOOD, "merge": MERGE, "every": 1}}, r"rollups.calls.every .*: no such setting"),
        ({"hourly": {"sql": GOOD, "merge": MERGE}}, r"rollups.hourly: this name is taken"),
        ({"Calls": {"sql": GOOD, "merge": MERGE}}, r"rollups.Calls"),
        ({f"r{n}": {"sql": GOOD, "merge": MERGE} for n in range(17)}, r"rollups"),
    ],
)
def test_settings_of_another_shape_are_refused_when_they_are_read(rollups: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load({"rollups": rollups}, environ={})


def test_every_wrong_definition_is_named_at_once() -> None:
    wrong = load({"rollups": {name: {"sql": "SELECT 1 FROM events", "merge": {"n": "sum"}} for name in ("a", "b")}}, environ={})
    with pytest.raises(ConfigError) as caught:
        definitions_of(wrong)
    assert [problem.partition(".merge")[0] for problem in caught.value.problems] == ["rollups.a", "rollups.b"]


def test_what_is_stored_in_parts_is_what_one_look_at_everything_gives() -> None:
    """Keys and values of odd kinds come back as they were; NULLs too."""
    sql = (
        "SELECT hour, tool_name, metadata->>'$.k' AS k, seq % 2 = 0 AS even, count(*) AS n, sum(cost_usd) AS cost,"
        " sum(seq) AS s, min(timestamp) AS first, max(content) AS last FROM events GROUP BY ALL"
    )
    merge = {"n": "sum", "cost": "sum", "s": "sum", "first": "min", "last": "max"}
    [definition] = checked(settings(sql, merge).rollups)
    with connect(memory_bytes=128 << 20, threads=1) as con:
        columns = ", ".join(f"{name} {kind}" for name, kind in EVENT_COLUMNS.items() if name != "hour")
        con.execute(f"CREATE TABLE e ({columns})")
        con.execute(
            "INSERT INTO e BY NAME SELECT uuid()::VARCHAR AS event_id, 'c' AS conversation_id, n AS seq, 'x' AS event_type,"
            f" make_timestamptz({T0_US} + n * 977000000) AS timestamp, 'text ' || n || chr(10) AS content,"
            " CASE n % 3 WHEN 1 THEN 'a\"b' WHEN 2 THEN 'ü' END AS tool_name, CASE WHEN n % 5 > 0 THEN n / 8 END AS cost_usd,"
            " CASE WHEN n % 4 > 0 THEN '{\"k\": \"' || n % 2 || '\"}' END AS metadata FROM range(1, 400) r(n)"
        )
        for place in range(3):
            create(con, f"part_{place}", f"(SELECT * FROM e WHERE seq % 3 = {place})", [definition])
        whole = con.execute(f"{definition.relation_sql([], ['e'])} ORDER BY ALL").fetchall()
        parts = [f"part_{place}" for place in range(2)]
        again = definition.relation_sql(parts, ["(SELECT * FROM e WHERE seq % 3 = 2)"])
        assert con.execute(f"{again} ORDER BY ALL").fetchall() == whole
        assert len(whole) > 100
        assert con.execute(definition.events("(FROM part_0 UNION ALL FROM part_1)")).fetchall() == [(266,)]


def test_what_fails_on_a_value_or_has_too_many_rows_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    failing = "SELECT hour, content::INTEGER AS k, count(*) AS n FROM events GROUP BY ALL"
    [definition] = definitions_of(settings(failing, {"n": "sum"}))
    each = {"sql": "SELECT hour, seq, count(*) AS n FROM events GROUP BY ALL", "merge": {"n": "sum"}, "rows_max": 2}
    many = load({"rollups": {"many": each}}, environ={})
    with connect(memory_bytes=128 << 20, threads=1) as con:
        columns = ", ".join(f"{name} {kind}" for name, kind in EVENT_COLUMNS.items() if name != "hour")
        con.execute(f"CREATE TABLE e ({columns})")
        con.execute(
            "INSERT INTO e BY NAME SELECT n AS seq, 'word' AS content, make_timestamptz(n) AS timestamp FROM range(3) r(n)"
        )
        create(con, "made", "e", [definition, *definitions_of(many)])
        assert con.execute("SELECT count(*) FROM made").fetchall() == [(0,)]
    assert "rollups.calls is left out" in caplog.text
    assert "rollups.many is left out: more than rows_max (2) rows" in caplog.text
