"""NATS JetStream: appends to a file-backed stream."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Sequence
from typing import Any

import orjson

from bench.servers import free_port, wait_for

from .peer import Peer, program

PENDING = 1000


class Nats(Peer):
    name = "nats"
    title = "NATS JetStream"
    configuration = (
        "nats-server -js with file storage and its defaults (synced every two minutes), one stream, a subject per "
        "conversation, the event as JSON (orjson); acknowledged one by one, or publish_async with 1,000 acknowledgements "
        "outstanding; nats-py over TCP, which is all it has"
    )
    modules = ("nats",)
    programs = ("nats-server",)
    install = "apt install nats-server && pip install nats-py"
    events_max = 10_000_000

    @classmethod
    def version(cls) -> str:
        shown = subprocess.run([program("nats-server"), "--version"], capture_output=True, text=True, check=True)
        return shown.stdout.split()[-1].lstrip("v")

    def open(self) -> None:
        port = free_port()
        command = [program("nats-server"), "-js", "-sd", str(self.folder), "-a", "127.0.0.1", "-p", str(port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: socket.create_connection(("127.0.0.1", port)).close(), self._process, "nats-server")
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._connect(port))

    async def _connect(self, port: int) -> None:
        import nats

        self._client = await nats.connect(f"nats://127.0.0.1:{port}", allow_reconnect=False, connect_timeout=5)
        self._stream = self._client.jetstream(publish_async_max_pending=PENDING)
        await self._stream.add_stream(name="events", subjects=["events.>"])

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()
        self._process.terminate()
        self._process.wait(30)

    def append_one(self, event: dict[str, Any]) -> None:
        self._loop.run_until_complete(self._stream.publish(_subject(event), orjson.dumps(event)))

    def append(self, events: Sequence[dict[str, Any]]) -> None:
        self._loop.run_until_complete(self._publish(events))

    async def _publish(self, events: Sequence[dict[str, Any]]) -> None:
        waiting = [await self._stream.publish_async(_subject(event), orjson.dumps(event)) for event in events]
        for one in waiting:
            await one


def _subject(event: dict[str, Any]) -> str:
    return f"events.{event['conversation_id']}"
