"""A Producer with a spool on real Redis: what it accepts while Redis is away is stored once and in order, whoever dies when."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.appending import Configure, contents, expected
from tests.conftest import StartServer
from tests.servers import RedisServer, redis_binaries
from tests.waiting import wait_until
from thermocline.archiver.worker import Worker
from thermocline.errors import Backpressure, PartialAppend, TierUnavailable
from thermocline.ingest.producer import Producer
from thermocline.tiers.opening import open_tiers


@pytest.fixture(params=[redis_binaries()[-1], *(pytest.param(one, marks=pytest.mark.long) for one in redis_binaries()[:-1])])
def server(redis_server: StartServer, request: pytest.FixtureRequest) -> RedisServer:
    return redis_server(request.param, options={"appendfsync": "always"})


@pytest.fixture
def spool_dir(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def spool_files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name not in ("LOCK", "reserve")]


def test_thousands_of_events_wait_on_disk_while_redis_is_away(server: RedisServer, configure: Configure, spool_dir: Path) -> None:
    settings = configure(server)
    with Producer(settings, spool_dir=spool_dir, buffer_events_max=1000) as producer:
        for number in range(500):
            producer.append(f"c{number % 7}", "t", str(number))
        server.stop()
        for number in range(500, 8000):
            producer.append(f"c{number % 7}", "t", str(number))
        producer.flush()
        assert producer.spooled_events > 6000
        assert isinstance(producer.trouble, TierUnavailable)
        server.start()
        producer.drain(60)
        assert producer.spooled_events == 0
        assert spool_files(spool_dir) == []
        for number in range(8000, 9000):
            producer.append(f"c{number % 7}", "t", str(number))
    assert contents(settings) == expected(9000, 7)
    assert spool_files(spool_dir) == []


def test_kills_and_stops_of_redis_go_unnoticed(server: RedisServer, configure: Configure, spool_dir: Path) -> None:
    settings = configure(server)
    with Producer(settings, spool_dir=spool_dir, linger_ms=1, block_events_max=7) as producer:
        for number in range(6000):
            producer.append(f"c{number % 5}", "t", str(number))
            if number % 2000 == 1000:
                server.kill()
                wait_until(lambda: producer.spooled_events, 20, "the producer spools")
                server.start()
            if number % 2000 == 1500:
                server.pause()
                wait_until(lambda: producer.trouble, 20, "the producer notices")
                server.resume()
        producer.drain(60)
    assert contents(settings) == expected(6000, 5)


def test_what_one_process_left_the_next_one_stores(server: RedisServer, configure: Configure, spool_dir: Path) -> None:
    settings = configure(server)
    server.stop()
    with Producer(settings, spool_dir=spool_dir) as producer:
        for number in range(300):
            producer.append(f"c{number % 3}", "t", str(number))
    assert producer.spooled_events == 300
    server.start()
    with Producer(settings, spool_dir=spool_dir) as second:
        assert second.spooled_events <= 300
        for number in range(300, 600):
            second.append(f"c{number % 3}", "t", str(number))
    assert contents(settings) == expected(600, 3)


def test_a_second_producer_is_refused_while_the_first_lives(server: RedisServer, configure: Configure, spool_dir: Path) -> None:
    settings = configure(server)
    with (
        Producer(settings, spool_dir=spool_dir),
        pytest.raises(TierUnavailable, match=f"in use by process {os.getpid()}: give each Producer a folder"),
    ):
        Producer(settings, spool_dir=spool_dir)
    Producer(settings, spool_dir=spool_dir).close()


def test_a_full_spool_is_backpressure_and_loses_nothing(server: RedisServer, configure: Configure, spool_dir: Path) -> None:
    settings = configure(server, ingest={"deadline_s": 3})
    server.stop()
    given = 0
    with Producer(settings, spool_dir=spool_dir, spool_bytes_max=16 << 20, buffer_bytes_max=1 << 20) as producer:
        said = ""
        while "ingest.spool_bytes_max" not in said:  # a slow machine may also have no room in memory for a while
            try:
                producer.append("c0", "t", f"{given}" + " " * 50_000)
                given += 1
            except Backpressure as exc:
                said = str(exc)
        assert "is it running" in said
        with pytest.raises(Backpressure, match="spool"):
            producer.flush()
        assert 16 << 20 > sum((spool_dir / name).stat().st_size for name in spool_files(spool_dir)) > 14 << 20
        server.start()
        producer.drain(30)
    assert [content.strip() for content in contents(settings)["c0"]] == [str(number) for number in range(given)]


def test_an_event_too_far_in_the_future_comes_back_alone_from_the_spool(
    server: RedisServer, configure: Configure, spool_dir: Path
) -> None:
    settings = configure(server)
    server.stop()
    with Producer(settings, spool_dir=spool_dir) as producer:
        for number in range(10):
            producer.append("c0", "t", str(number), timestamp="2999-01-01T00:00:00Z" if number in (3, 4) else None)
        producer.flush()
        server.start()
        with pytest.raises(PartialAppend) as caught:
            producer.drain(30)
            producer.flush()
    assert [event.content for event in caught.value.rest] == ["3", "4"]
    assert contents(settings) == {"c0": [str(number) for number in range(10) if number not in (3, 4)]}
    assert spool_files(spool_dir) == []


def test_a_redis_wiped_meanwhile_gets_what_waited(server: RedisServer, configure: Configure, spool_dir: Path) -> None:
    settings = configure(server)
    with Producer(settings, spool_dir=spool_dir) as producer:
        producer.append("c0", "t", "0")
        producer.flush()
        with open_tiers(settings) as tiers:
            Worker(tiers).once()
            server.stop()
            for number in range(1, 100):
                producer.append("c0", "t", str(number))
            producer.flush()
            server.start()
            tiers.hot.drop()
        producer.drain(30)
    assert contents(settings) == expected(100, 1)


FORKING = """
import json, os, sys
from thermocline.config import load
from thermocline.errors import TierUnavailable
from thermocline.ingest.producer import Producer

