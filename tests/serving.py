"""Real HTTP servers for tests: the application on a port of 127.0.0.1, in a thread of this process.

    with served(settings) as server:
        httpx.get(f"{server.url}/healthz")
        server.service.store.sql("SELECT …")     # the same store, from inside

`thermocline serve` itself, with its signals and its worker, is run as a process by tests/acceptance/test_serve_cli.py.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx

from thermocline.config import Settings, load
from thermocline.serve.server import Server, config_of, listening_on
from thermocline.serve.service import Service, open_service

START_WAIT_S = 600
TIMEOUT_S = 600.0


class Served(NamedTuple):
    """A server that runs."""

    url: str
    service: Service

    def client(self, **named: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=TIMEOUT_S, trust_env=False, **named)


@contextmanager
def served(settings: Settings) -> Iterator[Served]:
    """A server of these settings on a free port, ended with the block."""
    serve = settings.serve.model_copy(update={"port": 0, "worker": False})
    service, opened = open_service(settings.model_copy(update={"serve": serve}))
    with opened:
        listening = listening_on(serve.host, 0)
        addresses: list[str] = []
        ready = threading.Event()

        def started(url: str) -> None:
            addresses.append(url)
            ready.set()

        server = Server(config_of(service), service, started)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), name="served")
        thread.start()
        try:
            assert ready.wait(START_WAIT_S), "the server did not start"
            yield Served(addresses[0], service)
        finally:
            server.should_exit = True
            thread.join()
            listening.close()


def settings_for(redis_url: str, data_dir: Any, **serve: Any) -> Settings:
    """Settings of a small store, with these of `serve`."""
    hot = {"shards": 4, "timeout_s": 5, "connect_timeout_s": 5}
    patient = {"deadline_s": 600, "wait_s": 600}
    return load({"data_dir": data_dir, "redis_url": redis_url, "hot": hot, "serve": serve, "sandbox": patient}, environ={})


def event(conversation_id: str = "c", event_type: str = "t", **more: Any) -> dict[str, Any]:
    return {"conversation_id": conversation_id, "event_type": event_type, **more}


def ndjson(*events: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in events)


NDJSON = {"Content-Type": "application/x-ndjson"}


class Message(NamedTuple):
    """One message of a stream of server-sent events."""

    event: str
    id: str
    data: Any


def messages(lines: Iterator[str]) -> Iterator[Message]:
    """The messages of a stream that have data, by the rules of the format."""
    kind, data = "message", ""
    last_id = ""
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield Message(kind, last_id, json.loads(data))
            kind, data = "message", ""
        elif name == "event":
            kind = value
        elif name == "data":
            data += value
        elif name == "id":
            last_id = value
