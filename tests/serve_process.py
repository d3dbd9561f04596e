"""`thermocline serve` as its users have it: a process, its address on stderr, ended by SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers import dying_with_parent
from tests.waiting import wait_until

START_WAIT_S = 600
STOP_WAIT_S = 300


class ServeProcess:
    """One process."""

    def __init__(self, folder: Path, *options: str, **variables: str) -> None:
        self.log = folder / "serve.log"
        plain = {name: value for name, value in os.environ.items() if not name.startswith("THERMOCLINE_")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                dying_with_parent([sys.executable, "-m", "thermocline", "serve", "--port", "0", *options]),
                cwd=folder,
                env=plain | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def url(self) -> str:
        """Its address, once it takes calls."""

        def listening() -> bool:
            assert self.process.poll() is None, self.said
            return "listening on http" in self.said and self.said.partition("listening on ")[2].count("\n") > 0

        wait_until(listening, START_WAIT_S, "the server listens")
        return self.said.partition("listening on ")[2].split()[0]

    def stop(self) -> int:
        """Its exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_WAIT_S)


@contextmanager
def serving(folder: Path, *options: str, **variables: str) -> Iterator[ServeProcess]:
    """`thermocline serve` in `folder`, ended with the block."""
    running = ServeProcess(folder, *options, **variables)
    try:
        running.url  # noqa: B018  # it waits
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait(STOP_WAIT_S)
