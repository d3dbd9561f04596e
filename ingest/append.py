"""append() and append_many(): one call, one durable answer per event.

What a call can end with, besides receipts:

    InvalidEvent      an event breaks a rule; nothing of the call was stored
    SequenceConflict  expected_seq is not the conversation's last seq; nothing was stored
    Backpressure      the store sheds load, or all connections are in use; nothing was stored
    TierUnavailable   Redis could not be reached within the deadline; nothing was stored
    TierCorrupt       Redis belongs to another store, or has an unknown format; nothing was stored
    OutcomeUnknown    the reply was lost: `retry()` on the error settles it
    PartialAppend     append_many: the receipts of what is stored, and the rest with one of the above as its cause
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from thermocline.errors import InvalidEvent, ThermoclineError
from thermocline.event import Durability, Event, Metadata, Receipt, TextId
from thermocline.tiers.block import Block

from .call import Call, Parcel, append_one
from .encode import block_of, blocks_of
from .line import Line, line_of
from .pool import Pool
from .source import Config, OpenTiers, Source, renew_in_child, settings_of, with_ingest
from .validate import check_conversation_id, check_expected_seq, event_of, fields_of


class Client:
    """append and append_many for one store. Thread-safe; opens the store at the first append; a context manager.

    In a forked child it starts over with connections of its own.
    """

    def __init__(
        self, config: Config = None, *, durability: Durability | None = None, tiers: OpenTiers | None = None, **overrides: Any
    ) -> None:
        """config     Settings, a mapping of settings, the path of a TOML file, or None for the usual places
        durability  how firmly an event is kept before its append returns, at least; default: ingest.durability
        tiers      opened ones to use; closing them stays with the caller
        overrides  settings that win over `config`
        """
        self._source = Source(with_ingest(settings_of(config, overrides), durability=durability), tiers)
        self._ingest = self._source.settings.ingest
        self._shards = self._source.settings.hot.shards
        self._pool = Pool(self._source)
        self._closed = False
        renew_in_child(self)

    def append(
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
        expected_seq: int | None = None,
    ) -> Receipt:
        """The receipt of one stored event. Fields as in `Event`; errors as at the top of this module.

        expected_seq  the conversation's last seq as the caller knows it; 0: the conversation must be new. Makes a repeated
                      append harmless for ever, where event_id does so within `hot.ids_window_s`
        """
        conversation_id = check_conversation_id(conversation_id)
        fields = (event_id, event_type, timestamp, agent_id, task_id, correlation_id, parent_id, model, tool_name,
                  status, duration_ms, cost_usd, input_tokens, output_tokens, content, metadata)  # fmt: skip
        line = line_of(fields, time.time_ns() // 1000)
        if expected_seq is not None:
            expected_seq = check_expected_seq(expected_seq)
        block = block_of(conversation_id, [line], self._shards)
        return append_one(block, expected_seq, self._usable_pool(), deadline_s=self._ingest.deadline_s)

    def append_many(self, events: Iterable[Event | Mapping[str, Any]]) -> list[Receipt]:
        """One receipt per event, in order. Any mix of conversations; the order within each is kept.

        Everything is checked before anything is sent. Events go out in blocks, and a call that cannot store all of them raises
        PartialAppend: append its `rest` again, or, when its `cause` is OutcomeUnknown, call `cause.retry()`, which gives the
        receipts of `rest` or raises like `append_many(rest)` would. When nothing at all was stored and the fault is an event's
        or a setting's, InvalidEvent or ConfigError is raised as it is.
        """
        now_us = time.time_ns() // 1000
        given: list[Event] = []
        grouped: dict[str, tuple[list[int], list[Line]]] = {}
        for index, item in enumerate(events):
            try:
                event = event_of(item)
                conversation_id = check_conversation_id(event.conversation_id)
                line = line_of(fields_of(event), now_us)
            except InvalidEvent as exc:
                raise InvalidEvent(exc.field, exc.problem, index=index) from exc
            given.append(event)
            group = grouped.get(conversation_id)
            if group is None:
                group = grouped[conversation_id] = ([], [])
            indices, lines = group
            indices.append(index)
            lines.append(line)
        blocks, places = [], []
        for conversation_id, (indices, lines) in grouped.items():
            start = 0
            for block in self._blocks(conversation_id, lines):
                blocks.append(block)
                places.append(indices[start : start + block.lines])
                start += block.lines
        if not given:
            return []
        return Call(Parcel(blocks, places), given, deadline_s=self._ingest.deadline_s, now_us=now_us).run(self._usable_pool())

    def _blocks(self, conversation_id: str, lines: list[Line]) -> list[Block]:
        ingest = self._ingest
        limits = {"events_max": ingest.block_events_max, "bytes_max": ingest.block_bytes_max}
        return list(blocks_of(conversation_id, lines, shards=self._shards, **limits))

    def _usable_pool(self) -> Pool:
        if self._closed:
            raise ThermoclineError("this Client is closed: make a new one")
        return self._pool

    def close(self) -> None:
        """Close the connections, and the store if it was opened here. What was appended stays appended."""
        self._closed = True
        self._pool.close()
        self._source.close()

    def renew(self) -> None:
        self._source.renew()
        self._pool.renew()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_default: Client | None = None
_default_lock = threading.Lock()


def default_client() -> Client:
    """The process' own Client, from the usual settings; made at first use, closed at exit."""
    global _default
    with _default_lock:
        if _default is None:
            _default = Client()
            atexit.register(_default.close)
        return _default


def append(
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
    expected_seq: int | None = None,
) -> Receipt:
    """The receipt of one stored event, by the process' own Client. See Client.append."""
    return default_client().append(
        conversation_id,
        event_type,
        content,
        task_id=task_id,
        agent_id=agent_id,
        correlation_id=correlation_id,
        parent_id=parent_id,
        model=model,
        tool_name=tool_name,
        status=status,
        duration_ms=duration_ms,
        cost_usd=cost_usd,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        metadata=metadata,
        timestamp=timestamp,
        event_id=event_id,
        expected_seq=expected_seq,
    )


def append_many(events: Iterable[Event | Mapping[str, Any]]) -> list[Receipt]:
    """One receipt per event, in order, by the process' own Client. See Client.append_many."""
    return default_client().append_many(events)
