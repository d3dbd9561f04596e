"""The embedded Redis: one redis-server per data directory, in `<data>/redis`, shared by every process that uses it.

Whoever calls `ensure` first starts it, under `start.lock`; it runs as the child of a detached supervisor (supervisor.py), so no
user's end ends it. Every user holds a shared lock on `users.lock` for as long as its Endpoint is open; when the last one is gone,
killed or not, the supervisor shuts the server down. The death of any process involved loses nothing that the server had on disk,
and the next `ensure` starts anew what is missing:

    a user                its locks fall; a start it had begun goes on
    the supervisor        the server ends in order (Linux)
    redis-server          the supervisor ends; what the append-only file lacks is for `confirm` to find
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Literal

import msgspec

from thermocline.config import HotSettings
from thermocline.errors import ConfigError, TierCorrupt, TierUnavailable

from .server_start import LOG, Start
from .supervisor import FAILED, READY, SOCKET, USERS_LOCK, Connection, Refusal, Reply, parse_info, shut_down

FOLDER: Final = "redis"
START_LOCK: Final = "start.lock"
PATH_BYTES_MAX: Final = 1000
"""redis-server gives up on a working directory beyond 1,023 bytes."""
OPEN_FDS: Final = Path("/proc/self/fd")
UNUSABLE: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
ANSWER_WAIT_S: Final = 5.0
POLL_S: Final = 0.01
STARTS_MAX: Final = 5
"""Starts that one `ensure` tries when the server is killed before it answers."""


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A running embedded server."""

    pid: int
    version: str
    run_id: str
    socket: str
    loading: bool
    """It reads its append-only file and answers nothing else yet."""
    users: tuple[int, ...] | None
    """Pids of the processes that hold an Endpoint; None where the system does not tell (only Linux does)."""


class _Seen(msgspec.Struct, frozen=True):
    """What a look at the server's socket shows."""

    state: Literal["absent", "silent", "loading", "up"]
    info: dict[str, str] = {}
    append_fsync: str = ""


