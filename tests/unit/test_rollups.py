"""Rollups say what plain SQL over the events says, alone, merged, and mixed with rows that have none."""

from __future__ import annotations

import bisect
import itertools
import math
import random
import uuid
from collections.abc import Iterator

import pyarrow as pa
import pytest

from thermocline.event import COLUMNS
from thermocline.tiers import rollups
from thermocline.tiers.duck import Connection, connect

T0_US = 1_760_000_000_000_000
NAMES = {rollup.name: rollup for rollup in rollups.ROLLUPS}


def drawn(rng: random.Random, seq: int) -> dict[str, object]:
    """One event, as odd as events may be."""
    return {
        "event_id": str(uuid.UUID(int=seq)),
        "conversation_id": f"c{rng.randrange(20)}",
        "seq": seq,
        "event_type": rng.choice(
            ["output.chunk", "error", "tool.error", "errors", "intervention", "intervention.pause", "interventions"]
        ),
        "timestamp": T0_US + rng.randrange(5 * 3_600_000_000),
        "agent_id": rng.choice([None, "agent"]),
        "task_id": rng.choice([None, "t1", "t2", "t3"]),
        "model": rng.choice([None, "m"]),
        "tool_name": rng.choice([None, "tool"]),
        "status": rng.choice([None, "ok", "error"]),
        "duration_ms": rng.choice([None, 0.0, -1.0, rng.random() * 10 ** rng.randrange(-3, 7)]),
        "cost_usd": rng.choice([None, 0.25]),
        "input_tokens": rng.choice([None, 0, rng.randrange(100_000), (1 << 63) - 1]),
        "content": "ü" * rng.randrange(5),
    }


RNG = random.Random(3)
DRAWN = pa.Table.from_pylist([drawn(RNG, seq) for seq in range(1200)])


@pytest.fixture
def con() -> Iterator[Connection]:
    """Three schemas, a, b and c, with events of their own; a and b carry rollups; `everything` is all events."""
    made = connect(memory_bytes=256 << 20, threads=2)
    columns = ", ".join(f"{column.name} {column.sql_type}" for column in COLUMNS)
    made.register("drawn", DRAWN)
    for number, schema in enumerate("abc"):
        made.execute(f"CREATE SCHEMA {schema}")
        made.execute(f"CREATE TABLE {schema}.events ({columns})")
        made.execute(
            f"INSERT INTO {schema}.events BY NAME SELECT * REPLACE (make_timestamptz(timestamp) AS timestamp) FROM drawn"
            f" WHERE seq % 3 = {number}"
        )
        for statement in rollups.create_statements(schema, f"{schema}.events") if schema != "c" else ():
            made.execute(statement)
        made.execute(rollups.create_total(schema, f"{schema}.events" if schema == "c" else None))
    made.execute(
        "CREATE VIEW everything AS SELECT * FROM a.events UNION ALL SELECT * FROM b.events UNION ALL SELECT * FROM c.events"
    )
    yield made
    made.close()


PLAIN_HOURLY = (
    "SELECT date_trunc('hour', timestamp) AS hour, conversation_id, count(*) AS event_count, sum(strlen(content))::BIGINT"
    " AS total_bytes FROM everything GROUP BY ALL"
)
PLAIN_SUMMARY = (
    "SELECT conversation_id, min(timestamp) AS started_at, max(timestamp) AS ended_at, count(*) AS total_events,"
    " count(DISTINCT task_id) AS task_count,"
    " count(*) FILTER (event_type = 'intervention' OR starts_with(event_type, 'intervention.')) AS interventions"
    " FROM everything GROUP BY ALL"
)


def rows(con: Connection, sql: str) -> list[tuple[object, ...]]:
    return sorted(con.execute(sql).fetchall(), key=repr)


def statistics(rolled: list[str], raw: list[str]) -> tuple[str, str]:
    """hourly_stats and conversation_summary over the rollups of schemas and over raw relations."""
    tables = [[f"{schema}.{name}" for schema in rolled] for name in ("rollup_hourly", "rollup_conversation", "rollup_task")]
    return rollups.hourly_stats(tables[0], raw), rollups.conversation_summary(tables[1], tables[2], raw)


def described(con: Connection, sql: str) -> list[tuple[str, str]]:
    return [(name, kind) for name, kind, *_ in con.execute(f"DESCRIBE {sql}").fetchall()]


