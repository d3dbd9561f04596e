"""Servers of a benchmark: a redis-server on a unix socket and a port, and free ports. Each ends with its context."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import redis

from thermocline.tiers.server_binary import bundled, version_of

START_WAIT_S = 30
OPTIONS = {
    "save": "",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "maxmemory-policy": "noeviction",
    "stream-node-max-bytes": "1024",
}
"""As Thermocline's embedded Redis has it; the bare baselines use the same server."""


class RedisServer:
    """One redis-server with its data in `folder`. A context manager."""

    def __init__(self, folder: Path, **options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self._short = tempfile.mkdtemp(prefix="tcb-")  # a socket's path may have 107 bytes
        self.socket = f"{self._short}/r.sock"
        self.url = f"unix://{self.socket}"
        self.tcp_url = f"redis://127.0.0.1:{self.port}"
        settings = {
            **OPTIONS,
            **options,
            "dir": str(folder),
            "unixsocket": self.socket,
            "port": str(self.port),
            "bind": "127.0.0.1",
        }
        command = [binary(), *(part for name, value in settings.items() for part in (f"--{name}", value))]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.pid = self._process.pid
        self.client = redis.Redis(unix_socket_path=self.socket)
        wait_for(self.client.ping, self._process, "redis-server")

    def close(self) -> None:
        self.client.close()
        self._process.terminate()
        self._process.wait(START_WAIT_S)
        shutil.rmtree(self._short, ignore_errors=True)

    def __enter__(self) -> RedisServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def binary() -> str:
    """The redis-server on PATH, else the one that comes with the packages."""
    found = shutil.which("redis-server") or bundled()
    if found is None:
        raise FileNotFoundError("no redis-server: apt install redis-server")
    return str(found)


def redis_version() -> str:
    return ".".join(map(str, version_of(binary())))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(ready: object, process: subprocess.Popen[bytes], name: str) -> None:
    """Return when `ready()` does not raise; TimeoutError when the process ends or takes too long."""
    deadline = time.monotonic() + START_WAIT_S
    while True:
        try:
            ready()  # type: ignore[operator]
            return
        except Exception as exc:
            if process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"{name} did not start: {exc}") from exc
        time.sleep(0.01)
