"""What the routes share: the opened store, the pools of threads that call it, who may call, and what is counted."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from thermocline.config import Settings
from thermocline.ingest.append import Client
from thermocline.masking import mask_of
from thermocline.query.status import Status
from thermocline.store import Store, connect

from .access import Access
from .audit import Audit
from .limits import Budget, Rates, Room
from .metrics import Metrics
from .pulse import Pace, Pulse
from .sandbox import Sandbox

Value = TypeVar("Value")
STATUS_AGE_S: Final = 1.0
"""How old a status may be that is shown to many."""


class Service:
    """One namespace, served. Calls of the library run in threads: appends in their own, so that no reader delays them."""

    def __init__(
        self, settings: Settings, store: Store, client: Client, sandbox: Sandbox, *, access: Access, audit: Audit
    ) -> None:
        limits = settings.serve
        queries_max = settings.sandbox.children_max + settings.sandbox.waiting_max
        self.settings = settings
        self.store = store
        self.client = client
        self.sandbox = sandbox
        self.access = access
        self.audit = audit
        self.mask = mask_of(settings)
        self.metrics = Metrics(settings)
        self.started_s = time.time()
        self.connections: Callable[[], int] = lambda: 0
        self.stopping = asyncio.Event()
        self.appending = anyio.CapacityLimiter(limits.append_threads)
        self.reading = anyio.CapacityLimiter(limits.read_threads)
        self.tailing = anyio.CapacityLimiter(limits.tail_threads)
        self.querying = anyio.CapacityLimiter(queries_max)
        self.queries = Room(queries_max)
        self.answers = Room(limits.answers_max)
        self.tails = Room(limits.tails_max)
        self.pulse = Pulse(store)
        self.tail_pace = Pace(limits.tail_reads_per_s)
        self.rates = Rates(limits.requests_per_s, limits.requests_per_s)
        self.bodies = Budget(limits.bodies_bytes_max)
        self._status: Status | None = None
        self._status_s = -1e9
        self._status_lock = threading.Lock()

    async def append(self, act: Callable[[], Value]) -> Value:
        """What `act` gives, in a thread of the appends."""
        return await anyio.to_thread.run_sync(act, limiter=self.appending)

    async def read(self, act: Callable[[], Value]) -> Value:
        """What `act` gives, in a thread of the reads."""
        return await anyio.to_thread.run_sync(act, limiter=self.reading)

    def status(self, *, age_s: float = STATUS_AGE_S) -> Status:
        """The store's status, taken at most `age_s` ago. Blocks; errors are those of Store.status."""
        with self._status_lock:
            if self._status is None or time.monotonic() - self._status_s > age_s:
                self._status = self.store.status()
                self._status_s = time.monotonic()
            return self._status


def open_service(settings: Settings) -> tuple[Service, ExitStack]:
    """A service over an opened store, and what closes it. ConfigError, TierUnavailable, TierCorrupt: it cannot be opened."""
    with ExitStack() as opened:
        access = Access(settings)
        store = opened.enter_context(connect(settings))
        client = opened.enter_context(Client(settings, tiers=store.tiers))
        sandbox = opened.enter_context(Sandbox(store, settings.sandbox))
        service = Service(settings, store, client, sandbox, access=access, audit=Audit(settings))
        opened.callback(service.pulse.close)
        return service, opened.pop_all()