class Endpoint:
    """One user's hold on a data directory's server, which is not shut down for want of users while this is open.

    url      for redis-py; good in this process and the children it forks, as long as the Endpoint is open
    run_id   of the server at the last `ensure`
    started  whether the last `ensure` had to start the server

    Independent of any other Endpoint in the process. A forked child shares the hold: the server stays up until both are gone or
    have closed theirs, and `close` in one leaves the other's alone. A process made by exec or spawn needs its own.
    Close the clients first: afterwards `url` may lead to another file.
    """

    def __init__(self, folder: Path, hot: HotSettings) -> None:
        self._folder = folder
        self._hot = hot
        self._reach = _Reach(folder)
        self._hold: IO[bytes] | None = None
        self.url = f"unix://{self._reach.socket}"
        self.run_id = ""
        self.started = False

    def ensure(self) -> bool:
        """Have the server running and loaded, with this user's appendfsync; whether it had to be started.

        A server started by others keeps their settings, except that appendfsync is set to this user's: the last one wins.
        TierUnavailable after `hot.start_timeout_s`, ConfigError if there is no redis-server fit for the directory,
        TierCorrupt if its append-only file cannot be read.
        """
        with _named(self._folder):
            return self._ensure(time.monotonic() + self._hot.start_timeout_s)

    def _ensure(self, deadline: float) -> bool:
        self.started = False
        if self._hold is None:  # before the look: from here on nobody shuts the server down behind our back
            self._hold = _lock(self._folder / USERS_LOCK, fcntl.LOCK_SH, deadline, "the redis-server there to end")
        seen = _look(self._reach.socket)
        if seen.state != "up":
            self._reach.check()
            with _lock(self._folder / START_LOCK, fcntl.LOCK_EX, deadline, "another process to start the redis-server there"):
                seen = self._bring_up(deadline)
        self.run_id = seen.info["run_id"]
        if seen.append_fsync != self._hot.append_fsync:
            self._ask("CONFIG", "SET", "appendfsync", self._hot.append_fsync)
        return self.started

    def _bring_up(self, deadline: float) -> _Seen:
        """Under start.lock: start the server if it is not there, and wait until it has loaded.

        It may also come up as the work of a starter that died; the one begun here then finds its place taken and ends.
        """
        begun: Start | None = None
        lost_count = 0
        try:
            while (seen := _look(self._reach.socket)).state != "up":
                if seen.state == "silent":
                    raise _silent(self._folder)
                if time.monotonic() > deadline:
                    raise _slow(self._folder, seen, self._hot.start_timeout_s)
                if begun is None and seen.state == "absent":
                    begun = Start(self._folder, self._hot)
                    self.started = True
                elif begun is None:
                    time.sleep(POLL_S)
                elif (word := begun.word(POLL_S)) is not None:
                    if word != READY:
                        lost_count += 1
                        failure = begun.failure()
                        if word == FAILED or lost_count == STARTS_MAX or isinstance(failure, TierCorrupt):
                            raise failure
                    begun.close()
                    begun = None
            return seen
        finally:
            if begun is not None:
                begun.close()

    def _ask(self, *command: str) -> Reply:
        try:
            with Connection(self._reach.socket, ANSWER_WAIT_S) as link:
                reply = link.ask(command)[0]
        except OSError as exc:
            raise TierUnavailable(f"the embedded redis-server in {self._folder} went away ({exc}): try again") from exc
        if isinstance(reply, Refusal):
            raise TierUnavailable(f"the embedded redis-server in {self._folder} refuses {' '.join(command)}: {reply}")
        return reply

    def alive(self) -> bool:
        """Whether the server answers commands right now."""
        return _look(self._reach.socket).state == "up"

    def close(self) -> None:
        """Let go of the server. Twice is as good as once."""
        if self._hold is not None:
            self._hold.close()  # never LOCK_UN: that would drop the lock of forked processes too
            self._hold = None
        self._reach.close()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def ensure(data_dir: Path, hot: HotSettings) -> Endpoint:
    """A hold on the running, loaded server of `data_dir`, which is started if need be. Errors as Endpoint.ensure has them."""
    folder = data_dir.absolute() / FOLDER
    if len(os.fsencode(folder)) > PATH_BYTES_MAX:
        raise ConfigError(f"data_dir {data_dir} is too long: {folder} must have at most {PATH_BYTES_MAX} bytes")
    with _named(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        endpoint = Endpoint(folder, hot)
    try:
        endpoint.ensure()
    except BaseException:
        endpoint.close()
        raise
    return endpoint


def stop(data_dir: Path) -> bool:
    """Shut the server down in order, whoever uses it; whether one was running. Users start it again at their next `ensure`.

    TierUnavailable if it does not answer or refuses.
    """
    folder = data_dir.absolute() / FOLDER
    with _reaching(folder) as address:
        seen = _look(address) if address else _Seen("absent")
        if address is None or seen.state == "absent":
            return False
        if seen.state == "silent":
            raise _silent(folder)
        try:
            with Connection(address, ANSWER_WAIT_S) as link:
                shut_down(link)
        except (ConnectionError, FileNotFoundError):
            return True  # it went by itself meanwhile
        except OSError as exc:
            raise TierUnavailable(f"the embedded redis-server in {folder} does not stop: {exc}; see {folder / LOG}") from exc
        return True


def running(data_dir: Path) -> ServerInfo | None:
    """The server of `data_dir`, None if there is none. Starts nothing. TierUnavailable if it is there and does not answer."""
    folder = data_dir.absolute() / FOLDER
    with _reaching(folder) as address:
        seen = _look(address) if address else _Seen("absent")
    if seen.state == "absent":
        return None
    if seen.state == "silent":
        raise _silent(folder)
    return ServerInfo(
        pid=int(seen.info["process_id"]),
        version=seen.info["redis_version"],
        run_id=seen.info["run_id"],
        socket=str(folder / SOCKET),
        loading=seen.state == "loading",
        users=_users(folder),
    )


class _Reach:
    """A folder held open, and its socket under a name short enough for a socket address (108 bytes)."""

    def __init__(self, folder: Path) -> None:
        self._fd: int | None = None
        self._link: Path | None = None
        if OPEN_FDS.is_dir():
            self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self.socket = f"{OPEN_FDS}/{self._fd}/{SOCKET}"
        else:
            self._owner = os.getpid()
            self._link = Path(tempfile.mkdtemp(prefix="tc-", dir="/tmp")) / "d"
            self._link.symlink_to(folder)
            self.socket = f"{self._link}/{SOCKET}"
        self._folder = folder
        self._identity = _identity(folder)

    def check(self) -> None:
        """TierUnavailable if the folder's name no longer leads to it: a server started now would be out of reach."""
        if _identity(self._folder) != self._identity:
            raise TierUnavailable(f"{self._folder} was removed or replaced while in use: open the store again")

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if self._link is not None and self._owner == os.getpid():  # a forked child leaves it to its parent
            self._link.unlink(missing_ok=True)
            self._link.parent.rmdir()
        self._link = None


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def _reaching(folder: Path) -> Iterator[str | None]:
    """Address of the folder's socket; None if there is no such folder."""
    if not folder.is_dir():
        yield None
        return
    with _named(folder):
        reach = _Reach(folder)
        try:
            yield reach.socket
        finally:
            reach.close()


def _look(address: str) -> _Seen:
    """Ask the server how it is. A disk error or a full memory it complains of is not our matter here: it is up."""
    try:
        with Connection(address, ANSWER_WAIT_S) as link:
            ping, info, config = link.ask(("PING",), ("INFO",), ("CONFIG", "GET", "appendfsync"))
    except TimeoutError:
        return _Seen("silent")
    except PermissionError:
        raise
    except OSError:
        return _Seen("absent")
    facts = parse_info(info)
    if "run_id" not in facts:
        return _Seen("silent")
    loading = isinstance(ping, Refusal) and ping.startswith("LOADING")
    value = config[1] if isinstance(config, list) and len(config) == 2 else b""
    return _Seen("loading" if loading else "up", facts, value.decode() if isinstance(value, bytes) else "")


def _lock(path: Path, operation: int, deadline: float, awaited: str) -> IO[bytes]:
    """The file, locked (flock) until it is closed. TierUnavailable at the deadline."""
    file = path.open("a+b")
    try:
        while True:
            try:
                fcntl.flock(file, operation | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                if time.monotonic() > deadline:
                    raise TierUnavailable(f"{path.parent}: waited too long for {awaited}: raise hot.start_timeout_s") from exc
                time.sleep(POLL_S)
            else:
                return file
    except BaseException:
        file.close()
        raise


def _silent(folder: Path) -> TierUnavailable:
    return TierUnavailable(
        f"the embedded redis-server in {folder} does not answer within {ANSWER_WAIT_S:g} s: "
        f"it is stopped or overloaded; its pid is in {folder / 'redis.pid'}"
    )


def _slow(folder: Path, seen: _Seen, waited_s: float) -> TierUnavailable:
    percent = seen.info.get("loading_loaded_perc", "0").partition(".")[0]
    state = f"has loaded {percent} % of its append-only file" if seen.state == "loading" else "does not answer yet"
    return TierUnavailable(
        f"the embedded redis-server in {folder} {state} after {waited_s:g} s: try again later, or raise hot.start_timeout_s"
    )


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Turn what the file system says into errors that name the folder and the fix."""
    try:
        yield
    except OSError as exc:
        place = exc.filename or folder
        if exc.errno in UNUSABLE:
            raise ConfigError(f"data_dir: {place} cannot be used ({exc.strerror}): choose a folder you may write") from exc
        fix = "free some space" if exc.errno in (errno.ENOSPC, errno.EDQUOT) else "try again when that is mended"
        raise TierUnavailable(f"{place}: {exc.strerror or exc}: {fix}") from exc


def _users(folder: Path) -> tuple[int, ...] | None:
    """Pids that hold users.lock shared, from the kernel's list of locks; of forked holders the one that took it."""
    try:
        inode = str((folder / USERS_LOCK).stat().st_ino)
        rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return None
    return tuple(
        sorted({int(row[4]) for row in rows if row[1] == "FLOCK" and row[3] == "READ" and row[5].split(":")[-1] == inode})
    )
