"""Failures that users of other systems met and reported, each as a test of this one: whoever had it there will not have it here.

Every test is named after the failure and says in its docstring where it was reported.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy

from tests.archiving import append, settings_for, settle_all
from tests.conftest import StartServer
from tests.filled import Filler
from tests.killed import LATER_US, killed_at, purge
from tests.s3_front import Front
from tests.s3_servers import Bucket
from tests.servers import RedisServer, aof_tail
from tests.tidying import DAY_US, FILES_MIN, Archive, breaking_at
from tests.waiting import wait_until
from thermocline.archiver.archive import Archiver
from thermocline.archiver.merge import Merger
from thermocline.archiver.purge import Purger
from thermocline.archiver.recover import recover
from thermocline.archiver.settle import Settler
from thermocline.archiver.trim import Trimmer
from thermocline.archiver.worker import Worker
from thermocline.config import Settings
from thermocline.errors import ConfigError, LeaseHeld, TierUnavailable
from thermocline.ingest.append import Client
from thermocline.store import Store, connect
from thermocline.tiers.cold_schema import KINDS
from thermocline.tiers.opening import open_tiers
from thermocline.tiers.redis_link import Link

KEEP_ALL = {"rules": [{"name": "all", "keep": True}]}
COUNTS = "SELECT count(*), count(DISTINCT (conversation_id, seq)) FROM events"
STATISTICS = ("SELECT * FROM hourly_stats ORDER BY ALL", "SELECT * FROM conversation_summary ORDER BY ALL")
SETTLE_AND_DIE = """
import os, signal, sys
from pathlib import Path
import msgspec
from thermocline.archiver.lease import Lease
from thermocline.archiver.settle import Settler
from thermocline.config import load
from thermocline.tiers.opening import open_tiers
from thermocline.tiers.redis_link import Link
settings = load(msgspec.json.decode(Path(sys.argv[1]).read_bytes()), environ={})
with open_tiers(settings) as tiers:
    assert Settler(tiers, Lease(settings.namespace_dir, tiers.ledger).epoch).step(force=True).events
    os.kill(os.getpid(), signal.SIGKILL)
"""
WORK = """
import resource, sys
from pathlib import Path
import msgspec
from thermocline.archiver.worker import Worker
from thermocline.config import load
from thermocline.tiers.opening import open_tiers
from thermocline.tiers.redis_link import Link
with open_tiers(load(msgspec.json.decode(Path(sys.argv[1]).read_bytes()), environ={})) as tiers:
    report = Worker(tiers).once()
