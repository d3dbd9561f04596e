"""Labels of columns: what a query over a sample can be trusted for, read from its text."""

from __future__ import annotations

import duckdb
import pytest

from thermocline.event import COLUMN_NAMES
from thermocline.query.labels import _OF_A_ROW, labels

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
        # through what only selects
        ("SELECT est_count(sample_rate) FROM (SELECT * FROM events WHERE event_type = 'error')", [A]),
        (
            "WITH e AS (SELECT sample_rate AS p, cost_usd FROM events) SELECT est_sum(cost_usd, p), est_avg(cost_usd, p) FROM e",
            [A, A],
        ),
        ("WITH a AS (FROM events), b AS (SELECT * FROM a WHERE agent_id = 'x') SELECT est_count(b.sample_rate) FROM b", [A]),
        ("SELECT est_count(sample_rate) FROM (SELECT * EXCLUDE (content) RENAME (seq AS number) FROM events)", [A]),
        ("SELECT est_sum(bytes, sample_rate) FROM (SELECT * REPLACE (0 AS seq), strlen(content) AS bytes FROM events)", [A]),
        ("SELECT est_count(s) FROM (SELECT seq, sample_rate FROM events) t(n, s)", [A]),
        ("SELECT est_count(sample_rate) FROM (FROM events WHERE seq < 9 UNION ALL FROM events WHERE seq > 9)", [A]),
        ("SELECT sum(x / p) FROM (SELECT cost_usd AS x, sample_rate AS p FROM events ORDER BY seq)", [A]),
        ("SELECT est_count(e.sample_rate) FROM (SELECT * FROM events) e JOIN conversation_summary USING (conversation_id)", [A]),
        ("SELECT e.estimate, e.low FROM (SELECT est_count(sample_rate) AS e FROM events)", [A, A]),
        (
            "SELECT event_type, unnest(e) FROM (SELECT event_type, est_count(sample_rate) AS e FROM events GROUP BY 1)",
            [E, A, A, A],
        ),
        ("SELECT e.* FROM (SELECT est_count(sample_rate) AS e FROM events)", [A, A, A]),
        # through sums by rate
        (
            "SELECT event_type, est_sum(n, p), est_avg(b, p, n), sum(n / p) FROM (SELECT event_type, sample_rate AS p,"
            " count(*) AS n, sum(strlen(content)) AS b FROM events GROUP BY ALL) GROUP BY event_type",
            [E, A, A, A],
        ),
        ("SELECT est_sum(n, r) FROM (SELECT sample_rate AS r, agent_id, count(seq) AS n FROM events GROUP BY 1, 2)", [A]),
        # where the rows are no longer the sample, or the weight not its rate
        ("SELECT est_count(sample_rate) FROM (SELECT sample_rate FROM events LIMIT 5)", [U]),
        ("SELECT est_count(sample_rate) FROM ((SELECT sample_rate FROM events) LIMIT 5)", [U]),
        ("SELECT est_count(sample_rate) FROM (SELECT DISTINCT agent_id, sample_rate FROM events)", [U]),
        ("SELECT est_count(sample_rate) FROM (SELECT agent_id, sample_rate FROM events GROUP BY ALL)", [U]),
        ("SELECT est_count(sample_rate) FROM (SELECT sample_rate FROM events UNION SELECT 1)", [U]),
        ("SELECT est_count(sample_rate) FROM (SELECT sample_rate FROM events UNION ALL SELECT seq FROM events)", [U]),
        ("SELECT est_sum(n, p) FROM (SELECT sample_rate AS p, count(DISTINCT agent_id) AS n FROM events GROUP BY ALL)", [U]),
        ("SELECT est_sum(n, p) FROM (SELECT max(sample_rate) AS p, count(*) AS n FROM events GROUP BY agent_id)", [U]),
        ("SELECT est_avg(n, p) FROM (SELECT sample_rate AS p, count(*) AS n FROM events GROUP BY ALL)", [U]),
        ("SELECT est_count(0.5), est_sum(seq, cost_usd), est_count(sample_rate * 2) FROM events", [U, U, U]),
        ("SELECT est_count(a.sample_rate) FROM events a JOIN events b USING (conversation_id)", [U]),
        ("SELECT sum(1 / a.sample_rate) FROM events a, events b", [U]),
        ("SELECT est_count(sample_rate) FROM (SELECT sample_rate FROM events QUALIFY row_number() OVER (ORDER BY seq) < 9)", [U]),
        # never exact
        ("SELECT count(*) FROM (SELECT seq FROM events), (SELECT hour FROM hourly_stats)", [U]),
        ("SELECT count(*) FROM (SELECT 1 AS one FROM events HAVING count(*) > 100)", [U]),
        ("SELECT COLUMNS('n') FROM (SELECT count(*) AS n FROM events)", [U]),
        ("SELECT * LIKE 'n%' FROM (SELECT count(*) AS n FROM events)", [U]),
        ("SELECT max(COLUMNS('n')) FROM (SELECT count(*) AS n FROM events)", [U]),
        ("SELECT b FROM (SELECT COLUMNS('seq|content'), count(*) FROM events GROUP BY ALL) t(a, b)", [U]),
        ("SELECT DISTINCT ON (event_type) event_type, seq FROM events ORDER BY seq", [U, U]),
        ("SELECT count(*) FROM hourly_stats GROUP BY event_count > (SELECT count(*) FROM events)", [U]),
        (
            "SELECT sum(x) FROM (SELECT event_count AS x FROM hourly_stats ORDER BY (SELECT max(seq) FROM events) - x LIMIT 3)",
            [U],
        ),
        ("SELECT a FROM (SELECT seq FROM events) t(a, b, c)", [U]),
    ],
)
def test_each_column_has_the_label_that_can_be_told(query: str, expected: list[str]) -> None:
    assert list(labels(query, ["c"] * len(expected), ["events"])) == expected


