"""est_count, est_sum, est_avg: right in the mean, exact where nothing was sampled, in their intervals as often as they say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from bench.tables import estimates as bench
from thermocline.query import estimates
from thermocline.tiers.duck import Connection, connect

KEPT = "(md5_number(run || '-' || i) >> 64)::DOUBLE / 18446744073709551616::DOUBLE"
ROWS = (
    "(VALUES (0.1, 2.0, 'a'), (0.1, 3.0, 'a'), (1.0, 5.0, 'b'), (0.5, 1.0, 'c'), (0.5, 9.0, 'd'), (0.5, NULL, 'd')) AS t(p, x, u)"
)


@pytest.fixture(scope="module")
def con() -> Iterator[Connection]:
    made = connect(memory_bytes=512 << 20, threads=2)
    estimates.define(made)
    yield made
    made.close()


def one(con: Connection, expression: str, where: str = "true") -> Any:
    [[found]] = con.execute(f"SELECT {expression} FROM {ROWS} WHERE {where}").fetchall()
    return found


def test_a_row_kept_with_probability_p_stands_for_one_over_p(con: Connection) -> None:
    assert one(con, "est_count(p)")["estimate"] == 10 + 10 + 1 + 2 + 2 + 2
    assert one(con, "est_sum(x, p)")["estimate"] == 20 + 30 + 5 + 2 + 18
    assert one(con, "est_avg(x, p)")["estimate"] == pytest.approx(75 / 25)


@pytest.mark.parametrize("expression", ["est_count(p)", "est_sum(x, p)", "est_avg(x, p)", "est_avg(x, p, 1)"])
def test_rows_kept_for_certain_carry_no_variance(con: Connection, expression: str) -> None:
    found = one(con, expression, "p = 1")
    assert found["low"] == found["estimate"] == found["high"] == (1 if "count" in expression else 5)
    sampled = one(con, expression)
    assert sampled["low"] < sampled["estimate"] < sampled["high"]


def test_certain_rows_beside_sampled_ones_widen_nothing(con: Connection) -> None:
    alone, beside = one(con, "est_count(p)", "p < 1"), one(con, "est_count(p)")
    assert beside["high"] - beside["low"] == pytest.approx(alone["high"] - alone["low"])


def test_where_a_sample_says_nothing_of_its_spread_the_bounds_are_unknown(con: Connection) -> None:
    assert one(con, "est_count(p)", "false") == {"estimate": 0, "low": 0, "high": None}
    assert one(con, "est_avg(x, p)", "u = 'd'") == {"estimate": 9, "low": 0, "high": None}
    assert one(con, "est_sum(x > 100, p)") == {"estimate": 0, "low": 0, "high": None}
    assert one(con, "est_sum(x, p)", "false") == {"estimate": None, "low": None, "high": None}


def test_they_work_wherever_an_aggregate_does(con: Connection) -> None:
    having = f"SELECT u FROM {ROWS} GROUP BY u HAVING est_count(p).estimate > 2 ORDER BY est_sum(x, p).estimate DESC"
    assert con.execute(having).fetchall() == [("a",), ("d",)]
    fields = f"SELECT unnest(e) FROM (SELECT est_count(p) AS e FROM {ROWS})"
    assert len(con.execute(fields).fetchall()[0]) == 3
    shares = one(con, "est_avg(x > 4, p)")
    assert shares["estimate"] == pytest.approx(3 / 25)


def test_a_large_offset_does_not_make_the_interval_of_an_average_wild(con: Connection) -> None:
    plain, far = one(con, "est_avg(x, p)"), one(con, "est_avg(x + 1e6, p)")
    assert far["estimate"] - 1e6 == pytest.approx(plain["estimate"])
    assert 0.5 < (far["high"] - far["low"]) / (plain["high"] - plain["low"]) < 2


def test_estimates_are_right_in_the_mean_and_their_intervals_hold(con: Connection) -> None:
    """600 samples of a tenth of 400 rows: means are within five standard errors, intervals hold in 90 to 99 of 100."""
    con.execute(
        "CREATE OR REPLACE TABLE pop AS SELECT i, (1 + i % 7)::DOUBLE AS x, if(i % 10 = 0, 1, 0.1) AS p FROM range(400) AS r(i)"
    )
    [[truth, average]] = con.execute("SELECT sum(x), avg(x) FROM pop").fetchall()
    wanted = {"est_count(p)": 400, "est_sum(x, p)": truth, "est_avg(x, p)": average}
    for expression, true in wanted.items():
        drawn = f"SELECT run, {expression} AS e FROM pop, range(600) AS runs(run) WHERE {KEPT} < p GROUP BY run"
        [[mean, deviation, held]] = con.execute(
            f"SELECT avg(e.estimate), stddev(e.estimate), avg((e.low <= {true} AND {true} <= e.high)::INT) FROM ({drawn})"
        ).fetchall()
        assert abs(mean - true) < 5 * deviation / math.sqrt(600), expression
        assert 0.90 <= held <= 0.99, expression


@pytest.mark.parametrize("scope", ["event", "conversation"])
def test_the_benchmark_finds_what_it_promises_in_a_small_run(scope: str) -> None:
    for name, found in bench.measured(0.1, scope, 60, events=3000).items():
        assert found.runs == 60, name
        assert found.held >= 0.8, name
        assert abs(found.bias) < 0.2, name
