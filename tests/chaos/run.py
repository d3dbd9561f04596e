"""One chaos run: start Redis, producers, readers and the worker; inject the plan; let everything settle; judge."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.servers import RedisServer, binary_version
from tests.waiting import wait_until
from thermocline.archiver.worker import Worker
from thermocline.tiers.opening import open_tiers

from .check import Verdict, judge
from .plan import Fault, make_plan
from .roles import settings_of

ROOT = Path(__file__).resolve().parents[2]
RESTART_S_MAX = 2.0
LOG_END_CHARS = 1500

SETTINGS = """
data_dir = "{data_dir}"
redis_url = "{redis_url}"
[hot]
durable_lag_s = {durable_lag_s}
log_grace_s = 1
cache_window_s = 5
timeout_s = 3
[warm]
settle_events = 500
settle_after_s = 0.5
settle_after_events = 1
settle_latest_s = 1
fan_in = 3
day_rows_min = 2000
rollup_rows_min = 2000
purge_grace_s = 3
[worker]
settle_every_s = 0.3
merge_every_s = 0.3
purge_every_s = 1
verify_every_s = 5
"""


class Report(msgspec.Struct, kw_only=True):
    seed: int
    redis: str
    fsync: str
    faults: int
    seconds: float
    worker_restart_s_max: float
    redis_restart_s_max: float
    verdict: Verdict
    problems: list[str]


class Run:
    """The processes of one run, in one folder."""

    def __init__(self, folder: Path, *, redis: str, fsync: str, seed: int, producers: int, readers: int) -> None:
        self.folder = folder
        self.seed = seed
        self.fsync = fsync
        self.producers, self.readers = producers, readers
        self.redis = RedisServer(redis, folder / "redis-server", options={"appendfsync": fsync})
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.worker_lives = 0
        self.worker_restarts_s: list[float] = []
        self.redis_restarts_s: list[float] = []

    def start(self) -> None:
        self.redis.start()
        text = SETTINGS.format(
            data_dir=self.folder / "data",
            redis_url=self.redis.url,
            durable_lag_s=2 if self.fsync == "everysec" else 0,
        )
        (self.folder / "thermocline.toml").write_text(text)
        self.start_worker()
        for number in range(self.producers):
            self._spawn("producer", number)
        for number in range(self.readers):
            self._spawn("reader", number)
        self.wait(self._all_at_work, 60, "every producer and reader is at work")

    def _all_at_work(self) -> bool:
        paths = [self.folder / f"{name}.ndjson" for name in self.processes]
        return all(path.exists() and path.stat().st_size for path in paths)

    def _spawn(self, role: str, number: int) -> None:
        command = [sys.executable, "-m", "tests.chaos.roles", role, str(self.folder), str(number), str(self.seed)]
        log = (self.folder / f"{role}-{number}.log").open("ab")
        name = role if role == "worker" else f"{role}-{number}"
        self.processes[name] = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        log.close()

    def start_worker(self) -> None:
        """Start it and wait until it says it is ready; the time that took is part of the report."""
        self.worker_lives += 1
        began = time.monotonic()
        self._spawn("worker", self.worker_lives)
        path = self.folder / "worker.ndjson"
        ready = f'"number": {self.worker_lives},'
        self.wait(lambda: path.exists() and ready in path.read_text(), 30, "the worker is ready")
        self.worker_restarts_s.append(time.monotonic() - began)

    def wait(self, condition: Callable[[], bool], limit_s: float, what: str) -> None:
        """Return as soon as `condition` holds. RuntimeError when a process ends by itself meanwhile."""

        def holds() -> bool:
            self._require_all_alive()
            return condition()

        try:
            wait_until(holds, limit_s, what)
        except TimeoutError as exc:
            raise TimeoutError(f"{exc}; the logs in {self.folder} end with\n{self._log_ends()}") from None

    def _work_goes_on(self, seconds: float) -> None:
        """Let the processes work for so long, all of them alive."""
        end_s = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() >= end_s, seconds + 30, f"{seconds:g} s are over")

    def _require_all_alive(self) -> None:
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended by itself, code {process.returncode}; the logs end with\n{self._log_ends()}")

    def _log_ends(self) -> str:
        """The last lines of what every process wrote."""
        paths = [*self.folder.glob("*.log"), *self.folder.glob("reader-*.ndjson")]
        return "\n".join(f"{path.name}: {path.read_text()[-LOG_END_CHARS:]}" for path in sorted(paths))

    def inject(self, fault: Fault, turn: int) -> None:
        if fault.kind in ("kill-worker", "kill-worker-merging"):
            if fault.kind == "kill-worker-merging":
                self.wait((self.folder / "merging").exists, 60, "a merge begins")
                self._work_goes_on(fault.delay_s)
            self._kill("worker")
            self.start_worker()
        elif fault.kind == "kill-redis":
            self.redis.kill()
            began = time.monotonic()
            self.redis.start()
            self.redis_restarts_s.append(time.monotonic() - began)
        else:
            self._stop_for(fault, turn)
        self._work_goes_on(fault.wait_s)

    def _stop_for(self, fault: Fault, turn: int) -> None:
        role = fault.kind.removeprefix("stop-")
        count = {"producer": self.producers, "reader": self.readers}.get(role, 1)
        name = role if role in ("worker", "redis") else f"{role}-{turn % count}"
        pid = self.redis.pid if role == "redis" else self.processes[name].pid
        os.kill(pid, signal.SIGSTOP)
        self._work_goes_on(fault.delay_s)
        os.kill(pid, signal.SIGCONT)

    def _kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def queries(self) -> int:
        """Queries answered so far, as far as the readers' progress files say."""
        return sum(int(path.read_text() or 0) for path in self.folder.glob("reader-*.count"))

    def finish(self) -> None:
        """Let producers and readers end by themselves, then let everything settle."""
        (self.folder / "stop").touch()
        for name, process in self.processes.items():
            if name != "worker":
                process.wait(timeout=180)
        self._kill("worker")
        with open_tiers(settings_of(self.folder)) as tiers:
            Worker(tiers).once()

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
        self.redis.stop()


