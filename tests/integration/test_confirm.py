"""A Redis that comes back different: what is noticed, what is declared, and what no seq is ever given twice."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.embedded_users import wait_gone
from tests.servers import RedisServer
from thermocline.archiver.recover import recover
from thermocline.archiver.worker import Worker
from thermocline.config import Settings, load
from thermocline.errors import ConfigError, TierCorrupt, TierUnavailable
from thermocline.event import Event, Receipt
from thermocline.ingest.append import Client
from thermocline.store import connect
from thermocline.tiers.embedded import stop
from thermocline.tiers.opening import Tiers, open_tiers

CONVERSATIONS = [f"chat-{number}" for number in range(40)]


class Stand:
    """One Redis, one data directory, and the receipts of everything appended."""

    def __init__(self, redis_binary: Path, folder: Path, fsync: str) -> None:
        self.server = RedisServer(redis_binary, folder / "server", options={"appendfsync": fsync})
        self.server.start()
        self.settings = self.settings_for(folder / "data")
        self.receipts: list[Receipt] = []

    def settings_for(self, data_dir: Path, **more: object) -> Settings:
        overrides = {"data_dir": data_dir, "redis_url": self.server.url, "hot": {"durable_lag_s": 0}, **more}
        return load(overrides, environ={})

    def append(self, rounds: int = 1) -> None:
        with Client(self.settings) as client:
            for _ in range(rounds):
                events = [Event(conversation_id=name, event_type="t", content=name) for name in CONVERSATIONS]
                self.receipts += client.append_many(events)

    def work(self) -> None:
        with open_tiers(self.settings) as tiers:
            Worker(tiers).once()

    def restart(self) -> None:
        self.server.kill()
        self.server.start()

    def given_twice(self) -> int:
        places = [(receipt.conversation_id, receipt.seq) for receipt in self.receipts]
        return len(places) - len(set(places))

    def stored(self) -> set[tuple[str, int]]:
        with connect(self.settings) as store:
            rows = store.sql("SELECT conversation_id, seq FROM events").fetchall()
            assert store.verify().ok
        assert len(rows) == len(set(rows))
        return set(rows)

    def declared(self) -> int:
        with open_tiers(self.settings) as tiers:
            return sum(loss.events for loss in tiers.ledger.view().losses)

    def missing(self) -> int:
        return len({(receipt.conversation_id, receipt.seq) for receipt in self.receipts} - self.stored())


@pytest.fixture
def stand(redis_binary: Path, tmp_path: Path) -> Iterator[Callable[[str], Stand]]:
    made: list[Stand] = []

    def make(fsync: str) -> Stand:
        made.append(Stand(redis_binary, tmp_path, fsync))
        return made[-1]

    yield make
    for one in made:
        one.server.stop()


def observe(tiers: Tiers) -> None:
    """What the worker does at every pass: write down how far Redis is."""
    cut = tiers.hot.cut()
    tiers.ledger.observed({shard.shard: (shard.events_total, shard.last) for shard in cut}, now_us=1)


def test_after_a_kill_under_always_nothing_is_missing_and_no_number_skips(stand: Callable[[str], Stand]) -> None:
    one = stand("always")
    one.append(3)
    one.restart()
    one.append(1)
    assert {receipt.seq for receipt in one.receipts} == {1, 2, 3, 4}
    assert one.missing() == 0 and one.declared() == 0


def test_after_a_kill_under_everysec_numbers_skip_a_million(stand: Callable[[str], Stand]) -> None:
    one = stand("everysec")
    one.append(2)
    one.restart()
    one.append(1)
    assert {receipt.seq for receipt in one.receipts[-len(CONVERSATIONS) :]} <= {1_000_001, 1_000_002, 1_000_003}
    assert one.given_twice() == 0 and one.missing() == one.declared()


def test_a_cut_tail_of_the_append_only_file_is_declared_and_no_number_is_given_twice(stand: Callable[[str], Stand]) -> None:
    one = stand("everysec")
    one.append(3)
    one.work()
    one.append(5)
    with open_tiers(one.settings) as tiers:
        observe(tiers)
    one.server.stop()
    one.server.cut_aof(30_000)
    one.server.start()
    one.append(2)
    lost = one.missing()
    assert lost > 0 and lost == one.declared()
    assert one.given_twice() == 0
    one.work()
    assert one.missing() == lost
    with connect(one.settings) as store:
        assert sum(loss.events for loss in store.verify().losses) == lost


def test_a_producer_that_lived_through_it_reports_what_the_worker_had_not_seen(stand: Callable[[str], Stand]) -> None:
    one = stand("everysec")
    one.append(1)
    with Client(one.settings) as client:
        events = [Event(conversation_id=name, event_type="t") for name in CONVERSATIONS]
        for _ in range(5):
            one.receipts += client.append_many(events)
        one.server.stop()
        one.server.cut_aof(30_000)
        one.server.start()
        with open_tiers(one.settings):
            pass
        one.receipts += client.append_many(events)
    one.work()
    lost = one.missing()
    assert lost > 0 and lost == one.declared()
    assert one.given_twice() == 0


def test_a_wiped_redis_goes_on_after_what_has_settled(stand: Callable[[str], Stand]) -> None:
    one = stand("always")
    one.append(3)
    one.work()
    one.append(1)
    with open_tiers(one.settings) as tiers:
        observe(tiers)
        tiers.hot.link.call("FLUSHALL")
    one.append(1)
    assert {receipt.seq for receipt in one.receipts[-len(CONVERSATIONS) :]} == {1_000_004}
    assert one.missing() == len(CONVERSATIONS) == one.declared()
    one.work()
    assert one.missing() == len(CONVERSATIONS) and one.given_twice() == 0


def test_a_redis_wiped_while_somebody_confirmed_it_is_confirmed_by_the_next(stand: Callable[[str], Stand]) -> None:
    one = stand("always")
    one.append(3)
    one.work()
    with open_tiers(one.settings) as tiers:
        tiers.hot.link.call("FLUSHALL")
        for shard in range(tiers.hot.shards):  # the last that the other one writes
            tiers.hot.put_meta(shard, {"era": 0, "run": tiers.hot.facts().run_id})
    one.append(1)
    assert one.missing() == 0 and one.given_twice() == 0


def test_a_producer_goes_on_after_redis_was_wiped_and_confirmed(stand: Callable[[str], Stand]) -> None:
    one = stand("always")
    with Client(one.settings) as client:
        events = [Event(conversation_id=name, event_type="t") for name in CONVERSATIONS]
        one.receipts += client.append_many(events)
        one.work()
        with open_tiers(one.settings) as tiers:
            tiers.hot.link.call("FLUSHALL")
            tiers.reconfirm()
        one.receipts += client.append_many(events)
    assert one.missing() == 0 and one.given_twice() == 0


def test_a_wipe_confirmed_half_way_is_finished_by_the_next(
    stand: Callable[[str], Stand], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = stand("always")
    one.append(2)
    one.work()
    with open_tiers(one.settings) as tiers:
        tiers.hot.link.call("DEL", *(tiers.hot.keys.meta(shard) for shard in range(0, 16, 2)))
        put, calls = tiers.hot.put_meta, []

        def dies_at_the_fifth(shard: int, fields: dict[str, str | int]) -> None:
            calls.append(shard)
            if len(calls) == 5:
                raise TierUnavailable("killed here")
            put(shard, fields)

        monkeypatch.setattr(tiers.hot, "put_meta", dies_at_the_fifth)
        with pytest.raises(TierUnavailable, match="killed here"):
            tiers.reconfirm()
    one.append(1)
    assert one.missing() == 0 and one.given_twice() == 0


def test_a_redis_restored_from_before_what_settled_goes_on_from_the_ledger(stand: Callable[[str], Stand]) -> None:
    one = stand("everysec")
    one.append(2)
    one.server.stop()
    shutil.copytree(one.server.folder, one.settings.data_dir / "copy")
    one.server.start()
    one.append(3)
    one.work()
    one.server.stop()
    shutil.rmtree(one.server.folder)
    shutil.copytree(one.settings.data_dir / "copy", one.server.folder)
    one.server.start()
    one.append(1)
    one.work()
    assert one.given_twice() == 0
    assert one.missing() == one.declared() == 0


def test_the_redis_of_another_store_is_refused(stand: Callable[[str], Stand], tmp_path: Path) -> None:
    one = stand("always")
    one.append(1)
    with pytest.raises(ConfigError, match="another data directory"):
        open_tiers(one.settings_for(tmp_path / "other"))
    with open_tiers(one.settings) as tiers:
        for shard in range(16):
            tiers.hot.put_meta(shard, {"inc": "e" * 32, "prev": ""})
    with pytest.raises(ConfigError, match="belongs to another store"):
        open_tiers(one.settings)


def test_a_redis_that_may_evict_is_refused_with_the_setting_to_change(redis_binary: Path, tmp_path: Path) -> None:
    server = RedisServer(redis_binary, tmp_path / "server", options={"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"})
    server.start()
    with pytest.raises(ConfigError, match="maxmemory-policy noeviction"):
        open_tiers(load({"data_dir": tmp_path / "data", "redis_url": server.url}, environ={}))
    server.stop()


def test_a_redis_without_a_file_is_refused_unless_volatile_is_accepted(redis_binary: Path, tmp_path: Path) -> None:
    server = RedisServer(redis_binary, tmp_path / "server", options={"appendonly": "no"})
    server.start()
    overrides = {"data_dir": tmp_path / "data", "redis_url": server.url}
    with pytest.raises(ConfigError, match="allow_volatile"):
        open_tiers(load(overrides, environ={}))
    with Client(load({**overrides, "hot": {"allow_volatile": True}}, environ={})) as client:
        assert client.append("chat", "t").durability == "memory"
    server.stop()


def test_other_shards_than_at_creation_are_refused_with_the_right_number(stand: Callable[[str], Stand]) -> None:
    one = stand("always")
    one.append(1)
    with pytest.raises(ConfigError, match=r"set hot.shards = 16"):
        open_tiers(load({"data_dir": one.settings.data_dir, "redis_url": one.server.url, "hot": {"shards": 8}}, environ={}))


def test_a_store_that_cannot_be_opened_leaves_no_embedded_server(data_dir: Path) -> None:
    open_tiers(load({"data_dir": data_dir, "hot": {"shards": 2}}, environ={})).close()
    with pytest.raises(ConfigError, match=r"set hot.shards = 2"):
        open_tiers(load({"data_dir": data_dir, "hot": {"shards": 4}}, environ={}))
    wait_gone(data_dir)


def test_a_ledger_of_another_format_stops_whoever_opens_it(stand: Callable[[str], Stand]) -> None:
    one = stand("always")
    one.append(1)
    with sqlite3.connect(one.settings.namespace_dir / "ledger.db") as con:
        con.execute("UPDATE identity SET value = '9' WHERE key = 'format'")
    con.close()
    with pytest.raises(TierCorrupt, match="the ledger of 'default' has format '9', this version knows 1"):
        open_tiers(one.settings)
    with sqlite3.connect(one.settings.namespace_dir / "ledger.db") as con:
        con.execute("UPDATE identity SET value = '1' WHERE key = 'format'")
    con.close()
    assert one.missing() == 0


def test_a_namespace_folder_that_cannot_be_written_is_named(stand: Callable[[str], Stand]) -> None:
    one = stand("always")
    (one.settings.namespace_dir / "confirm.lock").mkdir(parents=True)
    with pytest.raises(TierUnavailable, match=r"confirm\.lock: Is a directory; data_dir must be a folder"):
        open_tiers(one.settings)


def test_ids_of_a_clock_that_was_two_hours_ahead_settle_like_any_other(stand: Callable[[str], Stand]) -> None:
    """Redis keeps stream ids growing when its clock jumps back: the log then holds ids from the future."""
    one = stand("everysec")
    one.append(1)
    with open_tiers(one.settings) as tiers:
        for cut in tiers.hot.cut():
            if cut.events_total:
                ahead = cut.last._replace(ms=cut.last.ms + 7_200_000)
                tiers.hot.link.call("XSETID", tiers.hot.keys.log(cut.shard), str(ahead))
    one.append(2)
    one.work()
    with open_tiers(one.settings) as tiers:
        view = tiers.ledger.view()
        assert sum(state.events for state in view.shards) == len(one.receipts)
    assert one.missing() == 0 and {receipt.seq for receipt in one.receipts} == {1, 2, 3}


def test_a_server_with_password_and_tls_works_and_its_password_is_never_shown(redis_binary: Path, tmp_path: Path) -> None:
    server = RedisServer(redis_binary, tmp_path / "server", options={}, password="s3cret-word", tls=True)
    server.start()
    assert "s3cret-word" in server.url
    settings = load({"data_dir": tmp_path / "data", "redis_url": server.url}, environ={})
    with Client(settings) as client:
        assert client.append("chat", "t").seq == 1
    server.stop()
    with pytest.raises(TierUnavailable) as caught:
        open_tiers(settings)
    assert "s3cret-word" not in str(caught.value) and "***" in str(caught.value)


def test_a_file_cut_back_to_before_the_last_confirmation_is_not_taken_for_an_orderly_end(data_dir: Path) -> None:
    settings = load({"data_dir": data_dir, "hot": {"durable_lag_s": 0}}, environ={})
    with Client(settings) as client:
        first = client.append("chat", "t")
    stop(data_dir)
    copy = data_dir / "copy"
    shutil.copytree(data_dir / "redis", copy)
    with Client(settings) as client:
        second = client.append("chat", "t")
    stop(data_dir)
    shutil.rmtree(data_dir / "redis")
    shutil.copytree(copy, data_dir / "redis")
    with Client(settings) as client:
        third = client.append("chat", "t")
    assert (first.seq, second.seq, third.seq) == (1, 2, 1_000_002)


def test_an_orderly_end_of_the_embedded_server_skips_no_number(data_dir: Path) -> None:
    settings = load({"data_dir": data_dir}, environ={})
    seqs = []
    for _ in range(3):
        with Client(settings) as client:
            seqs.append(client.append("chat", "t").seq)
        stop(data_dir)
    assert seqs == [1, 2, 3]


def test_segments_without_ledger_and_redis_are_not_built_beside(stand: Callable[[str], Stand]) -> None:
    one = stand("always")
    one.append(2)
    one.work()
    with open_tiers(one.settings) as tiers:
        tiers.hot.drop()
    for path in one.settings.namespace_dir.glob("ledger.db*"):
        path.unlink()
    with pytest.raises(ConfigError, match="thermocline recover"):
        open_tiers(one.settings)
    recover(one.settings)
    one.append(1)
    assert {receipt.seq for receipt in one.receipts[-len(CONVERSATIONS) :]} == {1_000_003}
    assert one.missing() == 0 and one.given_twice() == 0


def test_a_redis_wiped_before_any_worker_ran_gives_no_number_again(stand: Callable[[str], Stand]) -> None:
    one = stand("always")
    one.append(2)
    with open_tiers(one.settings) as tiers:
        tiers.hot.link.call("FLUSHALL")
    one.append(1)
    assert one.given_twice() == 0
