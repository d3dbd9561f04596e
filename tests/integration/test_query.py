"""Queries over real tiers: every event exactly once, whatever moves meanwhile; the tail; pruning; what an answer rests on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.servers import RedisServer
from tests.site import DAY_US, Site, changed, chats
from thermocline.config import MIB
from thermocline.errors import IncompleteAnswer, TierCorrupt, TierUnavailable
from thermocline.event import COLUMN_NAMES
from thermocline.ingest.encode import blocks_of
from thermocline.ingest.line import line_of
from thermocline.ingest.validate import event_of, fields_of
from thermocline.query import tail as tail_module
from thermocline.query.relations import Sources, relation_sql
from thermocline.query.tail import CHUNKS_MAX, EMPTY, Tail
from thermocline.store import connect
from thermocline.tiers.block import ORIGIN, Block, payload_checksum
from thermocline.tiers.duck import connect as open_duckdb
from thermocline.tiers.ledger import ColdFile

NOW_US = 1_731_456_000_000_000
"""2024-11-13T00:00:00Z."""
ROUNDS = 6


@pytest.fixture
def site(data_dir: Path, server: RedisServer) -> Iterator[Site]:
    with Site(data_dir, server.url, warm={"fan_in": 2}) as site:
        yield site


def block_of(conversation_id: str, count: int, *, shards: int = 4) -> Block:
    events = [event_of({"conversation_id": conversation_id, "event_type": "x", "content": str(n)}) for n in range(count)]
    lines = [line_of(fields_of(event), NOW_US) for event in events]
    [block] = blocks_of(conversation_id, lines, shards=shards, events_max=500, bytes_max=MIB)
    return block


def with_payload(block: Block, payload: bytes) -> Block:
    """The block with other lines under the same header, its checksum right."""
    stamps = (block.timestamp_min_us, block.timestamp_max_us)
    checksum = payload_checksum(block.conversation_id, block.block_id, block.lines, *stamps, block.sizes, payload)
    return changed(block, payload=payload, checksum=checksum)


class Spy:
    """Calls of one method, with something done before or instead of the real thing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, target: Any, name: str) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.real: Callable[..., Any] = getattr(target, name)
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[Any], Any] = lambda answer: answer
        monkeypatch.setattr(target, name, self._call)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(args)
        self.before()
        return self.after(self.real(*args, **kwargs))


def test_an_event_is_seen_once_and_whole_in_every_place_it_passes_through(site: Site) -> None:
    given = {
        "conversation_id": "日本 'x'",
        "event_type": "tool.call",
        "content": 'línea\n"two" \\ \t€',
        "timestamp": NOW_US,
        "event_id": "0191f3a0-0000-7000-8000-00000000abcd",
        "metadata": '{ "price": 1.00, "big": 9007199254740993, "e": "\\u00e9" }',
        "cost_usd": 0.1,
        "input_tokens": 2**62,
        "status": "",
    }
    [receipt] = site.append([given])
    seen = []
    for step in (lambda: None, site.settle, site.trim, lambda: (site.append(chats(3)), site.settle(), site.merge())):
        step()
        result = site.store.sql("SELECT * FROM events WHERE conversation_id = $1", [given["conversation_id"]])
        assert tuple(result.columns) == COLUMN_NAMES
        seen.append(result.to_arrow())
    assert all(table.equals(seen[0]) for table in seen)
    [row] = seen[0].to_pylist()
    assert row["metadata"] == given["metadata"]
    assert row["event_id"] == given["event_id"] == receipt.event_id
    kept = ("content", "cost_usd", "input_tokens", "status")
    assert [row[name] for name in kept] == [given[name] for name in kept]
    assert (row["seq"], row["sample_rate"], row["model"]) == (1, 1.0, None)
    assert int(row["timestamp"].timestamp() * 1e6) == NOW_US


