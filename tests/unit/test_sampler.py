"""The sampler keeps what the policy says, the same at every run, and remembers what it decided."""

from __future__ import annotations

import math
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sampling import (
    DAY_US,
    HOUR_US,
    T0_US,
    Decision,
    Row,
    age_rate,
    archived,
    event,
    policy,
    share,
)
from thermocline.archiver import sampler
from thermocline.event import COLUMN_NAMES, COLUMNS
from thermocline.policy import DEFAULT_RULES, MEASURES, Policy
from thermocline.tiers import cold_schema
from thermocline.tiers.duck import Connection, DuckError, connect

DEFAULT = Policy(DEFAULT_RULES, 7)
DAY0_US = T0_US // DAY_US * DAY_US


@pytest.fixture(scope="module")
def con() -> Iterator[Connection]:
    made = connect(memory_bytes=256 << 20, threads=2)
    yield made
    made.close()


def many(count: int, **columns: Any) -> list[Row]:
    return [event(number, **columns) for number in range(count)]


def taken(con: Connection, values: list[Any], **rule: Any) -> list[Any]:
    """Which values of a column a rule takes."""
    (name,) = rule
    column = {"event_types": "event_type", "status": "status", "agents": "agent_id", "models": "model", "tools": "tool_name"}[
        name
    ]
    events = [event(number, **{column: value}) for number, value in enumerate(values)]
    rules = archived(con, policy({"name": "it", "keep": True, **rule}), events).rules
    return [row[column] for row in events if rules[row["event_id"]] == "it"]


# What a rule takes


def test_exact_patterns_take_equal_values_only(con: Connection) -> None:
    assert taken(con, ["error", "errors", "tool.error", "Error"], event_types=["error", "none"]) == ["error"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("file.*", ["file.", "file.a", "file.a.b"]),
        ("*.b", ["file.a.b", "x.b", ".b"]),
        ("*le*", ["file.", "file.a", "file.a.b", "file"]),
        ("f*b", ["file.a.b"]),
        ("f*l*.*", ["file.", "file.a", "file.a.b"]),
        ("*i*e*b", ["file.a.b"]),
        ("*", ["file.", "file.a", "file.a.b", "file", "x.b", ".b", "fb.x"]),
        ("file**", ["file.", "file.a", "file.a.b", "file"]),
        ("fb.*x", ["fb.x"]),
        ("fb.*.x", []),
    ],
)
def test_a_star_stands_for_any_characters_dots_too(con: Connection, pattern: str, expected: list[str]) -> None:
    values = ["file.", "file.a", "file.a.b", "file", "x.b", ".b", "fb.x"]
    assert taken(con, values, event_types=[pattern]) == expected


def test_what_stands_before_and_after_a_star_may_not_overlap(con: Connection) -> None:
    assert taken(con, ["aba", "ababa", "üxü", "ü"], tools=["ab*ba", "ü*ü"]) == ["ababa", "üxü"]


@pytest.mark.parametrize("column", ["status", "agents", "models", "tools"])
def test_every_list_is_about_its_column_and_never_takes_null(con: Connection, column: str) -> None:
    assert taken(con, ["a1", "b", "", None], **{column: ["a*"]}) == ["a1"]
    assert taken(con, ["a1", "b", "", None], **{column: ["*"]}) == ["a1", "b", ""]
    assert taken(con, ["a1", "b", "", None], **{column: [""]}) == [""]


HOSTILE = [
    "it's",
    "''",
    "a%b",
    "a_b",
    "axb",
    "[ab]",
    "a?b",
    "a.b",
    "a\\b",
    "\\",
    "(a|b)",
    "^a$",
    "a+b",
    "{x}",
    "naïve ☃",
    "😀",
    "e\u0301",
    "é",
    '"',
    "--",
    "/*",
    "$1",
    ";",
    " a ",
    "\u2028",
    "\u00a0",
]


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_characters_in_patterns_mean_themselves(con: Connection, value: str) -> None:
    assert taken(con, HOSTILE, tools=[value]) == [value]
    dressed = [f"<{other}>!{other}#" for other in HOSTILE]
    for pattern in (f"<{value}>*", f"*!{value}#", f"*<{value}>*", f"<{value}*{value}#", f"<*{value}>*{value}*#"):
        assert f"<{value}>!{value}#" in taken(con, dressed, tools=[pattern])
    assert taken(con, dressed, tools=[f"<*{value}>*!*{value}#"]) == [f"<{value}>!{value}#"]


