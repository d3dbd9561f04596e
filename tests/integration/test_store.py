"""The Store: connecting, parameters, results in every form, SQL of one's own, pinned connections, status, closing."""

from __future__ import annotations

import datetime as dt
import html
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import polars
import pyarrow as pa
import pytest

import thermocline
from tests.conftest import StartServer
from tests.embedded_users import pid_of
from tests.servers import RedisServer
from tests.site import Site, chats
from thermocline.errors import ConfigError, QueryRefused, ThermoclineError, TierCorrupt, TierUnavailable
from thermocline.store import connect


@pytest.fixture
def site(data_dir: Path, server: RedisServer) -> Iterator[Site]:
    with Site(data_dir, server.url) as site:
        site.append(chats(60))
        site.settle()
        site.append(chats(30))
        yield site


def test_a_store_is_connected_from_settings_a_mapping_a_file_or_arguments(data_dir: Path, server: RedisServer) -> None:
    with Site(data_dir, server.url, hot={"shards": 16}) as site:
        site.append(chats(3))
        file = data_dir / "my.toml"
        file.write_text(f'data_dir = "{data_dir}"\nredis_url = "{server.url}"\n')
        given = {"data_dir": data_dir, "redis_url": server.url}
        for config, overrides in (
            (site.settings, {}),
            (given, {}),
            (file, {}),
            (str(file), {"query": {"threads": 1}}),
            (None, given),
        ):
            with connect(config, **overrides) as store:
                assert store.sql("SELECT count(*) FROM events").fetchall() == [(3,)]
                assert store.settings.data_dir == data_dir
        with pytest.raises(ConfigError, match="not both"):
            connect(site.settings, namespace="other")
        with pytest.raises(ConfigError, match="no such setting"):
            connect(given, threads=1)
        with pytest.raises(ConfigError, match="cannot be read"):
            connect(data_dir / "none.toml")


def test_parameters_are_given_by_place_or_by_name(site: Site) -> None:
    by_place = "SELECT count(*) FROM events WHERE conversation_id = ? AND seq <= ?"
    by_number = "SELECT count(*) FROM events WHERE conversation_id = $1 AND seq <= $2"
    by_name = "SELECT count(*) FROM events WHERE conversation_id = $who AND seq <= $upto"
    assert site.store.sql(by_place, ["chat-1", 4]).fetchall() == [(4,)]
    assert site.store.sql(by_number, ("chat-1", 4)).fetchall() == [(4,)]
    assert site.store.sql(by_name, {"who": "chat-1", "upto": 4}).fetchall() == [(4,)]
    hour_ago = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    assert site.store.sql("SELECT count(*) FROM events WHERE timestamp > ?", [hour_ago]).fetchall() == [(90,)]
    with pytest.raises(QueryRefused, match="params must be a list"):
        site.store.sql(by_place, "chat-1")  # type: ignore[arg-type]
    with pytest.raises(QueryRefused, match="not provided"):
        site.store.sql(by_place)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("SELECT nope FROM events", '"nope" not found'),
        ("FROM no_such_table", "no_such_table does not exist"),
        ("SELECT CAST(content AS INT) FROM events", "Could not convert string"),
        ("", "empty"),
        ("-- nothing", "empty"),
        ("BEGIN", "store.duckdb()"),
        ("SELECT * FROM read_csv('/no/such/file')", "No files found"),
    ],
)
def test_what_duckdb_refuses_is_said_in_one_line(site: Site, query: str, said: str) -> None:
    with pytest.raises(QueryRefused) as caught:
        site.store.sql(query)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert site.count() == 90


def test_a_query_beyond_the_memory_limit_names_the_setting(data_dir: Path, server: RedisServer) -> None:
    with Site(data_dir, server.url, query={"memory_bytes_max": 64 << 20}) as site:
        with pytest.raises(QueryRefused, match=r"query\.memory_bytes_max \(64 MiB\)"):
            site.store.sql("SELECT list(repeat('x', 1000) || i) FROM range(1000000) t(i)")
        assert site.count() == 0


