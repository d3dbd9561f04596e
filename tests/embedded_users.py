"""Users of the embedded Redis, in this process and in others, and redis-servers that misbehave."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.servers import servers_in
from tests.waiting import wait_until
from thermocline.config import HotSettings
from thermocline.tiers.embedded import Endpoint, running
from thermocline.tiers.server_binary import Binary, version_of, write_record
from thermocline.tiers.supervisor import Connection, Reply

HOT = HotSettings.model_validate({})
GONE_S = 30
USER = """
import sys
from pathlib import Path
from thermocline.config import HotSettings
from thermocline.tiers.embedded import ensure
print("imported", flush=True)
sys.stdin.readline()
with ensure(Path(sys.argv[1]), HotSettings()) as endpoint:
    print(endpoint.run_id, flush=True)
    sys.stdin.read()
"""


class User:
    """Another process that holds an Endpoint until told to let go, or killed."""

    def __init__(self, data_dir: Path) -> None:
        command = [sys.executable, "-c", USER, str(data_dir)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self.process.stdin is not None and self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout
        self._out.readline()

    def go(self) -> None:
        self._in.write("\n")

    def run_id(self) -> str:
        return self._out.readline().strip()

    def end(self) -> None:
        self._in.close()
        self.process.wait(30)
        self._out.close()

    def kill(self) -> None:
        self.process.kill()
        self.end()


NewUser = Callable[[Path], User]


def ask(endpoint: Endpoint, *command: str) -> Reply:
    with Connection(endpoint.url.removeprefix("unix://"), 5) as link:
        return link.ask(command)[0]


def settled_on(data_dir: Path, binary: Path) -> Path:
    """The data directory, bound to that binary."""
    folder = data_dir / "redis"
    folder.mkdir(parents=True)
    write_record(folder, Binary(str(binary), version_of(str(binary))))
    return data_dir


def pid_of(data_dir: Path) -> int:
    info = running(data_dir)
    assert info is not None
    return info.pid


def supervisor_of(data_dir: Path) -> int:
    (pid,) = (found.pid for found in servers_in(data_dir) if found.kind == "supervisor")
    return pid


def wait_gone(data_dir: Path) -> None:
    wait_until(lambda: not servers_in(data_dir), GONE_S, "server and supervisor are gone")


def script(path: Path, binary: Path, *, version: str | None = None, options: str = "", first: str = "true") -> Path:
    """A redis-server at `path`: `binary` with more options, after the shell command `first`; it may claim another version."""
    claim = f'echo "Redis server v={version} sha=0"' if version else f"exec {binary} --version"
    path.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then {claim}; exit; fi\n{first}\nexec {binary} "$@" {options}\n')
    path.chmod(0o755)
    return path
