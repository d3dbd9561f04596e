"""Pruning: what is found in the text of a query, and that an answer never changes by it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thermocline.query.bounds import ANY_ROW, HOUR_US, Bounds, Texts, chosen
from thermocline.query.prune import CLOCK_SLACK_US, DAY_US, RELATIONS, Reading, read
from thermocline.tiers.duck import Connection, connect, quoted

NOV_13_US = 1_731_456_000_000_000
"""2024-11-13T00:00:00Z."""
NOW_US = NOV_13_US + 2 * DAY_US
"""What the tests call now: DuckDB's own is later, as it may be."""


def bounds_of(query: str, parameters: Any = None) -> Bounds:
    reading = read(query, parameters, now_us=NOW_US)
    assert not reading.not_pruned
    return reading.bounds["events"]


def times(low: int | None, high: int | None) -> Bounds:
    return Bounds(time_min_us=low, time_max_us=high)


@pytest.mark.parametrize(
    ("condition", "low", "high"),
    [
        ("timestamp >= '2024-11-13'", 0, None),
        ("timestamp > '2024-11-13'", 1, None),
        ("timestamp < '2024-11-13'", None, -1),
        ("'2024-11-13' >= timestamp", None, 0),
        ("timestamp = '2024-11-13'", 0, 0),
        ("timestamp >= TIMESTAMPTZ '2024-11-13 00:00:00+00'", 0, None),
        ("timestamp >= '2024-11-13 02:00:00+02'::timestamptz", 0, None),
        ("timestamp >= CAST('2024-11-13' AS TIMESTAMP WITH TIME ZONE)", 0, None),
        ("timestamp >= TIMESTAMP '2024-11-13 01:00'", HOUR_US, None),
        ("timestamp >= DATE '2024-11-13'", 0, None),
        ("timestamp >= '2024-11-13T00:00:00.000001Z'", 1, None),
        ("timestamp BETWEEN '2024-11-13' AND DATE '2024-11-14'", 0, DAY_US),
        ("timestamp >= DATE '2024-11-13' - INTERVAL 2 DAY", -2 * DAY_US, None),
        ("timestamp < TIMESTAMP '2024-11-13' + INTERVAL '3 hours'", None, 3 * HOUR_US - 1),
        (f"timestamp >= make_timestamptz({NOV_13_US})", 0, None),
        (f"timestamp < make_timestamptz({NOV_13_US}) + INTERVAL 1 DAY", None, DAY_US - 1),
        ("timestamp::DATE = '2024-11-13'", 0, DAY_US - 1),
        ("CAST(timestamp AS DATE) <= DATE '2024-11-13'", None, DAY_US - 1),
        ("date_trunc('hour', timestamp) = '2024-11-13 05:00'", 5 * HOUR_US, 6 * HOUR_US - 1),
        ("date_trunc('day', timestamp) IN ('2024-11-13', '2024-11-15')", 0, 3 * DAY_US - 1),
        ("(timestamp > '2024-11-13' OR timestamp = '2024-11-12') AND timestamp < '2024-11-20'", -DAY_US, 7 * DAY_US - 1),
    ],
)
def test_a_time_bound_is_found_in_every_way_to_write_one(condition: str, low: int | None, high: int | None) -> None:
    found = bounds_of(f"SELECT * FROM events WHERE {condition}")
    assert found == times(None if low is None else NOV_13_US + low, None if high is None else NOV_13_US + high)


@pytest.mark.parametrize(
    "condition",
    [
        "timestamp >= 'yesterday'",
        "timestamp >= '2024-11-13 10:00 Europe/Berlin'",
        "timestamp >= '2024-13-40'",
        "timestamp >= TIMESTAMP '2024-11-13 00:00:00+02'",
        "timestamp::DATE >= '2024-11-13 10:00'",
        "timestamp >= '2024-11-13'::TIMESTAMP_NS",
        "timestamp >= TRY_CAST('2024-11-13' AS TIMESTAMPTZ)",
        "NOT timestamp >= '2024-11-13'",
        "timestamp >= '2024-11-13' OR content = 'x'",
        "timestamp BETWEEN SYMMETRIC '2024-11-13' AND '2024-11-12'",
        "timestamp + INTERVAL 1 DAY >= '2024-11-13'",
        "timestamp >= (SELECT max(x) FROM other)",
        "timestamp < now()",
        "timestamp >= now() - INTERVAL 1 MONTH",
        "timestamp IS NOT NULL",
        "conversation_id = 5",
        "conversation_id LIKE 'a%'",
        "conversation_id <> 'a'",
        "lower(conversation_id) = 'a'",
        "conversation_id COLLATE NOCASE = 'a'",
        "event_type NOT IN ('a')",
        "main.events.timestamp > '2024-11-13'",
    ],
)
def test_what_is_not_certain_bounds_nothing(condition: str) -> None:
    assert bounds_of(f"SELECT * FROM events WHERE {condition}") == ANY_ROW