def test_a_newline_in_a_value_is_a_character_like_any_other(con: Connection) -> None:
    assert taken(con, ["a\nb\nc"], tools=["a*b*c"]) == ["a\nb\nc"]


def test_many_stars_take_no_exponential_time(con: Connection) -> None:
    assert taken(con, ["a" * 250] * 200, tools=["*a" * 60 + "b"]) == []


def test_all_lists_of_a_rule_must_take_the_event(con: Connection) -> None:
    chosen = policy({"name": "it", "event_types": ["tool.*"], "status": ["error"], "models": ["m", "n"], "rate": 0})
    events = [
        event(1, event_type="tool.call", status="error", model="n"),
        event(2, event_type="tool.call", status="error", model="o"),
        event(3, event_type="tool.call", status="ok", model="m"),
        event(4, event_type="tools", status="error", model="m"),
    ]
    found = archived(con, chosen, events)
    assert [found.rules[row["event_id"]] for row in events] == ["it", "unmatched", "unmatched", "unmatched"]


def test_the_first_rule_that_takes_an_event_decides(con: Connection) -> None:
    rules = [
        {"name": "a", "event_types": ["x"], "status": ["error"], "keep": True},
        {"name": "b", "event_types": ["x", "y"], "rate": 0},
        {"name": "c", "event_types": ["y", "z"], "keep": True},
    ]
    events = [event(1, event_type="x", status="error"), event(2, event_type="x"), event(3, event_type="y")]
    events += [event(4, event_type="z"), event(5, event_type="w")]
    found = archived(con, policy(*rules), events)
    assert [found.rules[row["event_id"]] for row in events] == ["a", "b", "b", "c", "unmatched"]
    assert [row["seq"] for row in sorted(found.rows, key=lambda row: row["seq"])] == [1, 4, 5]


def test_what_no_rule_takes_is_kept(con: Connection) -> None:
    found = archived(con, policy({"name": "none", "event_types": ["x"], "rate": 0}), many(500))
    assert len(found.kept) == 500
    assert set(found.rates.values()) == {1.0}
    assert set(found.decisions) == {("c", "unmatched")}


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({"errors_min": 1}, {"failed"}),
        ({"errors_max": 0}, {"fine", "stopped", "dear"}),
        ({"interventions_min": 1}, {"stopped"}),
        ({"cost_usd_min": 0.3}, {"dear"}),
        ({"cost_usd_max": 0.3}, {"fine", "failed", "stopped", "dear"}),
        ({"events_min": 3}, {"dear"}),
        ({"events_max": 2}, {"fine", "failed", "stopped"}),
        ({"content_bytes_min": 13}, {"stopped"}),
        ({"input_tokens_min": 10, "output_tokens_max": 4}, {"failed"}),
        ({"errors_min": 1, "interventions_min": 1}, set()),
    ],
)
def test_conditions_are_about_the_whole_conversation(con: Connection, when: dict[str, float], expected: set[str]) -> None:
    batch = [event(number, conversation_id=name) for number, name in enumerate(["fine", "failed", "stopped", "dear"])]
    later_us = T0_US + 3 * DAY_US
    elsewhere = [
        event(11, conversation_id="failed", event_type="tool.error", timestamp=later_us, input_tokens=10, output_tokens=4),
        event(12, conversation_id="stopped", event_type="intervention.pause", content="ten bytes.", timestamp=later_us),
        event(13, conversation_id="dear", cost_usd=0.1, input_tokens=10, output_tokens=5),
        event(14, conversation_id="dear", cost_usd=0.2, timestamp=later_us, content=""),
    ]
    found = archived(con, policy({"name": "it", "when": when, "rate": 0}), batch, elsewhere=elsewhere)
    assert {row["conversation_id"] for row in batch if found.rules[row["event_id"]] == "it"} == expected


