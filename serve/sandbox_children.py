"""Processes for untrusted queries: some wait ready, a bounded number runs, each answers one query and is gone.

A process that waits has imported what it needs and nothing more: it knows no store and no query. It is started by exec, never
forked from this one's memory, with an empty environment and no open file but its two pipes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from typing import IO, Final, Literal

from thermocline.config import SandboxSettings
from thermocline.errors import Backpressure, QueryRefused, TierUnavailable

from . import sandbox_wire as wire

LOOK_EVERY_S: Final = 0.05
"""How often running processes are looked after."""
_START: Final = (
    "import json, sys; sys.path += [path for path in json.loads(sys.argv[1]) if path not in sys.path]; "
    "from thermocline.serve.sandbox_child import main; main()"
)
_ENVIRONMENT: Final = {
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "HOME": "/nonexistent",
    "MALLOC_ARENA_MAX": "2",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "ARROW_IO_THREADS": "1",
}
Cause = Literal["", "deadline", "cancelled", "closed"]


class Child:
    """One process. `send` and `receive` are for one thread; `kill` and `close` for any."""

    def __init__(self) -> None:
        """TierUnavailable when no process can be started."""
        paths = json.dumps([os.path.abspath(path) for path in sys.path if path])  # noqa: PTH100
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, paths],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_ENVIRONMENT,
                cwd="/",
                close_fds=True,
                start_new_session=True,
            )
        except OSError as exc:
            raise TierUnavailable(f"no process for a query can be started ({exc.strerror}): free processes or memory") from exc
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input: IO[bytes] = self._process.stdin
        self._output: IO[bytes] = self._process.stdout
        self._lock = threading.Lock()
        self.deadline_s = float("inf")
        self.cancelled: threading.Event | None = None
        self.cause: Cause = ""
        """Why it was killed."""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def input(self) -> IO[bytes]:
        return self._input

    def send(self, kind: bytes, content: bytes) -> None:
        """wire.Hangup when it has ended."""
        try:
            self._input.write(wire.frame(kind, content))
            self._input.flush()
        except (OSError, ValueError) as exc:
            raise wire.Hangup from exc

    def receive(self, *, bytes_max: int) -> tuple[bytes, bytes]:
        """wire.Hangup when it has ended; wire.BadFrame."""
        try:
            return wire.read_frame(self._output.read, bytes_max=bytes_max)
        except (OSError, ValueError) as exc:
            raise wire.Hangup from exc

    def kill(self, cause: Cause) -> None:
        """End it, and whatever it may have started, now. Pipes stay for whoever reads them, who finds their end."""
        with self._lock:
            if self._process.poll() is None:
                self.cause = self.cause or cause
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> int:
        """End it if it has not ended, and let go of it; its exit code, a negative one being a signal. Safe to repeat."""
        self.kill("closed")
        with self._lock:
            code = self._process.wait()
        with contextlib.suppress(OSError, ValueError):
            self._input.close()
        with contextlib.suppress(OSError, ValueError):
            self._output.close()
        return code

    @property
    def has_ended(self) -> bool:
        with self._lock:
            return self._process.poll() is not None


class Children:
    """The processes of one server. Thread-safe. A thread of it watches deadlines and starts spare processes."""

    def __init__(self, settings: SandboxSettings) -> None:
        self._settings = settings
        self._changed = threading.Condition()
        self._spare: deque[Child] = deque()
        self._running: set[Child] = set()
        self._reserved = 0
        self._waiting = 0
        self._closed = False
        self._keeper = threading.Thread(target=self._keep, name="thermocline-sandbox", daemon=True)
        self._keeper.start()

    @property
    def pids(self) -> list[int]:
        """Of all processes there are."""
        with self._changed:
            return [child.pid for child in (*self._spare, *self._running)]

    @property
    def running(self) -> int:
        with self._changed:
            return len(self._running) + self._reserved

    @property
    def waiting(self) -> int:
        with self._changed:
            return self._waiting

    def borrow(self, *, deadline_s: float, cancelled: threading.Event | None) -> Child:
        """A process that has answered nothing yet; `give_back` it. It is killed at the deadline (time.monotonic) and when the
        event is set.

        Backpressure: too many queries run and wait. QueryRefused: it was set already.
        TierUnavailable: no process can be started, or the sandbox is closed.
        """
        self._take_place(deadline_s, cancelled)
        child = None
        try:
            with self._changed:
                child = self._spare.popleft() if self._spare else None
            child = child or Child()
            child.deadline_s, child.cancelled = deadline_s, cancelled
        finally:
            with self._changed:
                self._reserved -= 1
                if child is not None:
                    self._running.add(child)
                self._changed.notify_all()
        return child

    def give_back(self, child: Child) -> int:
        """End it; its exit code."""
        code = child.close()
        with self._changed:
            self._running.discard(child)
            self._changed.notify_all()
        return code

    def _take_place(self, deadline_s: float, cancelled: threading.Event | None) -> None:
        settings = self._settings
        until_s = min(time.monotonic() + settings.wait_s, deadline_s)
        with self._changed:
            if self._is_full() and self._waiting >= settings.waiting_max:
                raise _busy(f"{self._waiting} queries wait, as many as sandbox.waiting_max allows")
            self._waiting += 1
            try:
                while self._is_full():
                    left_s = until_s - time.monotonic()
                    if left_s <= 0:
                        raise _busy(
                            f"{len(self._running)} queries run, as many as sandbox.children_max allows, "
                            f"and none ended within sandbox.wait_s ({settings.wait_s:g} s)"
                        )
                    if cancelled is not None and cancelled.is_set():
                        raise QueryRefused("the query was cancelled")
                    self._changed.wait(min(left_s, LOOK_EVERY_S) if cancelled is not None else left_s)
                if self._closed:
                    raise TierUnavailable("this sandbox is closed")
                self._reserved += 1
            finally:
                self._waiting -= 1

    def _is_full(self) -> bool:
        return not self._closed and len(self._running) + self._reserved >= self._settings.children_max

    def _keep(self) -> None:
        """Kill what is over its time, drop spare ones that died, start new ones; until it is closed."""
        failures = 0
        while True:
            with self._changed:
                if self._closed:
                    return
                now_s = time.monotonic()
                for child in self._running:
                    if child.cancelled is not None and child.cancelled.is_set():
                        child.kill("cancelled")
                    elif now_s > child.deadline_s:
                        child.kill("deadline")
                dead = [child for child in self._spare if child.has_ended]
                for child in dead:
                    self._spare.remove(child)
                    child.close()
                failures = failures + len(dead)
                missing = len(self._spare) < self._settings.spare and failures < 3
                if not missing:
                    self._changed.wait(LOOK_EVERY_S if self._running else None)
            if missing:
                try:
                    self._add_spare(Child())
                except Exception:  # a query that finds no spare process starts one, and is told what is wrong
                    failures += 1

    def _add_spare(self, child: Child) -> None:
        with self._changed:
            if not self._closed:
                self._spare.append(child)
                return
        child.close()

    def close(self) -> None:
        """End all of them. Safe to repeat."""
        with self._changed:
            self._closed = True
            spare, running = list(self._spare), list(self._running)
            self._spare.clear()
            self._changed.notify_all()
        for child in (*running, *spare):
            child.close()
        self._keeper.join()


def _busy(problem: str) -> Backpressure:
    return Backpressure(f"{problem}: ask again later, or raise it", retry_after_s=1)
