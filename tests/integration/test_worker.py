"""The worker as a whole: once, in the background, and as a process that is told to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.archiving import append, rows, settings_for
from tests.conftest import StartServer
from tests.servers import RedisServer
from tests.waiting import wait_until
from thermocline.archiver.lease import Lease
from thermocline.archiver.verify import verify
from thermocline.archiver.worker import Progress, Worker, WorkReport
from thermocline.config import Settings
from thermocline.errors import LeaseHeld, TierCorrupt, TierUnavailable
from thermocline.tiers.ledger import View
from thermocline.tiers.opening import Tiers, open_tiers

EAGER = {"settle_after_s": 0, "settle_after_events": 1, "settle_latest_s": 0}
FAST = {"settle_every_s": 0.05, "merge_every_s": 0.05, "purge_every_s": 0.05, "checkpoint_every_s": 0.1, "verify_every_s": 0.1}


@pytest.fixture
def tiers(tmp_path: Path, server: RedisServer) -> Iterator[Tiers]:
    with open_tiers(settings_for(tmp_path, server, warm=EAGER, worker=FAST)) as opened:
        yield opened


@pytest.fixture
def worker(tiers: Tiers) -> Iterator[Worker]:
    made = Worker(tiers)
    yield made
    assert made.stop(30)


def unmarked(view: View) -> View:
    return msgspec.structs.replace(view, epoch=0)


def said(tiers: Tiers) -> dict[str, Any]:
    path = tiers.settings.namespace_dir / "worker.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def settled(tiers: Tiers) -> int:
    return sum(state.events for state in tiers.ledger.view().shards)


# once


def test_once_settles_and_merges_everything_and_again_changes_nothing(tiers: Tiers) -> None:
    append(tiers, 500)
    told: list[Progress] = []
    first = Worker(tiers).once(told.append)
    assert first == WorkReport(settled_events=500, segments=1)
    assert [one.done for one in told if one.step == "settle"] == [0, 500]
    append(tiers, 100, start=500)
    second = Worker(tiers).once(told.append)
    assert second == WorkReport(settled_events=100, segments=1, merges=1, merged_events=600)
    assert Progress(step="merge", done=1, total=0) in told
    view = tiers.ledger.view()
    assert Worker(tiers).once() == WorkReport()
    assert unmarked(tiers.ledger.view()) == unmarked(view)
    assert rows(tiers) == list(range(600))
    assert verify(tiers, deep=True).problems == ()


def test_once_settles_what_was_there_at_its_start_while_producers_go_on(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    append(tiers, 100)
    real = tiers.ledger.settled

    def settle_and_append(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        append(tiers, 10, start=1000)

    monkeypatch.setattr(tiers.ledger, "settled", settle_and_append)
    assert Worker(tiers).once().settled_events == 100


def test_once_waits_for_redis_to_have_the_newest_events_on_disk(tmp_path: Path, redis_server: StartServer) -> None:
    server = redis_server(options={"appendfsync": "everysec"})
    with open_tiers(settings_for(tmp_path, server)) as tiers:
        append(tiers, 50)
        started_s = time.monotonic()
        assert Worker(tiers).once().settled_events == 50
        assert 2 <= time.monotonic() - started_s < 30


def test_once_gives_up_on_a_redis_whose_disk_does_not_keep_up(
    tmp_path: Path, redis_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = redis_server(options={"appendfsync": "everysec"})
    with open_tiers(settings_for(tmp_path, server)) as tiers:
        append(tiers, 50)
        real = tiers.hot.facts
        monkeypatch.setattr(tiers.hot, "facts", lambda: msgspec.structs.replace(real(), disk_ok=False))
        now_s = [0.0]
        report = Worker(tiers, monotonic=lambda: now_s[0], sleep=lambda s: now_s.__setitem__(0, now_s[0] + s)).once()
        assert (report.settled_events, report.left_events) == (0, 50)
        assert report.problem is not None
        assert "did not have the last 50 events on disk within 5 s" in report.problem
        assert 5 < now_s[0] < 6


def test_once_says_that_warm_is_full(tmp_path: Path, server: RedisServer) -> None:
    with open_tiers(settings_for(tmp_path, server, warm={"bytes_max": 1})) as tiers:
        append(tiers, 10)
        assert Worker(tiers).once().settled_events == 10
        append(tiers, 10, start=10)
        report = Worker(tiers).once()
        assert report.left_events == 10
        assert report.problem is not None
        assert "warm.bytes_max" in report.problem


def test_once_confirms_a_redis_that_came_back_wiped(tiers: Tiers, server: RedisServer) -> None:
    append(tiers, 10)
    Worker(tiers).once()
    server.kill()
    server.cut_aof(1 << 30)
    server.start()
    assert Worker(tiers).once() == WorkReport()
    append(tiers, 10, start=10)
    assert Worker(tiers).once().settled_events == 10
    assert verify(tiers, deep=True).problems == ()


def test_once_waits_out_the_log_grace_only_when_the_logs_are_over_their_budget(tmp_path: Path, server: RedisServer) -> None:
    hot = {"log_bytes_max": 1 << 20, "unsettled_bytes_max": 1 << 20, "log_grace_s": 5}
    slept: list[float] = []
    now_s = [0.0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now_s[0] += seconds

    settings = settings_for(tmp_path, server, hot=hot, warm={"settle_bytes": 1 << 20}, ingest={"block_bytes_max": 1 << 19})
    with open_tiers(settings) as tiers:
        for number in range(2):
            append(tiers, 12, conversations=1, start=12 * number, metadata={"pad": "x" * 60_000})
            report = Worker(tiers, monotonic=lambda: now_s[0], sleep=sleep).once()
        assert slept == [5]
        assert report.trimmed_blocks > 0
        assert rows(tiers) == list(range(24))


def test_a_second_worker_is_told_who_works(tiers: Tiers, worker: Worker) -> None:
    worker.start()
    for act in (Worker(tiers).once, Worker(tiers).start):
        with pytest.raises(LeaseHeld, match=f"worker {os.getpid()} on "):
            act()


# In the background


def test_a_started_worker_does_every_job_and_says_how_it_is(tiers: Tiers, worker: Worker) -> None:
    worker.start()
    for number in range(12):
        append(tiers, 30, start=30 * number)
        wait_until(lambda number=number: settled(tiers) == 30 * (number + 1), 20, "the events have settled")
    wait_until(lambda: any(one.level == 1 for one in tiers.ledger.view().segments), 20, "level 0 has merged")
    wait_until(lambda: {"ledger_wal_bytes", "verified_us", "settled_us"} <= said(tiers).keys(), 20, "all jobs ran")
    assert rows(tiers) == list(range(360))
    assert said(tiers)["health"] == "green"
    assert worker.problem is None
    assert worker.stop()
    assert said(tiers)["running"] is False
    Lease(tiers.settings.namespace_dir, tiers.ledger).release()


def test_the_worker_outlives_a_redis_that_is_killed(tiers: Tiers, worker: Worker, server: RedisServer) -> None:
    worker.start()
    append(tiers, 30)
    wait_until(lambda: settled(tiers) == 30, 20, "the first events have settled")
    server.kill()
    wait_until(lambda: said(tiers).get("health") == "red", 20, "health is red")
    assert worker.problem is not None
    server.start()
    wait_until(lambda: said(tiers)["health"] == "green", 20, "health is green again")
    assert worker.problem is None
    append(tiers, 30, start=30)
    wait_until(lambda: settled(tiers) == 60, 20, "the later events have settled")
    assert rows(tiers) == list(range(60))


def test_a_restart_between_two_passes_is_confirmed_by_the_worker(tiers: Tiers, worker: Worker, server: RedisServer) -> None:
    worker.start()
    wait_until(lambda: worker._confirmed_run, 20, "the first pass is done")
    server.stop()
    server.start()
    wait_until(lambda: {meta["run"] for meta in tiers.hot.metas()} == {tiers.hot.facts().run_id}, 20, "the new run is confirmed")


def test_a_hole_stops_settling_and_purging_for_good_and_the_rest_goes_on(
    tiers: Tiers, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def hole(**_: Any) -> None:
        calls.append("settle")
        raise TierCorrupt("hole in shard 1")

    monkeypatch.setattr("thermocline.archiver.settle.Settler.step", lambda self, **more: hole(**more))
    monkeypatch.setattr("thermocline.archiver.merge.Merger.step", lambda self, **_: calls.append("merge"))
    monkeypatch.setattr("thermocline.archiver.purge.Purger.step", lambda self, **_: calls.append("purge"))
    worker.start()
    wait_until(lambda: calls.count("merge") > 3, 20, "other jobs go on")
    assert calls.count("settle") == 1
    assert "purge" not in calls
    assert worker.problem == "settle: hole in shard 1"


def test_a_bug_in_a_job_is_counted_told_and_survived(tiers: Tiers, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thermocline.archiver.merge.Merger.step", lambda self, **_: 1 // 0)
    worker.start()
    wait_until(lambda: worker.problem is not None, 20, "health is red")
    assert worker.problem == "merge: ZeroDivisionError: integer division or modulo by zero"
    append(tiers, 10)
    wait_until(lambda: settled(tiers) == 10, 20, "settling goes on")


def test_a_full_warm_tier_and_what_verify_finds_are_red_until_they_are_put_right(
    tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = [10]
    with open_tiers(settings_for(tmp_path, server, warm={**EAGER, "bytes_max": 5}, worker=FAST)) as tiers:
        monkeypatch.setattr(tiers.warm, "bytes_used", lambda: used[0])
        worker = Worker(tiers)
        worker.start()
        append(tiers, 10)
        wait_until(lambda: worker.problem is not None, 20, "health is red")
        assert "warm.bytes_max is 5" in str(worker.problem)
        used[0] = 1
        wait_until(lambda: settled(tiers) == 10, 20, "settling goes on")
        wait_until(lambda: worker.problem is None, 20, "health is green")
        [segment] = tiers.ledger.view().segments
        path = Path(tiers.warm.path(segment.segment_id))
        path.rename(tmp_path / "kept")
        wait_until(lambda: worker.problem is not None, 20, "health is red")
        assert "the file is missing" in str(worker.problem)
        (tmp_path / "kept").rename(path)
        wait_until(lambda: worker.problem is None, 20, "health is green")
        assert worker.stop(30)


def test_rejected_lines_and_purged_files_are_told(
    tiers: Tiers, worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from thermocline.archiver.purge import Purged
    from thermocline.archiver.settle import SettleReport

    report = SettleReport(waiting_events=5, waiting_bytes=5, oldest_wait_s=0, events=5, rejected=5)
    monkeypatch.setattr("thermocline.archiver.settle.Settler.step", lambda self, **_: report)
    monkeypatch.setattr(
        "thermocline.archiver.purge.Purger.step", lambda self, **_: Purged(files=2, bytes=9, orphans=1, unclaimed=3)
    )
    with caplog.at_level("INFO", logger="thermocline.worker"):
        worker.start()
        wait_until(lambda: "3 segment files are older than the ledger" in str(worker.problem), 20, "health is red")
        wait_until(lambda: "purged" in caplog.text, 20, "the purge is told")
    assert "5 events could not be used" in caplog.text
    assert "into nothing: all were rejected" in caplog.text
    assert "purged 2 files, 9 bytes; 1 orphans" in caplog.text


def test_a_worker_whose_epoch_was_taken_stops(tiers: Tiers, worker: Worker) -> None:
    worker.start()
    tiers.ledger.take_epoch("a worker elsewhere", 1)
    append(tiers, 10)
    wait_until(lambda: worker._lost is not None, 20, "the worker notices")
    assert settled(tiers) == 0


def test_a_long_row_of_merges_lets_settle_in_between(tiers: Tiers, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    from thermocline.archiver.merge import Merged

    merges: list[int] = []

    def merge(_: object, **__: Any) -> Merged | None:
        merges.append(settled(tiers))
        return Merged(inputs=2, outputs=1, rows=1, level=1) if settled(tiers) < 10 else None

    monkeypatch.setattr("thermocline.archiver.merge.Merger.step", merge)
    worker.start()
    wait_until(lambda: len(merges) > 3, 20, "merges go on and on")
    append(tiers, 10)
    wait_until(lambda: settled(tiers) == 10, 20, "the events have settled all the same")


def test_a_stop_waits_for_the_step_in_hand_for_a_while(tiers: Tiers, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def merge(_: object, **__: Any) -> None:
        begun.set()
        go_on.wait(30)

    monkeypatch.setattr("thermocline.archiver.merge.Merger.step", merge)
    worker.start()
    begun.wait(30)
    assert not worker.stop(0.05)
    go_on.set()
    assert worker.stop(30)
    assert worker.stop()


def test_a_clock_set_back_does_not_make_the_jobs_wait(tiers: Tiers) -> None:
    offset_s = [0.0]
    worker = Worker(tiers, wall=lambda: time.time() + offset_s[0])
    worker.follow_clock()
    worker.start()
    assert worker._schedule is not None
    later = datetime.now(UTC) + timedelta(hours=2)
    for job in worker._schedule._scheduler.get_jobs():
        job.modify(next_run_time=later)
    append(tiers, 10)
    worker.follow_clock()
    assert settled(tiers) == 0
    offset_s[0] = -7200
    worker.follow_clock()
    wait_until(lambda: settled(tiers) == 10, 20, "the events have settled")
    assert worker.stop(30)


# As a process


RUN = """
import sys
from thermocline.archiver.worker import Worker
from thermocline.config import Settings
from thermocline.tiers.opening import open_tiers
import msgspec, json
with open_tiers(Settings(**json.loads(sys.argv[1]))) as tiers:
    {prelude}
    Worker(tiers).run()