def test_only_the_measures_a_policy_asks_for_are_needed() -> None:
    assert sampler.measures(DEFAULT) == ()
    chosen = policy(
        {"name": "a", "when": {"cost_usd_min": 1}, "keep": True}, {"name": "b", "when": {"events_max": 9}, "rate": 0.5}
    )
    assert sampler.measures(chosen) == ("events", "cost_usd")


# How many are kept


def test_kept_is_what_md5_says_in_any_language(con: Connection) -> None:
    events = many(3000)
    found = archived(con, policy({"name": "some", "rate": 0.3}), events)
    assert found.kept == {row["event_id"] for row in events if share(row["event_id"]) < 0.3}
    [(lower,)] = con.execute("SELECT md5_number_lower('a') / 2::DOUBLE ** 64").fetchall()
    assert lower == share("a")


def test_rate_one_keeps_everything_and_rate_zero_nothing(con: Connection) -> None:
    assert len(archived(con, policy({"name": "all", "rate": 1}), many(2000)).kept) == 2000
    assert archived(con, policy({"name": "none", "rate": 0}), many(2000)).rows == []


def test_nothing_in_is_nothing_out(con: Connection) -> None:
    found = archived(con, DEFAULT, [], dry_run=True)
    assert (found.decisions, found.rows, found.dry_run) == ({}, [], [])


def test_kept_rows_are_the_rows_that_came_with_their_rate(con: Connection) -> None:
    events = many(400, agent_id="agent", duration_ms=1.5, metadata='{"a": 1.00}', output_tokens=7)
    found = archived(con, policy({"name": "some", "rate": 0.3}), events)
    assert 0 < len(found.rows) < 400
    given = {row["event_id"]: row for row in events}
    for row in found.rows:
        assert tuple(row) == COLUMN_NAMES
        assert row["sample_rate"] == 0.3
        same = {name for name, value in given[str(row["event_id"])].items() if row[name] == value}
        assert given[str(row["event_id"])].keys() - same == {"event_id", "timestamp", "ingested_at", "sample_rate"}


def test_the_columns_have_the_types_of_events_and_of_the_decision_rollup(con: Connection) -> None:
    con.execute(f"CREATE OR REPLACE TABLE typed ({', '.join(f'{column.name} {column.sql_type}' for column in COLUMNS)})")
    con.execute("CREATE OR REPLACE TABLE begun (conversation_id VARCHAR, started_at TIMESTAMPTZ)")
    con.execute(
        "CREATE OR REPLACE TABLE nothing (conversation_id VARCHAR, rule VARCHAR, rate DOUBLE, started_at TIMESTAMPTZ,"
        " policy_hash VARCHAR)"
    )
    made = sampler.decisions(DEFAULT, rows="typed", conversations="begun", stored="nothing")
    described = con.execute(f"DESCRIBE {made}").fetchall()
    assert [name for name, *_ in described] == [*cold_schema.SCHEMAS["rollup_decision"].names, "changed"]
    assert [kind for _, kind, *_ in described] == [
        "VARCHAR",
        "VARCHAR",
        "DOUBLE",
        *("TIMESTAMP WITH TIME ZONE", "VARCHAR", "BOOLEAN"),
    ]
    kept = sampler.kept(DEFAULT, rows="typed", conversations="begun", decisions="nothing")
    typed = con.execute("DESCRIBE typed").fetchall()
    assert [one[:2] for one in con.execute(f"DESCRIBE {kept}").fetchall()] == [one[:2] for one in typed]


