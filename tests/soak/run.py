"""One soak: start everything, let a day pass every minute, take samples, and judge what grew."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.chaos.roles import settings_of
from tests.history.nemesis import Clocks
from tests.servers import RedisServer, binary_version, dying_with_parent
from tests.waiting import pause, wait_until
from thermocline.store import connect

from .flat import Growth, judge
from .sample import BOUNDS, MIB, sample

ROOT = Path(__file__).resolve().parents[2]
DAY_S = 86_400
WAIT_S = 600
PEAK_WARM_UP_S = 30
STOP_S_MAX = 30
"""SIGTERM ends the worker within worker.stop_within_s (5 s), and the rest is what a busy machine takes."""

SETTINGS = """
data_dir = "{data_dir}"
redis_url = "{redis_url}"
[hot]
unsettled_bytes_max = 67108864
log_bytes_max = 134217728
cache_window_s = 20
log_grace_s = 2
timeout_s = 30
connect_timeout_s = 10
[warm]
window_days = 1
settle_after_s = 3
settle_latest_s = 10
purge_grace_s = 20
mirror = "file://{mirror}"
mirror_snapshots = 2
mirror_grace_s = 20
[cold]
retention_days = 2
snapshot_keep_days = 1
purge_grace_s = 20
[worker]
merge_every_s = 2
purge_every_s = 5
checkpoint_every_s = 30
verify_every_s = 30
archive_every_s = 15
mirror_every_s = 5
scrub_every_s = 60
scrub_days = 0.02
"""


class Report(msgspec.Struct, kw_only=True):
    """What came of a soak. `problems` is empty when nothing grew and nothing was lost."""

    redis: str
    seconds: float
    days: int
    """That passed, by the clocks of all processes."""
    rate: float
    events: int
    """Acknowledged."""
    events_a_second: float
    queries: int
    samples: int
    archived: int
    kept: int
    expired: int
    worker_stop_s: float
    grown: dict[str, Growth]
    """Series that grew by more than a tenth of their bound, or are of processes; all others are flatter than that."""
    problems: list[str]


class Soak:
    """The processes of one run, all with a clock that a file moves. A context manager."""

    def __init__(self, folder: Path, *, redis: str, producers: int, readers: int, rate: float, queries_rate: float) -> None:
        self.folder = folder
        self.clocks = Clocks(folder)
        self.redis = RedisServer(redis, folder / "redis-server", options={"auto-aof-rewrite-min-size": "8mb"})
        self._rates = {"producer": rate / producers, "reader": queries_rate / max(1, readers)}
        self._counts = {"producer": producers, "reader": readers}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.days = 0

    @property
    def namespace(self) -> Path:
        return self.folder / "data" / "default"

    def __enter__(self) -> Soak:
        os.environ.update(self.clocks.environ("Redis"))  # one clock for all of them
        try:
            self.redis.start()
            text = SETTINGS.format(data_dir=self.folder / "data", mirror=self.folder / "mirror", redis_url=self.redis.url)
            (self.folder / "thermocline.toml").write_text(text)
            os.environ["THERMOCLINE_CONFIG"] = str(self.folder / "thermocline.toml")
            self._spawn("worker", ["-m", "thermocline", "worker"])
            wait_until((self.namespace / "worker.json").exists, WAIT_S, "the worker works")
            for role, count in self._counts.items():
                for number in range(count):
                    self._spawn(
                        f"{role}-{number}",
                        ["-m", "tests.soak.roles", role, str(self.folder), str(number), str(self._rates[role])],
                    )
            wait_until(lambda: len(list(self.folder.glob("*.count"))) == sum(self._counts.values()), WAIT_S, "all are at work")
        except BaseException:
            self.__exit__()
            raise
        return self

    def _spawn(self, name: str, words: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(dying_with_parent([sys.executable, *words]), cwd=ROOT, stdout=log, stderr=log)

    def next_day(self) -> None:
        self.days += 1
        self.clocks.set("Redis", self.days * DAY_S)

    def sample(self) -> dict[str, float]:
        """How much of everything there is. RuntimeError when a process has ended."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                log = (self.folder / f"{name}.log").read_text()[-3000:]
                raise RuntimeError(f"{name} ended by itself, code {process.returncode}:\n{log}")
        pids = {name: process.pid for name, process in self.processes.items()} | {"redis": self.redis.pid}
        found = sample(self.namespace, self.folder / "mirror", self.redis, pids)
        return found | {"waiting events": json.loads((self.namespace / "worker.json").read_text()).get("waiting_events", 0)}

    def count(self, role: str) -> int:
        return sum(int(path.read_text() or 0) for path in self.folder.glob(f"{role}-*.count"))

    def settled(self) -> int:
        with sqlite3.connect(f"file:{self.namespace / 'ledger.db'}?mode=ro", uri=True) as con:
            [[events]] = con.execute("SELECT sum(events) FROM shards").fetchall()
        con.close()
        return int(events or 0)

    def finish(self) -> float:
        """Let producers and readers end, then the worker by SIGTERM; how many seconds that took."""
        (self.folder / "stop").touch()
        for name, process in self.processes.items():
            if name != "worker":
                process.wait(WAIT_S)
        began_s = time.monotonic()
        self.processes["worker"].send_signal(signal.SIGTERM)
        self.processes["worker"].wait(WAIT_S)
        return time.monotonic() - began_s

    def __exit__(self, *exc: object) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.redis.stop()
        for name in (*self.clocks.environ("Redis"), "THERMOCLINE_CONFIG"):
            os.environ.pop(name, None)


