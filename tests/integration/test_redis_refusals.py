"""A Redis that answers and refuses: rights, replicas, a full disk or memory, data it still loads. Nothing is lost or doubled."""

from __future__ import annotations

import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartServer
from tests.redis_calls import ask
from tests.servers import RedisServer, aof_tail, redis_binaries
from tests.waiting import wait_until
from thermocline import Receipt
from thermocline.archiver.worker import Worker
from thermocline.config import Settings, load
from thermocline.errors import Backpressure, ConfigError, OutcomeUnknown, TierCorrupt, TierUnavailable
from thermocline.ingest.append import Client
from thermocline.query.follow import Followed
from thermocline.store import Store, connect
from thermocline.tiers.block import Position
from thermocline.tiers.hot_redis import RedisHot
from thermocline.tiers.opening import open_tiers
from thermocline.tiers.redis_link import CONNECTIONS_MAX, Link

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
LISTED = re.compile(r"The Redis user needs `([^`]+)`[^`]*, and should have `([^`]+)`")
SettingsOf = Callable[..., Settings]


@pytest.fixture
def settings_of(tmp_path: Path) -> SettingsOf:
    """A function that gives settings for a server, or for a user of it, in one data directory."""

    def settings(server: RedisServer, user: str = "", **sections: Any) -> Settings:
        hot = {"shards": 2, "timeout_s": 1, "connect_timeout_s": 0.1, "durable_lag_s": 0, **sections.pop("hot", {})}
        overrides = {"data_dir": tmp_path / "data", "redis_url": url_of(server, user), "hot": hot, **sections}
        return load(overrides, environ={})

    return settings


@pytest.fixture
def server(redis_server: StartServer, redis_binary: Path) -> RedisServer:
    return redis_server(redis_binary, options={"appendfsync": "always"})


def url_of(server: RedisServer, user: str = "") -> str:
    return server.url_of(user, "pw") if user else server.url


def limit_rights(server: RedisServer, user: str, *rules: str) -> None:
    ask(server, "ACL", "SETUSER", user, "reset", "on", ">pw", "~*", *rules)


def contents(settings: Settings) -> list[str]:
    """What SQL sees, by conversation and seq."""
    with connect(settings) as store:
        return [text for (text,) in store.sql("SELECT content FROM events ORDER BY conversation_id, seq").fetchall()]


# Rights


def test_a_user_with_just_the_rights_that_the_docs_list_can_do_everything(server: RedisServer, settings_of: SettingsOf) -> None:
    listed = LISTED.search(OPERATIONS.read_text())
    assert listed is not None
    needed, wanted = (re.split(r",\s*", text.lower()) for text in listed.groups())
    for number, commands in enumerate(([*needed, *wanted], needed)):
        limit_rights(server, "app", *(f"+{command}" for command in commands))
        settings = settings_of(server, "app", namespace=f"n{number}", hot={"cache_window_s": 0, "log_grace_s": 0})
        with open_tiers(settings) as tiers, Client(settings, tiers=tiers) as client:
            receipt = client.append("c", "t", "1", event_id="0198f3a0-5b7c-7e11-9f00-1234567890ab")
            assert receipt.durability == ("fsync" if number == 0 else "memory")
            tiers.hot.put_meta(0, {"run": "0" * 40})
            tiers.hot.put_meta(1, {"run": "0" * 40})
            with Store(open_tiers(settings)) as store, store.subscribe("g", deliveries_max=1) as subscription:
                client.append("c", "t", "2")
                assert [item for item in store.tail(start="begin").read(timeout_s=30) if isinstance(item, Followed)][1:]
                [delivery] = subscription.read(timeout_s=30)
                assert delivery.extend() and delivery.park() and store.replay_parked("g") == 1
                [delivery] = subscription.read(timeout_s=30)
                assert delivery.ack() and subscription.read(timeout_s=0) == []
                for _ in range(2):
                    Worker(tiers).once()
                store.delete_group("g")
            tiers.hot.raise_last_id(1, Position(1, 0))
            assert tiers.hot.drop() > 0
            tiers.reconfirm()
            client.append("c", "t", "3")
        assert contents(settings) == ["1", "2", "3"]


def test_an_append_that_the_user_has_no_right_to_is_refused_with_the_place_to_read(
    server: RedisServer, settings_of: SettingsOf
) -> None:
    with Client(settings_of(server)) as client:
        client.append("c", "t", "1")
    limit_rights(server, "app", "+@all", "-evalsha")
    with (
        Client(settings_of(server, "app", ingest={"deadline_s": 0.2})) as client,
        pytest.raises(TierUnavailable, match=r"NOPERM.*docs/operations\.md"),
    ):
        client.append("c", "t", "2")
    assert contents(settings_of(server)) == ["1"]