assert report.problem is None, report.problem
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, report.archived_events, report.expired_events)
"""


def statistics(store: Store) -> list[object]:
    return [store.sql(query).to_arrow() for query in STATISTICS]


def counts(store: Store) -> tuple[int, int]:
    [(rows, distinct)] = store.sql(COUNTS).fetchall()
    return rows, distinct


def in_a_process(code: str, settings: Settings) -> subprocess.CompletedProcess[str]:
    file = settings.data_dir / "settings.json"
    file.write_bytes(msgspec.json.encode(settings.model_dump(mode="json")))
    return subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, timeout=1800)


# Append


def test_a_crash_between_dedup_mark_and_write_then_a_retry_leaves_the_event_exactly_once(
    tmp_path: Path, redis_server: StartServer
) -> None:
    """langfuse#16017: a worker marked an event as seen, died before it wrote it, and the retry was dropped as a duplicate.

    Here mark and event are one script. Redis is killed with every part of what that script wrote on disk, from nothing to all of
    it, and a new process appends the event again under its id.
    """
    server = redis_server(options={"appendfsync": "always"})
    settings = settings_for(tmp_path, server, hot={"shards": 1})
    parts = 7
    for part in range(parts + 1):
        event_id = f"0198f3a0-5b7c-7e11-9f00-{part:012d}"
        with Client(settings) as client:
            client.append("c", "t", f"before {part}")
            begin = aof_tail(server.folder).stat().st_size
            client.append("c", "t", f"event {part}", event_id=event_id)
            written = aof_tail(server.folder).stat().st_size - begin
        server.kill()
        server.cut_aof(written - written * part // parts)
        server.start()
        with connect(settings) as store, Client(settings, tiers=store.tiers) as client:
            assert client.append("c", "t", f"event {part}", event_id=event_id).seq > 0
            wait_until(lambda link=store.tiers.hot.link: is_written_anew(link), 30, "Redis writes its file anew")
    with connect(settings) as store:
        found = Counter(text for (text,) in store.sql("SELECT content FROM events").fetchall())
        assert found == Counter(f"{what} {part}" for what in ("before", "event") for part in range(parts + 1))
        assert Worker(store.tiers).once().problem is None
        assert counts(store) == (2 * (parts + 1), 2 * (parts + 1))


def is_written_anew(link: Link) -> bool:
    """Whether Redis has done what it is asked to after a crash: what one left in its file is gone from it."""
    found = link.call("INFO", "persistence")
    return b"aof_rewrite_in_progress:0" in found and b"aof_rewrite_scheduled:0" in found


# Moving between tiers


def test_a_mover_killed_after_the_warm_commit_and_before_the_trim_run_again_leaves_the_counts_equal(
    tmp_path: Path, server: RedisServer
) -> None:
    """ducklake#650, Altinity PR#1618: rows were in both places, or exported twice, when the mover died between its two steps."""
    settings = settings_for(tmp_path, server, hot={"cache_window_s": 0, "log_grace_s": 0})
    with connect(settings) as store:
        append(store.tiers, 300)
        assert in_a_process(SETTLE_AND_DIE, settings).returncode == -signal.SIGKILL
        assert sum(state.events for state in store.tiers.ledger.view().shards) == 300
        assert sum(cut.entries for cut in store.tiers.hot.cut()) > 0, "nothing was trimmed yet"
        assert counts(store) == (300, 300)
        for _ in range(2):
            assert Worker(store.tiers).once().problem is None
            assert counts(store) == (300, 300)
        assert sum(cut.entries for cut in store.tiers.hot.cut()) == 0
        assert store.verify(deep=True).problems == ()


@pytest.mark.parametrize("step", ["publish done", pytest.param("commit done", marks=pytest.mark.long)])
def test_a_mover_killed_after_the_cold_commit_and_before_the_warm_delete_run_again_leaves_the_counts_equal(
    tmp_path: Path, server: RedisServer, step: str
) -> None:
    """Altinity PR#1618, ducklake#650: killed when the files are visible in the archive's table, or in our ledger too."""
    with Archive(tmp_path, server, sampling=KEEP_ALL) as archive:
        append_old(archive, 210)
        settle_all(Settler(archive.tiers, archive.epoch))
        before = archive.contents()
        archive.close()
        killed_at(step, "archive", archive.settings)
        archive.open()
        assert archive.contents() == before
        for _ in range(2):
            assert Worker(archive.tiers).once().problem is None
            assert archive.contents() == before
        archive.epoch = archive.tiers.ledger.take_epoch("test", archive.now_us)
        purge(archive.tiers, archive.epoch)
        assert archive.contents() == before
        assert sum(file.rows for file in archive.files("events")) == 210
        assert archive.view().segments == ()
        archive.check()


