"""Redis' clock jumps two hours ahead and back while events are appended, settled and read. Needs a C compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.archived import aged_events, append_and_work
from tests.s3_servers import Bucket
from tests.servers import RedisServer
from thermocline.archiver.worker import Worker
from thermocline.config import load
from thermocline.errors import InvalidEvent
from thermocline.event import Event, Receipt
from thermocline.ingest.append import Client
from thermocline.store import connect
from thermocline.tiers.opening import open_tiers

pytestmark = pytest.mark.long

NAMES = [f"chat-{number}" for number in range(50)]


@pytest.fixture
def clock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that holds how many seconds Redis' clock is off; servers started from here on obey it."""
    library = tmp_path / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    path = tmp_path / "clock"
    path.write_text("0\n")
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("CLOCK_OFFSET_FILE", str(path))
    return path


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_a_clock_that_jumps_two_hours_ahead_and_back_loses_and_doubles_nothing(
    redis_binary: Path, tmp_path: Path, clock_file: Path, monkeypatch: pytest.MonkeyPatch, fsync: str
) -> None:
    server = RedisServer(redis_binary, tmp_path / "server", options={"appendfsync": fsync})
    server.start()
    for name in ("LD_PRELOAD", "CLOCK_OFFSET_FILE"):
        monkeypatch.delenv(name)
    assert "LD_PRELOAD" not in os.environ
    hot = {"log_grace_s": 0, "cache_window_s": 0}
    settings = load({"data_dir": tmp_path / "data", "redis_url": server.url, "hot": hot}, environ={})
    receipts: list[Receipt] = []
    with open_tiers(settings) as tiers, Client(settings, tiers=tiers) as client, connect(settings) as store:
        start_us = tiers.hot.facts().now_us
        for moved_s in (0, 7200, 0, -7200, 0):
            clock_file.write_text(f"{moved_s:<10}\n")
            assert abs((tiers.hot.facts().now_us - start_us) / 1e6 - moved_s) < 120
            try:
                receipts += client.append_many(
                    Event(conversation_id=name, event_type="t", content=str(moved_s)) for name in NAMES
                )
            except InvalidEvent as error:  # two hours behind, what is now here lies beyond the five minutes allowed
                assert moved_s < 0 and error.field == "timestamp" and "Redis' clock" in str(error)
            assert store.sql("SELECT count(*) FROM events").fetchall() == [(len(receipts),)]
            Worker(tiers).once()
            assert sum(state.events for state in tiers.ledger.view().shards) == len(receipts)
            assert store.sql("SELECT count(*), count(DISTINCT (conversation_id, seq)) FROM events").fetchall() == [
                (len(receipts), len(receipts))
            ]
        assert {receipt.seq for receipt in receipts} == {1, 2, 3, 4} and len(receipts) == 4 * len(NAMES)
        assert store.verify(deep=True).ok
    server.stop()


def test_a_machine_whose_clock_is_an_hour_off_is_told_so_by_a_real_s3_server(
    server: RedisServer, swift_bucket: Bucket, tmp_path: Path, clock_file: Path
) -> None:
    overrides = {"data_dir": str(tmp_path / "data"), "redis_url": server.url, "cold_url": swift_bucket.url}
    settings = load(overrides, environ={})
    append_and_work(settings, aged_events())
    clock_file.write_text(f"{3600:<10}\n")
    variables = {f"THERMOCLINE_{name.upper()}": value for name, value in overrides.items()}
    command = [sys.executable, "-m", "thermocline", "archive"]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done
    assert "clock is off" in done.stderr
    assert "Traceback" not in done.stderr
    clock_file.write_text("0\n")
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done