"""


def start_process(settings: Settings, prelude: str = "pass") -> subprocess.Popen[str]:
    told = settings.model_dump_json()
    code = RUN.format(prelude=prelude)
    return subprocess.Popen([sys.executable, "-c", code, told], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_process_works_until_it_is_told_to_stop(tiers: Tiers, number: signal.Signals) -> None:
    append(tiers, 25)
    with start_process(tiers.settings) as process:
        wait_until(lambda: settled(tiers) == 25, 30, "the events have settled")
        process.send_signal(number)
        started_s = time.monotonic()
        assert process.wait(30) == 0
        assert time.monotonic() - started_s < 5
        assert process.stderr is not None
        text = process.stderr.read()
    assert "settled 25 of 25 waiting events" in text
    assert "worker stopped" in text
    assert said(tiers)["running"] is False


def test_a_step_that_takes_too_long_is_left_when_the_worker_is_told_to_stop(tmp_path: Path, server: RedisServer) -> None:
    settings = settings_for(tmp_path, server, warm=EAGER, worker={**FAST, "stop_within_s": 0.5})
    begun = tmp_path / "begun"
    prelude = (
        "import pathlib, threading; from thermocline.archiver.merge import Merger;"
        f"Merger.step = lambda self, **_: (pathlib.Path({str(begun)!r}).touch(), threading.Event().wait())"
    )
    with open_tiers(settings) as tiers, start_process(settings, prelude) as process:
        wait_until(begun.exists, 30, "a step is in hand")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert "the step in hand takes too long" in process.stderr.read()
        Lease(settings.namespace_dir, tiers.ledger).release()


def test_a_worker_process_that_loses_its_epoch_ends_with_the_reason(tiers: Tiers) -> None:
    with start_process(tiers.settings) as process:
        wait_until(lambda: said(tiers).get("running"), 30, "it works")
        tiers.ledger.take_epoch("a worker elsewhere", 1)
        append(tiers, 5)
        assert process.wait(30) == 1
        assert process.stderr is not None
        assert "another worker has this namespace: a worker elsewhere" in process.stderr.read()


def test_the_worker_starts_the_embedded_redis_again_when_it_is_gone(data_dir: Path) -> None:
    from thermocline.config import load

    settings = load(
        {"data_dir": str(data_dir), "warm": EAGER, "worker": FAST, "hot": {"append_fsync": "always", "shards": 2}}, environ={}
    )
    with open_tiers(settings) as tiers, ExitStack() as stack:
        worker = Worker(tiers)
        stack.callback(worker.stop, 30)
        worker.start()
        append(tiers, 10)
        wait_until(lambda: settled(tiers) == 10, 20, "the events have settled")
        info = dict(
            line.partition(":")[::2] for line in tiers.hot.link.call("INFO", "server").decode().splitlines() if ":" in line
        )
        os.kill(int(info["process_id"]), signal.SIGKILL)
        wait_until(lambda: answers(tiers.hot.facts), 30, "Redis is there again")
        wait_until(lambda: worker.problem is None, 30, "health is green")
        append(tiers, 10, start=10)
        wait_until(lambda: settled(tiers) == 20, 30, "the later events have settled")
        assert rows(tiers) == list(range(20))


def answers(act: Callable[[], object]) -> bool:
    try:
        act()
    except TierUnavailable:
        return False
    return True
