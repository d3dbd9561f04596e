"""One run: start Redis, S3, the worker and the clients; do the plan's faults; read everything; check it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import msgspec

from tests.chaos.check import litter, unopenable
from tests.chaos.roles import NOT_NOW, settings_of
from tests.forks import Forked, Template
from tests.s3_front import Front
from tests.s3_servers import ACCESS_KEY, MOTO, REGION, SECRET_KEY, S3Server
from tests.servers import RedisServer, binary_version, dying_with_parent
from tests.waiting import pause, wait_until
from thermocline.archiver.worker import Worker
from thermocline.store import Store, connect

from .check import check
from .journal import Told, read_journals
from .nemesis import Clocks, Nemesis, S3Switch
from .plan import KINDS, Fault, Kind, make_plan
from .record import Row

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 600
"""Within which whatever is waited for has to happen, also at the lowest priority of a busy machine."""
TICK_S = 0.02
SHOWN_MAX = 20
SHORT_S = 60
"""A run that is not longer begins before anything is archived."""
QUIET_S = 1.0
"""Between the last fault and the end of the clients."""

SETTINGS = """
data_dir = "{data_dir}"
redis_url = "{redis_url}"
cold_url = "{cold_url}"
[hot]
shards = 4
buckets = 64
durable_lag_s = 0
log_grace_s = 1
cache_window_s = 4
timeout_s = 1
connect_timeout_s = 0.5
[ingest]
deadline_s = 2
[warm]
window_days = 1
settle_events = 200
settle_after_s = 0.3
settle_after_events = 1
settle_latest_s = 1
fan_in = 3
day_rows_min = 1000
rollup_rows_min = 500
purge_grace_s = 3
[cold]
endpoint_url = "{endpoint_url}"
connect_timeout_s = 2
timeout_s = 4
deadline_s = 10
compact_files_min = 4
purge_grace_s = 5
[worker]
settle_every_s = 0.3
merge_every_s = 0.5
purge_every_s = 1
verify_every_s = 10
archive_every_s = 3
scrub_every_s = 15
[[sampling.rules]]
name = "all"
keep = true
"""
AWAY = "verify: the archive was not looked at: "


class Report(msgspec.Struct, kw_only=True):
    """What came of a run. `problems` is empty when every promise held."""

    seed: int
    redis: str
    fsync: str = "always"
    seconds: float
    """Of calls and faults."""
    clients: int
    calls: dict[str, dict[str, int]]
    """Kind → outcome → events or reads."""
    events: int
    conversations: int
    reads_on_tier: dict[str, int]
    """Reads whose answer rested on hot, warm and cold events, and those that Redis answered by itself."""
    faults: dict[str, int]
    left_out: dict[str, str]
    """Faults this machine cannot do, and why."""
    worker_lives: int
    worker_not_now: int
    """Starts that found the store unusable, and were repeated."""
    refused_by_s3: int
    archived_events: int
    problems_by_kind: dict[str, int]
    problems: list[str]


class Run:
    """The processes of one run. A context manager: all are ended with it."""

    def __init__(self, folder: Path, *, redis: str, seed: int, clients: int, rate: float, disk: Path | None) -> None:
        """disk  a file system of its own for the data directory"""
        self.folder, self.seed = folder, seed
        self.left_out: dict[str, str] = {}
        self.clocks = self._clocks()
        if disk is None:
            self.left_out["disk full"] = "needs root or user namespaces, to mount a small file system"
        self.disk = disk
        self.s3 = S3Switch()
        self.redis = RedisServer(redis, folder / "redis-server", options={"appendfsync": "always"})
        self._redis_up = False
        self._clients, self._rate = clients, rate
        self._client_processes: list[subprocess.Popen[bytes]] = []
        self._template: Template | None = None
        self._worker: Forked | None = None
        self.worker_lives = self.not_now = 0
        self.dead_workers: list[str] = []
        self._opened = ExitStack()

    def _clocks(self) -> Clocks | None:
        try:
            return Clocks(self.folder)
        except (OSError, subprocess.CalledProcessError) as exc:
            for kind in KINDS:
                if kind.startswith("clock"):
                    self.left_out[kind] = f"needs a C compiler: {exc}"
            return None

    @property
    def kinds(self) -> list[Kind]:
        return [kind for kind in KINDS if kind not in self.left_out]

    def __enter__(self) -> Run:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        os.environ.update(AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY, AWS_REGION=REGION)
        os.environ.update(AWS_EC2_METADATA_DISABLED="true", AWS_CONFIG_FILE=os.devnull, AWS_SHARED_CREDENTIALS_FILE=os.devnull)
        server = S3Server([sys.executable, "-c", MOTO], self.folder)
        self._opened.callback(server.stop)
        bucket = server.new_bucket()
        front = self._opened.enter_context(Front(server.endpoint_url, self.s3))
        self.start_redis()
        text = SETTINGS.format(
            data_dir=(self.disk or self.folder) / "data",
            redis_url=self.redis.url,
            cold_url=bucket.url,
            endpoint_url=front.url,
        )
        (self.folder / "thermocline.toml").write_text(text)
        with self._clock_of("worker"):
            self._template = Template("tests.history.worker:work", self.folder / "worker.log")
        self.keep_worker()
        wait_until((self.folder / "worker.ready").exists, WAIT_S, "the worker is ready")
        (self.folder / "start").write_text(str(time.monotonic_ns()))
        with self._clock_of("clients"):
            half = (self._clients + 1) // 2
            for first, count in ((0, half), (half, self._clients - half)):
                self._client_processes.append(self._spawn(first, count))
        wait_until(lambda: len(list(self.folder.glob("clients-*.ready"))) == 2, WAIT_S, "the clients are at work")

    def _spawn(self, first: int, count: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.history.clients", str(self.folder)]
        command += [str(self.seed), str(first), str(count), str(self._rate / self._clients)]
        with (self.folder / f"clients-{first}.log").open("ab") as log:
            return subprocess.Popen(dying_with_parent(command), cwd=ROOT, stdout=log, stderr=log)

    @contextmanager
    def _clock_of(self, name: str) -> Iterator[None]:
        """What is started within goes by that clock."""
        extra = self.clocks.environ(name) if self.clocks else {}
        os.environ.update(extra)
        try:
            yield
        finally:
            for key in extra:
                del os.environ[key]

    def start_redis(self) -> None:
        with self._clock_of("Redis"):
            self.redis.start()
        self._redis_up = True

    def kill_redis(self) -> None:
        self._redis_up = False
        self.redis.kill()

    def kill_worker(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def keep_worker(self) -> None:
        """Start it if it does not run, as whatever supervises it would."""
        code = None if self._worker is None else self._worker.poll()
        if code is not None:
            self.not_now += code == NOT_NOW
            if code != NOT_NOW:
                self.dead_workers.append(f"a worker ended by itself, code {code}")
        if self._worker is None or code is not None:
            assert self._template is not None
            self.worker_lives += 1
            self._worker = self._template.fork(str(self.folder), str(self.worker_lives))

    def archived(self) -> bool:
        """Whether something is in the archive."""
        with closing(sqlite3.connect(f"file:{(self.disk or self.folder) / 'data/default/ledger.db'}?mode=ro", uri=True)) as con:
            [[files]] = con.execute("SELECT count(*) FROM cold_files WHERE kind = 'events'").fetchall()
        return bool(files)

    def nemesis(self) -> Nemesis:
        return Nemesis(
            kill_worker=self.kill_worker,
            kill_redis=self.kill_redis,
            start_redis=self.start_redis,
            worker_pid=lambda: None if self._worker is None or self._worker.poll() is not None else self._worker.pid,
            redis_pid=lambda: self.redis.pid if self._redis_up else None,
            client_pids=lambda: [process.pid for process in self._client_processes],
            clocks=self.clocks,
            disk=self.disk,
            s3=self.s3,
        )

    def do(self, plan: list[Fault], seconds: float, say: Callable[[str], None]) -> Counter[str]:
        """Let it run for so long with these faults; how many of each kind there were. In the end all are undone."""
        nemesis, done = self.nemesis(), Counter[str]()
        steps = sorted(
            [(fault.at_s, nemesis.begin, fault) for fault in plan] + [(fault.until_s, nemesis.end, fault) for fault in plan],
            key=lambda step: step[0],  # of a fault without duration the beginning stays first
        )
        began_s = said_s = time.monotonic()
        while (now_s := time.monotonic() - began_s) < seconds or steps:
            if steps and steps[0][0] <= now_s:  # late when the machine is slow, and never out of order
                _, act, fault = steps.pop(0)
                act(fault)
                done[fault.kind] += act == nemesis.begin
            self.keep_worker()
            self._require_clients()
            if time.monotonic() - said_s > 10:
                said_s = time.monotonic()
                say(f"{now_s:.0f} of {seconds:.0f} s, {done.total()} faults, {self.worker_lives} lives of the worker")
            pause(TICK_S)
        return done

    def _require_clients(self) -> None:
        for process in self._client_processes:
            if process.poll() is not None:
                logs = "\n".join(path.read_text()[-2000:] for path in self.folder.glob("clients-*.log"))
                raise RuntimeError(f"clients ended by themselves, code {process.returncode}:\n{logs}")

    def finish(self) -> None:
        """Let the clients end, then the worker."""
        (self.folder / "stop").touch()
        for process in self._client_processes:
            process.wait(WAIT_S)
        self.kill_worker()

    def __exit__(self, *exc: object) -> None:
        for process in self._client_processes:
            process.kill()
            process.wait()
        if self._template is not None:
            self._template.close()
        self.redis.stop()
        self._opened.close()


def run_history(
    folder: Path,
    *,
    redis: str,
    seed: int,
    seconds: float,
    clients: int,
    rate: float,
    gap_s: tuple[float, float],
    disk: Path | None,
    say: Callable[[str], None],
) -> Report:
    """Run it all. `rate` is of all clients, calls a second."""
    with Run(folder, redis=redis, seed=seed, clients=clients, rate=rate, disk=disk) as run:
        if seconds >= SHORT_S:
            wait_until(run.archived, WAIT_S, "all tiers are in use")
        plan = make_plan(seed, until_s=seconds - QUIET_S, gap_s=gap_s, kinds=run.kinds)
        faults = run.do(plan, seconds, say)
        run.finish()
        say("everybody has ended; now everything is read")
        final, problems, archived = _read_all(folder)
        told = read_journals(folder)
        problems += run.dead_workers
    problems += [f"{name} did not end in order" for name in told.unfinished] + _alarms(folder)
    problems += [f"{text} ({count} times)" for text, count in Counter(told.broken).most_common()]
    found = check(told.history, final)
    by_kind = Counter(problem.kind for problem in found)
    problems += [f"{problem.kind}: {problem.text}" for problem in found]
    problems += _void(told, seconds)
    return Report(
        seed=seed,
        redis=".".join(map(str, binary_version(redis))),
        seconds=seconds,
        clients=clients,
        calls=told.calls,
        events=sum(map(len, final.values())),
        conversations=len(final),
        reads_on_tier={{"h": "hot", "w": "warm", "c": "cold", "R": "Redis alone"}[key]: n for key, n in told.tiers.items()},
        faults=dict(sorted(faults.items())),
        left_out=run.left_out,
        worker_lives=run.worker_lives,
        worker_not_now=run.not_now,
        refused_by_s3=run.s3.refused,
        archived_events=archived,
        problems_by_kind=dict(by_kind),
        problems=[problem[:2000] for problem in problems[:SHOWN_MAX]],
    )


def _read_all(folder: Path) -> tuple[dict[str, list[Row]], list[str], int]:
    """(rows by conversation, what is wrong with the store, archived events), read before and after the worker's last pass."""
    problems: list[str] = []
    with connect(settings_of(folder)) as store:
        before = _rows(store)
        grace_s = max(store.settings.warm.purge_grace_s, store.settings.cold.purge_grace_s)
        report = Worker(store.tiers).once()
        problems += [report.problem] if report.problem else []
        for _ in ("orphans to the trash", "the trash emptied"):
            pause(grace_s)
            Worker(store.tiers).once()
        after = _rows(store)
        if before != after:
            problems.append("what is read differs before and after everything has settled and is archived")
        problems += store.verify(deep=True).problems
        problems += [f"lost, says the ledger: {loss}" for loss in store.tiers.ledger.view().losses if loss.events]
        bad = unopenable(store.tiers)
        problems += [f"{bad} segments cannot be opened, or have other rows than the ledger says"] if bad else []
        problems += litter(store.tiers)
        archived = sum(file.rows for file in store.tiers.ledger.view().files if file.kind == "events")
    return after, problems, archived


def _rows(store: Store) -> dict[str, list[Row]]:
    table = store.sql("SELECT conversation_id, seq, content FROM events ORDER BY conversation_id, seq").to_arrow()
    found: dict[str, list[Row]] = {}
    for name, seq, content in zip(*(table.column(place).to_pylist() for place in range(3)), strict=True):
        found.setdefault(name, []).append((seq, content))
    return found


def _alarms(folder: Path) -> list[str]:
    """What the worker logged as errors, and what ended it; that S3 was down is no error of its own."""
    with (folder / "worker.log").open(errors="replace") as log:
        return [line.strip() for line in log if (" ERROR " in line and AWAY not in line) or line.startswith("Traceback")]


def _void(told: Told, seconds: float) -> list[str]:
    """A run in which nothing happened proves nothing. A short one need not come to the archive."""
    wrong = [f"no {kind} went well" for kind, outcomes in told.calls.items() if not outcomes.get("ok")]
    return wrong + [f"no read rested on tier {tier}" for tier in "hwcR" if not told.tiers.get(tier) and seconds >= SHORT_S]
