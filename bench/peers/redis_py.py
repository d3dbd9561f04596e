"""redis-py with hiredis: an XADD per event, one at a time or pipelined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
import redis
from redis._parsers import _RESP2Parser

from bench.servers import RedisServer

from .peer import Peer

PIPELINE_EVENTS = 1000
STREAM = "bench:bare"


class RedisPy(Peer):
    name = "redis_py"
    title = "redis-py, XADD per event"
    configuration = (
        "the same redis-server as Thermocline's, on the same socket; one stream, the event as JSON (orjson) in one field; "
        "pipelines of 1,000 without MULTI; hiredis unless said otherwise"
    )
    modules = ("redis", "hiredis")
    install = "pip install redis[hiredis]"

    def open(self) -> None:
        self._server = RedisServer(self.folder)
        self.client = self._server.client

    def close(self) -> None:
        self._server.close()

    def append_one(self, event: dict[str, Any]) -> None:
        self.client.xadd(STREAM, {"d": orjson.dumps(event)})

    def append(self, events: Sequence[dict[str, Any]]) -> None:
        pipelined(self.client, events)


def pipelined(client: redis.Redis, events: Sequence[dict[str, Any]]) -> None:
    """One XADD per event, PIPELINE_EVENTS at a time."""
    for start in range(0, len(events), PIPELINE_EVENTS):
        pipeline = client.pipeline(transaction=False)
        for event in events[start : start + PIPELINE_EVENTS]:
            pipeline.xadd(STREAM, {"d": orjson.dumps(event)})
        pipeline.execute()


@contextmanager
def pure_python(server: RedisServer) -> Iterator[redis.Redis]:
    """A client that reads replies without hiredis."""
    pool = redis.ConnectionPool(
        connection_class=redis.UnixDomainSocketConnection, path=server.socket, parser_class=_RESP2Parser, protocol=2
    )
    with redis.Redis(connection_pool=pool) as client:
        yield client
    pool.disconnect()
