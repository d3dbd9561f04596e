"""The right to move events of a namespace: a lock on <namespace>/LOCK for this machine, an epoch in the ledger for all others.

The lock ends with the process, however it ends. A worker that lost its epoch is refused by the ledger at its next move.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from thermocline.errors import LeaseHeld
from thermocline.tiers.ledger import Ledger
from thermocline.tiers.whole_file import file_errors

LOCK_NAME = "LOCK"


class Lock:
    """An exclusive lock on a namespace folder, held until `release` or the end of the process."""

    def __init__(self, folder: Path, *, role: str = "worker") -> None:
        """LeaseHeld names who has it."""
        self.owner = f"{role} {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}"
        path = folder / LOCK_NAME
        with file_errors(str(path), setting="data_dir"):
            folder.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            holder = os.pread(self._fd, 1000, 0).decode(errors="replace").strip()
            os.close(self._fd)
            raise LeaseHeld(holder or f"the holder of {path}") from exc
        with suppress(OSError):  # who has it is only told: a disk that takes nothing must not keep a worker from making room
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, self.owner.encode(), 0)

    def release(self) -> None:
        """Let go. Safe to repeat."""
        if self._fd >= 0:
            with suppress(OSError):
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


class Lease(Lock):
    """The lock, and an epoch of the ledger that makes every older one invalid."""

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        super().__init__(folder)
        try:
            self.epoch = ledger.take_epoch(self.owner, time.time_ns() // 1000)
        except BaseException:
            self.release()
            raise
