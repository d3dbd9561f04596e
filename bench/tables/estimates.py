"""Estimates over sampled events against the truth: how far off they are, and how often their 95 % intervals hold it.

One population of events is sampled again and again by the product's sampler, each time with other ids, as its archive would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NamedTuple

from bench.case import Bench, Case, Table
from bench.results import Row
from thermocline.event import COLUMNS
from thermocline.query.calibrated import estimate_sql
from thermocline.query.estimates import define
from thermocline.tiers import rollups
from thermocline.tiers.duck import Connection, connect

RATES: Final = {0.01: 30_000, 0.05: 12_000, 0.1: 6_000, 0.5: 2_000}
"""Rate → events of the population: a few hundred are kept."""
RUNS: Final = {True: 20, False: 1000}
"""Quick, full. The share of 1,000 intervals that hold is known to 0.7 %, of 20 to 5 %, so the quick run does not judge it."""
RUNS_AT_ONCE: Final = 100
COVERED: Final = (0.93, 0.97)
KEPT: Final = "(md5_number({text}) >> 64)::DOUBLE / 18446744073709551616::DOUBLE"
"""What the sampler compares with the rate."""
OWN: Final = ("conversation_id", "event_type", "content", "timestamp", "cost_usd", "duration_ms")
T0_US: Final = 1_760_000_000_000_000
ASKED: Final = "content LIKE '%refund%'"

POPULATION: Final = f"""
    CREATE TABLE population AS
    SELECT number, 'c' || (hash(number, 1) % greatest($events // 8, 1)) AS conversation_id,
           CASE hash(number, 2) % 20 WHEN 0 THEN 'error' WHEN 1 THEN 'message.user' WHEN 2 THEN 'message.user'
                ELSE ['output.chunk', 'tool.call', 'tool.result'][1 + (hash(number, 3) % 3)::BIGINT] END AS event_type,
           CASE WHEN hash(number, 4) % 5 = 0 THEN 'a refund' ELSE 'something else' END AS content,
           make_timestamptz({T0_US} + number * 1000000) AS timestamp,
           exp(0.6 * sqrt(-2 * ln((1 + hash(number, 5) % 1000000) / 1000001))
               * cos(2 * pi() * (hash(number, 6) % 1000000) / 1000000)) AS cost_usd,
           100 + (hash(number, 7) % 1000) * (1 + hash(number, 3) % 3)::DOUBLE AS duration_ms
    FROM range($events) AS numbers(number)"""


class Asked(NamedTuple):
    """One figure that is estimated, and how."""

    name: str
    truth: str
    """Over `population`."""
    estimates: str
    """SELECT of (run, estimate, low, high) over `events` and `usage`; agent_id is the run."""


def _direct(name: str, truth: str, expression: str) -> Asked:
    return Asked(
        name, truth, f"SELECT agent_id AS run, unnest(e) FROM (SELECT agent_id, {expression} AS e FROM events GROUP BY agent_id)"
    )


def _by_conversation(name: str, truth: str, expression: str) -> Asked:
    added = """SELECT agent_id, conversation_id, sample_rate, count(*) AS n, count(*) FILTER (event_type = 'tool.call') AS calls,
               sum(cost_usd) AS cost, sum(duration_ms) AS duration FROM events GROUP BY ALL"""
    return Asked(
        name,
        truth,
        f"SELECT agent_id AS run, unnest(e) FROM (SELECT agent_id, {expression} AS e FROM ({added}) GROUP BY agent_id)",
    )


def _calibrated(name: str, truth: str, kind: Any, value: str, total: str) -> Asked:
    select = estimate_sql(kind, value, total, ["agent_id"], "true", "true", ASKED)
    return Asked(name, truth, f"SELECT agent_id AS run, estimate, low, high FROM ({select})")


CALIBRATED: Final = (
    _calibrated("store.estimate count(*), of a fifth", f"SELECT count(*) FROM population WHERE {ASKED}", "count", "1", "events"),
    _calibrated(
        "store.estimate sum(cost_usd), of a fifth",
        f"SELECT sum(cost_usd) FROM population WHERE {ASKED}",
        "sum",
        "cost_usd",
        "cost_usd",
    ),
    _calibrated(
        "store.estimate avg(duration_ms), of a fifth",
        f"SELECT avg(duration_ms) FROM population WHERE {ASKED}",
        "avg",
        "duration_ms",
        "",
    ),
)
ONE_BY_ONE: Final = (
    _direct("est_count", "SELECT count(*) FROM population", "est_count(sample_rate)"),
    _direct("est_sum of a condition", f"SELECT count(*) FROM population WHERE {ASKED}", f"est_sum({ASKED}, sample_rate)"),
    _direct("est_sum(cost_usd)", "SELECT sum(cost_usd) FROM population", "est_sum(cost_usd, sample_rate)"),
    _direct("est_avg(duration_ms)", "SELECT avg(duration_ms) FROM population", "est_avg(duration_ms, sample_rate)"),
    *CALIBRATED,
)
WHOLE: Final = (
    _by_conversation("est_sum of counts by conversation", "SELECT count(*) FROM population", "est_sum(n, sample_rate)"),
    _by_conversation("est_sum of costs by conversation", "SELECT sum(cost_usd) FROM population", "est_sum(cost, sample_rate)"),
    _by_conversation(
        "est_avg of durations by conversation", "SELECT avg(duration_ms) FROM population", "est_avg(duration, sample_rate, n)"
    ),
    *CALIBRATED,
)
SCOPES: Final = {"event": ONE_BY_ONE, "conversation": WHOLE}


class Found(NamedTuple):
    """Of all runs."""

    runs: int
    held: float
    """Share of intervals that hold the truth; without those that have no end."""
    unknown: float
    bias: float
    """Mean of the estimates over the truth, less 1."""
    error: float
    """Median of how far off, over the truth."""
    width: float
    """Median of half an interval, over the truth."""


def measured(rate: float, scope: str, runs: int, *, events: int = 0) -> dict[str, Found]:
    """Figure → how well it was estimated in so many runs. The same arguments, the same answer."""
    with population(events or RATES[rate]) as con:
        con.execute("CREATE TABLE found (name VARCHAR, run VARCHAR, estimate DOUBLE, low DOUBLE, high DOUBLE)")
        for first in range(0, runs, RUNS_AT_ONCE):
            sample(con, rate, scope, range(first, min(first + RUNS_AT_ONCE, runs)))
            for one in SCOPES[scope]:
                con.execute(f"INSERT INTO found SELECT ?, run, estimate, low, high FROM ({one.estimates})", [one.name])
        return {one.name: _found(con, one) for one in SCOPES[scope]}


@contextmanager
def population(events: int) -> Iterator[Connection]:
    """A database with so many events, and what their rollups say of them."""
    con = connect(memory_bytes=1 << 30, threads=2)
    try:
        define(con)
        con.execute(POPULATION, {"events": events})
        columns = ", ".join(
            column.name if column.name in OWN else f"NULL::{column.sql_type} AS {column.name}" for column in COLUMNS
        )
        rolled = rollups.usage("usage", [], [f"(SELECT {columns} FROM population)"])
        sums = "sum(events) AS events, sum(cost_usd) AS cost_usd"
        con.execute(f"CREATE TABLE known AS SELECT event_type, {sums} FROM ({rolled}) GROUP BY ALL")
        yield con
    finally:
        con.close()


def sample(con: Connection, rate: float, scope: str, runs: range) -> None:
    """Make `events`, what is kept of the population in each run, by the sampler's rule; and `usage`, what rollups know."""
    kept = KEPT.format(text="event_id" if scope == "event" else "conversation_id")
    con.execute(f"""CREATE OR REPLACE TEMP TABLE events AS
        SELECT * EXCLUDE (number), if(event_type = 'error', 1, {rate})::DOUBLE AS sample_rate
        FROM (SELECT * REPLACE (run || '-' || conversation_id AS conversation_id), run::VARCHAR AS agent_id,
                     md5('run ' || run || ' event ' || number)::UUID::VARCHAR AS event_id
              FROM population, range({runs.start}, {runs.stop}) AS runs(run))
        WHERE event_type = 'error' OR {kept} < {rate}""")
    con.execute(f"""CREATE OR REPLACE TEMP TABLE usage AS
        SELECT *, run::VARCHAR AS agent_id FROM known, range({runs.start}, {runs.stop}) AS runs(run)""")


def _found(con: Connection, asked: Asked) -> Found:
    [[truth]] = con.execute(asked.truth).fetchall()
    [row] = con.execute(
        """SELECT count(*), avg((low <= $truth * (1 + 1e-12) AND high >= $truth * (1 - 1e-12))::INT) FILTER (high IS NOT NULL),
                  avg((high IS NULL)::INT), avg(estimate) / $truth - 1, median(abs(estimate / $truth - 1)),
                  median((high - low) / 2 / $truth)
           FROM found WHERE name = $name""",
        {"truth": truth, "name": asked.name},
    ).fetchall()
    return Found(*row)


def _cases(size: int, quick: bool) -> list[Case]:
    return [Case(f"{scope}-{rate:g}", size, partial(_rows, rate=rate, scope=scope)) for scope in SCOPES for rate in RATES]


def _rows(bench: Bench, *, rate: float, scope: str) -> Sequence[Row]:
    rows = []
    for name, found in measured(rate, scope, RUNS[bench.quick]).items():
        unit = "one by one" if scope == "event" else "whole conversations"
        rows.append(
            Row(
                what=f"{rate:.0%} kept, {unit}: {name}",
                events=RATES[rate],
                value=f"{found.held:.1%} of the intervals hold the truth",
                target=f"{COVERED[0]:.0%} to {COVERED[1]:.0%}",
                met=None if bench.quick else COVERED[0] <= found.held <= COVERED[1],
                note=f"error {found.error:.1%}, half the interval {found.width:.1%} (medians); mean off by {found.bias:+.2%} "
                f"({found.runs:,} runs)",
                figures={
                    "held_ratio": found.held,
                    "error_ratio": found.error,
                    "width_ratio": found.width,
                    "bias_ratio": found.bias,
                },
            )
        )
    return rows


TABLE = Table(
    name="estimates",
    title="Estimates from sampled events",
    about="A population of events, of which errors are kept and a part of the rest, is sampled by the rule of the product's "
    "sampler, each time with other ids. Costs are log-normal. `store.estimate` asks for the events that hold a word, a fifth of "
    "all, and knows the rollups. What came of 1,000 draws is in docs/estimates.md.",
    sizes=(50_000,),
    cases=_cases,
    quick_events=50_000,
)