def test_no_append_ends_half_way_for_want_of_a_right(server: RedisServer, settings_of: SettingsOf) -> None:
    """The append script would store the block, then fail, and store it again when it is resent."""
    with Client(settings_of(server)) as client:
        client.append("c", "t", "1")
        for command in ("time", "xlen", "xadd", "hget", "hlen", "hset", "pttl", "pexpire", "rename"):
            limit_rights(server, command, "+@all", f"-{command}")
            with (
                Client(settings_of(server, command, ingest={"deadline_s": 0.1})) as limited,
                pytest.raises(TierUnavailable, match=rf"NOPERM.*'{command}'.*docs/operations\.md"),
            ):
                limited.append("c", "t", "2")
        assert client.append("c", "t", "3").seq == 2
    assert contents(settings_of(server)) == ["1", "3"]
    with connect(settings_of(server)) as store:
        assert store.verify(deep=True).problems == ()


def test_a_password_that_is_wrong_now_is_said_and_not_shown(server: RedisServer, settings_of: SettingsOf) -> None:
    limit_rights(server, "app", "+@all")
    settings = settings_of(server, "app", ingest={"deadline_s": 0.2})
    with Client(settings) as client:
        client.append("c", "t", "1")
        ask(server, "ACL", "SETUSER", "app", "<pw", ">other")
        ask(server, "CLIENT", "KILL", "TYPE", "normal")
        with pytest.raises(OutcomeUnknown, match=r"refuses the login .*: check user and password") as caught:
            client.append("c", "t", "2")
        assert ":pw@" not in str(caught.value)
        with pytest.raises(TierUnavailable, match="refuses the login"):
            open_tiers(settings)
        ask(server, "ACL", "SETUSER", "app", "<other", ">pw")
        assert [receipt.seq for receipt in caught.value.retry()] == [2]
    assert contents(settings_of(server)) == ["1", "2"]


def test_a_missing_password_over_tls_is_asked_for(redis_server: StartServer, settings_of: SettingsOf) -> None:
    server = redis_server(password="s3cret", tls=True)
    settings = settings_of(server).model_copy(update={"redis_url": server.url.replace(":s3cret@", "")})
    with pytest.raises(TierUnavailable, match="refuses the login"):
        open_tiers(settings)


def test_a_user_who_may_not_ping_is_served_over_tls(redis_server: StartServer, settings_of: SettingsOf) -> None:
    server = redis_server(password="s3cret", tls=True)
    limit_rights(server, "app", "+@all", "-ping")
    settings = settings_of(server).model_copy(update={"redis_url": server.url.replace(":s3cret@", "app:pw@")})
    with Client(settings) as client:
        assert client.append("c", "t", "1").seq == 1
    assert contents(settings) == ["1"]


# Replicas


def patient(call: Callable[[], list[Receipt]]) -> list[Receipt]:
    """Its receipts, asked for again and again while the replica lags."""
    for _ in range(60):
        try:
            return call()
        except OutcomeUnknown as exc:
            call = exc.retry
    return call()


def test_an_append_waits_for_the_replicas_it_needs(
    redis_server: StartServer, redis_binary: Path, settings_of: SettingsOf
) -> None:
    server = redis_server(redis_binary, options={"appendfsync": "always", "repl-diskless-sync-delay": 0}, tcp=True)
    settings = settings_of(server, hot={"replicas_min": 1, "timeout_s": 0.2}, ingest={"deadline_s": 0.3})
    with Client(settings) as client:
        with pytest.raises(OutcomeUnknown, match=r"0 of 1 replicas \(hot\.replicas_min\) have the block") as caught:
            client.append("c", "t", "1")
        replica = redis_server(redis_binary)
        ask(replica, "REPLICAOF", "127.0.0.1", server.port)
        wait_until(lambda: b"state=online" in ask(server, "INFO", "replication"), 20, "the replica follows")
        (receipt,) = patient(caught.value.retry)
        assert (receipt.seq, receipt.durability) == (1, "replicated")
        (receipt,) = patient(lambda: [client.append("c", "t", "2")])
        assert (receipt.seq, receipt.durability) == (2, "replicated")
        replica.pause()
        with pytest.raises(OutcomeUnknown, match="0 of 1 replicas") as caught:
            client.append("c", "t", "3")
        with pytest.raises(OutcomeUnknown, match="0 of 1 replicas"):
            caught.value.retry()
        replica.resume()
        assert [receipt.seq for receipt in patient(caught.value.retry)] == [3]
        log = RedisHot(Link(replica.url, connect_timeout_s=1, timeout_s=1), settings.namespace, settings.hot)
        assert sum(cut.events_total for cut in log.cut()) == 3
        log.close()
    assert contents(settings) == ["1", "2", "3"]


