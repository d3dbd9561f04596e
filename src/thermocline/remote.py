"""A store somewhere else, through `thermocline serve`, with the library's names: a thin client.

with connect("https://store.example.org", token="tc_…") as store:
    store.append("order-17", "message.user", "Hello")
    store.sql("SELECT count(*) FROM events").pl()
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal
from urllib.parse import quote

import httpx
import msgspec
import orjson
import pyarrow as pa
import uuid_utils

from thermocline.errors import (
    Backpressure,
    ConfigError,
    InvalidEvent,
    OutcomeUnknown,
    PartialAppend,
    SequenceConflict,
    ThermoclineError,
    TierUnavailable,
)
from thermocline.event import Event, Metadata, Receipt, TextId
from thermocline.ingest.line import line_of as checked_line
from thermocline.ingest.validate import check_conversation_id, check_expected_seq, event_of, fields_of
from thermocline.query.result import Result
from thermocline.query.status import Status

from .remote_answers import coverage_of, error_of, line_of, receipt_of
from .remote_tail import RemoteTail

BATCH_EVENTS_MAX: Final = 1000
BATCH_BYTES_MAX: Final = 4 << 20
"""Of one request of append_many, but for a single larger event."""
PAUSE_S: Final = 0.2
WITH_OUTCOMES: Final = (200, 207, 422, 503)
"""Answers to an append that say of every event what became of it; any other says why none is stored."""
NEWEST: Final = "SELECT * FROM (SELECT * FROM events WHERE conversation_id = ? ORDER BY seq DESC LIMIT ?) ORDER BY seq"
Parameters = Sequence[Any] | Mapping[str, Any] | None
Numbered = tuple[int, Event]


def connect(url: str, *, token: str | None = None, timeout_s: float = 60.0, deadline_s: float = 10.0) -> RemoteStore:
    """A store served at `url`. Nothing is asked of it yet.

    timeout_s   how long one answer may take to begin
    deadline_s  how long an append that got no answer is sent again before it raises
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"url must start with http:// or https://, not {url.partition('://')[0][:20]!r}")
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    return RemoteStore(httpx.Client(base_url=url, headers=headers, timeout=timeout_s), deadline_s=deadline_s)


