"""`events` has only the columns that a query can be about: the answer is the same, its plan has fewer columns, and an older file
that lacks one is read all the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from tests.servers import RedisServer
from tests.site import Site, chats
from thermocline.errors import QueryRefused
from thermocline.event import COLUMN_NAMES

NARROW = {
    "SELECT count(*) FROM events": {"seq"},
    "SELECT count() FROM events": {"seq"},
    "SELECT max(seq) FROM events WHERE conversation_id = 'chat-1'": {"seq", "conversation_id"},
    'SELECT "Model", E.Status FROM Events AS e ORDER BY ALL': {"model", "status"},
    "SELECT content.upper() AS text FROM events ORDER BY text": {"content"},
    "SELECT main.events.event_id FROM events ORDER BY 1": {"event_id"},
    "SELECT metadata, metadata->>'number' AS n FROM events ORDER BY n": {"metadata"},
    "SELECT event_type, count(*) FILTER (status IS NULL) AS n FROM events GROUP BY ALL ORDER BY ALL": {"event_type", "status"},
    "SELECT a.seq FROM events a JOIN events b USING (conversation_id, event_id) ORDER BY ALL": {
        "seq", "conversation_id", "event_id",
    },
    "WITH x AS (SELECT task_id, seq FROM events) SELECT * REPLACE (seq + 1 AS seq) FROM x ORDER BY ALL": None,
    "SELECT seq FROM events UNION BY NAME SELECT task_id FROM events ORDER BY ALL": {"seq", "task_id"},
    "SELECT DISTINCT ON (task_id) task_id FROM events ORDER BY task_id": {"task_id"},
    "FROM events SELECT seq AS model WHERE content <> '' ORDER BY model": {"seq", "model", "content"},
    "SELECT seq, row_number() OVER (PARTITION BY conversation_id ORDER BY seq) AS n FROM events ORDER BY ALL": {
        "seq", "conversation_id",
    },
}  # fmt: skip
"""Query → the columns of `events` that it is planned with; None: all."""
WHOLE = [
    "FROM events ORDER BY ALL",
    "SELECT * FROM events ORDER BY ALL",
    "SELECT e.* EXCLUDE (content) FROM events e ORDER BY ALL",
    "SELECT COLUMNS('.*_id') FROM events ORDER BY ALL",
    "SELECT count(DISTINCT COLUMNS(*)) FROM events",
    "SELECT e FROM events e ORDER BY e",
    "SELECT to_json(events) AS text FROM events ORDER BY text",
    "SELECT e['content'] AS text FROM events e ORDER BY text",
    "SELECT (e).model FROM events e",
    "SELECT hash(events) AS h FROM events ORDER BY h",
    "SELECT unnest(e) FROM events e ORDER BY ALL",
    "SELECT max(e) FROM events e",
    "SELECT #5 AS fifth FROM events ORDER BY fifth",
    "SELECT c FROM events AS e(a, b, c) ORDER BY c",
    "SELECT count(*) FROM events NATURAL JOIN events AS f",
    "SELECT column_name FROM (DESCRIBE events)",
    "SELECT column_name, count FROM (SUMMARIZE events)",
    "SELECT count(*) FROM (PIVOT events ON event_type USING count(*))",
    "SELECT count(*) FROM (UNPIVOT events ON model, status)",
    f"SELECT max(seq) FROM events WHERE seq IN ({', '.join(map(str, range(3000)))})",
    "SELECT x FROM events, LATERAL (SELECT events) AS l(x) ORDER BY x",
]
"""They reach columns that they do not name, or are too long to look at."""
WRONG = [
    "SELECT modle FROM events",
    "SELECT e.contents FROM events e",
    "SELECT sum(content) FROM events",
    "SELECT seq FROM event",
]


@pytest.fixture
def site(data_dir: Path, server: RedisServer) -> Iterator[Site]:
    with Site(data_dir, server.url, warm={"fan_in": 2}) as site:
        site.append(chats(40, model="gpt-4o"))
        site.settle()
        site.append(chats(20, conversations=3, status="ok"))
        site.settle()
        site.append(chats(10))
        yield site


def columns_planned(site: Site, query: str) -> set[str]:
    """The columns that `events` has while the query runs."""
    site.store.sql(query)
    [place] = site.store._runner._free
    return {str(column[0]) for column in place.con.execute("FROM events LIMIT 0").description or ()}


def whole(site: Site, query: str) -> pa.Table:
    """The answer with all columns in `events`."""
    runner = site.store._runner
    runner._narrows = False
    try:
        return site.store.sql(query).to_arrow()
    finally:
        runner._narrows = True


@pytest.mark.parametrize("query", NARROW)
def test_a_query_is_planned_with_the_columns_that_it_names(site: Site, query: str) -> None:
    assert columns_planned(site, query) == (NARROW[query] or set(COLUMN_NAMES))
    assert site.store.sql(query).to_arrow() == whole(site, query)


@pytest.mark.parametrize("query", WHOLE)
def test_a_query_that_reaches_columns_without_naming_them_has_all(site: Site, query: str) -> None:
    assert columns_planned(site, query) == set(COLUMN_NAMES)
    assert site.store.sql(query).to_arrow() == whole(site, query)


@pytest.mark.parametrize("query", WRONG)
def test_a_wrong_query_is_told_what_there_is_as_if_all_columns_were_there(site: Site, query: str) -> None:
    with pytest.raises(QueryRefused) as narrow:
        site.store.sql(query)
    assert site.store._runner._narrows
    with pytest.raises(QueryRefused) as told:
        whole(site, query)
    assert str(narrow.value) == str(told.value)


STATISTICS = ("hourly_stats", "conversation_summary", "usage", "agent_stats", "model_stats", "tool_stats", "quantile_stats")


@pytest.mark.parametrize("relation", STATISTICS)
def test_statistics_are_made_from_the_columns_they_need(site: Site, relation: str) -> None:
    query = f"SELECT * FROM {relation} ORDER BY ALL"
    assert site.store.sql(query).to_arrow() == whole(site, query)


def test_a_segment_that_lacks_a_column_is_read_and_from_then_on_all_are(site: Site) -> None:
    segment = site.tiers.ledger.view().segments[0]
    with duckdb.connect(site.tiers.warm.path(segment.segment_id)) as con:
        con.execute("ALTER TABLE events DROP COLUMN status")
    query = "SELECT count(*) AS n, count(status) AS known FROM events"
    assert site.store.sql(query).fetchall() == [(70, 20)]
    assert not site.store._runner._narrows
    assert columns_planned(site, query) == set(COLUMN_NAMES)
    assert (
        site.store.sql("SELECT sum(errors) FROM model_stats").fetchall()
        == site.store.sql("SELECT count_if(event_type = 'error') FROM events").fetchall()
    )


def test_the_catalog_shows_all_columns_after_a_query_of_few(site: Site) -> None:
    listed = (
        "SELECT column_name FROM duckdb_columns() WHERE (database_name, table_name) = ('temp', 'events') ORDER BY column_index"
    )
    for query in (listed, "SELECT column_name FROM (DESCRIBE events)", "SELECT name FROM pragma_table_info('events')"):
        site.store.sql("SELECT count(*) FROM events")
        assert [name for (name,) in site.store.sql(query).fetchall()] == list(COLUMN_NAMES), query