def test_a_result_can_be_taken_in_every_form(site: Site) -> None:
    result = site.store.sql(
        "SELECT event_type, count(*) AS n, sum(seq) AS seqs, max(timestamp) AS newest FROM events GROUP BY 1 ORDER BY 1"
    )
    rows = result.fetchall()
    assert [row[:2] for row in rows] == [("error", 30), ("output.chunk", 30), ("tool.call", 30)]
    assert all(type(row[2]) is int for row in rows)
    assert all(row[3].utcoffset() == dt.timedelta(0) for row in rows)
    assert list(result) == rows
    assert result.fetchone() == rows[0]
    assert (len(result), result.columns) == (3, ["event_type", "n", "seqs", "newest"])
    assert result.to_arrow().column("seqs").type == pa.int64()
    assert result.pl()["n"].to_list() == [30, 30, 30]
    assert result.df()["n"].tolist() == [30, 30, 30]
    assert pa.table(result).equals(result.to_arrow())
    assert polars.DataFrame(result).equals(result.pl())
    assert pa.RecordBatchReader.from_stream(result).read_all().num_rows == 3
    assert repr(result).startswith("<Result: 3 rows of event_type, n, seqs, newest; 90 events as of ")
    assert site.store.sql("SELECT 10::HUGEINT ** 30, 2::HUGEINT").fetchall() == [(10.0**30, 2)]
    assert site.store.sql("SELECT 170141183460469231731687303715884105727 AS x").fetchone() == (2**127 - 1,)


def test_a_result_stays_what_it_was_when_the_store_moves_on_and_closes(site: Site) -> None:
    result = site.store.sql("SELECT * FROM events ORDER BY conversation_id, seq")
    before = result.fetchall()
    site.settle()
    site.merge()
    site.append(chats(10))
    site.count()
    site.store.close()
    assert result.fetchall() == before
    assert result.df().shape == (90, 20)


def test_a_result_in_a_notebook_is_a_table_that_cannot_be_broken_out_of(site: Site) -> None:
    site.append([{"conversation_id": "x", "event_type": "t", "content": "<script>alert('1')</script>" + "y" * 500}])
    shown = site.store.sql('SELECT content AS "<b>", NULL AS nothing FROM events ORDER BY conversation_id DESC')._repr_html_()
    assert "<script>" not in shown
    assert html.escape("<script>alert('1')</script>") in shown
    assert "<th>&lt;b&gt;</th>" in shown
    assert "y" * 400 not in shown
    assert "71 more rows" in shown
    assert "91 events as of" in shown


def test_the_receipt_of_an_answer_reads_as_text_and_as_json(site: Site) -> None:
    coverage = site.store.sql("SELECT count(*) FROM events").coverage
    assert coverage.exact
    assert coverage.reason == ""
    assert (coverage.hot_rows, coverage.warm_rows, coverage.segments_read) == (30, 60, 1)
    assert coverage.hot_newest_at is not None
    assert coverage.hot_newest_at <= coverage.taken_at <= dt.datetime.now(dt.UTC)
    assert f"90 events as of {coverage.taken_at:%Y-%m-%d %H:%M:%S} UTC: 30 hot" in str(coverage)
    assert str(coverage).endswith("60 warm in 1 of 1 segment. Exact.")
    stated = json.loads(json.dumps(coverage.as_dict()))
    assert stated["relations"] == {"events": "exact"}
    assert stated["exact"] is True
    assert site.store.sql("SELECT 1").coverage.segments_read == 0


def test_tables_of_ones_own_can_be_made_and_joined_and_queries_are_still_pruned(site: Site) -> None:
    site.store.sql("CREATE TABLE people AS SELECT 'chat-1' AS conversation_id, 'Ada' AS name")
    site.store.sql("INSERT INTO people VALUES ('chat-2', 'Bob')")
    joined = site.store.sql(
        "SELECT name, count(*) FROM people JOIN events USING (conversation_id) WHERE timestamp > '2100-01-01' GROUP BY 1"
    )
    assert joined.fetchall() == []
    assert (joined.coverage.segments_read, joined.coverage.not_pruned) == (0, "")
    counted = site.store.sql("SELECT name, count(*) FROM people JOIN events USING (conversation_id) GROUP BY 1 ORDER BY 1")
    assert counted.fetchall() == [("Ada", 9), ("Bob", 9)]


@pytest.mark.parametrize(
    ("statement", "query", "expected", "why"),
    [
        ("CREATE VIEW mine AS FROM events WHERE timestamp < '2100-01-01'", "SELECT count(*) FROM mine", 90, "views or macros"),
        ("CREATE TEMP MACRO seen() AS (SELECT count(*) FROM events)", "SELECT seen()", 90, "views or macros"),
        ("SET TimeZone = 'Asia/Tokyo'", "SELECT count(*) FROM events WHERE timestamp > '2100-01-01'", 0, "TimeZone"),
        ("SET default_collation = 'nocase'", "SELECT count(*) FROM events WHERE event_type = 'ERROR'", 30, "default_collation"),
    ],
)
def test_a_query_is_not_pruned_where_its_text_no_longer_says_what_it_reads(
    site: Site, statement: str, query: str, expected: int, why: str
) -> None:
    site.store.sql(statement)
    site.append([{"conversation_id": "late", "event_type": "t"}])
    result = site.store.sql(query)
    assert result.fetchall() == [(expected + (expected == 90),)]
    assert why in result.coverage.not_pruned
    assert result.coverage.segments_read == 1