@pytest.mark.parametrize(
    ("rolled", "raw"),
    [
        (["a", "b"], ["c.events"]),
        (["a"], ["b.events", "(SELECT * FROM c.events)"]),
        ([], ["everything"]),
    ],
)
def test_statistics_equal_plain_sql_however_the_rows_are_spread(con: Connection, rolled: list[str], raw: list[str]) -> None:
    hourly, summary = statistics(rolled, raw)
    assert rows(con, hourly) == rows(con, PLAIN_HOURLY)
    assert described(con, hourly) == described(con, PLAIN_HOURLY)
    assert rows(con, summary) == rows(con, PLAIN_SUMMARY)
    assert described(con, summary) == described(con, PLAIN_SUMMARY)


def test_statistics_of_nothing_are_empty_and_of_the_same_columns(con: Connection) -> None:
    for made, plain in zip(statistics([], []), (PLAIN_HOURLY, PLAIN_SUMMARY), strict=True):
        assert rows(con, made) == []
        assert described(con, made) == described(con, plain)


def test_hours_do_not_depend_on_the_time_zone_of_the_session(con: Connection) -> None:
    before = rows(con, f"SELECT epoch_us(hour), event_count FROM ({rollups.hourly_stats(['a.rollup_hourly'], ['b.events'])})")
    con.execute("SET TimeZone = 'Asia/Kathmandu'")
    assert (
        rows(con, f"SELECT epoch_us(hour), event_count FROM ({rollups.hourly_stats(['a.rollup_hourly'], ['b.events'])})")
        == before
    )


def test_hourly_rollup_equals_plain_sql(con: Connection) -> None:
    plain = (
        "SELECT date_trunc('hour', timestamp), conversation_id, event_type, agent_id, model, tool_name, count(*),"
        " sum(strlen(content)), coalesce(sum(input_tokens), 0), 0, coalesce(sum(cost_usd), 0),"
        " count(*) FILTER (event_type IN ('error', 'tool.error') OR status = 'error'), count(duration_ms),"
        " min(timestamp), max(timestamp) FROM everything GROUP BY 1, 2, 3, 4, 5, 6"
    )
    hourly = rollups.combined("rollup_hourly", ["a.rollup_hourly", "b.rollup_hourly"], ["c.events"])
    kept = (
        "SELECT hour, conversation_id, event_type, agent_id, model, tool_name, sum(events), sum(content_bytes),"
        " sum(input_tokens), sum(output_tokens), sum(cost_usd), sum(errors), sum(duration_count),"
        f" min(timestamp_min), max(timestamp_max) FROM ({hourly}) GROUP BY 1, 2, 3, 4, 5, 6"
    )
    assert rows(con, kept) == rows(con, plain)


def test_duration_sums_are_those_of_the_events(con: Connection) -> None:
    hourly = rollups.combined("rollup_hourly", ["a.rollup_hourly", "b.rollup_hourly"], ["c.events"])
    [(kept,)] = con.execute(f"SELECT sum(duration_ms_sum) FROM ({hourly})").fetchall()
    [(plain,)] = con.execute("SELECT sum(duration_ms) FROM everything").fetchall()
    assert math.isclose(kept, plain, rel_tol=1e-12)


def test_rollups_added_up_are_those_of_all_rows_to_the_bit(con: Connection) -> None:
    for rollup in rollups.ROLLUPS:
        names = [f"{schema}.{rollup.name}" for schema in ("a", "b")]
        exact = ", ".join(name for name in (*rollup.keys, *rollup.values) if name not in rollup.inexact)
        made = rollups.added_up(rollup.name, f"({rollups.combined(rollup.name, names, ['c.events'], repeatable=True)})")
        assert rows(con, f"SELECT {exact} FROM ({made})") == rows(con, f"SELECT {exact} FROM ({rollup.text('everything')})")
        backwards = [(part, f"(SELECT * FROM {part} ORDER BY ALL DESC)") for part in (*names, "c.events")]
        again = rollups.added_up(
            rollup.name,
            f"({rollups.combined(rollup.name, [one for _, one in backwards[1::-1]], [backwards[2][1]], repeatable=True)})",
        )
        assert rows(con, made) == rows(con, again)


def test_conversation_and_task_rollups_equal_plain_sql(con: Connection) -> None:
    assert rows(con, "SELECT * FROM a.rollup_task") == rows(
        con, "SELECT DISTINCT conversation_id, task_id FROM a.events WHERE task_id IS NOT NULL"
    )
    plain = (
        "SELECT conversation_id, min(timestamp), max(timestamp), count(*), count(*) FILTER (event_type IN ('intervention',"
        " 'intervention.pause')), count(*) FILTER (event_type IN ('error', 'tool.error') OR status = 'error'), max(seq)"
        " FROM a.events GROUP BY conversation_id"
    )
    assert rows(con, "SELECT * FROM a.rollup_conversation") == rows(con, plain)


