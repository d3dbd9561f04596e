"""Faults, done and undone: what the plan's kinds mean for the processes of a run.

A fault that this machine cannot do is left out, and the report says why: clocks need a C compiler, a full disk needs to mount a
tmpfs, which needs root or user namespaces.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.s3_front import DROP, HANG, Action, Answer

from .plan import JUMPS_S, WAYS, Fault, Kind

CLOCK_SOURCE = Path(__file__).resolve().parents[1] / "long" / "clock.c"
LEFT_BYTES = 0
"""On the full disk."""
S3_DOWN: Mapping[str, Action] = {"refuse": Answer(503, "SlowDown", "down"), "drop": DROP, "hang": HANG}


class Clocks:
    """Clocks of processes that are started with `environ(name)`: each is off by what `set` says."""

    def __init__(self, folder: Path) -> None:
        """OSError, CalledProcessError: there is no C compiler."""
        self._library = folder / "clock.so"
        self._folder = folder
        command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(self._library), str(CLOCK_SOURCE)]
        subprocess.run(command, check=True, capture_output=True)
        for name in ("Redis", "worker", "clients"):
            self.set(name, 0)

    def environ(self, name: str) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "CLOCK_OFFSET_FILE": str(self._folder / f"clock-{name}")}

    def set(self, name: str, offset_s: int) -> None:
        with os.fdopen(os.open(self._folder / f"clock-{name}", os.O_WRONLY | os.O_CREAT), "wb") as file:
            file.write(f"{offset_s:<11}\n".encode())  # never empty: that would be the right time, for an instant


class S3Switch:
    """Whether S3 is down, and how: the plan of a Front."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._down: Action = None
        self.refused = 0

    def set(self, down: Action) -> None:
        with self._lock:
            self._down = down

    def __call__(self, method: str, number: int) -> Action:
        with self._lock:
            self.refused += self._down is not None
            return self._down


class Nemesis:
    """Does faults to the processes it is told of. Everything it needs is called when it is needed, as processes come and go."""

    def __init__(
        self,
        *,
        kill_worker: Callable[[], None],
        kill_redis: Callable[[], None],
        start_redis: Callable[[], None],
        worker_pid: Callable[[], int | None],
        redis_pid: Callable[[], int | None],
        client_pids: Callable[[], list[int]],
        clocks: Clocks | None,
        disk: Path | None,
        s3: S3Switch,
    ) -> None:
        """disk  a file system of its own that may be filled"""
        self._kill_worker, self._kill_redis, self._start_redis = kill_worker, kill_redis, start_redis
        self._worker_pid, self._redis_pid, self._client_pids = worker_pid, redis_pid, client_pids
        self._clocks, self._disk, self._s3 = clocks, disk, s3
        self._offsets = {"Redis": 0, "worker": 0, "clients": 0}

    def begin(self, fault: Fault) -> None:
        match fault.kind:
            case "kill worker":
                self._kill_worker()
            case "kill Redis":
                self._kill_redis()
            case "stop worker" | "stop Redis" | "stop clients":
                self._signal(fault, signal.SIGSTOP)
            case "clock of Redis" | "clock of worker" | "clock of all":
                self._move(fault.kind, JUMPS_S[fault.number % len(JUMPS_S)])
            case "disk full":
                self._fill()
            case "S3 down":
                self._s3.set(S3_DOWN[WAYS[fault.number % len(WAYS)]])

    def end(self, fault: Fault) -> None:
        match fault.kind:
            case "kill worker":
                pass
            case "kill Redis":
                self._start_redis()
            case "stop worker" | "stop Redis" | "stop clients":
                self._signal(fault, signal.SIGCONT)
            case "clock of Redis" | "clock of worker" | "clock of all":
                self._move(fault.kind, 0)
            case "disk full":
                self._ballast().unlink(missing_ok=True)
            case "S3 down":
                self._s3.set(None)

    def _signal(self, fault: Fault, number: signal.Signals) -> None:
        pids: list[int | None]
        if fault.kind == "stop clients":
            all_pids = self._client_pids()
            pids = [all_pids[fault.number % len(all_pids)]]
        else:
            pids = [self._worker_pid() if fault.kind == "stop worker" else self._redis_pid()]
        for pid in pids:
            if pid is not None:
                os.kill(pid, number)

    def _move(self, kind: Kind, offset_s: int) -> None:
        """By how much a process is off is the sum of what was done to it alone and to all."""
        assert self._clocks is not None
        self._offsets[kind] = offset_s
        for name, own in (("Redis", "clock of Redis"), ("worker", "clock of worker"), ("clients", "")):
            self._clocks.set(name, self._offsets.get(own, 0) + self._offsets.get("clock of all", 0))

    def _ballast(self) -> Path:
        assert self._disk is not None
        return self._disk / "ballast"

    def _fill(self) -> None:
        with self._ballast().open("wb") as file:
            while True:
                free_bytes = shutil.disk_usage(self._ballast().parent).free - LEFT_BYTES
                if free_bytes <= 0:
                    return
                try:
                    os.posix_fallocate(file.fileno(), file.tell(), free_bytes)
                except OSError:  # somebody was quicker
                    continue
                file.seek(0, os.SEEK_END)
