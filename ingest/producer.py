"""Producer: append() that returns at once. Events are checked and encoded in the caller's thread and sent by another.

    with Producer() as producer:
        producer.append("chat-1", "output.chunk", "Hel")
        producer.append("chat-1", "output.chunk", "lo")

Order within a conversation is the order of the calls. An event counts as stored when `flush` or `close` returned without error.
"""

from __future__ import annotations

import atexit
import threading
import time
from datetime import datetime
from pathlib import Path

from thermocline.errors import Backpressure, ThermoclineError, TierUnavailable
from thermocline.event import Durability, Metadata, TextId

from .buffer import Buffer, Limits
from .drain import Drain
from .line import encoded, line_of
from .sender import Sender
from .sending import RETRY_AFTER_S
from .source import Config, OpenTiers, Source, inherit, renew_in_child, settings_of, with_ingest
from .spool import Spool
from .spooling import SpoolingSender
from .validate import Fields, check_conversation_id, checked

JOIN_S = 60.0
"""How long close waits for a sender that was told to give up; it looks up after one round trip."""


class Producer:
    """Thread-safe; a context manager. Opens the store when the first event is to be sent, from its own thread.

    While Redis is away the buffer fills (with `spool_dir`: files do, which outlive the process) and nothing is lost; only when it
    is full does append wait. What the thread meets is raised by the next call, once, as PartialAppend whose `rest` are the events
    that are not stored (or may not be: then its `cause` is OutcomeUnknown). Such a call did nothing else: an event given to it
    was not taken.

    Left open, it is closed at exit. In a forked child it starts over, empty: what was buffered is the parent's to send.
    """

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
        """config     Settings, a mapping of settings, the path of a TOML file, or None for the usual places
        linger_ms  how long an event waits for company, and the window of `coalesce`; it and the others: default from [ingest]
        coalesce   merge consecutive output.chunk events of a conversation into one (coalesce.py)
        durability  how firmly an event is kept before it counts as stored, at least
        spool_dir  folder for what cannot be stored at once, this Producer's alone, on a local file system; without it such
                   events stay in memory. What a process left there is sent by the next Producer that is given the folder.
                   TierUnavailable: another Producer has it
        tiers      opened ones to use; closing them stays with the caller
        """
        settings = with_ingest(
            settings_of(config, {}),
            linger_ms=linger_ms,
            block_events_max=block_events_max,
            buffer_events_max=buffer_events_max,
            buffer_bytes_max=buffer_bytes_max,
            durability=durability,
            spool_bytes_max=spool_bytes_max,
        )
        self._ingest = settings.ingest
        self._spool_dir = None if spool_dir is None else Path(spool_dir).absolute()
        self.deadline_s = self._ingest.deadline_s
        """How long an append waits for room."""
        self._source = Source(settings, tiers)
        self._source.load()
        self._coalesce = coalesce
        self._start_over()
        self._open_spool()
        renew_in_child(self)
        atexit.register(self.close)

    def _start_over(self) -> None:
        ingest = self._ingest
        self._buffer = Buffer(
            Limits(
                events_max=ingest.buffer_events_max,
                bytes_max=ingest.buffer_bytes_max,
                full_events=ingest.block_events_max,
                full_bytes=ingest.block_bytes_max,
                linger_s=ingest.linger_ms / 1000,
            )
        )
        self._sender: Sender | None = None
        self._drain: Drain | None = None
        self._lock = threading.Lock()

    def _open_spool(self) -> None:
        """Open spool_dir, if there is one, and go on with what is in it."""
        if self._spool_dir is None:
            return
        settings = self._source.settings
        spool = Spool(
            self._spool_dir,
            namespace=settings.namespace,
            shards=settings.hot.shards,
            bytes_max=self._ingest.spool_bytes_max,
        )
        self._drain = Drain(spool, self._buffer, self._source, self._ingest)
        self._drain.start()

    @property
    def spooled_events(self) -> int:
        """Events that wait in spool_dir: safe there, not yet in Redis, and not seen by queries."""
        return 0 if self._drain is None else self._drain.spool.events

    @property
    def trouble(self) -> ThermoclineError | None:
        """What keeps this Producer from storing events in Redis at the moment."""
        return self._buffer.trouble or (None if self._drain is None else self._drain.trouble)

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
    ) -> None:
        """Take an event; it is stored soon. Fields as in `Event`.

        InvalidEvent: it breaks a rule. Backpressure: the buffer was full for `ingest.deadline_s`. PartialAppend: the sender met
        an error (see the class). In each case this event was not taken.
        """
        conversation_id = check_conversation_id(conversation_id)
        fields = (event_id, event_type, timestamp, agent_id, task_id, correlation_id, parent_id, model, tool_name,
                  status, duration_ms, cost_usd, input_tokens, output_tokens, content, metadata)  # fmt: skip
        self.put(conversation_id, fields, self.deadline_s)

    def put(self, conversation_id: str, fields: Fields, wait_s: float) -> None:
        """`append` of a checked conversation_id and values in the order of validate.FIELDS, waiting so long for room."""
        if self._sender is None:
            self._start()
        now_us = time.time_ns() // 1000
        if self._coalesce:
            values = checked(fields, now_us)
            taken = self._buffer.put(conversation_id, encoded(values), wait_s, values)
        else:
            taken = self._buffer.put(conversation_id, line_of(fields, now_us), wait_s)
        if not taken:
            trouble = self._buffer.trouble or "events come faster than they can be sent"
            raise Backpressure(
                f"the Producer's buffer is full ({self._buffer.events:,} events wait: ingest.buffer_events_max or "
                f"ingest.buffer_bytes_max): {trouble}",
                retry_after_s=RETRY_AFTER_S,
            )

    def flush(self, timeout_s: float | None = None) -> None:
        """Return when every event put before this call is stored; with spool_dir: stored, or on disk there.

        timeout_s  None: for as long as something is stored at least every `ingest.deadline_s`

        PartialAppend: some are not and will not be. TierUnavailable, Backpressure: not yet, they stay buffered.
        """
        if not self._buffer.flush(timeout_s, self._ingest.deadline_s):
            waiting = f"{self._buffer.events:,} events wait in this Producer, they are kept and sent as soon as possible"
            trouble = self._buffer.trouble
            if isinstance(trouble, Backpressure):
                raise Backpressure(f"{waiting}: {trouble}", retry_after_s=trouble.retry_after_s) from trouble
            raise TierUnavailable(f"{waiting}: {trouble or 'the time was too short'}") from trouble

    def drain(self, timeout_s: float | None = None) -> None:
        """Flush, then return when nothing waits in spool_dir either: all is in Redis.

        timeout_s  for the spool; None: for as long as it takes while nothing is in the way

        As `flush`; TierUnavailable, Backpressure or another error: what is in the way, or the time was too short.
        """
        self.flush(timeout_s)
        if self._drain is not None and not self._drain.wait_empty(timeout_s, patient=timeout_s is not None):
            trouble = self._drain.trouble
            raise trouble or TierUnavailable(
                f"{self.spooled_events:,} events still wait in {self._spool_dir}: the time was too short"
            )
        self._buffer.raise_failure()

    def close(self, timeout_s: float | None = None) -> None:
        """Flush, then let go of everything. Safe to repeat.

        With spool_dir what is there is sent on while nothing is in the way, at most for `timeout_s`; the rest stays there for
        the next Producer that is given the folder.

        PartialAppend: its `rest` are the events that could not be stored in time (as for `flush`), or ever.
        """
        with self._lock:
            self._buffer.close()
            ended = self._sender is None or self._ended(self._sender, timeout_s)
            if ended and self._drain is not None:
                self._drain.wait_empty(timeout_s, patient=False)
                ended = self._drain.stop(JOIN_S)
            if ended and not (self._sender and self._sender.store_needed):
                self._source.close()
        atexit.unregister(self.close)
        try:
            self._buffer.raise_failure()
        finally:
            if ended and self._drain is not None:
                self._drain.spool.drop_finished()
                self._drain.spool.close()
        if not ended:
            raise TierUnavailable(f"{self._buffer.events:,} events are still on their way, their outcome is not known")

    def _ended(self, sender: Sender, timeout_s: float | None) -> bool:
        if not self._buffer.wait(timeout_s, self._ingest.deadline_s):
            sender.give_up()
        return sender.join(JOIN_S)

    def _start(self) -> None:
        with self._lock:
            if self._sender is None and not self._buffer.closed:
                if self._spool_dir is not None and self._drain is None:
                    self._open_spool()
                self._sender = (
                    Sender(self._buffer, self._source, self._ingest)
                    if self._drain is None
                    else SpoolingSender(self._buffer, self._source, self._ingest, self._drain)
                )
                self._sender.start()

    def renew(self) -> None:
        """In a forked child: start over, empty."""
        inherit((self._buffer, self._sender, self._drain))
        if self._drain is not None:
            self._drain.spool.close()
        self._source.renew()
        self._start_over()

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