def test_all_columns_of_a_star_are_those_of_the_relation() -> None:
    assert labels("FROM events", COLUMN_NAMES, ["events"]) == (E,) * len(COLUMN_NAMES)
    assert labels("SELECT * EXCLUDE (seq) FROM events", COLUMN_NAMES[1:], ["events"]) == (E,) * (len(COLUMN_NAMES) - 1)
    assert labels("SELECT * LIKE '%id' FROM events", ["event_id", "task_id"], ["events"]) == (U, U)


def test_no_aggregate_of_duckdb_over_a_sample_is_exact_and_functions_of_a_row_are_known_rightly() -> None:
    with duckdb.connect() as con:
        found = con.execute("SELECT DISTINCT function_name, function_type, stability FROM duckdb_functions()").fetchall()
    aggregates = {name for name, kind, _ in found if kind == "aggregate"}
    assert len(aggregates) > (80 if duckdb.__version__.startswith("1.") else 78)  # 2.0 has 79
    for name in sorted(name for name in aggregates - {"row_number"} if name.isidentifier()):  # that one wants OVER
        for arguments in (
            "",
            "seq",
            "seq, cost_usd",
            "content, seq",
            "seq, [0.5]",
            "content, ','",
            "DISTINCT seq",
            "seq ORDER BY seq",
        ):
            query = f"SELECT {name}({arguments}) AS x FROM events"
            assert labels(query, ["x"], ["events"]) == (U,), query
            assert labels(f"SELECT x FROM ({query})", ["x"], ["events"]) == (U,), query
    of_a_row = {
        (name, kind) for name, kind, stability in found if name in _OF_A_ROW and (kind != "scalar" or stability == "CONSISTENT")
    }
    assert of_a_row == {(name, "scalar") for name in _OF_A_ROW}


def test_nothing_that_reads_no_sample_is_an_estimate() -> None:
    assert labels("SELECT count(*), max(seq), est_count(sample_rate) FROM events", ["a", "b", "c"], []) == (E, E, E)


def test_a_number_of_columns_that_does_not_fit_is_not_guessed_at() -> None:
    assert labels("SELECT seq FROM events", ["a", "b"], ["events"]) == (U, U)
