"""The servers other tests stand on do what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from tests.conftest import StartServer
from tests.servers import RedisServer, binary_version, cut_aof, redis_binaries, servers_in


@pytest.mark.parametrize("how", [{}, {"tcp": True}, {"password": "p@ss/:%w"}, {"tls": True, "password": "s3cret"}], ids=str)
def test_a_server_is_reached_by_its_url_before_and_after_a_kill(
    redis_binary: Path, redis_server: StartServer, how: dict[str, object]
) -> None:
    server = redis_server(redis_binary, options={"appendfsync": "always"}, **how)  # type: ignore[arg-type]
    for turn in (1, 2):
        with redis.Redis.from_url(server.url) as client:
            assert client.incr("turns") == turn
            assert client.info("server")["process_id"] == server.pid
            assert tuple(map(int, client.info("server")["redis_version"].split("."))) == binary_version(server.binary)
        server.kill()
        server.start()


def test_a_wrong_password_and_an_unknown_authority_are_refused(redis_server: StartServer) -> None:
    server = redis_server(password="s3cret", tls=True)
    with redis.Redis.from_url(server.url.replace("s3cret", "other")) as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    with redis.Redis.from_url(server.url.partition("?")[0]) as client, pytest.raises(redis.ConnectionError, match="certificate"):
        client.ping()


def test_a_cut_file_loses_its_last_commands_and_no_others(redis_binary: Path, redis_server: StartServer) -> None:
    server = redis_server(redis_binary, options={"appendfsync": "always"})  # else a write may wait for the fsync before it
    with redis.Redis.from_url(server.url) as client:
        client.set("first", "1")
        client.set("last", "1")
    server.kill()
    assert server.cut_aof(1) == 1
    server.start()
    with redis.Redis.from_url(server.url) as client:
        assert client.keys() == [b"first"]
    server.stop()
    assert 0 < cut_aof(server.folder, 1 << 20) < 200


def test_a_paused_server_answers_once_resumed(redis_server: StartServer) -> None:
    server = redis_server()
    with redis.Redis.from_url(server.url, socket_timeout=0.1, retry=None) as client:
        client.ping()
        server.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        server.resume()
        assert client.ping()


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    server = RedisServer(redis_binaries()[0], tmp_path, options={"maxmemory-policy": "sometimes"})
    with pytest.raises(RuntimeError, match=r"argument(\(s\))? must be one of"):
        server.start()
    server.stop()
    assert servers_in(tmp_path) == []