def run_chaos(
    folder: Path,
    *,
    redis: str,
    fsync: str,
    seed: int,
    worker_kills: int,
    redis_kills: int,
    stops: int,
    producers: int,
    readers: int,
    queries_min: int,
    say: Callable[[str], None],
    restart_s_max: float = RESTART_S_MAX,
) -> Report:
    """Run it all; the report's `problems` is empty if every promise held. Restart times mean little on a busy machine."""
    plan = make_plan(seed, worker_kills=worker_kills, redis_kills=redis_kills, stops=stops)
    run = Run(folder, redis=redis, fsync=fsync, seed=seed, producers=producers, readers=readers)
    began = time.monotonic()
    try:
        run.start()
        for turn, fault in enumerate(plan):
            run.inject(fault, turn)
            if turn % 10 == 9:
                say(f"{turn + 1} of {len(plan)} faults, {run.queries()} queries, {time.monotonic() - began:.0f} s")
        run.wait(lambda: run.queries() >= queries_min, 60 + queries_min, f"{queries_min} queries")
        run.finish()
        verdict = judge(folder)
    finally:
        run.close()
    problems = verdict.problems(gaps_allowed=fsync != "always")
    restart_s = max(run.worker_restarts_s[1:], default=0.0)
    if restart_s > restart_s_max:
        problems.append(f"a worker took {restart_s:.2f} s to be ready again, not {restart_s_max} s")
    return Report(
        seed=seed,
        redis=".".join(map(str, binary_version(redis))),
        fsync=fsync,
        faults=len(plan),
        seconds=round(time.monotonic() - began, 1),
        worker_restart_s_max=round(restart_s, 2),
        redis_restart_s_max=round(max(run.redis_restarts_s, default=0.0), 2),
        verdict=verdict,
        problems=problems,
    )
