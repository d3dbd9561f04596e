"""The embedded redis-server's supervisor: a detached process that starts it and ends it when its last user is gone.

Started by file path (`python -I supervisor.py <redis-server>`, in the server's folder): standard library only, nothing else of
thermocline. What happens, and what a sudden death leaves at each step:

1. fork redis-server. It first takes `server.lock`, which it holds until it ends, however it ends: two servers can never write
   one append-only file. Dies the supervisor, Linux sends the server SIGTERM, which is an orderly end. Dies the server, so does
   the supervisor. Either way the next user starts both anew.
2. wait until it answers, tell the starter (one line on standard output), which may have died meanwhile: no matter. A server that
   gives up is told too; no word at all means that someone killed it or the supervisor, and it is worth another try.
3. wait for the exclusive lock on `users.lock`, of which every user holds a shared one. The system drops a dead user's.
4. holding it, so that nobody can arrive: write `tc:clean`, SHUTDOWN, wait, exit. SIGTERM and SIGINT do the same at any time.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import NoReturn, TypeAlias

SOCKET = "r.sock"
CONFIG = "redis.conf"
SERVER_LOCK = "server.lock"
USERS_LOCK = "users.lock"
CLEAN_KEY = "tc:clean"
READY = "ready"
FAILED = "failed"

LOCK_WAIT_S = 30.0
"""How long a new server waits for the one before it to end."""
REPLY_WAIT_S = 5.0
SHUTDOWN_WAIT_S = 60.0
"""Time for the last fsync of the append-only file."""
POLL_MIN_S = 0.002
UNWRITTEN_POLL_S = 1.0
POLL_MAX_S = 0.02
SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
LAST_USER_GONE = 0
"""Byte in the wake-up pipe; the other bytes there are signal numbers."""


class Refusal(str):
    """An error reply."""


Reply: TypeAlias = "bytes | int | Refusal | list[Reply] | None"


class Connection:
    """A Redis connection over a unix socket, for a handful of commands. Every failure is an OSError."""

    def __init__(self, path: str, timeout_s: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._connect(path, time.monotonic() + timeout_s)
        except BaseException:
            self._socket.close()
            raise
        self._stream = self._socket.makefile("rb")

    def _connect(self, path: str, deadline: float) -> None:
        while True:
            try:
                return self._socket.connect(path)
            except BlockingIOError as exc:  # the server's backlog is full
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{path}: no place in the server's queue") from exc
                time.sleep(POLL_MIN_S)

    def ask(self, *commands: tuple[str, ...], timeout_s: float | None = None) -> list[Reply]:
        """The reply to each command, all sent at once."""
        if timeout_s is not None:
            self._socket.settimeout(timeout_s)
        self._socket.sendall(b"".join(_encoded(command) for command in commands))
        return [self._reply() for _ in commands]

    def _reply(self) -> Reply:
        line = self._stream.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionResetError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            return Refusal(rest.decode(errors="replace"))
        if kind == b"+":
            return rest
        count = int(rest)
        if kind == b":":
            return count
        if kind == b"*":
            return [self._reply() for _ in range(count)]
        return None if count < 0 else self._stream.read(count + 2)[:-2]

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _encoded(command: tuple[str, ...]) -> bytes:
    words = [word.encode() for word in command]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def parse_info(reply: Reply) -> dict[str, str]:
    """INFO as a dict; empty for an error reply."""
    lines = reply.decode().splitlines() if isinstance(reply, bytes) else []
    return dict(line.split(":", 1) for line in lines if ":" in line)


class Unwritten(OSError):
    """The server holds acknowledged events that its disk has not taken: ending it now would lose them."""


def checked_info(link: Connection) -> dict[str, str]:
    """INFO. Unwritten while the last write of the append-only file failed; Redis tries again every second by itself."""
    (reply,) = link.ask(("INFO",))
    info = parse_info(reply)
    if info.get("aof_last_write_status") == "err":
        raise Unwritten("its disk has not taken the last acknowledged events: free some space, then it ends")
    return info


def shut_down(link: Connection) -> None:
    """End the server in order; returns when its process has closed its end. OSError if it will not or does not in time,
    Unwritten while that would lose events.

    The mark and SHUTDOWN arrive as one piece and run one after the other, so that nobody's write comes between them and the
    mark is the last command of the append-only file. Without the limit on memory even a full Redis takes it.
    """
    mark = ("SET", CLEAN_KEY, checked_info(link).get("run_id", ""))
    try:
        replies = link.ask(("CONFIG", "SET", "maxmemory", "0"), mark, ("SHUTDOWN",), timeout_s=SHUTDOWN_WAIT_S)
    except (ConnectionResetError, BrokenPipeError):
        return
    raise OSError(f"redis-server refuses to shut down: {replies[-1]!r}")


def supervise(binary: str) -> None:
    """Run `binary` in the current folder until its last user is gone, it dies, or a signal says so."""
    os.umask(0o077)
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    for number in SIGNALS:
        signal.signal(number, _only_wake)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    lock = os.open(USERS_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)  # the folder may be removed while the server starts
    child = _fork_server(binary)
    threading.Thread(target=_wait_for_last_user, args=(lock, tell), daemon=True).start()
    ready = False
    poll_s = POLL_MIN_S
    while True:
        news = _news(told, None if ready else poll_s)
        gone, status = os.waitpid(child, os.WNOHANG)
        if gone:
            if not ready and os.WIFEXITED(status) and os.WEXITSTATUS(status):
                _tell_starter(FAILED)
            return
        if news - {signal.SIGCHLD}:
            _end(child)
            return
        if not ready and (link := _reach(child)) is not None:
            link.close()
            ready = True
            _tell_starter(READY)
        poll_s = min(2 * poll_s, POLL_MAX_S)


def _only_wake(number: int, frame: object) -> None:
    """Handle a signal by the byte it leaves in the wake-up pipe."""


def _news(told: int, wait_s: float | None) -> set[int]:
    """Bytes of the wake-up pipe, at least one unless `wait_s` passes."""
    readable, _, _ = select.select([told], [], [], wait_s)
    return set(os.read(told, 512)) if readable else set()


def _wait_for_last_user(lock: int, tell: int) -> None:
    """Wake the supervisor once nobody holds users.lock; keep it to the end, so that nobody arrives at a closing server."""
    while True:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _unwritten():
            break
        fcntl.flock(lock, fcntl.LOCK_UN)  # who comes now finds it up
        time.sleep(UNWRITTEN_POLL_S)
    os.write(tell, bytes([LAST_USER_GONE]))


def _unwritten() -> bool:
    """Whether the server, if it answers at all, holds events that are not on its disk."""
    try:
        with Connection(SOCKET, REPLY_WAIT_S) as link:
            checked_info(link)
    except Unwritten:
        return True
    except OSError:
        pass
    return False


def _fork_server(binary: str) -> int:
    """The pid of a new process that becomes redis-server. A signal sent to it waits until it can take it."""
    parent = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    child = os.fork()
    if child == 0:
        _become_server(binary, parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return child


def _become_server(binary: str, parent: int) -> NoReturn:
    """In the forked child: wait for the server before, then turn into redis-server. Only the log hears of a failure."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (*SIGNALS, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.dup2(2, 1)
        _die_with(parent)
        _take_server_lock()
        for leftover in [*Path().glob("temp-*"), *Path("appendonlydir").glob("temp-*")]:
            leftover.unlink(missing_ok=True)  # of a rewrite that was cut short
        os.execv(binary, [binary, CONFIG])
    except BaseException as exc:
        os.write(2, f"{binary} cannot be started: {exc}\n".encode(errors="replace"))
    os._exit(1)