settings, spool = load(json.loads(sys.argv[1]), environ={}), sys.argv[2]
producer = Producer(settings, spool_dir=spool)
producer.append("c0", "t", "0")
child = os.fork()
if not child:
    try:
        producer.append("c0", "t", "of the child")
    except TierUnavailable as exc:
        os._exit(0 if f"in use by process {os.getppid()}" in str(exc) else 1)
    os._exit(2)
code = os.waitpid(child, 0)[1]
try:
    Producer(settings, spool_dir=spool)
    code = 3
except TierUnavailable:
    pass
producer.append("c0", "t", "1")
producer.close()
sys.exit(code)
"""


def test_a_forked_child_does_not_share_the_spool(server: RedisServer, configure: Configure, spool_dir: Path) -> None:
    settings = configure(server)
    command = [sys.executable, "-c", FORKING, settings.model_dump_json(), str(spool_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert contents(settings) == expected(2, 1)


WRITER = """
import json, sys
from thermocline.config import load
from thermocline.ingest.producer import Producer

settings, spool, first = load(json.loads(sys.argv[1]), environ={}), sys.argv[2], int(sys.argv[3])
producer = Producer(settings, spool_dir=spool, linger_ms=1, block_events_max=5)
print("open", flush=True)
number = first
while True:
    for _ in range(20):
        producer.append(f"c{number % 3}", "t", str(number))
        number += 1
    producer.flush()
    print(number, flush=True)
"""


@pytest.mark.parametrize("lives", [4, pytest.param(40, marks=pytest.mark.long)])
def test_kills_while_spooling_and_while_draining_lose_and_double_nothing(
    server: RedisServer, configure: Configure, spool_dir: Path, lives: int
) -> None:
    """Redis goes or comes back in each life of the producer, which then is killed."""
    settings = configure(server)
    dice = random.Random(5)
    acknowledged: list[int] = []
    first = 0
    for life in range(lives):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, settings.model_dump_json(), str(spool_dir), str(first)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        lines = dice.randint(0, 30)
        change = dice.randrange(lines + 1)
        upto = first
        for line in range(lines):
            if line == change:
                server.kill() if life % 2 == 0 else server.start()
            upto = int(process.stdout.readline())
        if lines == 0 or change == lines:
            server.kill() if life % 2 == 0 else server.start()
        process.kill()
        for line in process.stdout.read().split():
            upto = int(line)
        process.wait()
        process.stdout.close()
        acknowledged += range(first, upto)
        first = upto + 1000
    if lives % 2:
        server.start()
    with Producer(settings, spool_dir=spool_dir) as last:
        last.drain(60)
    found = contents(settings)
    stored = [int(content) for group in found.values() for content in group]
    assert len(stored) == len(set(stored))
    assert set(acknowledged) <= set(stored)
    assert all([int(content) for content in group] == sorted(int(content) for content in group) for group in found.values())
    assert spool_files(spool_dir) == []
