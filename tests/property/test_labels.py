"""Labels against the truth: over drawn samples what is called exact is true, and what is called estimated is right on average."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, Final

import duckdb
import pytest

from thermocline.query.estimates import define
from thermocline.query.labels import labels

EVENTS: Final = 400
DRAWS: Final = 25
RATES: Final = {"chunk": 0.5, "call": 0.25, "error": 1.0}
SIGMAS: Final = 5
COLUMNS: Final = "seq, conversation_id, event_type, agent_id, cost_usd, content"
QUERIES: Final = (
    "SELECT event_type, est_count(sample_rate) AS n, count(*) AS m, sum(cost_usd / sample_rate) AS usd FROM events GROUP BY 1",
    "SELECT est_sum(cost_usd, sample_rate) FROM (SELECT * EXCLUDE (content) FROM events WHERE agent_id = 'a1')",
    "WITH a AS (SELECT sample_rate AS p, strlen(content) AS b FROM events), c AS (FROM a WHERE b > 3)"
    " SELECT est_sum(b, p) FROM c",
    "SELECT est_avg(b, p) FROM (SELECT sample_rate AS p, strlen(content) AS b, max(3) OVER () AS x FROM events) WHERE b > 2",
    "SELECT est_count(sample_rate) FROM (FROM events WHERE seq < 200 UNION ALL FROM events WHERE seq >= 200)",
    "SELECT event_type, est_sum(n, p) AS n, est_avg(b, p, n) AS bytes FROM (SELECT event_type, conversation_id, sample_rate AS p,"
    " count(*) AS n, sum(strlen(content)) AS b FROM events GROUP BY ALL) GROUP BY event_type",
    "SELECT est_sum(m, p) FROM (SELECT p, sum(n) AS m FROM (SELECT sample_rate AS p, agent_id, count(*) FILTER (seq > 50) AS n"
    " FROM events GROUP BY ALL) GROUP BY p)",
    "SELECT event_type, unnest(e) FROM (SELECT event_type, est_count(sample_rate) AS e FROM events GROUP BY 1)",
    "SELECT est_count(e.sample_rate) FROM (SELECT * FROM events) e JOIN conversation_summary USING (conversation_id)",
    "SELECT s.total_events, e.seq, e.content FROM conversation_summary s JOIN events e USING (conversation_id)",
    "SELECT conversation_id, total_events, (SELECT count(*) FROM events) AS n FROM conversation_summary ORDER BY 1 LIMIT 3",
    "SELECT a.seq, b.seq, a.cost_usd + b.cost_usd FROM events a JOIN events b ON a.seq = b.seq + 1",
    "SELECT sum(1 / a.sample_rate) FROM events a, (SELECT DISTINCT conversation_id FROM events) b",
    "SELECT conversation_id, count(*), max(seq), first(content ORDER BY seq) FROM events GROUP BY 1",
    "SELECT n, count(*) FROM (SELECT conversation_id, count(*) AS n FROM events GROUP BY 1) GROUP BY 1",
    "SELECT est_count(sample_rate) FROM (SELECT DISTINCT agent_id, event_type, sample_rate FROM events)",
    "SELECT count(*) FROM (SELECT 1 AS one FROM events HAVING count(*) > 300)",
    "SELECT count(*), sum(total_events) FROM conversation_summary WHERE conversation_id IN (SELECT conversation_id FROM events)",
    "SELECT DISTINCT ON (event_type) event_type, seq FROM events ORDER BY event_type, seq",
    "SELECT seq, row_number() OVER (ORDER BY seq), lag(seq) OVER (ORDER BY seq) FROM events",
    "SELECT conversation_id FROM conversation_summary EXCEPT SELECT conversation_id FROM events WHERE agent_id = 'a1'",
    "SELECT total_events FROM conversation_summary UNION ALL SELECT seq FROM events",
    "SELECT count(*) FROM (SELECT seq FROM events), (SELECT conversation_id FROM conversation_summary)",
    "SELECT COLUMNS('n') FROM (SELECT count(*) AS n FROM events)",
)


@pytest.fixture(scope="module")
def con() -> Any:
    with duckdb.connect() as con:
        define(con)
        dice = random.Random(1)
        con.execute(
            "CREATE TABLE stored (seq INT, conversation_id TEXT, event_type TEXT, agent_id TEXT, cost_usd DOUBLE, content TEXT)"
        )
        rows = [
            [
                n,
                f"c{dice.randrange(60)}",
                dice.choice([*RATES]),
                f"a{n % 3}",
                round(dice.uniform(1, 2), 6),
                "x" * dice.randrange(8),
            ]
            for n in range(EVENTS)
        ]
        con.executemany("INSERT INTO stored VALUES (?, ?, ?, ?, ?, ?)", rows)
        con.execute(
            "CREATE TABLE conversation_summary AS SELECT conversation_id, count(*) AS total_events FROM stored GROUP BY 1"
        )
        yield con


def answers(con: Any, rates: Sequence[float] | None) -> list[tuple[list[str], list[tuple[Any, ...]]]]:
    """What the queries say of all events, or of a sample: names of columns, and rows, of estimates the middle."""
    if rates is None:
        con.execute(f"CREATE OR REPLACE TABLE events AS SELECT {COLUMNS}, 1.0::DOUBLE AS sample_rate FROM stored")
    else:
        con.execute(
            "CREATE OR REPLACE TEMP TABLE dice AS SELECT unnest($d) AS d, generate_subscripts($d, 1) - 1 AS seq", {"d": rates}
        )
        rate = " ".join(f"WHEN '{name}' THEN {rate}" for name, rate in RATES.items())
        con.execute(
            f"CREATE OR REPLACE TABLE events AS SELECT {COLUMNS}, (CASE event_type {rate} END)::DOUBLE AS sample_rate"
            " FROM stored JOIN dice USING (seq) WHERE d < (CASE event_type " + rate + " END)"
        )
    found = []
    for query in QUERIES:
        made = con.execute(query)
        rows = [tuple(one["estimate"] if isinstance(one, dict) else one for one in row) for row in made.fetchall()]
        found.append(([one[0] for one in made.description], rows))
    return found


def test_what_is_exact_is_true_and_what_is_estimated_is_right_on_average(con: Any) -> None:
    dice = random.Random(2)
    truths = answers(con, None)
    given = [labels(query, names, ["events"]) for query, (names, _) in zip(QUERIES, truths, strict=True)]
    sums: dict[tuple[int, int], list[float]] = {}
    for _ in range(DRAWS):
        for number, (_, rows) in enumerate(answers(con, [dice.random() for _ in range(EVENTS)])):
            exact = [place for place, label in enumerate(given[number]) if label == "exact"]
            there = Counter(tuple(row[place] for place in exact) for row in truths[number][1])
            if exact:
                told = Counter(tuple(row[place] for place in exact) for row in rows)
                assert told <= there, QUERIES[number]
            for place, label in enumerate(given[number]):
                if label == "estimated" and truths[number][0][place] not in ("low", "high"):
                    sums.setdefault((number, place), []).append(sum(row[place] or 0 for row in rows))
    assert len(sums) == 11
    for (number, place), found in sums.items():
        truth = sum(row[place] for row in truths[number][1])
        assert abs(fmean(found) - truth) <= SIGMAS * stdev(found) / DRAWS**0.5 + 0.02 * abs(truth), (QUERIES[number], place)
