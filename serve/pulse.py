"""Wakes whoever follows when something is appended: one thread watches Redis for all, a reader that waits has none."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from thermocline.errors import ThermoclineError
from thermocline.store import Store
from thermocline.tiers.block import Position
from thermocline.tiers.hot_watch import LogWatch

log = logging.getLogger("thermocline.serve")
BLOCK_S: Final = 1.0
"""The longest the thread waits at once."""
PAUSE_S: Final = 0.02
"""Between two looks while events keep coming."""
AGAIN_S: Final = 1.0
"""After Redis could not be asked."""


class Listener:
    """One who waits: woken when a log of its shards goes on."""

    def __init__(self, shards: frozenset[int]) -> None:
        self.shards = shards
        self.woken = asyncio.Event()

    async def wait(self, timeout_s: float) -> bool:
        """Whether something was appended, since the last wait, within that time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.woken.wait()
        except TimeoutError:
            return False
        self.woken.clear()
        return True


class Pace:
    """So many turns a second for all who share it, in the order they ask; none waits while there are fewer."""

    def __init__(self, per_s: float) -> None:
        self._every_s = 1 / per_s
        self._next_s = 0.0

    async def turn(self) -> None:
        """Return when it is one's turn."""
        now_s = time.monotonic()
        at_s = max(now_s, self._next_s)
        self._next_s = at_s + self._every_s
        if at_s > now_s:
            await asyncio.sleep(at_s - now_s)


class Pulse:
    """Of one event loop. The thread runs while somebody listens."""

    def __init__(self, store: Store) -> None:
        self._hot = store.tiers.hot
        self._listeners: set[Listener] = set()
        self._thread: threading.Thread | None = None
        self._ending: threading.Thread | None = None
        """One that was told to stop, and does within BLOCK_S."""
        self._stop = threading.Event()

    @contextmanager
    def listener(self, shards: Sequence[int]) -> Iterator[Listener]:
        """A listener, for as long as the block runs."""
        found = Listener(frozenset(shards))
        self._listeners.add(found)
        if self._thread is None:
            self._stop = threading.Event()
            loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, args=(loop, self._stop), name="thermocline-pulse", daemon=True)
            self._thread.start()
        try:
            yield found
        finally:
            self._listeners.discard(found)
            if not self._listeners:
                self._stop.set()
                self._thread, self._ending = None, self._thread

    def close(self) -> None:
        """Wait for the thread to be through with Redis. Nobody listens any more."""
        self._stop.set()
        for thread in (self._thread, self._ending):
            if thread is not None:
                thread.join(2 * BLOCK_S)

    def _run(self, loop: asyncio.AbstractEventLoop, stop: threading.Event) -> None:
        watch = LogWatch(self._hot)
        last: list[Position] = []
        try:
            while not stop.is_set():
                try:
                    now = [shard.last for shard in self._hot.cut()]
                    changed = [shard for shard, place in enumerate(now) if not last or place != last[shard]]
                    last = now
                    if changed:
                        loop.call_soon_threadsafe(self._wake, frozenset(changed))
                    stop.wait(PAUSE_S)
                    watch.wait(dict(enumerate(last)), BLOCK_S)
                except ThermoclineError as exc:
                    if stop.is_set():
                        return
                    log.warning("tails wait: %s", exc)
                    loop.call_soon_threadsafe(self._wake, None)  # who follows finds out by itself
                    stop.wait(AGAIN_S)
        except RuntimeError:
            pass  # the loop is closed: the server has ended
        finally:
            watch.close()

    def _wake(self, shards: frozenset[int] | None) -> None:
        for listener in self._listeners:
            if shards is None or listener.shards & shards:
                listener.woken.set()