@pytest.mark.parametrize(
    "statement",
    [
        "DROP VIEW events",
        "CREATE OR REPLACE TEMP VIEW events AS SELECT 1",
        "RESET VARIABLE thermocline_events",
        "SET VARIABLE thermocline_events = 'SELECT 1 AS seq'",
    ],
)
def test_a_relation_is_right_again_after_a_statement_that_changed_it(site: Site, statement: str) -> None:
    assert site.count() == 90
    site.store.sql(statement)
    assert site.count() == 90


def test_statements_that_are_not_one_select_see_the_whole_store(site: Site, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    site.store.sql(f"COPY (SELECT seq FROM events WHERE event_type = 'error') TO '{target}'")
    assert len(target.read_text().splitlines()) == 31
    assert site.store.sql("SELECT 1; SELECT count(*) FROM events").fetchall() == [(90,)]
    described = site.store.sql("DESCRIBE events")
    assert len(described) == 20
    assert "not pruned" not in str(described.coverage)
    assert described.coverage.not_pruned
    pivoted = site.store.sql("PIVOT events ON event_type USING count(*) GROUP BY task_id ORDER BY task_id")
    assert pivoted.columns == ["task_id", "error", "output.chunk", "tool.call"]
    assert len(site.store.sql("EXPLAIN FROM events")) > 0


def test_four_threads_can_ask_one_store_at_once(site: Site) -> None:
    failures: list[object] = []

    def ask(number: int) -> None:
        try:
            for turn in range(10):
                conversation = f"chat-{(number + turn) % 10}"
                one = site.store.sql("SELECT count(*) FROM events WHERE conversation_id = ?", [conversation]).fetchall()
                two = site.store.recent(conversation, 5).to_arrow().column("seq").to_pylist()
                three = site.store.sql("SELECT total_events FROM conversation_summary WHERE conversation_id = ?", [conversation])
                if (one, two, three.fetchall()) != ([(9,)], [5, 6, 7, 8, 9], [(9,)]):
                    failures.append((conversation, one, two))
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_pinned_connection_stays_with_its_view_until_it_is_refreshed(site: Site) -> None:
    con, other = site.store.duckdb(), site.store.duckdb()
    con.execute("CREATE VIEW errors AS FROM events WHERE event_type = 'error'")
    for _ in range(2):
        old = site.tiers.ledger.view()
        site.append(chats(30))
        site.settle()
        site.trim()
        while site.merge():
            pass
        site.purge(old)
        for pinned in (con, other):
            assert pinned.execute("SELECT count(*) FROM events").fetchall() == [(90,)]
        assert con.execute("SELECT count(*) FROM errors").fetchall() == [(30,)]
        assert con.execute("SELECT sum(event_count) FROM hourly_stats").fetchall() == [(90,)]
    assert site.count() == 150
    open_result = other.execute("SELECT * FROM events")
    first = open_result.fetchone()
    site.store.refresh()
    assert first is not None
    assert len(open_result.fetchall()) == 89
    assert con.execute("SELECT count(*) FROM errors").fetchall() == [(50,)]
    assert other.execute("SELECT sum(total_events) FROM conversation_summary").fetchall() == [(150,)]
    assert site.store.sql("FROM duckdb_views() WHERE view_name = 'errors'").fetchall() == []
    con.close()
    other.close()


def test_a_refresh_that_fails_leaves_pinned_connections_where_they_are(site: Site) -> None:
    con = site.store.duckdb()
    site.append(chats(30))
    site.settle()
    newest = site.tiers.ledger.view().segments[-1]
    path = Path(site.tiers.warm.path(newest.segment_id))
    aside = path.rename(path.with_suffix(".aside"))
    with pytest.raises(TierCorrupt, match="is missing, but the ledger lists it"):
        site.store.refresh()
    assert con.execute("SELECT count(*) FROM events").fetchall() == [(90,)]
    aside.rename(path)
    site.store.refresh()
    assert con.execute("SELECT count(*) FROM events").fetchall() == [(120,)]
    con.close()


def test_status_says_what_is_where(site: Site) -> None:
    status = site.store.status()
    hot, warm, cold = status.tiers
    assert (hot.tier, hot.events, warm.tier, warm.events, warm.files, cold.tier, cold.events) == (
        "hot",
        30,
        "warm",
        60,
        1,
        "cold",
        0,
    )
    assert hot.bytes > 0
    assert warm.bytes == sum(path.stat().st_size for path in (site.settings.namespace_dir / "segments").glob("*.duckdb"))
    assert (status.cached.events, status.cached.bytes > 0) == (60, True)
    assert (status.health, status.reasons, status.worker, status.lost) == ("green", (), None, 0)
    assert (status.redis.durability, status.shards, status.segments_by_level) == ("fsync", 4, {0: 1})
    assert status.oldest_unsettled_s is not None
    assert json.loads(json.dumps(status.as_dict()))["tiers"][1]["events"] == 60
    site.settle()
    site.trim()
    after = site.store.status()
    assert ([tier.events for tier in after.tiers], after.cached.events) == ([0, 90, 0], 0)
    assert after.oldest_unsettled_s is None


def test_status_names_everything_that_needs_attention(data_dir: Path, redis_server: StartServer) -> None:
    volatile = redis_server(options={"appendonly": "no"})
    warm = {"bytes_max": 1, "settle_after_s": 0, "settle_latest_s": 0, "settle_bytes": 1}
    hot = {"allow_volatile": True, "unsettled_bytes_max": 2 << 20}
    with Site(data_dir, volatile.url, hot=hot, warm=warm) as site:
        assert site.store.status().health == "yellow"
        site.append(chats(10))
        site.settle()
        site.append(chats(25, content="x" * 100_000))
        site.tiers.ledger.losses_reported({(0, 1): 5})
        status = site.store.status()
    assert status.health == "red"
    assert [reason.split(":")[0] for reason in status.reasons] == [
        f"segments take {status.tiers[1].bytes:,} bytes, warm.bytes_max is 1",
        "2 MiB wait to settle",
        f"events wait {status.oldest_unsettled_s:.0f} s to settle",
        "Redis keeps nothing on disk (hot.allow_volatile)",
        "5 acknowledged events were lost by Redis",
    ]
    assert (status.lost, status.redis.durability) == (5, "memory")


def test_status_passes_on_what_the_worker_says(site: Site) -> None:
    said = {"health": "red", "problem": "settle failed 3 times in a row"}
    (site.settings.namespace_dir / "worker.json").write_text(json.dumps(said))
    status = site.store.status()
    assert status.health == "red"
    assert status.reasons == ("the worker reports: settle failed 3 times in a row",)
    assert status.worker is not None
    assert status.worker.items() >= said.items()


def test_verify_accounts_for_every_event(site: Site) -> None:
    assert not site.store.verify().problems
    assert not site.store.verify(deep=True).problems


def test_a_closed_store_says_so_and_can_be_closed_again(site: Site) -> None:
    site.store.close()
    site.store.close()
    for call in (lambda: site.store.sql("SELECT 1"), lambda: site.store.recent("x"), site.store.duckdb, site.store.status):
        with pytest.raises(TierUnavailable, match="closed"):
            call()


def test_an_embedded_redis_that_was_killed_comes_back_with_the_next_call(data_dir: Path) -> None:
    always = {"append_fsync": "always"}
    with connect(data_dir=data_dir, hot=always) as store, thermocline.Client(data_dir=data_dir, hot=always) as client:
        client.append_many(chats(20))
        assert store.sql("SELECT count(*) FROM events").fetchall() == [(20,)]
        for ask in (lambda: store.sql("SELECT count(*) FROM events").fetchall()[0][0], lambda: store.status().tiers[0].events):
            os.kill(pid_of(data_dir), signal.SIGKILL)
            assert ask() == 20
        os.kill(pid_of(data_dir), signal.SIGKILL)
        assert len(store.recent("chat-1")) == 2


def test_require_takes_complete_and_nothing_else(site: Site) -> None:
    assert site.store.sql("SELECT count(*) FROM events", require="complete").fetchall() == [(90,)]
    with pytest.raises(QueryRefused, match="require must be"):
        site.store.sql("SELECT 1", require="all")  # type: ignore[arg-type]


def test_importing_the_package_loads_no_driver_and_every_public_name_is_there() -> None:
    heavy = ("redis", "duckdb", "pyarrow", "polars", "pandas", "sqlalchemy", "sqlglot", "pydantic", "msgspec")
    code = f"import sys, thermocline; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(thermocline.__all__) <= set(dir(thermocline))
    for name in thermocline.__all__:
        assert getattr(thermocline, name) is not None
    assert issubclass(thermocline.QueryRefused, ThermoclineError)
    assert thermocline.connect is connect
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        thermocline.nope  # noqa: B018