def _die_with(parent: int) -> None:
    """Have the system send this process SIGTERM when its parent ends (Linux; elsewhere the server outlives it)."""
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            raise ProcessLookupError("its supervisor is gone")


def _take_server_lock() -> None:
    """Lock server.lock for the life of this process. A POSIX lock: it survives exec and, unlike flock, is not shared with
    the children that redis-server forks to rewrite its file and which may outlive it."""
    lock = os.open(SERVER_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(lock, True)
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except (BlockingIOError, PermissionError):
            if time.monotonic() > deadline:
                raise TimeoutError("another redis-server still runs in this folder; its pid is in redis.pid") from None
            time.sleep(POLL_MIN_S)


def _reach(child: int) -> Connection | None:
    """A connection to the child, None while it is not ready. The server before it, on its way out, may still answer at the
    same address: hence the look at the pid."""
    try:
        link = Connection(SOCKET, REPLY_WAIT_S)
    except OSError:
        return None
    try:
        ping, info = link.ask(("PING",), ("INFO", "server"))
        loading = isinstance(ping, Refusal) and ping.startswith("LOADING")
        if not loading and parse_info(info).get("process_id") == str(child):
            return link
    except OSError:
        pass
    link.close()
    return None


def _tell_starter(line: str) -> None:
    """Write `line` to the starter and let it go: from here on standard output is the log."""
    try:
        os.write(1, line.encode() + b"\n")
    except OSError:
        pass
    os.dup2(2, 1)


def _end(child: int) -> None:
    """Shut the server down and wait for its end, however long that takes: killing it would lose acknowledged events."""
    while True:
        try:
            link = _reach(child)
            if link is None:
                raise ConnectionError("it does not answer")
            with link:
                shut_down(link)
        except Unwritten:
            time.sleep(UNWRITTEN_POLL_S)
            continue
        except OSError:
            os.kill(child, signal.SIGTERM)
        break
    os.waitpid(child, 0)


if __name__ == "__main__" and os.fork() == 0:  # the starter reaps the first process at once; this one is nobody's child
    supervise(sys.argv[1])