def test_long_lists_and_chains_are_bounded_or_given_up_but_never_fail() -> None:
    names = [f"c{number}" for number in range(3000)]
    listed = bounds_of(f"FROM events WHERE conversation_id IN ({', '.join(map(quoted, names))})")
    assert listed == Bounds(conversations=Texts.of(names))
    chained = read("FROM events WHERE " + " OR ".join(f"conversation_id = '{name}'" for name in names), None, now_us=NOW_US)
    assert chained == Reading(dict.fromkeys(RELATIONS, ANY_ROW), "its conditions are nested too deep")
    mixed = bounds_of("FROM events WHERE timestamp IN ('2024-11-13', 'odd', '2024-11-14') AND event_type IN ('a', lower('B'))")
    assert mixed == ANY_ROW


def test_now_bounds_from_below_with_an_hour_of_slack() -> None:
    low = NOW_US - CLOCK_SLACK_US - 7 * DAY_US
    assert bounds_of("FROM events WHERE timestamp >= now() - INTERVAL 7 DAY") == times(low, None)
    assert bounds_of("FROM events WHERE timestamp >= current_timestamp - to_days(7)") == times(low, None)
    assert bounds_of("FROM events WHERE timestamp >= current_date - 7") == times(low // DAY_US * DAY_US, None)
    assert bounds_of("FROM events WHERE timestamp BETWEEN now() - INTERVAL 7 DAY AND now()") == times(low, None)


def test_conversations_and_types_are_found_as_sets_and_ranges() -> None:
    found = bounds_of("FROM events WHERE conversation_id IN ('b', 'a') AND event_type = 'x' AND conversation_id > 'a'")
    assert found == Bounds(conversations=Texts(frozenset({"a", "b"}), "a", "b"), event_types=Texts.of(["x"]))
    either = bounds_of("FROM events WHERE conversation_id = 'a' OR (conversation_id >= 'm' AND conversation_id < 'p')")
    assert either == Bounds(conversations=Texts(None, "a", "p"))


def test_parameters_count_by_place_number_and_name() -> None:
    at = dt.datetime(2024, 11, 13, tzinfo=dt.UTC)
    wanted = Bounds(time_min_us=NOV_13_US, conversations=Texts.of(["a?"]))
    assert bounds_of("FROM events WHERE content = '?' AND timestamp >= ? AND conversation_id = ?", [at, "a?"]) == wanted
    assert bounds_of("FROM events WHERE timestamp >= $2 AND conversation_id = $1", ["a?", at.replace(tzinfo=None)]) == wanted
    assert bounds_of("FROM events WHERE timestamp >= $t AND conversation_id = $c", {"t": at.date(), "c": "a?"}) == wanted
    zoned = at.astimezone(dt.timezone(dt.timedelta(hours=5)))
    assert bounds_of("FROM events WHERE timestamp >= ? AND conversation_id = ?", (zoned, "a?")) == wanted
    assert bounds_of("FROM events WHERE timestamp >= ? AND conversation_id = ?", [None, 5]) == ANY_ROW
    assert bounds_of("FROM events WHERE timestamp >= ? AND conversation_id = ?") == ANY_ROW
    assert read("FROM events WHERE timestamp >= ?1", [at], now_us=NOW_US).not_pruned


def test_microseconds_count_as_numbers_alone() -> None:
    query = "SELECT * FROM events WHERE timestamp >= make_timestamptz(?)"
    assert bounds_of(query, [NOV_13_US]) == times(NOV_13_US, None)
    for value in (1.5, "2024-11-13", True, None):
        assert bounds_of(query, [value]) == ANY_ROW
    for other in (
        "make_timestamptz(2024, 11, 13, 0, 0, 0)",
        "make_timestamptz('1')",
        "make_timestamptz(-1)",
        "make_timestamptz(seq)",
    ):
        assert bounds_of(f"SELECT * FROM events WHERE timestamp >= {other}") == ANY_ROW


def test_of_several_references_the_union_counts() -> None:
    query = "FROM events WHERE conversation_id = 'a' UNION ALL FROM events WHERE conversation_id = 'b'"
    assert bounds_of(query) == Bounds(conversations=Texts.of(["a", "b"]))
    assert bounds_of("SELECT * FROM events WHERE event_type = 'x' AND seq > (SELECT max(seq) FROM events)") == ANY_ROW
    cte = "WITH c AS (SELECT * FROM events WHERE event_type = 'x') SELECT * FROM c WHERE conversation_id = 'a'"
    assert bounds_of(cte) == Bounds(event_types=Texts.of(["x"]))


def test_join_conditions_count_where_they_decide_about_the_row() -> None:
    wanted = Bounds(event_types=Texts.of(["x"]))
    assert bounds_of("FROM people p JOIN events e ON e.agent_id = p.id AND e.event_type = 'x'") == wanted
    assert bounds_of("FROM people p LEFT JOIN events e ON e.agent_id = p.id AND e.event_type = 'x'") == wanted
    assert bounds_of("FROM events e LEFT JOIN people p ON e.agent_id = p.id AND e.event_type = 'x'") == ANY_ROW
    assert bounds_of("FROM people p RIGHT JOIN events e ON e.agent_id = p.id AND e.event_type = 'x'") == ANY_ROW
    assert bounds_of("FROM people p ASOF JOIN events e ON p.t >= e.timestamp WHERE e.event_type = 'x'") == ANY_ROW
    assert bounds_of("FROM people p POSITIONAL JOIN events e WHERE e.event_type = 'x'") == ANY_ROW
    assert bounds_of("FROM people ANTI JOIN events USING (agent_id) WHERE event_type = 'x'") == ANY_ROW
    assert bounds_of("FROM events e, events f WHERE e.event_type = 'x' AND f.event_type = 'y'").event_types == Texts.of(
        ["x", "y"]
    )


@pytest.mark.parametrize(
    "query",
    [
        "FROM events AS e(timestamp, a, b) WHERE timestamp >= '2024-11-13'",
        "FROM events TABLESAMPLE 10% WHERE timestamp >= '2024-11-13'",
        "SELECT * FROM events WHERE timestamp >= '2024-11-13' USING SAMPLE 5",
        "SELECT * FROM (events e JOIN people p ON true) WHERE timestamp >= '2024-11-13'",
    ],
)
def test_nothing_counts_where_rows_are_looked_at_before_where(query: str) -> None:
    assert bounds_of(query) == ANY_ROW


@pytest.mark.parametrize(
    "query",
    [
        "SUMMARIZE events",
        "DESCRIBE events",
        "SHOW TABLES",
        "PIVOT events ON event_type USING count(*)",
        "SELEC * FROM events",
        "FROM events; FROM events",
        "COPY (FROM events WHERE event_type = 'x') TO 'x.csv'",
        "CREATE TABLE x AS FROM events WHERE event_type = 'x'",
        "WITH events AS (SELECT 1) FROM events WHERE event_type = 'x'",
        "WITH d AS (DELETE FROM x RETURNING *) SELECT * FROM d, events WHERE event_type = 'x'",
        "FROM temp.events WHERE event_type = 'x'",
        "FROM query_table('events') WHERE event_type = 'x'",
        "FROM duckdb_columns",
        "SELECT " + "(" * 5000 + "1" + ")" * 5000,
        "SELECT '" + "x" * 200_000 + "' FROM events WHERE event_type = 'x'",
        "",
    ],
)
def test_what_is_not_understood_reads_everything_and_says_so(query: str) -> None:
    reading = read(query, None, now_us=NOW_US)
    assert reading.not_pruned
    assert reading.bounds == dict.fromkeys(RELATIONS, ANY_ROW)


def test_only_relations_that_are_named_are_read() -> None:
    assert read("SELECT 1", None, now_us=NOW_US) == Reading({})
    assert read("FROM people WHERE name = 'events'", None, now_us=NOW_US) == Reading({}, foreign=True)
    reading = read('FROM HOURLY_STATS h JOIN "Conversation_Summary" c USING (conversation_id)', None, now_us=NOW_US)
    assert reading.bounds == {"hourly_stats": ANY_ROW, "conversation_summary": ANY_ROW}


@pytest.mark.parametrize("explain", ["EXPLAIN", "explain ANALYZE", "EXPLAIN (FORMAT json)", "EXPLAIN (ANALYZE, FORMAT json)"])
def test_explain_is_pruned_like_what_it_explains(explain: str) -> None:
    expected = Bounds(event_types=Texts.of(["x"]))
    assert bounds_of(f"{explain} FROM events WHERE event_type = 'x'") == expected
    assert bounds_of(f"{explain} (FROM events WHERE event_type = 'x')") == expected


@pytest.mark.parametrize(
    ("query", "hours_only"),
    [
        ("SELECT hour, sum(event_count) FROM hourly_stats GROUP BY hour", True),
        ("SELECT hour, sum(event_count) FROM hourly_stats WHERE conversation_id > 'a' GROUP BY hour", False),
        ("SELECT sum(event_count) FROM hourly_stats UNION ALL SELECT sum(total_bytes) FROM hourly_stats", True),
        ("SELECT sum(event_count) FROM hourly_stats GROUP BY conversation_id", False),
        ("SELECT hour, conversation_id FROM hourly_stats", False),
    ],
)
def test_whether_conversations_matter_to_the_sums_is_known(query: str, hours_only: bool) -> None:
    assert read(query, None, now_us=NOW_US).hours_only == hours_only


@pytest.mark.parametrize(
    "query",
    [
        "SELECT hour, sum(event_count) FROM hourly_stats GROUP BY hour",
        "SELECT date_trunc('day', h.hour) AS day, sum(h.total_bytes) AS n FROM hourly_stats h GROUP BY ALL ORDER BY n",
        "SELECT sum(total_bytes) / sum(event_count) AS size, min(hour), max(conversation_id) FROM hourly_stats WHERE hour > ?",
        "SELECT conversation_id, sum(event_count) FILTER (hour > ?) FROM hourly_stats GROUP BY 1 HAVING sum(event_count) > 3",
        "SELECT sum(event_count) FROM hourly_stats WHERE hour >= make_timestamptz(?) AND some_scalar(hour) > 3",
        "WITH days AS (SELECT hour, sum(event_count) AS n FROM hourly_stats GROUP BY hour) SELECT count(*), avg(n) FROM days",
    ],
)
def test_a_query_that_only_adds_hourly_stats_up_by_their_keys_is_known(query: str) -> None:
    assert read(query, [None, None], now_us=NOW_US).sums_only


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM hourly_stats",
        "SELECT hour, conversation_id FROM hourly_stats",
        "SELECT count(*), sum(event_count) FROM hourly_stats",
        "SELECT count(hour), sum(event_count) FROM hourly_stats",
        "SELECT count(DISTINCT conversation_id), sum(event_count) FROM hourly_stats",
        "SELECT avg(event_count), sum(event_count) FROM hourly_stats",
        "SELECT max(event_count), sum(event_count) FROM hourly_stats",
        "SELECT sum(event_count * event_count) FROM hourly_stats",
        "SELECT sum(DISTINCT event_count) FROM hourly_stats",
        "SELECT sum(event_count) FROM hourly_stats WHERE event_count > 2",
        "SELECT event_count, sum(event_count) FROM hourly_stats GROUP BY event_count",
        "SELECT hour, sum(event_count) OVER (PARTITION BY hour) FROM hourly_stats",
        "SELECT list(hour), sum(event_count) FROM hourly_stats",
        "SELECT some_function(hour), sum(event_count) FROM hourly_stats GROUP BY 1",
        "SELECT sum(event_count) FROM hourly_stats JOIN conversation_summary USING (conversation_id)",
        "SELECT sum(event_count) FROM hourly_stats USING SAMPLE 10 ROWS",
        "SELECT sum(event_count) FROM hourly_stats WHERE hour = (SELECT max(hour) FROM hourly_stats)",
        "SELECT sum(event_count) FROM hourly_stats UNION ALL SELECT event_count FROM hourly_stats",
        "SELECT sum(event_count) FROM (SELECT * FROM hourly_stats)",
        "SELECT sum(event_count) FROM hourly_stats AS h(hour, event_count)",
        "SELECT sum(total_events) FROM conversation_summary",
    ],
)
def test_a_query_that_could_tell_one_row_of_hourly_stats_from_two_is_not(query: str) -> None:
    assert not read(query, None, now_us=NOW_US).sums_only