class RemoteStore:
    """One served namespace. Thread-safe; a context manager. Make one with `connect`."""

    def __init__(self, client: httpx.Client, *, deadline_s: float) -> None:
        self._client = client
        self._deadline_s = deadline_s

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
        timestamp: dt.datetime | int | str | None = None,
        event_id: TextId | None = None,
        expected_seq: int | None = None,
    ) -> Receipt:
        """The receipt of one stored event; errors as those of thermocline.append."""
        event = Event(
            conversation_id=conversation_id, event_type=event_type, content=content, task_id=task_id, agent_id=agent_id,
            correlation_id=correlation_id, parent_id=parent_id, model=model, tool_name=tool_name, status=status,
            duration_ms=duration_ms, cost_usd=cost_usd, input_tokens=input_tokens, output_tokens=output_tokens,
            metadata=metadata, timestamp=timestamp, event_id=event_id,
        )  # fmt: skip
        if expected_seq is not None:
            return self._append_expecting(_ready(event), check_expected_seq(expected_seq))
        try:
            return self.append_many([event])[0]
        except PartialAppend as exc:
            raise exc.cause from exc

    def append_many(self, events: Iterable[Event | Mapping[str, Any]]) -> list[Receipt]:
        """One receipt per event, in order. Everything is checked before anything is sent; errors as those of append_many."""
        given: list[Event] = []
        for index, item in enumerate(events):
            try:
                given.append(_ready(event_of(item)))
            except InvalidEvent as exc:
                raise InvalidEvent(exc.field, exc.problem, index=index) from exc
        return self._finish(given, [None] * len(given), list(enumerate(given)))

    def sql(self, query: str, params: Parameters = None, *, require: Literal["complete"] | None = None) -> Result:
        """The answer to one SELECT, in the server's sandbox. QueryRefused, IncompleteAnswer, TierUnavailable as in Store.sql."""
        asked = {"sql": query, "params": params, "complete": require == "complete"}
        headers = {"Accept": "application/vnd.apache.arrow.stream", "Content-Type": "application/json"}
        answer = self._asked("POST", "/v1/query", content=orjson.dumps(asked, default=str), headers=headers)
        with pa.ipc.open_stream(pa.py_buffer(answer.content)) as stream:
            table = stream.read_all()
        noted = dict(table.schema.metadata or {})
        coverage = coverage_of(orjson.loads(noted.pop(b"thermocline.coverage")))
        noted.pop(b"thermocline.query_id", None)
        return Result(table.replace_schema_metadata(noted or None), coverage)

    def recent(self, conversation_id: str, limit: int = 100) -> Result:
        """The newest `limit` events of a conversation, columns as in `events`, ordered by seq."""
        return self.sql(NEWEST, [conversation_id, limit])

    def tail(
        self,
        conversation_id: str | None = None,
        *,
        event_types: Sequence[str] | None = None,
        start: str | int | dt.datetime = "now",
    ) -> RemoteTail:
        """Events from `start` on and then as they are appended, as Store.tail has them."""
        params = {"start": start.isoformat() if isinstance(start, dt.datetime) else str(start)}
        if conversation_id is not None:
            params["conversation_id"] = conversation_id
        if event_types is not None:
            params["event_types"] = ",".join(event_types)
        return RemoteTail(self._client, params)

    def status(self) -> Status:
        """What each tier holds, what waits, and how healthy the store is."""
        return msgspec.convert(self._asked("GET", "/v1/status").json(), Status, strict=False, str_keys=True)

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> RemoteStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<RemoteStore {self._client.base_url}>"

    # Appends

    def _finish(self, given: Sequence[Event], receipts: list[Receipt | None], left: Sequence[Numbered]) -> list[Receipt]:
        """Send what is left; all receipts, or PartialAppend."""
        for batch in _batches(left):
            cause = self._sent(batch, receipts)
            if cause is not None:
                rest = [index for index, receipt in enumerate(receipts) if receipt is None]
                raise self._partial(given, receipts, rest, cause) from cause
        return [receipt for receipt in receipts if receipt is not None]

    def _partial(
        self, given: Sequence[Event], receipts: Sequence[Receipt | None], rest: Sequence[int], cause: ThermoclineError
    ) -> ThermoclineError:
        if len(rest) == len(given) and isinstance(cause, InvalidEvent | ConfigError):
            return cause
        events = [given[index] for index in rest]
        if isinstance(cause, OutcomeUnknown):
            cause = self._unknown(str(cause), events)
        text = f"{len(given) - len(rest)} of {len(given)} events are stored, the rest is not or may not be: {cause}"
        return PartialAppend(text, receipts=receipts, rest=events, rest_indices=rest, cause=cause)

    def _sent(self, batch: Sequence[Numbered], receipts: list[Receipt | None]) -> ThermoclineError | None:
        """Send one batch until it has an answer; its receipts are put in their places. Why some have none."""
        body = b"\n".join(line_of(event) for _, event in batch)
        try:
            answer = self._resent(
                lambda: self._client.post("/v1/events", content=body, headers={"Content-Type": "application/x-ndjson"})
            )
        except ThermoclineError as exc:
            return exc
        if answer.status_code not in WITH_OUTCOMES:
            return error_of(answer.status_code, answer.content)
        try:
            outcomes: list[dict[str, Any]] = answer.json()["outcomes"]
        except (ValueError, KeyError):
            return error_of(answer.status_code, answer.content)
        cause: ThermoclineError | None = None
        for outcome in outcomes:
            index = batch[outcome["index"]][0]
            if outcome["outcome"] == "stored":
                receipts[index] = receipt_of(outcome)
            elif outcome["outcome"] == "refused":
                cause = InvalidEvent(outcome["field"], outcome["problem"], index=index)
            elif outcome["outcome"] == "unknown":
                cause = self._unknown("the server's store did not answer", [event for _, event in batch])
            elif outcome.get("retry_after_s") is not None:
                cause = Backpressure(outcome["problem"].partition("; retry after")[0], retry_after_s=outcome["retry_after_s"])
            else:
                cause = TierUnavailable(outcome["problem"])
        return cause

    def _resent(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        """The answer to a request that may be sent again; OutcomeUnknown when none comes within the deadline."""
        deadline_s = time.monotonic() + self._deadline_s
        sent = False
        while True:
            try:
                return send()
            except httpx.ConnectError as exc:
                error: Exception = exc
            except httpx.TransportError as exc:
                error, sent = exc, True
            if time.monotonic() >= deadline_s:
                text = f"{self._client.base_url} does not answer ({type(error).__name__})"
                raise self._unknown(text, []) if sent else TierUnavailable(f"{text}: is the server running?")
            time.sleep(PAUSE_S)

    def _unknown(self, why: str, events: Sequence[Event]) -> OutcomeUnknown:
        """The error whose `retry` sends the same events again, under the same ids."""

        def retry() -> list[Receipt]:
            return self._finish(events, [None] * len(events), list(enumerate(events)))

        def look() -> bool:
            ids = [str(event.event_id) for event in events]
            found = self.sql("SELECT count(DISTINCT event_id) FROM events WHERE list_contains(?, event_id)", [ids])
            if (found.fetchone() or (0,))[0] == len(ids):
                return True
            raise self._unknown("not all of the events are there, and they may still be on their way", events)

        return OutcomeUnknown(f"{why}; call retry() on this error: it sends the same ids", retry=retry, look=look)

    def _append_expecting(self, event: Event, expected_seq: int) -> Receipt:
        name = event.conversation_id
        body, headers = b"[" + line_of(event) + b"]", {"Content-Type": "application/json"}
        path = f"/v1/events?expected_seq={expected_seq}"
        try:
            answer = self._resent(lambda: self._client.post(path, content=body, headers=headers))
        except OutcomeUnknown as exc:
            raise self._unknown_expecting(str(exc), event, expected_seq) from exc
        if answer.status_code == 200:
            return receipt_of(answer.json()["outcomes"][0])
        error = error_of(answer.status_code, answer.content, conversation_id=name)
        if isinstance(error, SequenceConflict):
            found = self._stored_at(name, expected_seq + 1)
            if found.get("event_id") == str(event.event_id):  # an earlier sending of ours, whose answer was lost
                return Receipt(
                    event_id=found["event_id"], conversation_id=name, seq=found["seq"], durability="memory", duplicate=True
                )
        raise error

    def _unknown_expecting(self, why: str, event: Event, expected_seq: int) -> OutcomeUnknown:
        """The error whose `retry` sends the same conditional append again."""

        def retry() -> list[Receipt]:
            return [self._append_expecting(event, expected_seq)]

        def look() -> bool:
            if self._stored_at(event.conversation_id, expected_seq + 1).get("event_id") == str(event.event_id):
                return True
            raise self._unknown_expecting(why, event, expected_seq)

        return OutcomeUnknown(why, retry=retry, look=look)

    def _stored_at(self, conversation_id: str, seq: int) -> dict[str, Any]:
        """The event of that seq; {} when there is none, or the token does not allow to look."""
        path = f"/v1/conversations/{quote(conversation_id, safe='')}/events?from_seq={seq}&limit=1"
        try:
            found = self._asked("GET", path).json()["events"]
        except ThermoclineError:
            return {}
        return dict(found[0]) if found and found[0]["seq"] == seq else {}

    def _asked(self, method: str, path: str, **named: Any) -> httpx.Response:
        """A good answer. TierUnavailable: the server is away; else the error it answers."""
        try:
            answer = self._client.request(method, path, **named)
        except httpx.TransportError as exc:
            raise TierUnavailable(f"{self._client.base_url}: {type(exc).__name__}: is the server running?") from exc
        if answer.status_code != 200:
            raise error_of(answer.status_code, answer.content)
        return answer


def _ready(event: Event) -> Event:
    """The event with an id and a time of its own, checked. InvalidEvent."""
    now_us = time.time_ns() // 1000
    check_conversation_id(event.conversation_id)
    checked_line(fields_of(event), now_us)
    identity = str(uuid_utils.uuid7()) if event.event_id is None else event.event_id
    return msgspec.structs.replace(event, event_id=identity, timestamp=event.timestamp or now_us)


def _batches(events: Sequence[Numbered]) -> Iterable[list[Numbered]]:
    batch: list[Numbered] = []
    size = 0
    for numbered in events:
        more = len(numbered[1].content or "") + 2048
        if batch and (len(batch) >= BATCH_EVENTS_MAX or size + more > BATCH_BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(numbered)
        size += more
    if batch:
        yield batch


__all__ = ["RemoteStore", "RemoteTail", "connect"]