def append_old(archive: Archive, count: int, **fields: Any) -> None:
    """Events of 12 and 11 days ago in seven conversations."""
    first_us = (archive.now_us // DAY_US - 12) * DAY_US
    with Client(archive.settings, tiers=archive.tiers) as client:
        client.append_many(
            {
                "conversation_id": f"c{number % 7}",
                "event_type": ("output.chunk", "tool.call", "error")[number % 3],
                "content": str(number),
                "cost_usd": number / 7,
                "timestamp": first_us + number * 2 * DAY_US // count,
                **fields,
            }
            for number in range(count)
        )


def test_a_reader_in_a_loop_during_every_move_sees_no_count_dip_double_or_error(tmp_path: Path, server: RedisServer) -> None:
    """ducklake#1413: while rows moved from the inlined table to files a reader saw them in neither, in both, or an error."""
    with Archive(tmp_path, server, sampling=KEEP_ALL, warm={"settle_batch_events": 1000}) as archive:
        archive.archive_rounds(FILES_MIN - 1)
        append_old(archive, 2100)
        total = 60 * (FILES_MIN - 1) + 2100
        clock = [0.0]
        trimmer = Trimmer(archive.tiers, monotonic=lambda: clock[0])
        with Looking(archive.settings, total) as looking:
            settler = Settler(archive.tiers, archive.epoch)
            assert [looking.during(settler.step, force=True).events for _ in range(4)] == [900, 900, 300, 0]
            trimmer.step()
            clock[0] += 86_400
            assert looking.during(trimmer.step) > 0
            assert looking.during(Merger(archive.tiers, archive.epoch).step, force=True)
            assert looking.during(Archiver(archive.tiers, archive.epoch).step)
            assert looking.during(archive.compact)
            looking.during(lambda: purge(archive.tiers, archive.epoch))
        assert looking.wrong == []
        archive.check()
        archive.check_clean()


class Looking:
    """A thread that counts over and over, through a store of its own, while things move."""

    def __init__(self, settings: Settings, total: int) -> None:
        self.looks = 0
        self.wrong: list[str] = []
        self._settings = settings
        self._total = total
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        with connect(self._settings) as store:
            while not self._over.is_set():
                try:
                    found = counts(store)
                    [(by_hour,)] = store.sql("SELECT sum(event_count) FROM hourly_stats").fetchall()
                except Exception as exc:  # whatever it is, a reader should not see it
                    self.wrong.append(f"{type(exc).__name__}: {exc}")
                else:
                    if {*found, by_hour} != {self._total}:
                        self.wrong.append(f"{found}, {by_hour} by hour, not {self._total}")
                self.looks += 1

    def during(self, move: Callable[..., Any], **how: Any) -> Any:
        """What `move` gives, with looks before it, while it runs, and after."""
        self._wait_for_looks()
        found = move(**how)
        self._wait_for_looks()
        return found

    def _wait_for_looks(self) -> None:
        seen = self.looks
        wait_until(lambda: self.looks > seen + 1, 30, "the reader looks")

    def __enter__(self) -> Looking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def test_a_group_by_over_all_tiers_gives_one_row_for_each_key(tmp_path: Path, server: RedisServer) -> None:
    """Altinity#2102: GROUP BY over hot and cold tables gave a row for each segment instead of one for each key."""
    with Archive(tmp_path, server, sampling=KEEP_ALL) as archive:
        archive.archive_rounds(2)
        for place in ("merged", "merged", "settled", "hot"):
            append_old(archive, 210, timestamp=archive.now_us)
            append_old(archive, 210)
            if place != "hot":
                settle_all(Settler(archive.tiers, archive.epoch))
            if place == "merged" and len(archive.view().segments) > 1:
                assert Merger(archive.tiers, archive.epoch).step(force=True)
        coverage = archive.store.sql(COUNTS).coverage
        assert min(coverage.hot_rows, coverage.warm_rows, coverage.cold_rows) > 0
        assert len(archive.view().segments) > 1
        assert len(archive.files("events")) > 1
        total = 2 * 60 + 4 * 420
        for key in ("event_type", "conversation_id", "event_type, conversation_id", "date_trunc('day', timestamp)"):
            rows = archive.store.sql(f"SELECT {key}, count(*) AS n FROM events GROUP BY ALL").fetchall()
            assert len({row[:-1] for row in rows}) == len(rows), key
            assert sum(row[-1] for row in rows) == total, key
        for relation, key in (("hourly_stats", "hour, conversation_id"), ("conversation_summary", "conversation_id")):
            assert archive.store.sql(f"SELECT {key} FROM {relation} GROUP BY ALL HAVING count(*) > 1").fetchall() == []


def test_trim_never_removes_an_entry_that_has_not_settled_whatever_groups_have_read_it(
    tmp_path: Path, server: RedisServer
) -> None:
    """Redis' XTRIM takes entries that are pending in a group (KEEPREF, its default), so that they are lost for whoever had them.

    Here an entry may go when it is in a segment, and not before: not when a group of someone else has read it, nor when one has
    acknowledged it, nor when the log is over its budget.
    """
    hot = {"shards": 1, "cache_window_s": 0, "log_grace_s": 0, "unsettled_blocks_max": 100}
    settings = settings_for(tmp_path, server, hot=hot)
    with connect(settings) as store:
        log = store.tiers.hot.keys.log(0)
        append(store.tiers, 70, conversations=70)
        store.tiers.hot.link.call("XGROUP", "CREATE", log, "theirs", "0")
        read = store.tiers.hot.link.call("XREADGROUP", "GROUP", "theirs", "me", "COUNT", 60, "STREAMS", log, ">")
        ids = [entry_id for entry_id, _ in read[0][1]]
        store.tiers.hot.link.call("XACK", log, "theirs", *ids[:30])
        trimmer = Trimmer(store.tiers)
        for _ in range(3):
            assert trimmer.step() == 0
        assert counts(store) == (70, 70)
        Settler(store.tiers, store.tiers.ledger.take_epoch("test", 0)).step(force=True)
        append(store.tiers, 20, conversations=20, start=70)
        for _ in range(3):
            trimmer.step()
        [cut] = store.tiers.hot.cut()
        assert cut.entries == 20
        assert counts(store) == (90, 90)
        assert store.verify(deep=True).problems == ()


def test_a_redis_that_may_evict_keys_is_refused_at_the_start_by_whoever_starts(tmp_path: Path, redis_server: StartServer) -> None:
    """redis#8842: with an eviction policy for all keys a full Redis drops whole streams, silently."""
    server = redis_server(options={"maxmemory": "64mb"})
    settings = settings_for(tmp_path, server)
    with Client(settings) as client:
        client.append("c", "t", "1")
    for policy in ("allkeys-lru", "volatile-ttl", "allkeys-random"):
        server.stop()
        server.options["maxmemory-policy"] = policy
        server.start()
        with pytest.raises(ConfigError, match="maxmemory-policy noeviction"), Client(settings) as client:
            client.append("c", "t", "2")
        with pytest.raises(ConfigError, match="maxmemory-policy noeviction"):
            open_tiers(settings)
    server.stop()
    server.options["maxmemory-policy"] = "noeviction"
    server.start()
    with connect(settings) as store:
        assert counts(store) == (1, 1)


# Rollups, sampling and retention


def test_a_rollup_made_again_after_raw_rows_were_sampled_out_and_expired_loses_no_total(
    tmp_path: Path, server: RedisServer
) -> None:
    """timescaledb#2198, timescaledb PR#9811, ClickHouse#70023: refreshing a rollup over raw rows that retention, tiering or TTL
    had taken gave smaller totals, or none."""
    rules = [{"name": "errors", "event_types": ["error"], "keep": True}, {"name": "rest", "rate": 0.1}]
    with Archive(tmp_path, server, sampling={"rules": rules}, cold={"retention_days": 11}) as archive:
        archive.archive_rounds()
        append_old(archive, 210)
        before = statistics(archive.store)
        settle_all(Settler(archive.tiers, archive.epoch))
        assert statistics(archive.store) == before
        batch = Archiver(archive.tiers, archive.epoch).step()
        assert batch is not None
        assert batch.events_kept < batch.events_in
        assert statistics(archive.store) == before
        assert archive.compact()
        assert statistics(archive.store) == before
        days = {file.day for file in archive.files("events")}
        assert archive.expire()
        assert {file.day for file in archive.files("events")} < days
        purge(archive.tiers, archive.epoch)
        assert statistics(archive.store) == before
        archive.close()
        recover(archive.settings, force=True)
        archive.open()
        assert statistics(archive.store) == before
        late = archive.now_us // DAY_US * DAY_US - 12 * DAY_US
        append_old(archive, 7, timestamp=late)
        with_late = statistics(archive.store)
        assert with_late != before
        assert Worker(archive.tiers).once().problem is None
        assert statistics(archive.store) == with_late


def test_an_event_eight_days_late_lands_in_cold_is_counted_once_and_corrects_the_rollups_and_the_receipt_shows_it(
    tmp_path: Path, server: RedisServer
) -> None:
    """QuestDB's cold storage takes no row for a partition that was moved; timescaledb#1428: late inserts into compressed chunks
    failed."""
    query = "SELECT count(*) FROM events WHERE content = 'late'"
    by_day = "SELECT sum(event_count) FROM hourly_stats WHERE hour::DATE = ?::DATE"
    late_us = time.time_ns() // 1000 - 8 * DAY_US
    with Archive(tmp_path, server, sampling=KEEP_ALL) as archive:
        append_old(archive, 70, timestamp=late_us - 1)
        settle_all(Settler(archive.tiers, archive.epoch))
        assert Worker(archive.tiers).once().archived_events == 70
        day = archive.files("events")[0].day
        append_old(archive, 1, content="late", timestamp=late_us)
        for place in ("hot_rows", "warm_rows", "cold_rows"):
            result = archive.store.sql(query)
            assert result.fetchall() == [(1,)], place
            coverage = result.coverage
            assert [coverage.hot_rows, coverage.warm_rows, coverage.cold_rows - 70] == [
                int(place == name) for name in ("hot_rows", "warm_rows", "cold_rows")
            ]
            assert coverage.exact
            assert archive.store.sql(by_day, [day]).fetchall() == [(71,)], place
            if place == "hot_rows":
                epoch = archive.tiers.ledger.take_epoch("test", archive.now_us)
                settle_all(Settler(archive.tiers, epoch))
            else:
                Worker(archive.tiers).once()
        assert {file.day for file in archive.files("events")} == {day}
        assert archive.store.sql(COUNTS, require="complete").fetchall() == [(71, 71)]


def test_a_late_error_in_a_sampled_conversation_has_the_weight_of_an_error_and_not_of_its_conversation(
    tmp_path: Path, server: RedisServer
) -> None:
    """refinery#973: a late span got the sample rate of its trace's decision, so one error counted as 300."""
    rules = [{"name": "errors", "event_types": ["error"], "keep": True}, {"name": "rest", "rate": 1 / 300}]
    weighed = "SELECT count(*), sum(1 / sample_rate) FROM events WHERE event_type = 'error'"
    with Archive(tmp_path, server, sampling={"rules": rules}) as archive:
        append_old(archive, 2100, event_type="output.chunk")
        settle_all(Settler(archive.tiers, archive.epoch))
        assert Worker(archive.tiers).once().archived_kept < 100
        append_old(archive, 1, event_type="error")
        append_old(archive, 300, event_type="output.chunk", content="late")
        assert Worker(archive.tiers).once().archived_events == 301
        assert archive.view().segments == ()
        assert archive.store.sql(weighed).fetchall() == [(1, 1.0)]
        rates = archive.store.sql("SELECT DISTINCT sample_rate FROM events WHERE event_type <> 'error'").fetchall()
        assert rates == [(1 / 300,)]


def test_a_retention_rule_for_one_type_cannot_take_a_type_that_it_does_not_list(tmp_path: Path, server: RedisServer) -> None:
    """loki#4409: a rule for one stream took, or the default beside it took, what no rule named."""
    by_type = "SELECT event_type, count(*) FROM events GROUP BY ALL ORDER BY ALL"
    rules = [
        {"name": "chunks", "event_types": ["output.chunk"], "rate": 0},
        {"name": "slip", "event_types": ["tool.cal", "err", "output"], "rate": 0},
    ]
    with Archive(tmp_path, server, sampling={"rules": rules}) as archive:
        append_old(archive, 210)
        append_old(archive, 10, event_type="output.chunks")
        append_old(archive, 10, event_type="never.heard.of")
        before = dict(archive.store.sql(by_type).fetchall())
        assert before.pop("output.chunk") == 70
        settle_all(Settler(archive.tiers, archive.epoch))
        assert Worker(archive.tiers).once().archived_events == 230
        assert archive.view().segments == ()
        assert dict(archive.store.sql(by_type).fetchall()) == before


# Commits


@pytest.mark.parametrize("step", ["publish", *(pytest.param(step, marks=pytest.mark.long) for step in ("describe", "commit"))])
def test_a_failed_commit_is_never_followed_by_a_delete(tmp_path: Path, server: RedisServer, step: str) -> None:
    """pg_ducklake PR#216: when the commit of the new place failed, the delete in the old one was committed all the same."""
    with Archive(tmp_path, server, sampling=KEEP_ALL) as archive:
        archive.archive_rounds(FILES_MIN)
        append_old(archive, 210)
        settle_all(Settler(archive.tiers, archive.epoch))
        before, segments = archive.contents(), archive.view().segments
        away = breaking_at(step, TierUnavailable("the commit fails"))
        moves = (lambda: Archiver(archive.tiers, archive.epoch, reach=away).step(), lambda: archive.compact(away))
        for move in moves:
            with pytest.raises(TierUnavailable, match="the commit fails"):
                move()
            for _ in range(2):
                Purger(archive.tiers, archive.epoch).step(now_us=time.time_ns() // 1000 + LATER_US)
                archive.clean(days=40)
            assert archive.contents() == before
            assert archive.view().segments == segments
        assert Worker(archive.tiers).once().problem is None
        assert archive.contents() == before
        assert archive.view().segments == ()


def test_a_commit_that_another_worker_has_overtaken_is_never_followed_by_a_delete(tmp_path: Path, server: RedisServer) -> None:
    """pg_ducklake PR#216: here the ledger itself refuses the commit."""
    with Archive(tmp_path, server, sampling=KEEP_ALL) as archive:
        append_old(archive, 210)
        settle_all(Settler(archive.tiers, archive.epoch))
        before, segments = archive.contents(), archive.view().segments

        def overtake(reached: str) -> None:
            if reached == "commit":
                archive.tiers.ledger.take_epoch("another", archive.now_us)

        with pytest.raises(LeaseHeld):
            Archiver(archive.tiers, archive.epoch, reach=overtake).step()
        assert Purger(archive.tiers, archive.epoch).step(now_us=time.time_ns() // 1000 + LATER_US).files == 0
        assert archive.contents() == before
        assert archive.view().segments == segments
        assert Worker(archive.tiers).once().problem is None
        assert archive.contents() == before


# Bounds


@pytest.mark.parametrize("events", [120_000, pytest.param(10_000_000, marks=pytest.mark.long)])
def test_archiving_and_expiring_many_events_runs_in_bounded_memory(
    tmp_path: Path, server: RedisServer, events: int, record_property: Callable[[str, object], None]
) -> None:
    """phoenix PR#13909: retention loaded the rows that it was to delete, and the process ran out of memory."""
    hot = {"cache_window_s": 0, "log_grace_s": 0, "timeout_s": 60}
    settings = settings_for(tmp_path, server, hot=hot, cold={"retention_days": 10})
    once = min(events, 1_000_000)
    memory = []
    with open_tiers(settings) as tiers, closing(Filler(tiers, ages_days=range(8, 14))) as filler:
        for _ in range(events // once):
            filler.append(once)
            done = in_a_process(WORK, settings)
            assert done.returncode == 0, done.stderr
            used, archived, _ = map(int, done.stdout.split())
            memory.append(used)
            record_property("memory_kib", used)
            assert archived == once
        view = tiers.ledger.view()
        assert view.segments == ()
        totals = view.totals
        assert sum(one.kept + one.sampled_out + one.erased for one in totals) == events
        assert sum(one.erased for one in totals) > 0
        assert {file.day for file in view.files if file.kind == "events"} <= days_ago(8, 9, 10, 11)  # midnight may pass
    assert max(memory) < 1 << 20, memory  # KiB


def days_ago(*ages: int) -> set[str]:
    today_us = time.time_ns() // 1000 // DAY_US * DAY_US
    return {time.strftime("%Y-%m-%d", time.gmtime((today_us - age * DAY_US) / 1e6)) for age in ages}


@pytest.fixture
def counting(moto_bucket: Bucket) -> Iterator[Front]:
    with Front(moto_bucket.endpoint_url, lambda method, number: None) as front:
        yield front


@pytest.mark.parametrize("conversations", [3000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_archiving_many_conversations_takes_few_puts_few_files_and_few_rows_of_the_ledger(
    tmp_path: Path,
    server: RedisServer,
    moto_bucket: Bucket,
    counting: Front,
    conversations: int,
    record_property: Callable[[str, object], None],
) -> None:
    """langfuse#10077 and #12555, temporal#10367: an object and a row of bookkeeping for each conversation or event made archiving
    cost more than storing.

    PUTs <= 1 + 8 x kinds for each batch, plus one for each file; files <= days + kinds for each batch, plus one for each
    cold.file_bytes_max; rows of the ledger <= those of its files, batches and shards, and a few.
    """
    cold = {"endpoint_url": counting.url, "deadline_s": 600}
    settings = settings_for(tmp_path, server, cold_url=moto_bucket.url, cold=cold, hot={"cache_window_s": 0, "timeout_s": 60})
    days, at_once = 2, 50_000
    old_us = (time.time_ns() // 1000 // DAY_US - 9) * DAY_US
    with connect(settings) as store, Client(settings, tiers=store.tiers) as client:
        for start in range(0, conversations, at_once):
            client.append_many(
                {"conversation_id": f"chat {number}", "event_type": "error", "timestamp": old_us + number % days * DAY_US}
                for number in range(start, min(conversations, start + at_once))
            )
            Settler(store.tiers, store.tiers.ledger.take_epoch("test", 0)).step(force=True)
        counting.count.clear()
        report = Worker(store.tiers).once()
        assert report.problem is None
        assert report.archived_kept == conversations
        view = store.tiers.ledger.view()
        batches = len(store.tiers.ledger.batches())
        size = sum(file.file_bytes for file in view.files)
        record_property("requests", dict(counting.count))
        record_property("stored", f"{len(view.files)} files of {size} bytes in {batches} batches")
        full = size // settings.cold.file_bytes_max
        assert batches <= 1 + conversations // 1_000_000
        assert len(view.files) <= batches * (days + len(KINDS) - 1) + full
        assert counting.count["PUT"] <= batches * (1 + 8 * len(KINDS)) + len(view.files)
        assert sum(ledger_rows(settings).values()) < 8 * (len(view.files) + batches + settings.hot.shards) + 50
        if conversations < 100_000:
            assert counts(store) == (conversations, conversations)


def ledger_rows(settings: Settings) -> dict[str, int]:
    """Rows of every table of the ledger."""
    engine = sqlalchemy.create_engine(f"sqlite:///{settings.namespace_dir / 'ledger.db'}")
    try:
        with engine.connect() as con:
            tables = sqlalchemy.inspect(con).get_table_names()
            return {name: con.execute(sqlalchemy.text(f'SELECT count(*) FROM "{name}"')).scalar_one() for name in tables}
    finally:
        engine.dispose()
