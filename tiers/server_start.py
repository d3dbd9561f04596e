"""Starting the embedded redis-server: its configuration, its log, its supervisor, and why it would not start."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from pathlib import Path
from typing import IO, Final

from thermocline.config import GIB, HotSettings
from thermocline.errors import TierCorrupt, TierUnavailable

from . import supervisor
from .server_binary import choose, write_record
from .supervisor import CONFIG, SOCKET

LOG: Final = "server.log"
LOG_BYTES_MAX: Final = 1 << 20
"""A longer log is cut to its last half of this at the next start."""
DAMAGED: Final = "reading the append only file|error in RDB|RDB ERROR|Unrecoverable error"
"""In the log of a server that cannot load its file (6.2, 7.0)."""


class Start:
    """A start under way: the supervisor of `folder` runs, its server will answer or not. To be made under start.lock.

    ConfigError if no binary is fit. Nothing has to be undone: the supervisor sees to it.
    """

    def __init__(self, folder: Path, hot: HotSettings) -> None:
        self._folder = folder
        self._binary = choose(folder)
        (folder / CONFIG).write_text(_config(hot))
        write_record(folder, self._binary)
        with (folder / LOG).open("a+b") as log:
            _shorten(log)
            self._log_begin = log.seek(0, os.SEEK_END)
            process = subprocess.Popen(
                [sys.executable, "-I", supervisor.__file__, self._binary.path],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert process.stdout is not None
        self._word = process.stdout
        process.wait()  # it forks and is gone

    def word(self, wait_s: float) -> str | None:
        """What the supervisor says within `wait_s`: READY, FAILED, or '' when it ended without a word; None if nothing yet."""
        readable, _, _ = select.select([self._word], [], [], wait_s)
        return self._word.readline().decode().strip() if readable else None

    def failure(self) -> TierUnavailable | TierCorrupt:
        """The error for a server that ended before it answered, with what it logged last."""
        with (self._folder / LOG).open("rb") as log:
            log.seek(self._log_begin)
            lines = log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
        damage = [line for line in lines if re.search(DAMAGED, line)]
        last = re.sub(r"^\d+:\w \d+ \w+ \d+ [\d:.]+ \W ", "", (damage or lines)[-1])
        where = f"{self._binary} does not start in {self._folder}: {last}"
        if damage:
            return TierCorrupt(f"{where}; copy the folder, then look at its append-only file with redis-check-aof")
        return TierUnavailable(f"{where}; more in {self._folder / LOG}")

    def close(self) -> None:
        self._word.close()


def _config(hot: HotSettings) -> str:
    """redis.conf. Memory: what the logs may hold, and 1 GiB for heads, pointers and ids. Heads stay in their compact form
    up to the size that 10 million conversations give their hashes; Redis 7 calls it listpack and knows the old name too."""
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
hash-max-ziplist-entries 512
hash-max-ziplist-value 128
stream-node-max-bytes 1024
"""


def _shorten(log: IO[bytes]) -> None:
    """Cut the log to its last half if it has grown too long."""
    size = log.seek(0, os.SEEK_END)
    if size > LOG_BYTES_MAX:
        log.seek(size - LOG_BYTES_MAX // 2)
        kept = log.read()
        log.truncate(0)
        log.write(kept)
