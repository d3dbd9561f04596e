"""Reads: the newest events of a conversation, one conversation, a time-bounded aggregate, the statistics views."""

from __future__ import annotations

from thermocline.config import Settings
from thermocline.store import connect

from .timing import Figure, latencies_s, spread

REPEATS = 200


def query_figures(settings: Settings) -> list[Figure]:
    with connect(settings) as store:
        (total,) = store.sql("SELECT count(*) FROM events").fetchall()[0]
        names = [row[0] for row in store.sql("SELECT DISTINCT conversation_id FROM events USING SAMPLE 200 ROWS").fetchall()]
        newest = store.sql("SELECT max(timestamp) FROM events").fetchall()[0][0]

        def recent(number: int) -> None:
            assert len(store.recent(names[number % len(names)], 100).fetchall()) == 100

        def conversation(number: int) -> None:
            query = "SELECT * FROM events WHERE conversation_id = ? ORDER BY seq"
            store.sql(query, [names[number % len(names)]]).to_arrow()

        def hour(_: int) -> None:
            query = (
                "SELECT event_type, count(*), sum(output_tokens), avg(duration_ms) FROM events "
                "WHERE timestamp >= ?::TIMESTAMPTZ - INTERVAL 6 HOUR GROUP BY event_type"
            )
            store.sql(query, [newest]).fetchall()

        def everything(_: int) -> None:
            store.sql("SELECT event_type, count(*) FROM events GROUP BY event_type").fetchall()

        def hourly(_: int) -> None:
            store.sql("SELECT hour, sum(event_count) FROM hourly_stats GROUP BY hour").fetchall()

        def nothing(_: int) -> None:
            store.sql("SELECT 1").fetchall()

        what = f"of {total:,} events"
        calls = [
            ("a query that reads nothing: what a view costs", nothing, REPEATS),
            (f"recent(conversation, 100), {what}", recent, REPEATS),
            (f"one conversation, all columns, {what}", conversation, REPEATS),
            (f"aggregate over the last 6 hours, {what}", hour, REPEATS),
            (f"aggregate over everything, {what}", everything, 30),
            ("hourly_stats over everything", hourly, 30),
        ]
        figures = []
        for name, call, count in calls:
            latencies_s(call, 5)
            figures.append(Figure(what=name, value=spread(latencies_s(call, count), "ms", 1e3)))
    return figures
