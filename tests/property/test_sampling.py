"""Whatever the policy and the events: SQL decides as plain Python does, samples nest, and estimates hit what they estimate."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.sampling import DAY_US, T0_US, Decision, Row, age_rate, archived, event, name_of, policy, rule_of, share
from thermocline.archiver import sampler
from thermocline.event import COLUMNS
from thermocline.policy import DEFAULT_RULES, Policy
from thermocline.tiers.duck import Connection, connect

DEFAULT = Policy(DEFAULT_RULES, 7)
unhurried = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
brief = settings(unhurried, max_examples=25)

ALPHABET = "ab._%'[\\\n*ü😀"
values = st.text("ab._%'[\\\nü😀", max_size=6)
patterns = st.lists(st.text(ALPHABET.replace("\n", ""), max_size=5), min_size=1, max_size=3)
kinds = st.text("ab.", min_size=1, max_size=5)
rates = st.sampled_from([0, 0.05, 0.3, 0.5, 0.999, 1])
actions = st.one_of(st.just({"keep": True}), rates.map(lambda rate: {"rate": rate}), st.just({"formula": "age"}))
conditions = st.fixed_dictionaries(
    {},
    optional={"events_min": st.integers(0, 6), "errors_max": st.integers(0, 2), "cost_usd_min": st.sampled_from([0.1, 0.3, 0.6])},
)
rules = st.builds(
    lambda lists, scope, when, action: {**lists, "scope": scope, "when": when, **action},
    st.fixed_dictionaries(
        {},
        optional={
            "event_types": st.lists(
                st.text("ab.*", min_size=1, max_size=4).filter(lambda one: one.strip("*")), min_size=1, max_size=3
            ),
            "status": patterns,
            "tools": patterns,
        },
    ),
    st.sampled_from(["event", "conversation"]),
    conditions,
    actions,
).filter(lambda rule: rule.keys() & {"event_types", "status", "tools"} or rule["when"])
batches = st.lists(
    st.fixed_dictionaries(
        {
            "conversation_id": st.sampled_from(["x", "y", "z'"]),
            "event_type": kinds | st.just("error"),
            "status": values | st.none(),
            "tool_name": values | st.none(),
            "cost_usd": st.sampled_from([None, 0.1, 0.2]),
            "timestamp": st.integers(T0_US - 60 * DAY_US, T0_US),
        }
    ),
    max_size=30,
)


@pytest.fixture(scope="module")
def con() -> Iterator[Connection]:
    made = connect(memory_bytes=512 << 20, threads=2)
    yield made
    made.close()


def totals_of(events: list[Row]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = defaultdict(lambda: {"events": 0, "errors": 0, "cost_usd": 0})
    for row in events:
        totals = found[row["conversation_id"]]
        totals["events"] += 1
        totals["errors"] += row["event_type"] == "error" or row["event_type"].endswith(".error") or row["status"] == "error"
        totals["cost_usd"] = round(totals["cost_usd"] + (row["cost_usd"] or 0), 6)
    return found


@given(st.lists(rules, max_size=4), batches)
@unhurried
def test_sql_decides_as_plain_python_does(con: Connection, drawn: list[dict[str, Any]], batch: list[dict[str, Any]]) -> None:
    chosen = policy(*({"name": f"r{number}", **rule} for number, rule in enumerate(drawn)))
    events = [event(number, **columns) for number, columns in enumerate(batch)]
    found = archived(con, chosen, events)
    totals = totals_of(events)
    taking = {row["event_id"]: rule_of(chosen, row, totals[row["conversation_id"]]) for row in events}
    assert found.rules == {name: name_of(rule) for name, rule in taking.items()}
    for row in events:
        name, rule = row["event_id"], taking[row["event_id"]]
        alike = [one for one in events if one["conversation_id"] == row["conversation_id"]]
        started_us = min(one["timestamp"] for one in alike)
        earliest_us = min(one["timestamp"] for one in alike if taking[one["event_id"]] is rule)
        if rule is None or rule.fixed_rate is not None:
            rate = 1.0 if rule is None else rule.fixed_rate
        else:
            rate = age_rate(started_us, earliest_us, 7)
        assert found.rates[name] == pytest.approx(rate, rel=1e-12)
        key = row["conversation_id"] if rule is not None and rule.scope == "conversation" else name
        assert (name in found.kept) == (found.rates[name] >= 1 or share(key) < found.rates[name])
        assert found.decisions[row["conversation_id"], name_of(rule)][2:] == (found.rates[name], started_us, chosen.hash)


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(["event", "conversation"]))
@brief
def test_a_higher_rate_keeps_the_same_and_more(con: Connection, one: float, other: float, scope: str) -> None:
    events = [event(number, conversation_id=f"c{number % 60}") for number in range(300)]
    low, high = (archived(con, policy({"name": "r", "scope": scope, "rate": rate}), events).kept for rate in sorted((one, other)))
    assert low <= high


@given(st.lists(st.tuples(st.integers(0, 60), st.sampled_from([0.0, 0.2, 0.7, None])), min_size=2, max_size=6))
@brief
def test_whatever_days_and_policies_follow_a_rate_is_never_lowered(
    con: Connection, batches: list[tuple[int, float | None]]
) -> None:
    """Each batch is the same conversation on some day under some policy, the decisions of the batches before it stored."""
    stored: list[Decision] = []
    before: set[str] = set()
    for day, rate in batches:
        action = {"formula": "age"} if rate is None else {"rate": rate}
        events = [event(number, timestamp=T0_US + day * DAY_US) for number in range(60)]
        found = archived(con, policy({"name": "r", **action}), events, stored=stored, elsewhere=[event(-1)])
        [decision] = found.decisions.values()
        assert all(decision.rate >= one.rate and decision.started_us == one.started_us for one in stored)
        assert before <= found.kept
        before = found.kept
        stored += [decision] if found.changed else []


RUNS = 100
EVENTS = 2000
KINDS = {
    "output.chunk": 1100,
    "tool.call": 300,
    "tool.result": 300,
    "message.user": 200,
    "error": 40,
    "intervention": 20,
    "file_created": 20,
    "file.created": 20,
}
EXACT = ("error", "intervention", "file_created", "file.created")
PAGE = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text()


def within(con: Connection, runs: range) -> dict[str, int]:
    """In how many runs the number of events of a type lies in the 95 % interval that docs/sampling.md computes of those kept.

    A run is 2000 events with ids of their own in 20 conversations, begun up to 85 days before, under the default policy.
    """
    kinds = "', '".join(kind for kind, count in KINDS.items() for _ in range(count // 20))
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE drawn AS
        SELECT md5('run ' || run || ' event ' || number)::UUID AS event_id, run || '-' || number // 100 AS conversation_id,
               number % 100 + 1 AS seq, ['{kinds}'][number % 100 + 1] AS event_type,
               make_timestamptz({T0_US} + number * 1000000) AS timestamp, run::VARCHAR AS task_id
        FROM range({runs.start}, {runs.stop}) AS runs(run), range({EVENTS}) AS numbers(number)"""
    )
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE begun AS SELECT conversation_id,
               make_timestamptz({T0_US} - split_part(conversation_id, '-', 2)::BIGINT * 9 // 2 * {DAY_US}) AS started_at
        FROM drawn GROUP BY conversation_id"""
    )
    con.execute(
        "CREATE OR REPLACE TEMP TABLE none"
        " (conversation_id VARCHAR, rule VARCHAR, rate DOUBLE, started_at TIMESTAMPTZ, policy_hash VARCHAR)"
    )
    given = ("event_id", "conversation_id", "seq", "event_type", "timestamp", "task_id")
    others = ", ".join(f"NULL::{column.sql_type} AS {column.name}" for column in COLUMNS if column.name not in given)
    rows = f"(SELECT *, {others} FROM drawn)"
    made = sampler.decisions(DEFAULT, rows=rows, conversations="begun", stored="none")
    con.execute(f"CREATE OR REPLACE TEMP TABLE decided AS {made}")
    kept = sampler.kept(DEFAULT, rows=rows, conversations="begun", decisions="decided")
    con.execute(
        f"CREATE OR REPLACE TEMP VIEW events AS SELECT event_type || ' ' || task_id AS event_type, sample_rate FROM ({kept})"
    )
    [interval] = re.findall(r"^```sql\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    found = dict.fromkeys(KINDS, 0)
    for name, estimate, low, high in con.execute(interval).fetchall():
        kind = name.rsplit(" ", 1)[0]
        assert kind not in EXACT or estimate == low == high == KINDS[kind]
        found[kind] += low <= KINDS[kind] <= high
    return found


def test_counts_lie_within_the_intervals_of_their_estimates(con: Connection) -> None:
    found = within(con, range(RUNS))
    sampled = [found[kind] for kind in KINDS if kind not in EXACT]
    assert min(sampled) >= 0.9 * RUNS, found
    assert sum(sampled) >= 0.95 * RUNS * len(sampled), found
    assert all(found[kind] == RUNS for kind in EXACT)


@pytest.mark.long
def test_counts_of_each_type_lie_within_them_in_95_of_100_runs(con: Connection) -> None:
    found = [within(con, range(start, start + 100)) for start in range(0, 2000, 100)]
    for kind in KINDS:
        assert sum(one[kind] for one in found) >= 0.95 * 2000, kind
