"""AsyncProducer: the Producer for asyncio. A thin layer: the event loop never waits for the store, nor for room in the buffer."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from pathlib import Path

from thermocline.errors import Backpressure, ThermoclineError
from thermocline.event import Durability, Metadata, TextId

from .producer import Producer
from .source import Config, OpenTiers
from .validate import check_conversation_id

LOOK_EVERY_S = 0.005
"""How often an append that found the buffer full looks again."""


class AsyncProducer:
    """As Producer, with await; an async context manager. Of one event loop; make it anywhere."""

    def __init__(
        self,
        config: Config = None,
        *,
        linger_ms: float | None = None,
        block_events_max: int | None = None,
        buffer_events_max: int | None = None,
        buffer_bytes_max: int | None = None,
        coalesce: bool = False,
        durability: Durability | None = None,
        spool_dir: str | Path | None = None,
        spool_bytes_max: int | None = None,
        tiers: OpenTiers | None = None,
    ) -> None:
        """Arguments as Producer's."""
        self._producer = Producer(
            config,
            linger_ms=linger_ms,
            block_events_max=block_events_max,
            buffer_events_max=buffer_events_max,
            buffer_bytes_max=buffer_bytes_max,
            coalesce=coalesce,
            durability=durability,
            spool_dir=spool_dir,
            spool_bytes_max=spool_bytes_max,
            tiers=tiers,
        )

    async def append(
        self,
        conversation_id: str,
        event_type: str,
        content: str | None = "",
        *,
        task_id: str | None = None,
        agent_id: str | None = None,
        correlation_id: str | None = None,
        parent_id: str | None = None,
        model: str | None = None,
        tool_name: str | None = None,
        status: str | None = None,
        duration_ms: float | None = None,
        cost_usd: float | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        metadata: Metadata | None = None,
        timestamp: datetime | int | str | None = None,
        event_id: TextId | None = None,
    ) -> None:
        """As Producer.append. While the buffer is full, only this task waits."""
        conversation_id = check_conversation_id(conversation_id)
        timestamp = time.time_ns() // 1000 if timestamp is None else timestamp
        fields = (event_id, event_type, timestamp, agent_id, task_id, correlation_id, parent_id, model, tool_name,
                  status, duration_ms, cost_usd, input_tokens, output_tokens, content, metadata)  # fmt: skip
        deadline_s = time.monotonic() + self._producer.deadline_s
        while True:
            try:
                return self._producer.put(conversation_id, fields, 0.0)
            except Backpressure:
                if time.monotonic() >= deadline_s:
                    raise
            await asyncio.sleep(LOOK_EVERY_S)

    @property
    def spooled_events(self) -> int:
        """As Producer.spooled_events."""
        return self._producer.spooled_events

    @property
    def trouble(self) -> ThermoclineError | None:
        """As Producer.trouble."""
        return self._producer.trouble

    async def drain(self, timeout_s: float | None = None) -> None:
        """As Producer.drain."""
        await asyncio.to_thread(self._producer.drain, timeout_s)

    async def flush(self, timeout_s: float | None = None) -> None:
        """As Producer.flush."""
        await asyncio.to_thread(self._producer.flush, timeout_s)

    async def close(self, timeout_s: float | None = None) -> None:
        """As Producer.close."""
        await asyncio.to_thread(self._producer.close, timeout_s)

    async def __aenter__(self) -> AsyncProducer:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
