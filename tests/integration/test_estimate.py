"""Receipts and estimates of a store with real conversations, two fifths of them archived and sampled."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from tests.archived import aged_events, append_and_work, archive
from thermocline.config import Settings, load
from thermocline.errors import IncompleteAnswer, QueryRefused
from thermocline.store import Store, connect
from thermocline.tiers import embedded

FLIGHT = "content ILIKE '%flight%'"
DAY_US = 86_400_000_000
EVENTS = [
    event | {"event_id": UUID(int=number)}
    for number, event in enumerate(aged_events(end_us=time.time_ns() // 1000 // DAY_US * DAY_US), start=1)
]
"""Twelve whole days with ids of their own: the same days are archived, and the same events kept, whenever this runs."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    folder = tmp_path_factory.mktemp("estimate") / "data"
    made = load({"data_dir": folder}, environ={})
    append_and_work(made, EVENTS)
    assert archive(made).archived_events
    yield made
    embedded.stop(Path(folder))


@pytest.fixture(scope="module")
def store(settings: Settings) -> Iterator[Store]:
    with connect(settings) as found:
        yield found


def test_a_receipt_says_what_was_read_of_each_tier_and_why_not_the_rest(store: Store) -> None:
    hot, warm, cold = store.sql("SELECT event_type, count(*) AS n FROM events GROUP BY 1").coverage.tiers
    files = store.tiers.ledger.view().files
    events = [file for file in files if file.kind == "events"]
    assert (hot.read, hot.rows, hot.bytes) == (store.settings.hot.shards, 0, 0)
    assert (warm.read, warm.pruned) == (1, {})
    assert warm.bytes == sum(one.file_bytes for one in store.tiers.ledger.view().segments)
    assert (cold.read, cold.bytes) == (len(events), sum(file.file_bytes for file in events))
    assert cold.pruned == {"rows answer": len(files) - len(events)}
    assert set(cold.names) == {file.key for file in events}
    assert warm.fresh_at is not None and cold.fresh_at is not None and cold.fresh_at < warm.fresh_at


def test_each_reason_for_leaving_a_file_out_is_told(store: Store) -> None:
    events = sum(file.kind == "events" for file in store.tiers.ledger.view().files)
    reasons = {
        "SELECT count(*) FROM events WHERE timestamp > now() - INTERVAL 1 DAY": ("time", events),
        "SELECT count(*) FROM events WHERE event_type = 'no.such'": ("event type", events),
        "SELECT count(*) FROM events WHERE conversation_id = 'airline-7-0'": ("conversation", events - 1),
        "SELECT sum(event_count) FROM hourly_stats": ("rollups answer", events),
        "SELECT 1": ("not asked", len(store.tiers.ledger.view().files)),
        "SELECT count(*) FROM events WHERE timestamp > '2027-01-01' AND timestamp < '2026-01-01'": ("no row can match", events),
    }
    for query, (reason, count) in reasons.items():
        assert store.sql(query).coverage.tiers[2].pruned[reason] == count, query
    one = store.sql("SELECT count(*) FROM events WHERE conversation_id = 'airline-7-0'").coverage.tiers
    assert (one[0].read, one[0].pruned) == (1, {"conversation": store.settings.hot.shards - 1})
    assert one[1].pruned == {"conversation": 1}


def test_answers_with_the_same_snapshot_saw_the_same_events(store: Store) -> None:
    first, second = (store.sql("SELECT count(*) FROM events").coverage.as_dict() for _ in range(2))
    assert first["snapshot"]["id"] == second["snapshot"]["id"]
    assert json.loads(json.dumps(first))["bounds"] == {"events": {}}
    bounded = store.sql("SELECT count(*) FROM events WHERE event_type = 'error' AND timestamp >= '2026-01-02'").coverage.as_dict()
    assert bounded["bounds"] == {"events": {"time_min": "2026-01-02T00:00:00Z", "event_type": ["error"]}}


def test_columns_are_labelled_by_what_they_rest_on(store: Store) -> None:
    found = store.sql("SELECT event_type, count(*) AS n, sum(1 / sample_rate) AS about FROM events GROUP BY 1").coverage
    assert found.columns == (("event_type", "exact"), ("n", "unknown"), ("about", "estimated"))
    recent = store.sql("SELECT count(*) AS n FROM events WHERE timestamp > now() - INTERVAL 1 DAY").coverage
    assert recent.columns == (("n", "exact"),)
    assert store.recent("airline-7-0", limit=2).coverage.columns[0] == ("event_id", "exact")
    store.sql("CREATE TABLE mine AS SELECT count(*) AS n FROM events")
    assert store.sql("SELECT n FROM mine").coverage.columns == (("n", "unknown"),)
    store.sql("DROP TABLE mine")


