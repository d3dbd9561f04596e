"""Estimates that agree with the rollups: their totals are those of the rollups to the last event, and their bounds hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bench.tables.estimates import KEPT
from thermocline.errors import QueryRefused
from thermocline.query.calibrated import estimate_sql
from thermocline.query.estimates import define
from thermocline.query.measure import condition_of, measure_of
from thermocline.tiers.duck import Connection, connect

EVENTS = 4000


@pytest.fixture(scope="module")
def con() -> Iterator[Connection]:
    """Events of three types in 400 conversations of two agents. Errors are all kept; of the rest a fifth of one agent's events,
    and a fifth of the other's conversations."""
    made = connect(memory_bytes=512 << 20, threads=2)
    define(made)
    made.execute(f"""CREATE TABLE every AS
        SELECT md5('e' || i)::UUID::VARCHAR AS event_id, 'c' || (i % 400) AS conversation_id,
               if(i % 2 = 0, 'one', 'whole') AS agent_id,
               ['chunk', 'chunk', 'call', 'error'][1 + i // 400 % 4] AS event_type, (1 + i % 11)::DOUBLE AS cost_usd,
               if(i % 3 = 0, 'yes', 'no') AS status, make_timestamptz(1760000000000000 + i * 60000000) AS timestamp
        FROM range({EVENTS}) AS r(i)""")
    by_event, by_conversation = (KEPT.format(text=name) for name in ("event_id", "conversation_id"))
    made.execute(f"""CREATE TABLE events AS SELECT *, if(event_type = 'error', 1, 0.2)::DOUBLE AS sample_rate FROM every
        WHERE event_type = 'error' OR if(agent_id = 'one', {by_event}, {by_conversation}) < 0.2""")
    made.execute("""CREATE VIEW usage AS SELECT date_trunc('hour', timestamp) AS hour, conversation_id, event_type, agent_id,
        count(*) AS events, sum(cost_usd) AS cost_usd FROM every GROUP BY ALL""")
    yield made
    made.close()


def asked(con: Connection, what: str, where: str, by: tuple[str, ...] = ()) -> list[tuple[Any, ...]]:
    measure, condition = measure_of(what), condition_of(where)
    total = "" if measure.kind in ("count", "avg") else measure.total
    parts = condition.base or "true", condition.base_of_usage or "true", condition.asked or "true"
    return con.execute(estimate_sql(measure.kind, measure.value, total, by, *parts)).fetchall()


@pytest.mark.parametrize("by", [(), ("agent_id",), ("event_type",), ("day", "event_type"), ("agent_id", "event_type")])
@pytest.mark.parametrize(("what", "column"), [("count(*)", "events"), ("sum(cost_usd)", "cost_usd")])
def test_totals_are_those_of_the_rollups(con: Connection, what: str, column: str, by: tuple[str, ...]) -> None:
    keys = "".join(f"{'hour::DATE' if name == 'day' else name}, " for name in by)
    wanted = con.execute(f"SELECT {keys}sum({column}) FROM usage GROUP BY ALL ORDER BY ALL").fetchall()
    found = asked(con, what, "timestamp IS NOT NULL", by)
    assert [row[: len(by)] for row in found] == [row[: len(by)] for row in wanted]
    assert [row[len(by)] for row in found] == pytest.approx([float(row[-1]) for row in wanted], rel=1e-12)


def test_parts_add_up_to_the_whole(con: Connection) -> None:
    for by in ((), ("agent_id",)):
        parts = [asked(con, "count(*)", f"status = '{status}'", by) for status in ("yes", "no")]
        sums = [sum(values) for values in zip(*([row[len(by)] for row in part] for part in parts), strict=True)]
        totals = [row[len(by)] for row in asked(con, "count(*)", "true OR status IS NULL", by)]
        assert sums == pytest.approx(totals, rel=1e-12)


