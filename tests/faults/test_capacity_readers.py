"""Readers that never let go: of a view, of the ledger, of the log. What they hold is bounded, and nothing waits for them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import duckdb
import pytest

from tests.archiving import append, settings_for, settle_all
from tests.killed import purge
from tests.servers import RedisServer
from tests.tidying import FILES_MIN, Archive
from thermocline.archiver.merge import Merger
from thermocline.archiver.settle import Settler
from thermocline.archiver.trim import Trimmer
from thermocline.archiver.worker import Worker
from thermocline.query import status
from thermocline.store import connect
from thermocline.tiers.opening import open_tiers

KEEP_ALL = {"rules": [{"name": "all", "keep": True}]}
COUNT = "SELECT count(*), count(DISTINCT (conversation_id, seq)) FROM events"
SUMS = "SELECT sum(event_count)::INTEGER FROM hourly_stats"


def test_a_view_that_is_pinned_for_ever_answers_as_it_was_or_refuses_while_everything_moves_on(
    tmp_path: Path, server: RedisServer
) -> None:
    with Archive(tmp_path, server, sampling=KEEP_ALL) as archive:
        archive.archive_rounds(FILES_MIN - 1)
        append(archive.tiers, 700)
        settle_all(Settler(archive.tiers, archive.epoch))
        append(archive.tiers, 70, start=700)
        total = 60 * (FILES_MIN - 1) + 770
        con = archive.store.duckdb()
        assert con.sql(COUNT).fetchall() == [(total, total)]
        for number in range(4):
            append(archive.tiers, 70, start=1000 + 70 * number)
            settle_all(Settler(archive.tiers, archive.epoch))
            Trimmer(archive.tiers).step()
            while Merger(archive.tiers, archive.epoch).step(force=True):
                pass
            purge(archive.tiers, archive.epoch)
            assert con.sql(COUNT).fetchall() == [(total, total)], "segments that were purged stay readable"
            assert archive.store.sql(COUNT).fetchall() == [(total + 70 * (number + 1),) * 2]
            files = len(list(archive.settings.namespace_dir.glob("segments/*.duckdb")))
            assert files == len(archive.view().segments), "and do not stay in the folder"
        archive.archive_round()
        assert archive.compact()
        assert con.sql(COUNT).fetchall() == [(total, total)], "archived files stay for their grace"
        purge(archive.tiers, archive.epoch)
        for query in (COUNT, SUMS):  # archived files are read by name
            with pytest.raises(duckdb.Error, match=r"No files found|No such file"):
                con.sql(query).fetchall()
        archive.store.refresh()
        now = total + 4 * 70 + 60
        assert con.sql(COUNT).fetchall() == archive.store.sql(COUNT).fetchall() == [(now, now)]
        assert con.sql(SUMS).fetchall() == [(now,)]
        con.close()
        archive.check()


@pytest.mark.long
def test_a_pinned_view_of_a_bucket_answers_as_it_was_or_refuses(tmp_path: Path, server: RedisServer) -> None:
    with Archive(tmp_path, server, bucket=True, sampling=KEEP_ALL) as archive:
        archive.archive_rounds(FILES_MIN)
        total = 60 * FILES_MIN
        con = archive.store.duckdb()
        assert con.sql(COUNT).fetchall() == [(total, total)]
        assert archive.compact()
        purge(archive.tiers, archive.epoch)
        for query in (COUNT, SUMS):
            try:
                found = con.sql(query).fetchall()
            except duckdb.Error as exc:
                assert "No files found" in str(exc), exc
            else:
                assert found in ([(total, total)], [(total,)]), found
        archive.store.refresh()
        assert con.sql(COUNT).fetchall() == [(total, total)]
        con.close()


def test_a_pinned_view_does_not_hold_the_ledgers_log(tmp_path: Path, server: RedisServer) -> None:
    with connect(settings_for(tmp_path, server)) as store:
        append(store.tiers, 70)
        con = store.duckdb()
        epoch = store.tiers.ledger.take_epoch("test", 0)
        log = Path(f"{store.settings.namespace_dir / 'ledger.db'}-wal")
        settle_all(Settler(store.tiers, epoch))
        for number in range(600):
            store.tiers.ledger.take_epoch("test", number)
        assert con.sql(COUNT).fetchall() == [(70, 70)]
        assert log.stat().st_size < 6 << 20
        assert store.tiers.ledger.checkpoint() == 0
        con.close()


def test_a_process_that_holds_the_ledgers_log_is_told_of_and_when_it_ends_the_log_is_empty_again(
    tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 1 << 20
    monkeypatch.setattr(status, "LEDGER_WAL_BYTES", limit)
    with open_tiers(settings_for(tmp_path, server)) as tiers, connect(tiers.settings) as store:
        append(tiers, 70)
        path = tiers.settings.namespace_dir / "ledger.db"
        stuck = sqlite3.connect(path, isolation_level=None)
        stuck.execute("BEGIN")
        stuck.execute("SELECT count(*) FROM sqlite_master").fetchall()
        log = Path(f"{path}-wal")
        while log.stat().st_size <= limit:
            tiers.ledger.take_epoch("test", 0)
        found = store.status()
        assert found.health == "yellow"
        assert any("ledger.db-wal" in reason and "end the process" in reason for reason in found.reasons), found.reasons
        assert Worker(tiers).once().settled_events == 70
        stuck.close()
        assert tiers.ledger.checkpoint() == 0
        assert log.stat().st_size == 0
        assert all("ledger.db-wal" not in reason for reason in store.status().reasons)


def test_a_group_that_died_with_entries_unread_and_unacknowledged_holds_nothing_in_the_log(
    tmp_path: Path, server: RedisServer
) -> None:
    """Thermocline makes no groups; a log is a Redis stream, so anyone can."""
    hot = {"shards": 2, "cache_window_s": 0, "log_grace_s": 0, "durable_lag_s": 0}
    with connect(settings_for(tmp_path, server, hot=hot)) as store:
        append(store.tiers, 50, conversations=50)
        call = store.tiers.hot.link.call
        logs = [store.tiers.hot.keys.log(shard) for shard in range(2)]
        for log in logs:
            call("XGROUP", "CREATE", log, "dead", "0")
            call("XREADGROUP", "GROUP", "dead", "gone", "COUNT", 10, "STREAMS", log, ">")
        for number in range(5):
            append(store.tiers, 50, conversations=50, start=50 + 50 * number)
            Worker(store.tiers).once()
        assert [call("XLEN", log) for log in logs] == [0, 0]
        assert [call("XPENDING", log, "dead")[0] for log in logs] == [10, 10], "its own list, bounded by what it read"
        assert store.sql(COUNT).fetchall() == [(300, 300)]
        assert store.verify(deep=True).problems == ()
        found = store.status()
        assert (found.health, found.cached.events) == ("green", 0)