@pytest.mark.parametrize("measure", ["duration_ms", "input_tokens"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.99])
def test_quantiles_from_buckets_are_within_one_percent(con: Connection, measure: str, share: float) -> None:
    values = sorted(value for (value,) in con.execute(f"SELECT {measure} FROM everything WHERE {measure} IS NOT NULL").fetchall())
    target = values[math.ceil(share * len(values)) - 1]
    gamma = rollups.QUANTILE_GAMMA
    parts = rollups.combined("rollup_quantile", ["a.rollup_quantile", "b.rollup_quantile"], ["c.events"])
    buckets = con.execute(
        f"SELECT bucket, sum(events) FROM ({parts}) WHERE measure = '{measure}' GROUP BY bucket ORDER BY bucket"
    ).fetchall()
    ends = list(itertools.accumulate(int(events) for _, events in buckets))
    assert ends[-1] == len(values)
    bucket = buckets[bisect.bisect_left(ends, math.ceil(share * len(values)))][0]
    if bucket == rollups.QUANTILE_ZERO_BUCKET:
        assert target <= 0
    else:
        assert 2 * gamma**bucket / (gamma + 1) == pytest.approx(target, rel=0.0101)


def test_the_smallest_and_largest_doubles_have_buckets_of_their_own(con: Connection) -> None:
    con.execute("CREATE SCHEMA odd")
    con.execute("CREATE TABLE odd.events AS SELECT * FROM everything WHERE seq BETWEEN 1 AND 4")
    con.execute("UPDATE odd.events SET duration_ms = CASE seq WHEN 1 THEN 5e-324 WHEN 2 THEN 1.7e308 WHEN 3 THEN 0 ELSE -1 END")
    parts = rollups.combined("rollup_quantile", [], ["odd.events"])
    found = con.execute(
        f"SELECT bucket, sum(events) FROM ({parts}) WHERE measure = 'duration_ms' GROUP BY 1 ORDER BY 1"
    ).fetchall()
    zero, smallest, largest = found
    assert zero == (rollups.QUANTILE_ZERO_BUCKET, 2)
    assert (smallest[1], largest[1]) == (1, 1)


def test_every_rollup_is_listed_with_its_columns(con: Connection) -> None:
    for name, rollup in NAMES.items():
        assert [column for column, _ in described(con, f"a.{name}")] == [*rollup.keys, *rollup.values]
        keys = ", ".join(f"{key}" for key in rollup.keys)
        assert con.execute(f"SELECT count(*) FROM (SELECT {keys} FROM a.{name} GROUP BY ALL HAVING count(*) > 1)").fetchall() == [
            (0,)
        ]


def test_totals_by_hour_are_the_same_from_events_from_rollups_and_beside_both(con: Connection) -> None:
    plain = "SELECT date_trunc('hour', timestamp), count(*), sum(strlen(content))::BIGINT FROM {} GROUP BY ALL"
    for schema in "abc":
        assert rows(con, f"SELECT * FROM {schema}.{rollups.TOTAL}") == rows(con, plain.format(f"{schema}.events"))
    union = rollups.hourly_stats(["a.rollup_hourly"], ["b.events"], [f"c.{rollups.TOTAL}"], added_up=False)
    summed = f"SELECT hour, sum(event_count)::BIGINT, sum(total_bytes)::BIGINT FROM ({union}) GROUP BY hour"
    assert rows(con, summed) == rows(con, plain.format("everything"))


@pytest.mark.parametrize("name", [*NAMES, rollups.TOTAL])
def test_a_rollup_that_is_not_what_its_events_add_up_to_is_told(con: Connection, name: str) -> None:
    agree = dict(rollups.agreements("a", (*NAMES, rollups.TOTAL)))
    assert con.execute(agree[name]).fetchall() == [(True,)]
    con.execute(f"INSERT INTO a.{name} SELECT * FROM a.{name} LIMIT 1")
    assert con.execute(agree[name]).fetchall() == [(False,)]


def test_a_sum_of_costs_that_drifted_is_told(con: Connection) -> None:
    con.execute("UPDATE a.rollup_hourly SET cost_usd = cost_usd + 1")
    assert con.execute(dict(rollups.agreements("a", (*NAMES, rollups.TOTAL)))["rollup_hourly"]).fetchall() == [(False,)]