def test_who_insists_on_a_complete_answer_is_told_what_is_missing(store: Store) -> None:
    with pytest.raises(IncompleteAnswer, match=r"Sampled out are .* archived events of .*events/day=") as raised:
        store.sql("SELECT count(*) FROM events", require="complete")
    lacking = store.verify().conservation.sampled_out if hasattr(store.verify(), "conservation") else None
    missing = sum(day.events - day.kept for day in raised.value.missing)
    totals = store.tiers.ledger.view().totals
    assert missing == sum(one.sampled_out for one in totals)
    assert lacking in (None, missing)
    with pytest.raises(IncompleteAnswer) as raised:
        store.sql("SELECT count(*) FROM events WHERE conversation_id = 'airline-7-0'", require="complete")
    assert 0 < sum(day.events - day.kept for day in raised.value.missing) < missing


def test_estimates_are_functions_of_sql_in_both_ways_to_ask(store: Store) -> None:
    query = "SELECT est_count(sample_rate).estimate, sum(1 / sample_rate), est_count(sample_rate).low FROM events"
    (estimate, weighted, low) = store.sql(query).fetchall()[0]
    assert estimate == pytest.approx(weighted)
    assert low < estimate
    assert store.sql(query).coverage.not_pruned == ""
    with store.duckdb() as con:
        assert con.execute(query).fetchall()[0] == pytest.approx((estimate, weighted, low))


def test_what_the_rollups_know_is_exact(store: Store) -> None:
    appended = len(EVENTS)
    (estimate, low, high, basis, kept) = store.estimate("count(*)").fetchall()[0]
    assert (estimate, low, high, basis, kept) == (appended, appended, appended, "exact", appended)
    by_type = store.estimate("count(*)", by="event_type")
    assert sum(row[1] for row in by_type) == appended
    assert by_type.coverage.exact
    conversations = store.estimate("count(DISTINCT conversation_id)").fetchall()[0][0]
    assert conversations == len({event["conversation_id"] for event in EVENTS})


def test_the_rest_is_estimated_and_agrees_with_them(store: Store) -> None:
    truth = sum("flight" in (event.get("content") or "").lower() for event in EVENTS)
    found = store.estimate("count(*)", where=FLIGHT)
    (estimate, low, high, basis, kept) = found.fetchall()[0]
    assert basis == "estimated"
    assert kept < low <= estimate <= high
    assert 0.6 * truth < estimate < 1.6 * truth
    assert found.coverage.columns[:2] == (("estimate", "estimated"), ("low", "estimated"))
    other = store.estimate("count(*)", where=f"NOT ({FLIGHT})").fetchall()[0][0]
    assert estimate + other == pytest.approx(len(EVENTS))
    days = store.estimate("count(*)", where=FLIGHT, by=["day"]).fetchall()
    assert {row[4] for row in days} == {"exact", "estimated"}
    assert store.estimate("count(*)", where="content ILIKE $word", params={"word": "%flight%"}).fetchall()[0][0] == estimate


def test_quantiles_come_from_histograms_made_before_sampling(store: Store) -> None:
    values = sorted(event["duration_ms"] for event in EVENTS if event.get("duration_ms") is not None)
    for share in (0.1, 0.5, 0.95):
        true = values[max(0, -(-int(share * 1000) * len(values) // 1000) - 1)]
        (estimate, low, high, basis, kept) = store.estimate(f"quantile(duration_ms, {share})").fetchall()[0]
        assert estimate == pytest.approx(true, rel=0.011)
        assert low <= true * 1.001 and true <= high * 1.001
        assert (basis, kept) == ("histogram", len(values))


@pytest.mark.parametrize(
    ("what", "how", "problem"),
    [
        ("count(*)", {"by": "status"}, "grouped by"),
        ("count(*)", {"by": ["day", "day"]}, "a name twice"),
        ("max(seq)", {}, "none of"),
        ("median(duration_ms)", {"by": "agent_id"}, "quantiles can be grouped by"),
        ("median(duration_ms)", {"where": "status = 'ok'"}, "histograms are by"),
        ("count(DISTINCT model)", {"where": "status = 'ok'"}, "rollups do not know"),
        ("count(*)", {"where": "no_such = 1"}, "no_such"),
        ("count(*)", {"params": [1]}, "must be a dict"),
    ],
)
def test_what_cannot_be_estimated_is_refused_with_what_can(store: Store, what: str, how: dict[str, object], problem: str) -> None:
    with pytest.raises(QueryRefused, match=problem):
        store.estimate(what, **how)  # type: ignore[arg-type]
