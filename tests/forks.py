"""Processes that start at once: a template has imported everything and forks whenever it is asked to.

    template = Template("tests.chaos.roles:work", folder / "worker.log")
    worker = template.fork(str(folder), "1")   # runs tests.chaos.roles.work(folder, "1") in a process of its own
    worker.kill()                              # kill -9, and wait
    template.close()

The template has one thread and no connection when it forks, which it checks. What a fork does is what the process would do after
its imports: these take one to two seconds, a fork a few milliseconds. On Linux a fork dies with its template, the template with
the thread that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from select import select

import duckdb

from tests.servers import dying_with_parent
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[1]
START_WAIT_S = 600
END_WAIT_S = 300
"""Long: a run may be at the lowest priority of a busy machine."""
LINUX = sys.platform == "linux"
WITHOUT_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""numpy and pyarrow start threads when they are imported, which a fork would lack."""


class Forked:
    """One process that a template forked; what subprocess.Popen offers of it."""

    def __init__(self, template: Template, pid: int) -> None:
        self._template = template
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """How it ended, as in Popen; None while it runs."""
        if self.returncode is None and self._template.said_something(0):
            self.wait()
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            pid, code = self._template.next_line(END_WAIT_S).split()
            assert int(pid) == self.pid, "one fork at a time"
            self.returncode = int(code)
        return self.returncode

    def kill(self) -> None:
        """kill -9 and wait. Nothing happens if it ended before."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)  # until the template said so the pid is no other process'
            self.wait()


class Template:
    """Runs until `close`. One fork at a time: the one before must have ended."""

    def __init__(self, function: str, log: Path) -> None:
        """function  "module:name", called with the texts that `fork` is given
        log       what the template and its forks write to stdout and stderr, appended
        """
        command = dying_with_parent([sys.executable, "-m", "tests.forks", function])
        environ = {**os.environ, **WITHOUT_THREADS}
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output
            )
        assert self.next_line(START_WAIT_S) == "ready"

    def fork(self, *arguments: str) -> Forked:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(arguments).encode() + b"\n")
        self.process.stdin.flush()
        return Forked(self, int(self.next_line(END_WAIT_S)))

    def said_something(self, wait_s: float) -> bool:
        return bool(select([self.process.stdout], [], [], wait_s)[0])

    def next_line(self, wait_s: float) -> str:
        """A line the template says. TimeoutError when it says none, RuntimeError when it has ended."""
        assert self.process.stdout is not None
        if not self.said_something(wait_s):
            raise TimeoutError(f"not within {wait_s:g} s: an answer of the template {self.process.args}")
        line = b""
        while not line.endswith(b"\n"):  # unbuffered, so that select knows of everything unread
            byte = os.read(self.process.stdout.fileno(), 1)
            if not byte:
                raise RuntimeError(f"the template ended: {self.process.args}")
            line += byte
        return line.decode().strip()

    def close(self) -> None:
        """End it, and its fork if there is one."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def _serve(function: str) -> None:
    module, _, name = function.partition(":")
    act = getattr(importlib.import_module(module), name)
    duckdb.default_connection().close()  # made, with threads, when it is imported; nobody uses it
    wait_until(lambda: _threads() == 1, START_WAIT_S, "the template has one thread")
    gc.freeze()
    _say("ready")
    for line in iter(sys.stdin.buffer.raw.readline, b""):  # type: ignore[union-attr]
        assert _threads() == 1
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become(parent)
            try:
                act(*json.loads(line))
                code = 0
            except SystemExit as exc:
                code = int(exc.code or 0)
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _say(str(pid))
        _, status = os.waitpid(pid, 0)
        _say(f"{pid} {os.waitstatus_to_exitcode(status)}")


def _threads() -> int:
    return len(os.listdir("/proc/self/task")) if LINUX else 1  # noqa: PTH208


def _become(parent: int) -> None:
    """A process of its own: no pipes to the one that asked for it, and dead when the template is."""
    if LINUX:
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)


def _say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


if __name__ == "__main__":
    _serve(sys.argv[1])
