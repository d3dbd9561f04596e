"""Starting the embedded redis-server: its configuration, its log, its supervisor, and why it would not start."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Final

from thermocline.config import GIB, HotSettings
from thermocline.errors import TierCorrupt, TierUnavailable

from . import supervisor
from .server_binary import APPEND_ONLY_DIR_SINCE, Binary, choose, write_record
from .supervisor import CONFIG, READY, SOCKET

LOG: Final = "server.log"
LOG_BYTES_MAX: Final = 1 << 20
"""A longer log is cut to its last half of this at the next start."""
DAMAGED: Final = "reading the append only file|error in RDB|RDB ERROR|Unrecoverable error"
"""In the log of a server that cannot load its file (6.2, 7.0)."""


def start(folder: Path, hot: HotSettings, deadline: float) -> None:
    """Start the supervisor of `folder` and wait until its server has loaded, or the deadline. To be called under start.lock.

    TierUnavailable or TierCorrupt with the server's last words if it ends instead, ConfigError if no binary is fit.
    """
    binary = choose(folder)
    (folder / CONFIG).write_text(_config(binary, hot))
    write_record(folder, binary)
    with (folder / LOG).open("a+b") as log:
        _shorten(log)
        begin = log.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            [sys.executable, "-I", supervisor.__file__, binary.path],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    assert process.stdout is not None
    with process.stdout as verdict:
        process.wait()  # it forks and is gone
        readable, _, _ = select.select([verdict], [], [], max(0.0, deadline - time.monotonic()))
        if readable and verdict.readline().decode().strip() != READY:
            raise _failed(folder, binary, begin)


def _config(binary: Binary, hot: HotSettings) -> str:
    """redis.conf. Memory: what the logs may hold, and 1 GiB for heads, pointers and ids. Heads stay in their compact form
    up to the size that 10 million conversations give their hashes."""
    compact = "listpack" if binary.version >= APPEND_ONLY_DIR_SINCE else "ziplist"
    return f"""# Written anew at every start.
port 0
unixsocket {SOCKET}
unixsocketperm 700
pidfile redis.pid
databases 1
save ""
appendonly yes
appendfsync {hot.append_fsync}
no-appendfsync-on-rewrite no
aof-load-truncated yes
aof-use-rdb-preamble yes
auto-aof-rewrite-percentage 100
auto-aof-rewrite-min-size 64mb
maxmemory {hot.log_bytes_max + GIB}
maxmemory-policy noeviction
hash-max-{compact}-entries 512
hash-max-{compact}-value 128
"""


def _shorten(log: IO[bytes]) -> None:
    """Cut the log to its last half if it has grown too long."""
    size = log.seek(0, os.SEEK_END)
    if size > LOG_BYTES_MAX:
        log.seek(size - LOG_BYTES_MAX // 2)
        kept = log.read()
        log.truncate(0)
        log.write(kept)


def _failed(folder: Path, binary: Binary, begin: int) -> TierUnavailable | TierCorrupt:
    """The error for a server that ended before it answered, with what it logged last, from `begin` on."""
    with (folder / LOG).open("rb") as log:
        log.seek(begin)
        lines = log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
    damage = [line for line in lines if re.search(DAMAGED, line)]
    last = re.sub(r"^\d+:\w \d+ \w+ \d+ [\d:.]+ \W ", "", (damage or lines)[-1])
    where = f"{binary} does not start in {folder}: {last}"
    if damage:
        return TierCorrupt(f"{where}; copy the folder, then look at its append-only file with redis-check-aof")
    return TierUnavailable(f"{where}; more in {folder / LOG}")
