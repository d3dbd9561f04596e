"""One chaos run: start Redis, producers, readers and the worker; inject the plan; let everything settle; judge."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.forks import Forked, Template
from tests.servers import RedisServer, aof_tail, binary_version, dying_with_parent
from tests.waiting import pause, wait_until
from thermocline.archiver.worker import Worker
from thermocline.tiers.opening import open_tiers

from .check import Verdict, judge
from .plan import WAIT_S_MAX, Fault, make_plan
from .roles import BATCH_EVENTS_MAX, NOT_NOW, settings_of

ROOT = Path(__file__).resolve().parents[2]
RESTART_S_MAX = 2.0
WAIT_S = 600
"""Within which whatever is waited for has to happen, also at the lowest priority of a busy machine."""
UNSYNCED_S = 1.0
"""What Redis wrote within it, `everysec` may not have on disk."""
LOG_END_CHARS = 1500
AOF_REWRITE_SIZE = "8mb"
"""So that Redis, killed again and again, is not busy replaying what was trimmed long ago; and is killed while it rewrites."""

SETTINGS = """
data_dir = "{data_dir}"
redis_url = "{redis_url}"
[hot]
durable_lag_s = {durable_lag_s}
log_grace_s = 1
cache_window_s = 5
connect_timeout_s = 5
timeout_s = 5
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
    worker_kills: int
    redis_kills: int
    stops: int
    seconds: float
    worker_restart_s_max: float
    """Its fork, opening the store, confirming Redis, the lease: not Python's imports."""
    redis_restart_s_max: float
    cut_bytes: int
    """Cut off the append-only file after kills of Redis."""
    verdict: Verdict
    problems: list[str]


class Run:
    """The processes of one run, in one folder. The rates are of all producers or readers, 0: no limit."""

    def __init__(
        self,
        folder: Path,
        *,
        redis: str,
        fsync: str,
        seed: int,
        producers: int,
        readers: int,
        events_rate: float,
        queries_rate: float,
    ) -> None:
        self.folder = folder
        self.seed = seed
        self.fsync = fsync
        self.producers, self.readers = producers, readers
        self.rates = {"producer": events_rate / producers, "reader": queries_rate / readers}
        options = {"appendfsync": fsync, "auto-aof-rewrite-min-size": AOF_REWRITE_SIZE}
        self.redis = RedisServer(redis, folder / "redis-server", options=options)
        self.template = Template("tests.chaos.roles:work", folder / "worker.log")
        self.processes: dict[str, subprocess.Popen[bytes] | Forked] = {}
        self.worker_lives = 0
        self.worker_restarts_s: list[float] = []
        self.redis_restarts_s: list[float] = []
        self.cut_bytes = 0
        self._file_sizes: deque[tuple[float, Path, int]] = deque(maxlen=100)

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
        self.wait(self._all_at_work, WAIT_S, "every producer and reader is at work")

    def _all_at_work(self) -> bool:
        paths = [self.folder / f"{name}.ndjson" for name in self.processes if name != "worker"]
        return all(path.exists() and path.stat().st_size for path in paths)

    def _spawn(self, role: str, number: int) -> None:
        rate = str(self.rates[role])
        command = [sys.executable, "-m", "tests.chaos.roles", role, str(self.folder), str(number), str(self.seed), rate]
        with (self.folder / f"{role}-{number}.log").open("ab") as log:
            self.processes[f"{role}-{number}"] = subprocess.Popen(dying_with_parent(command), cwd=ROOT, stdout=log, stderr=log)

    def start_worker(self) -> None:
        """Start it and wait until it says it is ready; the time that took is part of the report."""
        self.worker_lives += 1
        began = time.monotonic()
        number = str(self.worker_lives)
        path = self.folder / "worker.ready"

        def ready() -> bool:
            if "worker" not in self.processes or self.processes["worker"].poll() == NOT_NOW:
                self.processes["worker"] = self.template.fork(str(self.folder), number)
            return path.exists() and path.read_text() == number

        ready()
        self.wait(ready, WAIT_S, "the worker is ready")
        self.worker_restarts_s.append(time.monotonic() - began)

    def wait(self, condition: Callable[[], bool], limit_s: float, what: str) -> None:
        """Return as soon as `condition` holds. RuntimeError when a process ends by itself meanwhile."""

        def holds() -> bool:
            self._require_all_alive()
            self._note_file()
            return condition()

        try:
            wait_until(holds, limit_s, what)
        except TimeoutError as exc:
            raise TimeoutError(f"{exc}; the logs in {self.folder} end with\n{self._log_ends()}") from None

    def _work_goes_on(self, seconds: float) -> None:
        """Let the processes work for so long, all of them alive."""
        end_s = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() >= end_s, seconds + WAIT_S, f"{seconds:g} s are over")

    def _require_all_alive(self) -> None:
        for name, process in self.processes.items():
            if process.poll() not in (None, NOT_NOW):
                raise RuntimeError(f"{name} ended by itself, code {process.returncode}; the logs end with\n{self._log_ends()}")

    def _log_ends(self) -> str:
        """The last lines of what every process wrote."""
        paths = [*self.folder.glob("*.log"), *self.folder.glob("reader-*.ndjson")]
        return "\n".join(f"{path.name}: {_end_of(path)}" for path in sorted(paths))

    def inject(self, fault: Fault, turn: int) -> None:
        if fault.kind in ("kill-worker", "kill-worker-merging"):
            if fault.kind == "kill-worker-merging":
                self.wait((self.folder / "merging").exists, WAIT_S, "a merge begins")
                self._work_goes_on(fault.delay_s)
            self._kill("worker")
            self.start_worker()
        elif fault.kind == "kill-redis":
            self.redis.kill()
            self._cut(fault.cut_bytes)
            began = time.monotonic()
            self.redis.start()
            self.redis_restarts_s.append(time.monotonic() - began)
        else:
            self._stop_for(fault, turn)
        self._work_goes_on(fault.wait_s)

    def _note_file(self) -> None:
        """How long the append-only file is, some ten times a second."""
        now_s = time.monotonic()
        if not self._file_sizes or now_s - self._file_sizes[-1][0] > UNSYNCED_S / 10:
            with contextlib.suppress(FileNotFoundError):  # it is just being replaced
                path = aof_tail(self.redis.folder)
                self._file_sizes.append((now_s, path, path.stat().st_size))

    def _cut(self, bytes_max: int) -> None:
        """Take away what a power failure might: of the file's end, no more than was written in the last second."""
        if not bytes_max:
            return
        path = aof_tail(self.redis.folder)
        since_s = time.monotonic() - UNSYNCED_S
        sizes = [size for at_s, of, size in self._file_sizes if of == path and at_s >= since_s]
        self.cut_bytes += self.redis.cut_aof(min(bytes_max, path.stat().st_size - sizes[0])) if sizes else 0

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
        """Let producers and readers end by themselves, then let everything settle, and what a crash left be purged."""
        (self.folder / "stop").touch()
        for process in self.processes.values():
            if isinstance(process, subprocess.Popen):
                process.wait(timeout=WAIT_S)
        self._kill("worker")
        with open_tiers(settings_of(self.folder)) as tiers:
            Worker(tiers).once()
            for _ in ("orphans to the trash", "the trash emptied"):
                pause(tiers.settings.warm.purge_grace_s)
                Worker(tiers).once()

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
        self.template.close()
        self.redis.stop()