def test_the_default_policy_keeps_every_error_intervention_and_file(con: Connection) -> None:
    kinds = ["error", "intervention", "file_created", "file.created", "output.chunk", "tool.error", "file.read"]
    events = [event(number, event_type=kinds[number % 7], timestamp=T0_US + 40 * DAY_US) for number in range(1400)]
    found = archived(con, DEFAULT, events, elsewhere=[event(-1)])
    for kind in kinds:
        of_kind = {row["event_id"] for row in events if row["event_type"] == kind}
        assert (of_kind <= found.kept) == (kind in kinds[:4])
    assert {found.rates[row["event_id"]] for row in events if row["event_type"] in kinds[:4]} == {1.0}


@pytest.mark.parametrize(("started_hours_ago", "window_days"), [(0, 7), (1, 1), (100, 7), (9000, 30)])
def test_the_rate_by_age_falls_with_the_hours_from_the_first_event_to_the_end_of_the_window(
    con: Connection, started_hours_ago: int, window_days: int
) -> None:
    at_us = DAY0_US + 20 * HOUR_US
    started_us = at_us - started_hours_ago * HOUR_US
    chosen = policy({"name": "rest", "formula": "age"}, window_days=window_days)
    found = archived(con, chosen, [event(1, timestamp=at_us)], elsewhere=[event(2, timestamp=started_us)])
    hours = 4 + 24 * window_days + started_hours_ago
    assert set(found.rates.values()) == {1 / math.log2(hours + 2)} == {age_rate(started_us, at_us, window_days)}
    assert found.decisions["c", "rest"].rate == 1 / math.log2(hours + 2)


def test_a_conversation_that_began_after_its_event_has_age_zero(con: Connection) -> None:
    chosen = policy({"name": "rest", "formula": "age"})
    late = Decision("c", "rest", 0.01, T0_US + 30 * DAY_US, "another")
    assert archived(con, chosen, [event(1)], stored=[late]).decisions["c", "rest"].rate == 1.0


def test_one_batch_has_one_rate_by_age_that_of_its_earliest_day(con: Connection) -> None:
    events = [event(number, timestamp=T0_US + number * HOUR_US) for number in range(100)]
    found = archived(con, DEFAULT, events)
    assert set(found.rates.values()) == {age_rate(T0_US, T0_US, 7)}


def test_the_rate_by_age_does_not_depend_on_the_time_zone_of_the_session(con: Connection) -> None:
    events = many(50, timestamp=DAY0_US + 23 * HOUR_US)
    before = archived(con, DEFAULT, events).rates
    con.execute("SET TimeZone = 'Asia/Kathmandu'")
    try:
        assert archived(con, DEFAULT, events).rates == before
    finally:
        con.execute("SET TimeZone = 'UTC'")


# The same again


def test_the_sample_depends_neither_on_the_order_of_rows_nor_on_threads(con: Connection) -> None:
    rng = random.Random(5)
    kinds = ["output.chunk", "error", "tool.call"]
    events = [
        event(number, conversation_id=f"c{rng.randrange(300)}", event_type=rng.choice(kinds), cost_usd=rng.random() / 7)
        for number in range(20_000)
    ]
    chosen = policy(
        {"name": "dear", "scope": "conversation", "when": {"cost_usd_min": 4.7}, "rate": 0.5},
        {"name": "errors", "event_types": ["err*"], "rate": 0.9},
        {"name": "rest", "formula": "age"},
    )
    first = archived(con, chosen, events)
    assert {"dear", "errors", "rest"} == set(first.rules.values())
    single = connect(memory_bytes=256 << 20, threads=1, preserve_order=True)
    for other in (con, single):
        rng.shuffle(events)
        again = archived(other, chosen, events)
        assert (again.rows, again.decisions, again.rules) == (first.rows, first.decisions, first.rules)
    single.close()


def test_a_conversation_is_kept_or_dropped_as_one(con: Connection) -> None:
    events = [event(number, conversation_id=f"c{number % 200}") for number in range(2000)]
    found = archived(con, policy({"name": "half", "scope": "conversation", "rate": 0.5}), events)
    kept: dict[str, set[bool]] = defaultdict(set)
    for row in events:
        kept[row["conversation_id"]].add(row["event_id"] in found.kept)
    assert {name for name, ways in kept.items() if ways == {True}} == {name for name in kept if share(name) < 0.5}
    assert all(len(ways) == 1 for ways in kept.values())
    assert 60 < len(found.kept) / 10 < 140


