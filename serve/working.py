"""The worker beside the server, in threads of its own; when another process has the namespace, that one does the work."""

from __future__ import annotations

import logging
import threading
from typing import Final

from thermocline.archiver.worker import Worker
from thermocline.config import Settings
from thermocline.errors import LeaseHeld, ThermoclineError
from thermocline.tiers.opening import Tiers, open_tiers

log = logging.getLogger("thermocline.serve")
TICK_S: Final = 0.5
AGAIN_S: Final = 15.0
"""Between two tries to become the worker."""


class Beside:
    """Runs a worker while there is no other."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="thermocline-worker", daemon=True)
        self._told = ""

    def start(self) -> None:
        self._thread.start()

    def tell(self) -> None:
        """Let it begin to stop; returns at once."""
        self._stop.set()

    def stop(self, within_s: float) -> bool:
        """Finish the step in hand; False when it did not end in time: the next start repeats it."""
        self._stop.set()
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with open_tiers(self._settings) as tiers:
                    self._work(tiers)
            except LeaseHeld as exc:
                self._tell(f"no worker here: {exc}")
            except ThermoclineError as exc:
                self._tell(f"the worker cannot start: {exc}")
            except Exception:
                log.exception("the worker failed: please report this")
            self._stop.wait(AGAIN_S)

    def _work(self, tiers: Tiers) -> None:
        worker = Worker(tiers)
        worker.start()
        self._told = ""
        try:
            while not self._stop.wait(TICK_S) and worker.lost is None:
                worker.follow_clock()
        finally:
            worker.stop(within_s=None if self._stop.is_set() else 60)
        if worker.lost is not None:
            raise worker.lost

    def _tell(self, text: str) -> None:
        """Once, not every time."""
        if text.partition(" since ")[0] != self._told.partition(" since ")[0]:
            log.warning("%s", text)
        self._told = text
