"""A Redis whose append-only file ends in the middle of an append's transaction, as a crash of the machine leaves it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.archiving import settings_for
from tests.conftest import StartServer
from tests.servers import aof_tail
from tests.waiting import wait_until
from thermocline.ingest.append import Client
from thermocline.store import Store, connect

CUTS = (0.1, 0.3, 0.6, 0.9)
"""Of what the last append wrote."""


@pytest.mark.parametrize("fsync", ["always", pytest.param("everysec", marks=pytest.mark.long)])
def test_half_a_transaction_that_a_crash_left_does_not_come_back_at_the_restart_after_the_next(
    tmp_path: Path, redis_server: StartServer, redis_binary: Path, fsync: str
) -> None:
    server = redis_server(redis_binary, options={"appendfsync": fsync})
    settings = settings_for(tmp_path, server, hot={"shards": 1})
    wanted = []
    for share in CUTS:
        with Client(settings) as client:
            client.append("c", "t", f"whole {share}")
            begin = aof_tail(server.folder).stat().st_size
            client.append("c", "t", f"torn {share}")
            written = aof_tail(server.folder).stat().st_size - begin
        server.kill()
        server.cut_aof(int(written * share))
        server.start()
        with Client(settings) as client:
            client.append("c", "t", f"after {share}")
        wanted += [f"whole {share}", f"after {share}"]
        with connect(settings) as store:
            assert contents(store) == wanted
            wait_until(lambda: is_written_anew(store), 30, "Redis writes its file anew")
        server.kill()
        server.start()
        with connect(settings) as store:
            assert contents(store) == wanted
            assert store.verify(deep=True).problems == ()
            wait_until(lambda: is_written_anew(store), 30, "Redis writes its file anew")


def is_written_anew(store: Store) -> bool:
    found = store.tiers.hot.link.call("INFO", "persistence")
    return b"aof_rewrite_in_progress:0" in found and b"aof_rewrite_scheduled:0" in found


def contents(store: Store) -> list[str]:
    return [text for (text,) in store.sql("SELECT content FROM events ORDER BY seq").fetchall()]