def test_scopes_may_differ_between_rules(con: Connection) -> None:
    events = [event(number, conversation_id=f"c{number % 50}", tool_name="t" if number % 2 else None) for number in range(1000)]
    whole = {"name": "whole", "tools": ["t"], "scope": "conversation", "rate": 0.4}
    found = archived(con, policy(whole, {"name": "rest", "rate": 0.4}), events)
    expected = {row["event_id"] for row in events if share(row["conversation_id"] if row["tool_name"] else row["event_id"]) < 0.4}
    assert found.kept == expected


# Stored decisions


def test_a_stored_decision_of_this_policy_is_used_again_whatever_the_day(con: Connection) -> None:
    first = archived(con, DEFAULT, many(300))
    assert first.changed == {("c", "rest")}
    for shift_us in (-3 * DAY_US, 0, 20 * DAY_US):
        later = archived(con, DEFAULT, many(300, timestamp=T0_US + shift_us), stored=first.decisions.values())
        assert later.decisions == first.decisions
        assert later.changed == set()
        assert later.kept == first.kept


def test_another_policy_may_only_raise_a_stored_rate(con: Connection) -> None:
    before = [Decision("c", "rest", 0.3, T0_US, "another")]
    lower = archived(con, policy({"name": "rest", "rate": 0.2}), many(500), stored=before)
    higher = archived(con, policy({"name": "rest", "rate": 0.4}), many(500), stored=before)
    assert set(lower.rates.values()) == {0.3}
    assert set(higher.rates.values()) == {0.4}
    assert lower.kept < higher.kept


def test_a_decision_met_by_another_policy_is_written_under_it_and_then_stays(con: Connection) -> None:
    stored = [Decision("c", "rest", 0.05, T0_US - 5 * DAY_US, "another")]
    second = archived(con, DEFAULT, many(10), stored=stored)
    [raised] = second.decisions.values()
    assert raised == Decision("c", "rest", age_rate(T0_US - 5 * DAY_US, T0_US, 7), T0_US - 5 * DAY_US, DEFAULT.hash)
    assert second.changed == {("c", "rest")}
    third = archived(con, DEFAULT, many(10, timestamp=T0_US - 4 * DAY_US), stored=[*stored, raised])
    assert list(third.decisions.values()) == [raised]
    assert third.changed == set()


def test_of_several_stored_decisions_the_one_with_the_highest_rate_counts(con: Connection) -> None:
    chosen = policy({"name": "rest", "rate": 0.2})
    mine = Decision("c", "rest", 0.2, T0_US, chosen.hash)
    other = Decision("c", "rest", 0.6, T0_US - DAY_US, "another")
    for stored in ([mine, other], [other, mine], [other, mine, mine, other]):
        found = archived(con, chosen, [event(1)], stored=stored)
        assert list(found.decisions.values()) == [Decision("c", "rest", 0.6, T0_US - DAY_US, chosen.hash)]
        assert found.changed == {("c", "rest")}
    twice = [Decision("c", "rest", 0.2, T0_US - DAY_US, "another"), mine]
    assert archived(con, chosen, [event(1)], stored=twice).changed == set()


def test_decisions_are_of_a_conversation_and_a_rule(con: Connection) -> None:
    stored = [Decision("c", "other", 0.9, T0_US, DEFAULT.hash), Decision("d", "rest", 0.9, T0_US, DEFAULT.hash)]
    found = archived(con, DEFAULT, [event(1), event(2, event_type="error")], stored=stored)
    assert found.decisions.keys() == found.changed == {("c", "rest"), ("c", "keep")}
    assert found.decisions["c", "rest"] == Decision("c", "rest", age_rate(T0_US, T0_US, 7), T0_US, DEFAULT.hash)