def test_a_redis_that_demands_more_replicas_than_there_are_takes_nothing(server: RedisServer, settings_of: SettingsOf) -> None:
    settings = settings_of(server, ingest={"deadline_s": 0.2})
    with Client(settings) as client:
        client.append("c", "t", "1")
        ask(server, "CONFIG", "SET", "min-replicas-to-write", 1)
        with pytest.raises(TierUnavailable, match=r"NOREPLICAS.*min-replicas-to-write"):
            client.append("c", "t", "2")
        ask(server, "CONFIG", "SET", "min-replicas-to-write", 0)
        assert client.append("c", "t", "3").seq == 2
    assert contents(settings) == ["1", "3"]


def test_a_primary_that_became_a_replica_takes_nothing_until_it_is_one_again(
    server: RedisServer, settings_of: SettingsOf
) -> None:
    settings = settings_of(server, ingest={"deadline_s": 0.2})
    with Client(settings) as client:
        client.append("c", "t", "1")
        ask(server, "REPLICAOF", "127.0.0.1", 1)
        with pytest.raises(TierUnavailable, match="Redis"):
            client.append("c", "t", "2")
        ask(server, "REPLICAOF", "NO", "ONE")
        assert client.append("c", "t", "3").seq == 2
    assert contents(settings) == ["1", "3"]


# Disk and memory


def limit_file(server: RedisServer, size: int = resource.RLIM_INFINITY) -> None:
    """Let the server write no file beyond so many bytes, as a full disk would."""
    _, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, hard))


def test_a_full_disk_sheds_load_and_what_was_acknowledged_is_there(
    redis_server: StartServer, redis_binary: Path, settings_of: SettingsOf
) -> None:
    server = redis_server(redis_binary)
    settings = settings_of(server)
    kept = []
    with Client(settings) as client:
        kept.append(client.append("c", "t", "first").seq)
        limit_file(server, aof_tail(server.folder).stat().st_size)
        with pytest.raises(Backpressure, match="cannot write to its disk"):
            for _ in range(50):
                kept.append(client.append("c", "t", "x").seq)
        assert kept == list(range(1, len(kept) + 1))
        limit_file(server)
        wait_until(lambda: b"aof_last_write_status:ok" in ask(server, "INFO", "persistence"), 20, "Redis writes again")
        kept.append(client.append("c", "t", "last").seq)
    assert contents(settings) == ["first", *["x"] * (len(kept) - 2), "last"]
    server.stop()
    server.start()
    assert contents(settings) == ["first", *["x"] * (len(kept) - 2), "last"]


def test_a_redis_that_comes_back_full_is_confirmed_and_emptied_by_the_worker(
    redis_server: StartServer, redis_binary: Path, settings_of: SettingsOf
) -> None:
    server = redis_server(redis_binary, options={"appendfsync": "always"})
    settings = settings_of(server, hot={"cache_window_s": 0, "log_grace_s": 0})
    with Client(settings) as client:
        client.append("c", "t", "1")
    server.stop()
    server.options["maxmemory"] = "500kb"  # it uses more than that when it is empty
    server.start()
    with open_tiers(settings) as tiers, Client(settings, tiers=tiers) as client:
        with pytest.raises(Backpressure, match="out of memory"):
            client.append("c", "t", "2")
        for _ in range(2):
            Worker(tiers).once()
        assert sum(cut.entries for cut in tiers.hot.cut()) == 0
        ask(server, "CONFIG", "SET", "maxmemory", 0)
        assert client.append("c", "t", "3").seq == 2
    assert contents(settings) == ["1", "3"]


# Data