def test_counts_stay_within_brackets_while_events_settle_merge_and_are_trimmed(site: Site) -> None:
    """Readers in three threads, two of them sharing a store, against everything that moves events, without any grace."""
    other = connect(site.settings)
    stop, failures, queries = threading.Event(), [], []

    def appended() -> int:
        return sum(shard.events_total for shard in site.tiers.hot.cut())

    def read(store: Any) -> None:
        try:
            while not stop.is_set():
                before = appended()
                counted = site.count(store)
                after = appended()
                summed = store.sql("SELECT sum(event_count) FROM hourly_stats").fetchone()[0] or 0
                if not before <= counted <= after or summed < counted:
                    failures.append((before, counted, after, summed))
                queries.append(counted)
        except BaseException as exc:
            failures.append(exc)

    readers = [threading.Thread(target=read, args=(store,)) for store in (site.store, site.store, other)]
    for reader in readers:
        reader.start()
    for number in range(ROUNDS):
        site.append(chats(150 + number))
        site.settle()
        site.append(chats(30))
        site.trim()
        view = site.tiers.ledger.view()
        if site.merge():
            site.purge(view)
    stop.set()
    for reader in readers:
        reader.join()
    other.close()
    assert failures == []
    assert len(queries) >= ROUNDS
    assert site.count() == appended()


def test_the_tail_is_fetched_and_decoded_only_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.append(chats(500))
    pages = Spy(monkeypatch, site.store.tiers.hot, "page")
    assert site.count() == 500
    first = len(pages.calls)
    assert site.count() == 500
    assert len(pages.calls) == first
    lasts = {shard.shard: shard.last for shard in site.tiers.hot.cut()}
    site.append(chats(1))
    assert site.count() == 501
    [(shard, after, _upto)] = pages.calls[first:]
    assert after == lasts[shard]


def test_what_settles_leaves_the_tail_and_its_memory(site: Site) -> None:
    con = open_duckdb(memory_bytes=256 * MIB, threads=1)
    tail = Tail(con, page_bytes_max=MIB)
    tables_max = total = 0
    for number in range(30):
        site.append(chats(40, conversations=7))
        total += 40
        view = site.tiers.ledger.view()
        state = tail.advance(site.tiers.hot, view, site.tiers.hot.cut())
        assert state is not None
        assert state.rows == total - sum(shard.events for shard in view.shards)
        tail.keep_only(state.chunks)
        counted = sum(con.execute(f"SELECT count(*) FROM {chunk.sql}").fetchall()[0][0] for chunk in state.chunks)
        assert counted == state.rows
        [(tables,)] = con.execute("SELECT count(*) FROM duckdb_tables()").fetchall()
        tables_max = max(tables_max, tables)
        if number % 8 == 5:
            site.settle()
    assert tables_max <= 10
    site.settle()
    state = tail.advance(site.tiers.hot, site.tiers.ledger.view(), site.tiers.hot.cut())
    assert state is not None
    assert state.chunks == ()
    tail.keep_only(())
    assert con.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [("none",)]
    con.close()