def test_the_first_decision_takes_the_start_of_the_conversation_over_all_tiers(con: Connection) -> None:
    found = archived(con, DEFAULT, [event(1)], elsewhere=[event(2, timestamp=T0_US - 50 * DAY_US)])
    assert found.decisions["c", "rest"].started_us == T0_US - 50 * DAY_US


def test_decisions_of_other_rows_are_refused_rather_than_rows_lost(con: Connection) -> None:
    archived(con, DEFAULT, [event(1)])
    given = "gen_random_uuid() AS event_id, 'stranger' AS conversation_id, 1 AS seq, 'output.chunk' AS event_type"
    rows = f"(SELECT {given}, {', '.join(f'NULL::{column.sql_type} AS {column.name}' for column in COLUMNS[4:])})"
    with pytest.raises(DuckError, match="decisions are of other rows"):
        con.execute(sampler.kept(DEFAULT, rows=rows, conversations="conversations", decisions="decisions")).fetchall()


# The dry run


def test_the_dry_run_counts_what_there_is_what_to_expect_and_what_would_be_kept(con: Connection) -> None:
    events = [
        event(
            number,
            event_type="tool.call" if number % 4 else "error",
            content="ü" * (number % 9),
            metadata='{"n": 1}' if number % 3 else None,
        )
        for number in range(2000)
    ]
    chosen = policy({"name": "errors", "event_types": ["error"], "keep": True}, {"name": "rest", "rate": 0.25})
    found = archived(con, chosen, events, dry_run=True)
    assert [(row["event_type"], row["rule"]) for row in found.dry_run] == [("error", "errors"), ("tool.call", "rest")]
    for row in found.dry_run:
        of_kind = [one for one in events if one["event_type"] == row["event_type"]]
        sizes = {one["event_id"]: len((one["content"] + (one["metadata"] or "")).encode()) for one in of_kind}
        rate = 1.0 if row["rule"] == "errors" else 0.25
        assert (row["events"], row["bytes"]) == (len(of_kind), sum(sizes.values()))
        assert row["events_expected"] == pytest.approx(rate * len(of_kind))
        assert row["bytes_expected"] == pytest.approx(rate * sum(sizes.values()))
        assert row["events_kept"] == len(sizes.keys() & found.kept)
        assert row["bytes_kept"] == sum(size for name, size in sizes.items() if name in found.kept)


def test_every_measure_is_a_column_of_conversations(con: Connection) -> None:
    archived(con, DEFAULT, [event(1)])
    names = [name for name, *_ in con.execute("DESCRIBE conversations").fetchall()]
    assert set(names) == {"conversation_id", "started_at", *MEASURES}


def test_estimates_and_their_interval_are_computed_as_the_docs_say(con: Connection) -> None:
    con.execute(
        "CREATE OR REPLACE TABLE events AS SELECT 'tool.call' AS event_type, rate AS sample_rate, x"
        " FROM (VALUES (0.1, 1), (0.1, 2), (0.5, NULL), (1.0, 7)) AS rows(rate, x)"
    )
    page = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text()
    [sql] = re.findall(r"^```sql\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    [(kind, estimate, low, high)] = con.execute(sql).fetchall()
    assert (kind, estimate) == ("tool.call", 23.0)
    added = (0.9 / 0.01 * 2 + 0.5 / 0.25) / 23
    half = (9 + 9 + 1 + 0) / 4 / 2
    for bound, reached in ((low, 23 - half), (high, 23 + half)):
        assert (reached - bound) ** 2 == pytest.approx(1.96**2 * added * bound, rel=0.01)
    weighed = re.findall(r"^\| `(.*?)` \| `(.*?)` \|$", page, flags=re.MULTILINE)
    assert [plain for plain, _ in weighed] == ["count(*)", "sum(x)", "avg(x)"]
    [found] = con.execute(f"SELECT {', '.join(instead for _, instead in weighed)} FROM events").fetchall()
    assert found == pytest.approx((23, 37, 37 / 21))