def test_what_was_all_kept_is_exact(con: Connection) -> None:
    [[estimate, low, high, basis, kept]] = asked(con, "count(*)", "event_type = 'error' AND status = 'yes'")
    [[truth]] = con.execute("SELECT count(*) FROM every WHERE event_type = 'error' AND status = 'yes'").fetchall()
    assert estimate == low == high == kept == truth
    assert basis == "exact"


def test_a_conversation_kept_as_one_is_one_draw(con: Connection) -> None:
    """What is asked for is a matter of whole conversations here: ten rows kept together tell no more than one."""
    widths = {}
    for agent in ("one", "whole"):
        [[_, low, high, basis, _]] = asked(
            con, "count(*)", f"agent_id = '{agent}' AND hash(conversation_id || left(status, 0)) % 2 = 0"
        )
        assert basis == "estimated"
        widths[agent] = high - low
    assert widths["whole"] > 1.5 * widths["one"]


def test_what_was_dropped_altogether_is_said_to_be_unknown(con: Connection) -> None:
    con.execute(
        "CREATE OR REPLACE TEMP VIEW usage AS FROM memory.main.usage UNION ALL "
        "SELECT now(), 'c1', 'gone', 'one', 5000, 10.0 FROM range(1)"
    )
    try:
        [[estimate, low, high, basis, _]] = asked(con, "count(*)", "status = 'yes'")
        assert low < estimate < high - 5000
        assert basis == "estimated"
        [[_, low, high, basis, _]] = asked(con, "sum(cost_usd)", "status = 'yes'")
        assert (low, high, basis) == (None, None, "unknown")
    finally:
        con.execute("DROP VIEW temp.usage")


def test_none_kept_of_what_is_asked_has_an_upper_bound(con: Connection) -> None:
    [[estimate, low, high, basis, kept]] = asked(con, "count(*)", "status = 'never'")
    assert (estimate, low, kept, basis) == (0, 0, 0, "estimated")
    assert 0 < high < 50


@pytest.mark.parametrize(
    ("text", "kind", "value", "total"),
    [
        ("count(*)", "count", "1", "events"),
        ("sum(cost_usd)", "sum", "cost_usd", "cost_usd"),
        ("avg(duration_ms)", "avg", "duration_ms", "duration_ms_sum"),
        ("sum(duration_ms / 1000)", "sum", "duration_ms / 1000", ""),
        ("count(DISTINCT agent_id)", "distinct", "agent_id", ""),
        ("median(duration_ms)", "quantile", "duration_ms", ""),
    ],
)
def test_measures_are_read_from_their_text(text: str, kind: str, value: str, total: str) -> None:
    assert measure_of(text)[:3] == (kind, value, total)


def test_the_share_of_a_quantile_is_read() -> None:
    assert measure_of("quantile(duration_ms, 0.95)").share == measure_of("quantile_cont(duration_ms, 0.95)").share == 0.95


@pytest.mark.parametrize(
    "text",
    [
        "",
        "count(",
        "max(seq)",
        "count(DISTINCT content)",
        "median(cost_usd)",
        "quantile(duration_ms, 2)",
        "sum(1), 2",
        "1; DROP TABLE x",
    ],
)
def test_other_measures_are_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(QueryRefused, match=r"^what: "):
        measure_of(text)


def test_a_condition_is_divided_into_what_rollups_know_and_the_rest() -> None:
    found = condition_of("event_type = 'a' AND status = 'b' AND (agent_id = 'x' OR model = 'y') AND day = '2026-11-20'")
    assert "status" in found.asked and "status" not in found.base
    assert "event_type" in found.base and "agent_id" in found.base_of_usage
    assert "timestamp" in found.base and "hour" in found.base_of_usage
    with pytest.raises(QueryRefused, match="the rollups do not know"):
        found.of_usage()
    with pytest.raises(QueryRefused, match="where: "):
        condition_of("status = 'a' FROM x")
