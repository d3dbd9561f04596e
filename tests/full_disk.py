"""What is done on a disk that gets full: `on_small_disk(spooling, folder)` runs one of these in a process that has such a disk.

The process has a mount namespace of its own and sees a tmpfs at `folder/disk`; the rest of `folder` is what it was. What it
asserts fails the test that runs it. Linux, and the right to make namespaces: root, or a kernel that lets users have theirs.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.servers import RedisServer, redis_binaries
from tests.waiting import wait_until
from thermocline.archiver.worker import Worker
from thermocline.config import Settings, load
from thermocline.errors import Backpressure, TierUnavailable
from thermocline.ingest.append import Client
from thermocline.ingest.producer import Producer
from thermocline.store import Store, connect
from thermocline.tiers import embedded
from thermocline.tiers.opening import open_tiers

DISK_MIB = 48
DAY_US = 86_400_000_000
MOUNT = 'mount -t tmpfs -o "size=$1m" tmpfs "$2" && shift 2 && exec "$@"'
OFTEN = ("settle", "merge", "archive", "purge", "checkpoint", "verify")
NO_SPACE = "No space left on device"


def on_small_disk(scenario: Callable[[Path], None], folder: Path) -> None:
    """Run it in a process of its own, with `folder/disk` on a disk of 48 MiB."""
    disk = folder / "disk"
    disk.mkdir()
    unshare = ["unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",)), "sh", "-c", MOUNT, "sh"]
    command = [*unshare, str(DISK_MIB), str(disk), sys.executable, "-m", "tests.full_disk", scenario.__name__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Nothing more goes onto the disk meanwhile."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue
    try:
        yield
    finally:
        filler.unlink()


def settings_on(disk: Path, server: RedisServer | None, **sections: Any) -> Settings:
    hot = {
        "shards": 2,
        "buckets": 64,
        "durable_lag_s": 0,
        "cache_window_s": 0,
        "log_grace_s": 0,
        "timeout_s": 2,
        "connect_timeout_s": 0.2,
    }
    worker = {f"{job}_every_s": 0.1 for job in OFTEN}
    warm = {"settle_after_s": 0, "settle_after_events": 1, "settle_latest_s": 0, "fan_in": 2, "purge_grace_s": 0}
    url = {} if server is None else {"redis_url": server.url}
    sections = {"hot": hot, "worker": worker, "warm": warm, "ingest": {"deadline_s": 3}, **sections}
    return load({"data_dir": str(disk / "data"), **url, **sections}, environ={})


@contextmanager
def redis(folder: Path) -> Iterator[RedisServer]:
    """On the disk that does not get full."""
    server = RedisServer(redis_binaries()[-1], folder / "redis", options={"appendfsync": "always"})
    server.start()
    try:
        yield server
    finally:
        server.stop()


def append_errors(client: Client, count: int, *, start: int, days_ago: int = 0) -> None:
    """Events that no policy drops."""
    at_us = time.time_ns() // 1000 - days_ago * DAY_US
    client.append_many(
        {"conversation_id": f"c{number % 7}", "event_type": "error", "content": str(number), "timestamp": at_us}
        for number in range(start, start + count)
    )


def contents(store: Store) -> Counter[str]:
    return Counter(text for (text,) in store.sql("SELECT content FROM events").fetchall())


def numbers(count: int) -> Counter[str]:
    return Counter(str(number) for number in range(count))


def command(settings: Settings, *words: str) -> subprocess.CompletedProcess[str]:
    """A command line on this store, in a process of its own."""
    variables = {
        "THERMOCLINE_REDIS_URL": settings.redis_url or "",
        "THERMOCLINE_HOT__SHARDS": "2",
        "THERMOCLINE_HOT__BUCKETS": "64",
    }
    environ = {**os.environ, **{name: value for name, value in variables.items() if value}}
    words = ("--data-dir", str(settings.data_dir), *words)
    return subprocess.run([sys.executable, "-m", "thermocline", *words], env=environ, capture_output=True, text=True, timeout=60)


def told_of_space(text: str) -> bool:
    """Whether a message says in one line that the disk is full and what to do."""
    return any(word in text for word in ("free disk space", "free space", "free some")) and "\n" not in text.strip()


# What is done on it.


def working(folder: Path) -> None:
    """A worker with a full disk says so, everything else goes on, and so does the worker when there is space again."""
    with redis(folder) as server:
        settings = settings_on(folder / "disk", server)
        with connect(settings) as store, Client(settings, tiers=store.tiers) as client:
            append_errors(client, 500, start=0)
            assert Worker(store.tiers).once().problem is None
            worker = Worker(store.tiers)
            worker.start()
            try:
                with full(folder / "disk"):
                    append_errors(client, 500, start=500, days_ago=12)
                    wait_until(lambda: "free disk space" in (worker.problem or ""), 30, "health is red and says why")
                    assert "please report" not in str(worker.problem)
                    assert contents(store) == numbers(1000)
                    found = store.status()
                    assert found.health == "red"
                    assert any("free" in reason for reason in found.reasons), found.reasons
                    shown = command(settings, "status", "--check")
                    assert shown.returncode == 1, shown
                    assert "disk" in shown.stdout, shown
                    asked = command(settings, "query", "SELECT count(*) AS n FROM events", "-o", "json")
                    assert '"n":1000' in asked.stdout.replace(" ", ""), asked
                wait_until(lambda: worker.problem is None, 30, "health is green")
                wait_until(lambda: archived(store) == 500, 30, "everything is where it belongs")
            finally:
                assert worker.stop(30)
            assert contents(store) == numbers(1000)
            assert store.status().tiers[0].events == 0
            assert store.verify(deep=True).problems == ()


def archived(store: Store) -> int:
    return sum(file.rows for file in store.tiers.ledger.view().files if file.kind == "events")


def starting(folder: Path) -> None:
    """Whoever starts on a full disk says what is in the way, in one line, and leaves nothing behind that is in the way later."""
    with redis(folder) as server:
        settings = settings_on(folder / "disk", server)
        with connect(settings) as store, Client(settings, tiers=store.tiers) as client:
            append_errors(client, 500, start=0)
            assert Worker(store.tiers).once().problem is None
            append_errors(client, 500, start=500, days_ago=12)
        with full(folder / "disk"):
            done = command(settings, "worker", "--once")
            assert done.returncode == 1, done
            assert told_of_space(done.stderr), done.stderr
            try:
                with open_tiers(settings) as tiers:
                    Worker(tiers).once()
            except TierUnavailable as exc:
                assert told_of_space(str(exc)), exc
            else:
                raise AssertionError("it worked on a full disk")
        with connect(settings) as store:
            report = Worker(store.tiers).once()
            assert (report.problem, report.archived_events) == (None, 500)
            assert contents(store) == numbers(1000)
            assert store.verify(deep=True).problems == ()


def archiving(folder: Path) -> None:
    """What cannot be archived for want of space stays warm, and is archived later; nothing half written is left."""
    with redis(folder) as server:
        settings = settings_on(folder / "disk", server, warm={"purge_grace_s": 0})
        with connect(settings) as store, Client(settings, tiers=store.tiers) as client:
            settings_warm = settings.model_copy(update={"warm": settings.warm.model_copy(update={"window_days": 10_000})})
            append_errors(client, 500, start=0, days_ago=12)
            with open_tiers(settings_warm) as tiers:
                assert Worker(tiers).once().settled_events == 500
            room = 100_000
            reserve = folder / "disk" / "reserve"
            while True:
                reserve.write_bytes(bytes(room))
                with full(folder / "disk"):
                    reserve.unlink()
                    try:
                        report = Worker(store.tiers).once()
                    except TierUnavailable as exc:
                        assert told_of_space(str(exc)), exc
                    else:
                        if report.problem is None:
                            break
                        assert told_of_space(report.problem), report
                    assert contents(store) == numbers(500)
                room += 100_000
            assert room > 200_000, "it never was too little"
            assert contents(store) == numbers(500)
            assert archived(store) == 500
            assert store.verify(deep=True).problems == ()
            assert list(settings.namespace_dir.glob("staging/*")) == []


def spooling(folder: Path) -> None:
    """A spool whose disk is full is Backpressure that says so; what was accepted is stored once, in order, on a full disk too."""
    with redis(folder) as server:
        settings = settings_on(folder / "elsewhere", server)
        small = {"buffer_bytes_max": 1 << 20, "spool_bytes_max": 1 << 30}
        accepted = 0
        with Producer(settings, spool_dir=folder / "disk" / "spool", **small) as producer:
            producer.append("c", "t", "0")
            producer.flush()
            server.stop()
            with full(folder / "disk"):
                said = ""
                while NO_SPACE not in said:  # until it knows of the disk it can only say that the buffer is full
                    try:
                        producer.append("c", "t", f"{accepted + 1} {'x' * 10_000}")
                        accepted += 1
                    except Backpressure as exc:
                        said = str(exc)
                assert told_of_space(said), said
                server.start()
                producer.drain(60)
            producer.append("c", "t", "last")
            producer.drain(30)
        with connect(settings) as store:
            rows = store.sql("SELECT content FROM events ORDER BY seq").fetchall()
            found = [text.split()[0] for (text,) in rows]
            assert found == [str(number) for number in range(accepted + 1)] + ["last"], (accepted, found[-3:])


def appending(folder: Path) -> None:
    """The embedded Redis on a full disk takes nothing more and says so; what it acknowledged is there, after a restart too."""
    settings = settings_on(folder / "disk", None)
    kept = 0
    try:
        with connect(settings) as store, Client(settings, tiers=store.tiers) as client:
            append_errors(client, 100, start=0)
            with full(folder / "disk"):
                try:
                    for _ in range(10_000):
                        client.append("one", "error", str(100 + kept))
                        kept += 1
                except Backpressure as exc:
                    assert "cannot write to its disk" in str(exc), exc
                assert contents(store) == numbers(100 + kept)
                assert store.status().health == "red"
            wait_until(lambda: store.tiers.hot.facts().write_ok, 30, "Redis writes again")
            client.append("one", "error", str(100 + kept))
            assert contents(store) == numbers(101 + kept)
        embedded.stop(settings.data_dir)
        with full(folder / "disk"):
            try:
                connect(settings).close()
            except TierUnavailable as exc:
                assert told_of_space(str(exc)), exc
        with connect(settings) as store:
            assert contents(store) == numbers(101 + kept)
            assert Worker(store.tiers).once().problem is None
            assert store.verify(deep=True).problems == ()
    finally:
        embedded.stop(settings.data_dir)


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    name, folder = sys.argv[1:]
    globals()[name](Path(folder))


if __name__ == "__main__":
    main()
