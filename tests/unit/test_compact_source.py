"""What compacted rollups say: what the files they are made of said together, to the last decision."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.sampling import T0_US, Decision, archived, event, policy
from thermocline.archiver.compact_source import selects, sums
from thermocline.config import WarmSettings
from thermocline.tiers.cold_schema import SORT
from thermocline.tiers.duck import Connection, connect, quoted

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SMALL_STEPS = WarmSettings(settle_batch_events=500)  # type: ignore[call-arg]


@pytest.fixture(scope="module")
def con() -> Iterator[Connection]:
    made = connect(memory_bytes=256 << 20, threads=2)
    yield made
    made.close()


def compacted(con: Connection, kind: str, rows: str) -> list[tuple[Any, ...]]:
    """The rows of the file that is written, in its order."""
    found: list[tuple[Any, ...]] = []
    for select in selects(con, kind, rows, SMALL_STEPS):
        found += con.execute(f"SELECT * FROM ({select}) ORDER BY {', '.join(SORT[kind])}").fetchall()
    return found


def stored_as_sql(decisions: list[Decision]) -> str:
    rows = ", ".join(
        f"({quoted(one.conversation_id)}, {quoted(one.rule)}, {one.rate}::DOUBLE, make_timestamptz({one.started_us}), "
        f"{quoted(one.policy_hash)})"
        for one in decisions
    )
    return f"(SELECT * FROM (VALUES {rows}) AS stored(conversation_id, rule, rate, started_at, policy_hash))"


@pytest.mark.parametrize("seed", range(2))
def test_the_decision_that_counted_counts_afterwards_under_any_policy(con: Connection, seed: int) -> None:
    draw = random.Random(seed)
    policies = [policy({"name": "a", "rate": rate}) for rate in (0.125, 0.25, 0.5, 0.75)]
    hashes = [one.hash for one in policies[:3]]
    decisions = [
        Decision(f"c{draw.randrange(30)}", "a", draw.choice((0.125, 0.25, 0.5)), T0_US - draw.randrange(4), draw.choice(hashes))
        for _ in range(200)
    ]
    kept = [
        Decision(conversation, rule, rate, (started_at - EPOCH) // timedelta(microseconds=1), policy_hash)
        for conversation, rule, rate, started_at, policy_hash in compacted(con, "rollup_decision", stored_as_sql(decisions[:120]))
    ]
    rows = [event(number, conversation_id=f"c{number}") for number in range(30)]
    for current in policies:
        before = archived(con, current, rows, stored=decisions)
        after = archived(con, current, rows, stored=[*kept, *decisions[120:]])
        assert (after.decisions, after.changed, after.kept) == (before.decisions, before.changed, before.kept)
    assert len(kept) < 120


def test_rollups_are_written_in_order_in_steps_that_miss_and_double_nothing(con: Connection) -> None:
    rows = "(SELECT 'c' || (i * 7919 % 3000) AS conversation_id, 't' || (i % 3) AS task_id FROM range(20000) AS numbers(i))"
    assert len(selects(con, "rollup_task", rows, SMALL_STEPS)) > 20
    found = compacted(con, "rollup_task", rows)
    assert found == con.execute(f"SELECT DISTINCT * FROM {rows} ORDER BY ALL").fetchall()


def test_hours_are_cut_into_steps_too(con: Connection) -> None:
    hour = "make_timestamptz((1700000000 + i % 400 * 3600)::BIGINT * 1000000)"
    rows = (
        f"(SELECT {hour} AS hour, 'e' AS event_type, 'duration_ms' AS measure, (i % 5)::INTEGER AS bucket, 2::BIGINT AS events"
        " FROM range(8000) AS numbers(i))"
    )
    assert len(selects(con, "rollup_quantile", rows, SMALL_STEPS)) > 10
    found = compacted(con, "rollup_quantile", rows)
    assert (
        found
        == con.execute(
            f"SELECT hour, event_type, measure, bucket, sum(events)::BIGINT FROM {rows} GROUP BY ALL ORDER BY ALL"
        ).fetchall()
    )
    assert sums(con, "rollup_quantile", rows)[0] == 16000


def test_one_conversation_larger_than_a_step_stays_whole(con: Connection) -> None:
    rows = "(SELECT 'only' AS conversation_id, 't' || i AS task_id FROM range(5000) AS numbers(i))"
    assert len(selects(con, "rollup_task", rows, SMALL_STEPS)) == 1
    assert len(compacted(con, "rollup_task", rows)) == 5000