def test_hourly_stats_are_bounded_by_the_start_of_the_hour() -> None:
    late = Piece("late", NOV_13_US + 30 * 60_000_000, NOV_13_US + 40 * 60_000_000, "a", "b", ("x",))
    reading = read("FROM hourly_stats WHERE hour = '2024-11-13' AND conversation_id = 'a'", None, now_us=NOW_US)
    assert chosen([late], reading.bounds["hourly_stats"], by_hour=True) == [late]
    assert chosen([late], reading.bounds["hourly_stats"]) == []


class Piece(NamedTuple):
    """What the ledger would say of some rows."""

    name: str
    timestamp_min_us: int
    timestamp_max_us: int
    conversation_min: str
    conversation_max: str
    event_types: tuple[str, ...] | None


CONVERSATIONS = ["a", "a'b", "b\\n", "c", "ä", "日"]
TYPES = ["error", "output.chunk", "tool.call"]
STEPS_US = [0, 1, 60_000_000, HOUR_US - 1, HOUR_US, 5 * HOUR_US, DAY_US - 1, DAY_US, 3 * DAY_US, 8 * DAY_US, 40 * DAY_US]


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[Connection, list[Piece]]]:
    """One table of rows, each of some piece, and what the ledger would say of each piece: wide ones and ones of a single row."""
    con = connect(memory_bytes=256 << 20, threads=1)
    con.execute("CREATE TABLE people (id VARCHAR, conversation_id VARCHAR, born TIMESTAMPTZ)")
    con.execute("INSERT INTO people VALUES ('p0', NULL, NULL), ('p1', 'none', '2024-11-14')")
    for number, conversation in enumerate(CONVERSATIONS):
        con.execute("INSERT INTO people VALUES (?, ?, '2024-11-15'), (?, ?, '2025-11-15')", [f"q{number}", conversation] * 2)
    con.execute("CREATE TABLE stored (timestamp TIMESTAMPTZ, conversation_id VARCHAR, event_type VARCHAR, seq INT, piece INT)")
    pieces = []
    for number in range(36):
        rows = [
            (
                NOV_13_US + STEPS_US[(number * 3 + row) % len(STEPS_US)] + row % 2,
                CONVERSATIONS[(number + row // 2) % len(CONVERSATIONS)],
                TYPES[(number // 4 + row * (number % 2)) % len(TYPES)],
                number * 10 + row,
                number,
            )
            for row in range(1 if number >= 12 else 3 + number % 3)
        ]
        con.executemany("INSERT INTO stored VALUES (make_timestamptz(?), ?, ?, ?, ?)", rows)
        names, instants = sorted(row[1] for row in rows), sorted(row[0] for row in rows)
        types = tuple(sorted({row[2] for row in rows})) if number % 5 else None
        pieces.append(Piece(str(number), instants[0], instants[-1], names[0], names[-1], types))
    yield con, pieces
    con.close()


EVENTS = ("timestamp", "conversation_id", "event_type", "seq")


def define(
    con: Connection, pieces: Sequence[Piece], bounds_by_relation: Mapping[str, Bounds], named: frozenset[str] | None = None
) -> None:
    """The relations over those `pieces` that may hold a row within their bounds; `events` with the columns `named`, None: all."""
    for relation, bounds in bounds_by_relation.items():
        kept = chosen(pieces, bounds, by_hour="hour" in RELATIONS[relation])
        rows = f"FROM stored WHERE piece IN ({', '.join(['-1', *(piece.name for piece in kept)])})"
        columns = {
            "events": ", ".join(name for name in EVENTS if named is None or name in named),
            "hourly_stats": "date_trunc('hour', timestamp) AS hour, conversation_id, count(*) AS event_count",
            "conversation_summary": "conversation_id, min(timestamp) AS started_at, count(*) AS total_events",
        }.get(relation, "date_trunc('hour', timestamp) AS hour, conversation_id, event_type, count(*) AS events")
        grouped = "" if relation == "events" else "GROUP BY ALL"
        con.execute(f"CREATE OR REPLACE TEMP VIEW {relation} AS SELECT {columns} {rows} {grouped}")


instants = st.builds(lambda step, near: NOV_13_US + step + near, st.sampled_from(STEPS_US), st.sampled_from([-1, 0, 1]))


def as_datetime(us: int) -> dt.datetime:
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=us)


@st.composite
def time_values(draw: st.DrawFn) -> str:
    at = as_datetime(draw(instants))
    east = at.astimezone(dt.timezone(dt.timedelta(hours=2)))
    forms = [
        quoted(f"{at:%Y-%m-%d %H:%M:%S.%f}"),
        quoted(f"{at:%Y-%m-%d}"),
        quoted(f"{east:%Y-%m-%d %H:%M:%S.%f}+02"),
        quoted(f"{at:%Y-%m-%dT%H:%M:%S}Z"),
        f"TIMESTAMPTZ '{east:%Y-%m-%d %H:%M:%S.%f}+02:00'",
        f"TIMESTAMP '{at:%Y-%m-%d %H:%M:%S.%f}'",
        f"TIMESTAMP '{east:%Y-%m-%d %H:%M:%S.%f}+02'",
        f"DATE '{at:%Y-%m-%d}'",
        f"'{at:%Y-%m-%d %H:%M:%S}'::TIMESTAMPTZ",
        f"'{at:%Y-%m-%d}'::DATE",
        f"(TIMESTAMPTZ '{at:%Y-%m-%d %H:%M:%S}+00' - INTERVAL 3 HOUR)",
        f"(DATE '{at:%Y-%m-%d}' + INTERVAL '1 week')",
        f"(TIMESTAMP '{at:%Y-%m-%d %H:%M:%S}')::DATE",
        "$at",
        "$day",
        "NULL::TIMESTAMPTZ",
    ]
    relative = ["now()", "(now() - INTERVAL 1 DAY)", "current_date"]
    return draw(st.sampled_from(forms) | st.sampled_from(relative))


@st.composite
def conditions(draw: st.DrawFn, dot: str = "", columns: str = "events", depth: int = 2) -> str:
    """A condition on the columns of a relation, each behind `dot`."""
    kind = draw(st.sampled_from(["time", "time", "text", "text", "odd"] + ["and", "or", "or", "not"] * (depth > 0)))
    if kind in ("and", "or"):
        left, right = (draw(conditions(dot, columns, depth - 1)) for _ in range(2))
        return f"({left} {kind.upper()} {right})"
    if kind == "not":
        return f"NOT ({draw(conditions(dot, columns, depth - 1))})"
    sign = draw(st.sampled_from(["=", "=", "<", "<=", ">", ">="]))
    if kind == "time" and columns != "summary":
        name = dot + ("timestamp" if columns == "events" else "hour")
        forms = ["{}", "{}", "{}", "{}::DATE", "date_trunc('hour', {})", "date_trunc('week', {})", "date_trunc('month', {})"]
        column = draw(st.sampled_from(forms)).format(name)
        low, high = draw(time_values()), draw(time_values())
        compared = [f"{column} {sign} {low}", f"{low} {sign} {column}"] * 3
        ranges = [f"{column} BETWEEN {low} AND {high}", f"{column} NOT BETWEEN {low} AND {high}", f"{column} IN ({low}, {high})"]
        return draw(st.sampled_from(compared + ranges))
    column = dot + draw(st.sampled_from(["conversation_id", "event_type"] if columns == "events" else ["conversation_id"]))
    pool = CONVERSATIONS if column.endswith("_id") else TYPES
    one, two = (draw(st.sampled_from([*map(quoted, pool), "$text"])) for _ in range(2))
    if kind == "odd":
        odd = ["{} LIKE 'a%'", "{} IS NULL", "upper({}) = 'A'", "{} <> 'a'", "{} IS NOT DISTINCT FROM 'c'"]
        return draw(st.sampled_from(odd)).format(column)
    compared = [f"{column} {sign} {one}", f"{one} {sign} {column}", f"{column} IN ({one}, {two})", f"{column} NOT IN ({one})"]
    return draw(st.sampled_from([*compared, f"{column} BETWEEN {one} AND {two}"]))


SAME = "e.conversation_id = p.conversation_id"
FORMS = [
    "SELECT seq, timestamp FROM events AS f WHERE {plain}",
    "SELECT event_type, count(*), max(timestamp) FROM events WHERE {plain} GROUP BY event_type",
    "SELECT count(*) FROM events WHERE {plain}",
    "SELECT e FROM events e WHERE {e}",
    "SELECT to_json(events) FROM events WHERE {plain}",
    "SELECT p.id FROM people p NATURAL JOIN events e WHERE {e}",
    "SELECT #2 FROM events WHERE {plain}",
    "SELECT seq AS timestamp, conversation_id AS event_type FROM events WHERE {plain}",
    "SELECT * REPLACE (seq::VARCHAR AS conversation_id) FROM events WHERE {plain}",
    "WITH x AS (SELECT * FROM events WHERE {plain}) SELECT e.seq FROM x AS e WHERE {e}",
    "SELECT seq FROM events e WHERE {e} UNION ALL SELECT seq FROM events f WHERE {f}",
    "SELECT seq FROM events e WHERE {e} EXCEPT SELECT seq FROM events f WHERE {f}",
    "SELECT e.seq FROM events e WHERE {e} AND EXISTS (FROM events f WHERE f.seq = e.seq + 1 AND {f})",
    "SELECT (SELECT count(*) FROM events f WHERE {f}), seq FROM events e WHERE {e}",
    "SELECT e.seq, f.seq FROM events e, events f WHERE e.seq = f.seq + 1 AND {e} AND {f}",
    "SELECT e.seq, f.seq FROM events f {side} JOIN events e ON e.seq = f.seq + 1 AND {e} WHERE {f}",
    "SELECT p.id, e.seq FROM people p, events e WHERE {e} AND {p}",
    "SELECT p.id, e.seq FROM people p {side} JOIN events e ON {same} WHERE {e}",
    "SELECT p.id, e.seq FROM people p {side} JOIN events e ON {same} WHERE {p}",
    "FROM people p {side} JOIN events e ON {same} AND {e}",
    "SELECT p.id, e.seq FROM events e {side} JOIN people p ON {same} AND {e}",
    "SELECT p.id, e.seq FROM people p {side} JOIN events e USING (conversation_id) WHERE {e}",
    "SELECT p.id, e.seq FROM people p {side} JOIN events e USING (conversation_id) WHERE {bare}",
    "SELECT p.id FROM people p SEMI JOIN events e ON {same} AND {e}",
    "SELECT p.id FROM people p ANTI JOIN events e ON {same} AND {e}",
    "SELECT p.id FROM people p ANTI JOIN events e ON {same} WHERE {bare}",
    "SELECT p.id, e.seq FROM people p ASOF JOIN events e ON p.born >= e.timestamp AND {same} WHERE {e}",
    "SELECT hour, conversation_id, event_count FROM hourly_stats WHERE {hours}",
    "SELECT * FROM conversation_summary WHERE {summary}",
    "SELECT h.event_count, e.seq FROM hourly_stats h JOIN events e ON h.conversation_id = e.conversation_id WHERE {e}",
]


@st.composite
def queries(draw: st.DrawFn) -> str:
    """A query that refers to the relations in one of the ways SQL has, under random conditions."""
    parts: dict[str, st.SearchStrategy[str]] = {
        "plain": conditions(),
        "e": conditions("e."),
        "f": conditions("f."),
        "p": conditions("p.", "summary"),
        "bare": conditions("", "summary"),
        "hours": conditions("", "hours"),
        "summary": conditions("", "summary"),
        "side": st.sampled_from(["", "INNER", "LEFT", "RIGHT", "FULL"]),
        "same": st.just(SAME),
    }
    form = draw(st.sampled_from(FORMS))
    return form.format(**{name: draw(part) for name, part in parts.items() if f"{{{name}}}" in form})


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(query=queries(), at=instants.map(as_datetime), text=st.sampled_from(CONVERSATIONS + TYPES))
def test_the_pruned_answer_is_the_unpruned_answer(
    store: tuple[Connection, list[Piece]], query: str, at: dt.datetime, text: str
) -> None:
    con, pieces = store
    named = {"at": at, "day": at.date(), "text": text}
    parameters = {name: value for name, value in named.items() if f"${name}" in query}
    reading = read(query, parameters, now_us=NOW_US)
    assert not reading.not_pruned
    define(con, pieces, dict.fromkeys(reading.bounds, ANY_ROW))
    whole = sorted(con.execute(query, parameters).fetchall(), key=repr)
    define(con, pieces, reading.bounds, reading.columns)
    assert sorted(con.execute(query, parameters).fetchall(), key=repr) == whole
