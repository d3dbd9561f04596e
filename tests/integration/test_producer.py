"""Producer on real Redis: kills, stops, exits and forks lose nothing that was given to it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.appending import Configure, contents, expected
from tests.conftest import StartServer
from tests.servers import RedisServer
from tests.waiting import wait_until
from thermocline.config import Settings
from thermocline.errors import OutcomeUnknown, PartialAppend
from thermocline.ingest.async_producer import AsyncProducer
from thermocline.ingest.producer import Producer
from thermocline.store import connect


@pytest.fixture
def server(redis_server: StartServer, redis_binary: Path) -> RedisServer:
    return redis_server(redis_binary, options={"appendfsync": "always"})


def test_a_great_many_events_are_stored_in_order(server: RedisServer, configure: Configure) -> None:
    settings = configure(server)
    with Producer(settings) as producer:
        for number in range(20_000):
            producer.append(f"c{number % 11}", "output.chunk", str(number), task_id="1", metadata={"number": number})
    assert contents(settings) == expected(20_000, 11)


def test_kills_of_redis_go_unnoticed(server: RedisServer, configure: Configure) -> None:
    settings = configure(server)
    with Producer(settings, linger_ms=1, block_events_max=7) as producer:
        for number in range(6000):
            producer.append(f"c{number % 5}", "t", str(number))
            if number % 2000 == 1000:
                server.kill()
                server.start()
    assert contents(settings) == expected(6000, 5)


def test_a_stop_of_redis_goes_unnoticed(server: RedisServer, configure: Configure) -> None:
    settings = configure(server)
    with Producer(settings, linger_ms=0) as producer:
        producer.append("c0", "t", "0")
        producer.flush()
        server.pause()
        try:
            for number in range(1, 200):
                producer.append("c0", "t", str(number))
            wait_until(lambda: producer._buffer.trouble, 20, "the producer notices")
        finally:
            server.resume()
        producer.flush()
    assert contents(settings) == expected(200, 1)


def test_events_given_before_redis_is_there_are_stored_when_it_comes(server: RedisServer, configure: Configure) -> None:
    settings = configure(server)
    server.stop()
    with Producer(settings) as producer:
        for number in range(100):
            producer.append("c0", "t", str(number))
        wait_until(lambda: producer._buffer.trouble, 20, "the producer notices")
        server.start()
        producer.flush(30)
    assert contents(settings) == expected(100, 1)


def test_a_close_in_doubt_is_settled_by_its_retry(server: RedisServer, configure: Configure) -> None:
    settings = configure(server, ingest={"deadline_s": 1.5})
    producer = Producer(settings, linger_ms=0)
    producer.append("c0", "t", "0")
    producer.flush()
    server.pause()
    try:
        producer.append("c0", "t", "1")
        wait_until(lambda: producer._buffer.trouble, 20, "the producer notices")
        producer.append("c0", "t", "2")
        with pytest.raises(PartialAppend) as caught:
            producer.close()
    finally:
        server.resume()
    assert isinstance(caught.value.cause, OutcomeUnknown)
    assert [receipt.seq for receipt in caught.value.cause.retry()] == [2, 3]
    assert contents(settings) == expected(3, 1)


def test_coalesced_text_is_whole(server: RedisServer, configure: Configure) -> None:
    settings = configure(server)
    text = "The quick brown fox jumps over the lazy dog. " * 20
    with Producer(settings, coalesce=True, linger_ms=20) as producer:
        for character in text:
            producer.append("a", "output.chunk", character, task_id="1", output_tokens=1)
    with connect(settings) as store:
        rows = store.sql("SELECT content, output_tokens FROM events ORDER BY seq").fetchall()
    assert "".join(content for content, _ in rows) == text
    assert sum(tokens for _, tokens in rows) == len(text)
    assert len(rows) < len(text) / 5


def test_the_async_producer_stores_what_many_tasks_append(server: RedisServer, configure: Configure) -> None:
    settings = configure(server)

    async def work(producer: AsyncProducer, name: str) -> None:
        for number in range(100):
            await producer.append(name, "t", str(number))

    async def run() -> None:
        async with AsyncProducer(settings, buffer_events_max=50) as producer:
            await asyncio.gather(*(work(producer, f"c{name}") for name in range(10)))
            await producer.flush()

    asyncio.run(run())
    assert contents(settings) == {f"c{name}": [str(number) for number in range(100)] for name in range(10)}


EXITING = """
import thermocline
producer = thermocline.Producer(linger_ms=60_000)
for number in range(100):
    producer.append("c0", "t", str(number))
"""

FORKING = """
import os, sys, thermocline
producer = thermocline.Producer(linger_ms=50)
producer.append("c0", "t", "0")
child = os.fork()
name = "c0" if child else "c1"
for number in range(1 if child else 0, 50):
    producer.append(name, "t", str(number))
producer.close()
if not child:
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1])
"""


def run(program: str, settings: Settings) -> None:
    assert settings.redis_url is not None
    environ = {**os.environ, "THERMOCLINE_DATA_DIR": str(settings.data_dir), "THERMOCLINE_REDIS_URL": settings.redis_url,
               "THERMOCLINE_HOT__SHARDS": "4"}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_a_program_that_ends_without_close_has_stored_everything(server: RedisServer, configure: Configure) -> None:
    settings = configure(server)
    run(EXITING, settings)
    assert contents(settings) == expected(100, 1)


def test_a_forked_child_sends_its_own_events_only(server: RedisServer, configure: Configure) -> None:
    settings = configure(server)
    run(FORKING, settings)
    assert contents(settings) == {name: [str(number) for number in range(50)] for name in ("c0", "c1")}
