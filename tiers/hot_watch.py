"""Waiting until something is appended: one blocked connection for all who wait in a process.

Whoever comes first asks Redis and the others wait for what it finds, so that 200 readers that follow cost an append as little as
one. What woke it is not kept: everybody reads the log from where they are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Final

from thermocline.errors import TierUnavailable

from .block import Position
from .hot import OutcomeLost
from .hot_redis import RedisHot
from .redis_link import Command, CommandFailed, Connection, exchange

BLOCK_S_MAX: Final = 1.0
"""The longest that Redis is asked to wait at once: who leads hands on after it."""
REPLY_S: Final = 5.0
"""How much later than asked Redis may answer."""


class LogWatch:
    """Thread-safe."""

    def __init__(self, hot: RedisHot) -> None:
        self._hot = hot
        self._changed = threading.Condition()
        self._leading = False
        self._last: list[Position] = []
        """Ends of the logs, as far as they are known."""
        self._connection: Connection | None = None
        self._closed = False

    def require_open(self) -> None:
        """TierUnavailable when the store was closed."""
        if self._closed:
            raise TierUnavailable("this store is closed: connect() again")

    def wait(self, after: Mapping[int, Position], timeout_s: float) -> None:
        """Return when the log of a shard may go on after `after[shard]`, or after `timeout_s`. TierUnavailable: Redis is away."""
        deadline_s = time.monotonic() + timeout_s
        while not self._closed:
            left_s = deadline_s - time.monotonic()
            with self._changed:
                if left_s <= 0 or any(self._last[shard] > place for shard, place in after.items() if self._last):
                    return
                if self._leading:
                    self._changed.wait(left_s)
                    continue
                self._leading = True
            try:
                self._lead(min(left_s, BLOCK_S_MAX))
            finally:
                with self._changed:
                    self._leading = False
                    self._changed.notify_all()

    def note(self, last: Mapping[int, Position]) -> None:
        """What a reader has found to be the ends of logs: a Redis that came back older is not ahead of them any more."""
        with self._changed:
            for shard, place in last.items() if self._last else ():
                self._last[shard] = place

    def close(self) -> None:
        """Let everybody go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            if self._connection is not None and not self._leading:
                self._connection.disconnect()

    def _lead(self, block_s: float) -> None:
        """Learn where the logs end, or wait until one goes on."""
        if self._last:
            hot, block_ms = self._hot, max(1, int(1000 * block_s))
            logs = [hot.keys.log(shard) for shard in range(hot.shards)]
            command: Command = ("XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", *logs, *map(str, self._last))
            if self._connection is None:
                self._connection = hot.link.connection()
            shown_url = hot.link.shown_url
            try:
                [reply] = exchange(self._connection, [command], shown_url=shown_url, timeout_s=block_s + REPLY_S)
            except OutcomeLost as exc:
                raise TierUnavailable(f"Redis at {shown_url} stopped answering ({exc}): is it running?") from exc
            finally:
                if self._closed:
                    self._connection.disconnect()
            if isinstance(reply, CommandFailed):
                raise hot.link.refusal(reply) from reply
            if not reply:
                return
        last = [shard.last for shard in self._hot.cut()]
        with self._changed:
            self._last = last