def peak(folder: Path, *, redis: str, seconds: float, producers: int) -> float:
    """Events a second that settle while producers append as many as are taken, over `seconds` after a warm-up."""
    with Soak(folder, redis=redis, producers=producers, readers=0, rate=0, queries_rate=0) as soak:
        pause(PEAK_WARM_UP_S)
        before, began_s = soak.settled(), time.monotonic()
        pause(seconds)
        found = (soak.settled() - before) / (time.monotonic() - began_s)
        soak.finish()
    return found


def run_soak(
    folder: Path,
    *,
    redis: str,
    minutes: float,
    rate: float,
    producers: int,
    readers: int,
    queries_rate: float,
    day_s: float,
    sample_s: float,
    say: Callable[[str], None],
) -> Report:
    """See the package. `rate` is of all producers, `queries_rate` of all readers; a day passes every `day_s`."""
    samples: list[dict[str, float]] = []
    problems: list[str] = []
    with Soak(folder, redis=redis, producers=producers, readers=readers, rate=rate, queries_rate=queries_rate) as soak:
        began_s = time.monotonic()
        while (now_s := time.monotonic() - began_s) < minutes * 60:
            if now_s >= (soak.days + 1) * day_s:
                soak.next_day()
            if now_s >= len(samples) * sample_s:
                samples.append(soak.sample())
                with (folder / "samples.ndjson").open("ab") as file:
                    file.write(msgspec.json.encode(samples[-1]) + b"\n")
                if len(samples) % 6 == 1:
                    rss_mib = {name: round(size / MIB) for name, size in samples[-1].items() if name.startswith("rss")}
                    say(f"{now_s:.0f} s, {soak.count('producer')} events, {soak.count('reader')} queries, MiB: {rss_mib}")
            pause(0.2)
        seconds = time.monotonic() - began_s
        events, queries = soak.count("producer"), soak.count("reader")
        stop_s = soak.finish()
        if soak.processes["worker"].returncode != 0 or stop_s > STOP_S_MAX:
            problems.append(f"the worker ended {stop_s:.1f} s after SIGTERM, code {soak.processes['worker'].returncode}")
        archived, kept, expired, wrong = _judge_store(folder, soak)
    problems += wrong
    grown = judge(samples, BOUNDS, days=minutes * 60 / day_s / 3)
    problems += [f"{name} grew: {one}" for name, one in grown.items() if one.grew]
    if not (archived and expired and queries):
        problems.append(f"not everything happened: {archived} archived, {expired} expired, {queries} queries")
    if events < 0.9 * rate * seconds:
        problems.append(f"{events / seconds:.0f} events a second were taken, not {rate:g}")
    return Report(
        redis=".".join(map(str, binary_version(redis))),
        seconds=round(seconds, 1),
        days=soak.days,
        rate=rate,
        events=events,
        events_a_second=round(events / seconds, 1),
        queries=queries,
        samples=len(samples),
        archived=archived,
        kept=kept,
        expired=expired,
        worker_stop_s=round(stop_s, 2),
        grown={
            name: one
            for name, one in grown.items()
            if name.startswith(("rss", "fds", "redis memory")) or one.last - one.middle > one.allowed / 10
        },
        problems=problems,
    )


def _judge_store(folder: Path, soak: Soak) -> tuple[int, int, int, list[str]]:
    """(events archived, kept of them, expired, what is wrong)."""
    problems = []
    with connect(settings_of(folder)) as store:
        verification = store.verify(deep=True)
        shards = verification.shards
        problems += verification.problems
        batches = store.tiers.ledger.batches()
    appended, acknowledged = sum(shard.appended for shard in shards), soak.count("producer")
    if appended != acknowledged:
        problems.append(f"{acknowledged} events were acknowledged, {appended} were appended")
    with (folder / "worker.log").open() as log:
        problems += [line.strip() for line in log if " ERROR " in line or line.startswith("Traceback")][:20]
    archived = [batch for batch in batches if batch.kind == "archive"]
    expired = sum(batch.events_in for batch in batches if batch.kind == "expire")
    return sum(one.events_in for one in archived), sum(one.events_kept for one in archived), expired, problems
