"""Labels of columns: what a query over a sample can be trusted for, read from its text."""

from __future__ import annotations

import pytest

from thermocline.event import COLUMN_NAMES
from thermocline.query.labels import labels

E, A, U = "exact", "estimated", "unknown"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT event_type, count(*) AS n, sum(1 / sample_rate) AS w FROM events GROUP BY 1", [E, U, A]),
        ("SELECT est_count(sample_rate) FROM events", [A]),
        ("SELECT est_sum(cost_usd, sample_rate).estimate AS e, est_avg(duration_ms, sample_rate) FROM events e", [A, A]),
        ("SELECT sum(cost_usd / sample_rate) / sum(1 / sample_rate) FROM events", [A]),
        ("SELECT sum((x / sample_rate)) FILTER (status = 'ok') FROM (SELECT cost_usd AS x, * FROM events)", [A]),
        ("SELECT max(seq), min(timestamp), avg(cost_usd), count(DISTINCT agent_id), median(duration_ms) FROM events", [U] * 5),
        ("SELECT seq, content, seq + 1 FROM events LIMIT 5", [E, E, E]),
        ("SELECT row_number() OVER (ORDER BY seq) FROM events", [U]),
        ("SELECT n FROM (SELECT event_type, sum(1 / sample_rate) AS n FROM events GROUP BY 1)", [A]),
        ("SELECT sum(n) FROM (SELECT event_type, sum(1 / sample_rate) AS n FROM events GROUP BY 1)", [A]),
        ("SELECT sum(n) FROM (SELECT event_type, count(*) AS n FROM events GROUP BY 1)", [U]),
        ("WITH a AS (SELECT count(*) AS n FROM events) SELECT n FROM a", [U]),
        ("WITH a AS (SELECT sum(event_count) AS n FROM hourly_stats) SELECT n FROM a", [E]),
        ("SELECT sum(event_count) AS n, (SELECT count(*) FROM events) AS m FROM hourly_stats", [E, U]),
        ("SELECT event_count FROM hourly_stats WHERE conversation_id IN (SELECT conversation_id FROM events)", [U]),
        ("SELECT s.total_events, e.seq FROM conversation_summary s JOIN events e USING (conversation_id)", [E, E]),
        ("SELECT s.total_events, e.seq FROM conversation_summary s LEFT JOIN events e USING (conversation_id)", [U, U]),
        ("SELECT total_events FROM conversation_summary UNION ALL SELECT seq FROM events", [E]),
        ("SELECT conversation_id FROM conversation_summary EXCEPT SELECT conversation_id FROM events", [U]),
        ("SELECT x FROM mine", [U]),
        ("SELECT event_type, sum(1 / sample_rate) AS n FROM events GROUP BY 1 HAVING count(*) > 3", [U, U]),
        ("SELECT f(content) FROM events", [U]),
        ("SELECT * FROM events USING SAMPLE 10%", [U]),
        ("SELECT nonsense FROM", [U]),
    ],
)
def test_each_column_has_the_label_that_can_be_told(query: str, expected: list[str]) -> None:
    assert list(labels(query, ["c"] * len(expected), ["events"])) == expected


def test_all_columns_of_a_star_are_those_of_the_relation() -> None:
    assert labels("FROM events", COLUMN_NAMES, ["events"]) == (E,) * len(COLUMN_NAMES)
    assert labels("SELECT * EXCLUDE (seq) FROM events", COLUMN_NAMES[1:], ["events"]) == (U,) * (len(COLUMN_NAMES) - 1)


def test_nothing_that_reads_no_sample_is_an_estimate() -> None:
    assert labels("SELECT count(*), max(seq), est_count(sample_rate) FROM events", ["a", "b", "c"], []) == (E, E, E)


def test_a_number_of_columns_that_does_not_fit_is_not_guessed_at() -> None:
    assert labels("SELECT seq FROM events", ["a", "b"], ["events"]) == (U, U)