def test_an_older_cut_keeps_its_rows_while_tables_grow_and_tables_stay_few(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "CHUNK_ROWS", 100)
    con = open_duckdb(memory_bytes=256 * MIB, threads=1)
    tail = Tail(con, page_bytes_max=MIB)
    states = []
    for number in range(1, 25):
        site.append(chats(40, conversations=5))
        state = tail.advance(site.tiers.hot, site.tiers.ledger.view(), site.tiers.hot.cut())
        assert state is not None and state.rows == 40 * number
        assert len({chunk.table for chunk in state.chunks}) == len(state.chunks) <= CHUNKS_MAX
        states.append(state)
    for state in states:
        seqs = "UNION ALL ".join(f"SELECT conversation_id, seq FROM {chunk.sql} " for chunk in state.chunks)
        found = con.execute(f"SELECT count(*), max(seq), count(DISTINCT (conversation_id, seq)) FROM ({seqs})").fetchall()
        assert found == [(state.rows, state.rows // 5, state.rows)]
    con.close()


def test_a_tail_that_has_settled_in_part_keeps_the_rest(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.append(chats(200, conversations=3))
    assert site.count() == 200
    old = site.tiers.ledger.view()
    site.settle()
    site.append(chats(50, conversations=3))
    half = site.tiers.ledger.view().shards[:2] + old.shards[2:]
    view = msgspec.structs.replace(old, shards=half)
    con = open_duckdb(memory_bytes=256 * MIB, threads=1)
    tail = Tail(con, page_bytes_max=MIB)
    whole, part = (
        tail.advance(site.tiers.hot, old, site.tiers.hot.cut()),
        tail.advance(site.tiers.hot, view, site.tiers.hot.cut()),
    )
    assert whole is not None
    assert part is not None
    assert whole.rows == 250
    assert part.rows == 250 - sum(state.events for state in half)
    assert sum(con.execute(f"SELECT count(*) FROM {chunk.sql}").fetchall()[0][0] for chunk in part.chunks) == part.rows
    assert sum(con.execute(f"SELECT count(*) FROM {chunk.sql}").fetchall()[0][0] for chunk in whole.chunks) == 250
    con.close()


def test_a_query_cut_short_at_any_step_leaves_the_next_one_right(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(failure: BaseException) -> None:
        raise failure

    steps = [("page", TierUnavailable("gone")), ("trimmed", TierUnavailable("gone")), ("trimmed", KeyboardInterrupt())]
    total = 0
    for name, failure in steps:
        site.append(chats(700))
        total += 700
        with monkeypatch.context() as patch:
            spy = Spy(patch, site.store.tiers.hot, name)
            calls = iter([lambda: None] * (name == "page") + [lambda failure=failure: stop(failure)])
            spy.before = lambda calls=calls: next(calls, lambda: None)()
            with pytest.raises(type(failure)):
                site.store.sql("SELECT count(*) FROM events")
        assert site.count() == total
    tail = site.store._runner._reader._tail
    for name in ("_insert", "_check"):
        site.append(chats(700))
        total += 700
        with monkeypatch.context() as patch:
            Spy(patch, tail, name).before = lambda: stop(KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                site.store.sql("SELECT count(*) FROM events")
        assert site.count() == total


def test_entries_trimmed_while_they_are_paged_are_looked_for_in_segments(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.append(chats(300))
    pages = Spy(monkeypatch, site.store.tiers.hot, "page")

    def move_once() -> None:
        pages.before = lambda: None
        site.settle()
        site.trim()

    pages.before = move_once
    result = site.store.sql("SELECT count(*) FROM events")
    assert result.fetchall() == [(300,)]
    assert result.coverage.retries == 1
    assert (result.coverage.hot_rows, result.coverage.warm_rows) == (0, 300)


def test_a_reader_that_is_always_too_slow_says_what_to_raise(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = Spy(monkeypatch, site.store.tiers.hot, "page")

    def move() -> None:
        site.settle()
        site.trim()

    views = Spy(monkeypatch, site.store.tiers.ledger, "view")
    views.after = lambda view: (site.append(chats(20)), view)[1]
    pages.before = move
    with pytest.raises(TierUnavailable, match=r"data moved .* 5 times in a row: raise hot\.log_grace_s"):
        site.store.sql("SELECT count(*) FROM events")
    views.after, pages.before = (lambda view: view), (lambda: None)
    assert site.count() == 100


def test_a_ledger_older_than_redis_is_named_as_that(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    old = site.tiers.ledger.view()
    site.append(chats(30))
    site.settle()
    site.trim()
    Spy(monkeypatch, site.store.tiers.ledger, "view").after = lambda _: old
    with pytest.raises(TierCorrupt, match=r"the ledger is older than Redis: .* run `thermocline recover`"):
        site.store.sql("SELECT count(*) FROM events")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"incarnation": "another"}, "holds incarnation another, .* it was wiped or belongs to another store"),
        ({"last": ORIGIN}, "came back older: it ends at 0-0"),
    ],
)
def test_a_redis_that_stays_at_odds_with_the_ledger_is_not_read(
    site: Site, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], said: str
) -> None:
    site.append(chats(30))
    site.settle()
    cuts = Spy(monkeypatch, site.store.tiers.hot, "cut")
    cuts.after = lambda cut: tuple(msgspec.structs.replace(shard, **fields) for shard in cut)
    with pytest.raises(TierUnavailable, match=said):
        site.store.sql("SELECT count(*) FROM events")
    cuts.after = lambda cut: cut
    assert site.count() == 30


def test_a_tail_larger_than_memory_goes_to_disk_and_leaves_nothing_there(data_dir: Path, server: RedisServer) -> None:
    """Rows of ordinary size: DuckDB holds up to 2,048 rows of a column at once, and those have to fit."""
    with Site(data_dir, server.url, query={"memory_bytes_max": 64 * MIB}) as site:
        for _ in range(20):
            site.append(chats(1000, content="x" * 5_000))
        result = site.store.sql("SELECT count(*), sum(strlen(content)) FROM events")
        assert result.fetchall() == [(20_000, 100_000_000)]
        assert sum(file.stat().st_size for file in site.settings.namespace_dir.glob("spill-*/*")) > 0
    assert list(data_dir.glob("*/spill-*")) == []


def test_a_tail_that_cannot_be_kept_names_the_way_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        open_duckdb(memory_bytes=64 * MIB, threads=1).execute("SELECT list(i) FROM range(100000000) t(i)")

    site.append(chats(10))
    with monkeypatch.context() as patch:
        Spy(patch, site.store._runner._reader._tail, "_table").before = fail
        with pytest.raises(TierUnavailable, match=r"do not fit in memory .* raise query\.memory_bytes_max"):
            site.store.sql("SELECT count(*) FROM events")
    assert site.count() == 10


def test_a_hole_in_the_log_is_never_passed_over(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.append(chats(30, conversations=1))
    site.append(chats(30, conversations=1))
    pages = Spy(monkeypatch, site.store.tiers.hot, "page")
    pages.after = lambda table: table.slice(1)
    with pytest.raises(TierCorrupt, match="lacks 30 events"):
        site.store.sql("SELECT count(*) FROM events")
    pages.after = lambda table: table
    assert site.count() == 60


def test_a_file_purged_between_view_and_attach_means_a_fresh_view(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        site.append(chats(50))
        site.settle()
    old = site.tiers.ledger.view()
    assert site.merge()
    site.purge(old)
    views = Spy(monkeypatch, site.store.tiers.ledger, "view")
    stale = iter([old])
    views.after = lambda view: next(stale, view)
    result = site.store.sql("SELECT count(*) FROM events")
    assert result.fetchall() == [(100,)]
    assert result.coverage.retries == 1


def test_a_segment_that_is_listed_and_missing_or_damaged_is_never_left_out(site: Site) -> None:
    site.append(chats(50))
    site.settle()
    [segment] = site.tiers.ledger.view().segments
    path = Path(site.tiers.warm.path(segment.segment_id))
    aside = path.rename(path.with_suffix(".aside"))
    with pytest.raises(TierCorrupt, match=f"{path} is missing, but the ledger lists it"):
        site.store.sql("SELECT count(*) FROM events")
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(TierCorrupt, match=str(path)):
        site.store.sql("SELECT count(*) FROM events")
    aside.rename(path)
    assert site.count() == 50


def test_without_redis_there_is_no_answer_and_afterwards_there_is(site: Site, server: RedisServer) -> None:
    site.append(chats(50))
    site.settle()
    site.append(chats(20))
    assert site.count() == 70
    server.stop()
    with pytest.raises(TierUnavailable, match="would silently miss events"):
        site.store.sql("SELECT count(*) FROM events")
    server.start()
    assert site.count() == 70


def test_a_wiped_redis_is_noticed_and_nothing_it_had_is_shown(site: Site, server: RedisServer) -> None:
    site.append(chats(50))
    site.settle()
    site.append(chats(20))
    assert site.count() == 70
    site.tiers.hot.drop()
    assert site.count() == 50
    site.append(chats(5))
    assert site.count() == 55


def test_more_waiting_than_a_reader_may_hold_is_refused_with_the_way_out(data_dir: Path, server: RedisServer) -> None:
    with Site(data_dir, server.url, query={"tail_bytes_max": MIB}) as site:
        site.append(chats(20, content="x" * 100_000))
        with pytest.raises(TierUnavailable, match="start `thermocline worker`, or raise it"):
            site.store.sql("SELECT count(*) FROM events")
        site.settle()
        assert site.count() == 20


def test_lines_and_blocks_that_cannot_be_read_are_left_out_and_counted(site: Site) -> None:
    block = block_of("odd", 5)
    lines = block.payload.split(b"\n")
    lines[2] = b'{"event_type":5,"timestamp":"now"}'
    site.append(chats(10))
    site.send(with_payload(block, b"\n".join(lines)))
    site.send(changed(block_of("broken", 7), checksum="0" * 16))
    for _ in range(2):
        result = site.store.sql("SELECT conversation_id, seq FROM events WHERE conversation_id NOT LIKE 'chat-%' ORDER BY ALL")
        assert result.fetchall() == [("odd", 1), ("odd", 2), ("odd", 4), ("odd", 5)]
        assert result.coverage.rejected == 8
        assert "8 unsettled events cannot be read" in str(result.coverage)
    site.settle()
    result = site.store.sql("SELECT conversation_id, seq FROM events WHERE conversation_id NOT LIKE 'chat-%' ORDER BY ALL")
    assert result.fetchall() == [("odd", 1), ("odd", 2), ("odd", 4), ("odd", 5)]
    assert result.coverage.rejected == 0
    assert site.store.status().rejected == 8


def test_segments_without_rows_for_a_query_are_not_read(site: Site) -> None:
    for day, conversation in enumerate(["a", "b", "c"]):
        fields = {"timestamp": NOW_US + day * DAY_US, "event_type": f"kind.{conversation}"}
        site.append({**event, "conversation_id": conversation, **fields} for event in chats(20))
        site.settle()
    site.append([{"conversation_id": "a", "event_type": "kind.z", "timestamp": NOW_US}])
    conditions = {
        "true": (3, 61),
        "timestamp >= '2024-11-15'": (1, 20),
        "timestamp < '2024-11-14' AND conversation_id = 'a'": (1, 21),
        "conversation_id IN ('a', 'c')": (2, 41),
        "event_type = 'kind.b' OR event_type = 'kind.a'": (2, 40),
        "event_type = 'kind.z'": (0, 1),
        "conversation_id = $who": (1, 20),
        "lower(conversation_id) = 'a'": (3, 21),
    }
    for condition, (read, rows) in conditions.items():
        parameters = {"who": "b"} if "$who" in condition else None
        result = site.store.sql(f"SELECT count(*) FROM events WHERE {condition}", parameters)
        assert result.fetchall() == [(rows,)], condition
        assert (result.coverage.segments_read, result.coverage.segments_pruned) == (read, 3 - read), condition
        assert (result.coverage.hot_rows, result.coverage.warm_rows) == (1, 20 * read)
    stats = site.store.sql("SELECT conversation_id, event_count FROM hourly_stats WHERE hour >= '2024-11-15'")
    assert stats.fetchall() == [("c", 20)]
    assert stats.coverage.segments_read == 1
    summary = site.store.sql("SELECT total_events FROM conversation_summary WHERE conversation_id = 'a'")
    assert summary.fetchall() == [(21,)]
    assert summary.coverage.segments_read == 1


HOURLY = "FROM hourly_stats ORDER BY ALL"
HOURLY_AGAIN = """
    SELECT date_trunc('hour', timestamp) AS hour, conversation_id, count(*) AS event_count,
           sum(strlen(content))::BIGINT AS total_bytes
    FROM events GROUP BY ALL ORDER BY ALL"""
SUMMARY = "FROM conversation_summary ORDER BY ALL"
SUMMARY_AGAIN = """
    SELECT conversation_id, min(timestamp) AS started_at, max(timestamp) AS ended_at, count(*) AS total_events,
           count(DISTINCT task_id) AS task_count,
           count(*) FILTER (event_type = 'intervention' OR event_type LIKE 'intervention.%') AS interventions
    FROM events GROUP BY ALL ORDER BY ALL"""


def test_statistics_equal_the_same_from_events_with_late_ones_in_every_place(data_dir: Path, server: RedisServer) -> None:
    with Site(data_dir, server.url, warm={"fan_in": 2, "rollup_rows_min": 100}) as site:

        def equal() -> None:
            for stored, again in ((HOURLY, HOURLY_AGAIN), (SUMMARY, SUMMARY_AGAIN)):
                assert site.store.sql(stored).to_arrow().equals(site.store.sql(again).to_arrow())

        equal()
        for number in range(5):
            early = [{**event, "timestamp": NOW_US - n * 1_234_567_890} for n, event in enumerate(chats(90 + 10 * number))]
            site.append(early)
            site.append(chats(20, event_type="intervention.stop", task_id=None, content="é" * number))
            equal()
            site.settle()
            equal()
            if number % 2:
                assert site.merge()
                equal()
        assert {segment.has_rollups for segment in site.tiers.ledger.view().segments} == {True}


def test_archived_files_are_part_of_events_and_a_complete_answer_cannot_rest_on_them(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.append(chats(30))
    archived = site.store.sql("SELECT * REPLACE ('old' AS conversation_id, 0.5 AS sample_rate) FROM events").to_arrow()
    path = site.store.tiers.cold.path("events/day=2024-11-13/f.parquet")
    path.parent.mkdir(parents=True)
    pq.write_table(archived.drop_columns(["tool_name"]), path)  # a column that an older format lacks
    file = ColdFile(
        file_id="f",
        batch_id="b",
        kind="events",
        day="2024-11-13",
        url=f"file://{path}",
        rows=30,
        file_bytes=1,
        timestamp_min_us=0,
        timestamp_max_us=2**60,
        conversation_min="old",
        conversation_max="old",
        event_types=None,
        checksum="0",
        created_us=0,
    )
    views = Spy(monkeypatch, site.store.tiers.ledger, "view")
    views.after = lambda view: msgspec.structs.replace(view, files=(file,))
    result = site.store.sql("SELECT conversation_id = 'old', count(*), sum(1 / sample_rate) FROM events GROUP BY 1 ORDER BY 1")
    assert result.fetchall() == [(False, 30, 30.0), (True, 30, 60.0)]
    assert (result.coverage.files_read, result.coverage.cold_rows, result.coverage.sampled_rows) == (1, 30, 30)  # not counted
    assert not result.coverage.exact
    with pytest.raises(IncompleteAnswer, match="30 archived rows of events are a sample"):
        site.store.sql("SELECT count(*) FROM events", require="complete")
    pruned = site.store.sql("SELECT count(*) FROM events WHERE conversation_id = 'chat-1'", require="complete")
    assert pruned.fetchall() == [(3,)]
    assert (pruned.coverage.files_read, pruned.coverage.files_pruned) == (0, 1)
    views.after = lambda view: msgspec.structs.replace(view, files=(file,), whole_batches=frozenset({"b"}))
    assert site.store.sql("SELECT count(*) FROM events", require="complete").fetchall() == [(60,)]


def test_a_relation_over_nothing_has_the_columns_and_no_rows() -> None:
    con = open_duckdb(memory_bytes=64 * MIB, threads=1)
    Tail(con, page_bytes_max=MIB)
    for relation in ("events", "hourly_stats", "conversation_summary"):
        table: pa.Table = con.sql(
            f"SELECT * FROM ({relation_sql(relation, Sources(), tail=EMPTY, place=lambda file: file.key)})"
        ).to_arrow_table()
        assert table.num_rows == 0
        assert relation != "events" or tuple(table.column_names) == COLUMN_NAMES
    con.close()