def test_a_redis_that_still_loads_is_not_taken_for_an_empty_one(
    redis_server: StartServer, redis_binary: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = redis_server(redis_binary, options={"appendonly": "no", "rdbcompression": "no"})
    settings = settings_of(server, hot={"allow_volatile": True}, ingest={"deadline_s": 0.1})
    with Client(settings) as client:
        client.append("c", "t", "1")
        ask(server, "DEBUG", "POPULATE", 700, "k", 10_000)
        ask(server, "SAVE")
        server.kill()
        server.options["key-load-delay"] = 2000  # µs: 1.4 s in all, with an answer after every 2 MiB
        with monkeypatch.context() as patch:
            patch.setattr(server, "_ready", lambda: True)
            server.start()
        words = "is loading its data; try again"
        wait_until(lambda: words in said(lambda: open_tiers(settings)), 20, "it is said that the server loads")
        with pytest.raises(OutcomeUnknown) as caught:  # its connection broke, and nobody can tell yet
            client.append("c", "t", "2")
        wait_until(lambda: said(lambda: ask(server, "PING")) == "", 20, "the server has loaded")
        assert retried(caught.value).seq > 1_000_000
    assert contents(settings) == ["1", "2"]


def retried(unknown: OutcomeUnknown) -> Receipt:
    """Ask until somebody can tell: who confirms what Redis still holds may need longer than a deadline of 0.1 s."""
    receipts: list[Receipt] = []

    def known() -> bool:
        try:
            receipts.extend(unknown.retry())
        except OutcomeUnknown:
            return False
        return True

    wait_until(known, 20, "it is known whether the event is stored")
    return receipts[0]


def said(act: Callable[[], object]) -> str:
    """What is unavailable; empty when nothing is."""
    try:
        act()
    except TierUnavailable as exc:
        return str(exc)
    return ""


def test_a_key_that_is_something_else_is_corruption_and_not_a_bug(server: RedisServer, settings_of: SettingsOf) -> None:
    settings = settings_of(server)
    with open_tiers(settings) as tiers:
        ask(server, "SET", tiers.hot.keys.log(0), "not a log")
        with pytest.raises(TierCorrupt, match="a key of the namespace holds what Thermocline did not write"):
            tiers.hot.cut()
        with pytest.raises(TierCorrupt, match="WRONGTYPE"):
            tiers.hot.page(0, Position(0, 0), Position(9, 0), bytes_max=1)


def test_a_namespace_of_another_format_in_redis_is_refused(server: RedisServer, settings_of: SettingsOf) -> None:
    settings = settings_of(server)
    with open_tiers(settings) as tiers, Client(settings, tiers=tiers) as client:
        tiers.hot.put_meta(0, {"format": "2"})
        with pytest.raises(TierCorrupt, match="has format '2', this version knows 1"):
            client.append("c", "t")
        tiers.hot.put_meta(0, {"run": "0" * 40})
    with pytest.raises(TierCorrupt, match=r"Redis at .* has format '2', this version knows 1"):
        open_tiers(settings)


# Addresses


@pytest.mark.parametrize(
    ("url", "complaint"),
    [("redis://h:port", "cannot be used"), ("redis://h/0?socket_timeout=soon", "cannot be used"), ("http://u:pw@h", "redis_url")],
)
def test_an_address_that_cannot_be_used_is_a_config_error(url: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        Link(url, connect_timeout_s=1, timeout_s=1)
    assert "pw" not in str(caught.value)


def test_a_database_that_the_server_does_not_have_is_named(redis_server: StartServer) -> None:
    server = redis_server(tcp=True)
    link = Link(f"{server.url.removesuffix('/0')}/99", connect_timeout_s=1, timeout_s=1)
    with pytest.raises(TierUnavailable, match=f"127.0.0.1:{server.port}/99.*out of range"):
        link.call("PING")
    link.close()


def test_more_threads_than_connections_are_told_to_be_fewer(redis_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thermocline.tiers.redis_link.CONNECTIONS_MAX", 2)
    link = Link(redis_server(redis_binaries()[0]).url, connect_timeout_s=1, timeout_s=1)
    with (
        link._borrowed(),
        link._borrowed(),
        pytest.raises(TierUnavailable, match=r"more than 2 connections to .* at once: append from fewer threads"),
    ):
        link.call("PING")
    assert link.call("PING") == b"PONG"
    link.close()


def test_a_process_that_has_opened_many_sessions_can_open_more(server: RedisServer, settings_of: SettingsOf) -> None:
    with open_tiers(settings_of(server)) as tiers:
        for _ in range(CONNECTIONS_MAX + 1):
            tiers.hot.session().close()
        session = tiers.hot.session()
        assert session.last_numbers("p", [0]) == {0: 0}
        session.close()
        assert tiers.hot.cut()