def _end_of(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_END_CHARS))
        return file.read().decode(errors="replace")


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
    wait_s_max: float = WAIT_S_MAX,
    events_rate: float = 0,
    queries_rate: float = 0,
    cut_bytes_max: int = 0,
) -> Report:
    """Run it all; the report's `problems` is empty if every promise held. Restart times mean little on a busy machine.

    cut_bytes_max  what a killed Redis loses at most of the end of its append-only file, as in a power failure: not with `always`
    """
    assert fsync != "always" or not cut_bytes_max, "what was fsynced is not lost"
    plan = make_plan(
        seed,
        worker_kills=worker_kills,
        redis_kills=redis_kills,
        stops=stops,
        wait_s_max=wait_s_max,
        cut_bytes_max=cut_bytes_max,
    )
    run = Run(
        folder,
        redis=redis,
        fsync=fsync,
        seed=seed,
        producers=producers,
        readers=readers,
        events_rate=events_rate,
        queries_rate=queries_rate,
    )
    began = time.monotonic()
    try:
        run.start()
        for turn, fault in enumerate(plan):
            run.inject(fault, turn)
            if turn % 10 == 9:
                say(f"{turn + 1} of {len(plan)} faults, {run.queries()} queries, {time.monotonic() - began:.0f} s")
        run.wait(lambda: run.queries() >= queries_min, WAIT_S + queries_min, f"{queries_min} queries")
        run.finish()
        verdict = judge(folder)
    finally:
        run.close()
    on_the_way = producers * BATCH_EVENTS_MAX * redis_kills if cut_bytes_max else 0
    problems = verdict.problems(gaps_allowed=fsync != "always", unacknowledged_max=on_the_way)
    restart_s = max(run.worker_restarts_s[1:], default=0.0)
    if restart_s > restart_s_max:
        problems.append(f"a worker took {restart_s:.2f} s to be ready again, not {restart_s_max} s")
    return Report(
        seed=seed,
        redis=".".join(map(str, binary_version(redis))),
        fsync=fsync,
        faults=len(plan),
        worker_kills=worker_kills,
        redis_kills=redis_kills,
        stops=stops,
        seconds=round(time.monotonic() - began, 1),
        worker_restart_s_max=round(restart_s, 2),
        cut_bytes=run.cut_bytes,
        redis_restart_s_max=round(max(run.redis_restarts_s, default=0.0), 2),
        verdict=verdict,
        problems=problems,
    )
