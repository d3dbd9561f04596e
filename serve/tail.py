"""GET /v1/tail: events as they come, as server-sent events, resumed by Last-Event-ID.

What a reader holds here is one small page. While it does not read, nothing more is read for it; when it has not read for
serve.write_timeout_s it is closed, and goes on where it was when it comes back.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import anyio.to_thread
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response

from thermocline.errors import QueryRefused, ThermoclineError, TierUnavailable
from thermocline.ingest.validate import check_conversation_id
from thermocline.query.follow import Tail
from thermocline.query.gaps import Gap
from thermocline.tiers.block import shard_of

from .accepting import chosen
from .problems import Problem, problem_of
from .pulse import Listener
from .rows import dumped, event_objects
from .service import Service

Value = TypeVar("Value")
SSE: Final = "text/event-stream"
START_BYTES_MAX: Final = 8192
TYPES_MAX: Final = 100
Shown = Callable[[Any], tuple[str, str]]
"""The name and the data of the message that is sent of an event or a gap."""
RETRY_MS: Final = 1000
"""After which a browser that lost the connection comes back."""


async def tail(request: Request) -> Response:
    """A stream of `event` and `gap` messages, each with the id to resume after it, and comments while nothing comes."""
    if chosen(request.headers.get("accept", ""), (SSE,)) is None:
        raise Problem(406, "not-acceptable", f"a tail comes as {SSE}: name it in Accept")
    conversation = request.query_params.get("conversation_id")
    if conversation is not None:
        check_conversation_id(conversation)
    return await followed(request, conversation, types=_types(request), start=_start(request, conversation))


async def followed(
    request: Request, conversation: str | None, *, types: list[str] | None, start: Any, shown: Shown | None = None
) -> Response:
    """The stream of a tail. shown: what is sent of an item; None: JSON."""
    service: Service = request.app.state.service
    request.scope["audit"] = {"conversation_id": conversation}
    limits = service.settings.serve
    place = service.tails.place("tails", "serve.tails_max")
    place.__enter__()
    try:
        act = partial(service.store.tail, conversation, event_types=types, start=start, page_bytes_max=limits.tail_bytes_max)
        opened = await _threaded(service, act)
    except BaseException:
        place.__exit__(None, None, None)
        raise
    return _Stream(_messages(service, opened, shown or _message), opened, place)


class _Stream(EventSourceResponse):
    """The response; its place is free again however it ends."""

    def __init__(self, messages: AsyncIterator[ServerSentEvent], opened: Tail, place: Any) -> None:
        super().__init__(messages, ping=0, sep="\n", headers={"Cache-Control": "no-store"})
        self._opened = opened
        self._place = place

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._opened.close()
            self._place.__exit__(None, None, None)


async def _messages(service: Service, opened: Tail, shown: Shown) -> AsyncIterator[ServerSentEvent]:
    shards = range(service.settings.hot.shards)
    mine = shards if opened.conversation_id is None else [shard_of(opened.conversation_id, len(shards))]
    reason = "left"
    try:
        yield ServerSentEvent(id=opened.position, comment="follows", retry=RETRY_MS, sep="\n")
        with service.pulse.listener(mine) as listener:
            async for message in _followed(service, opened, listener, shown):
                yield message
            reason = "stopped"
            yield ServerSentEvent(comment="the server ends: come back", sep="\n")
    except ThermoclineError as exc:
        reason = "failed"
        yield ServerSentEvent(event="problem", data=dumped(problem_of(exc).document()).decode(), sep="\n")
    finally:
        service.metrics.tail_closed(reason)


async def _followed(service: Service, opened: Tail, listener: Listener, shown: Shown) -> AsyncIterator[ServerSentEvent]:
    """Messages until the server stops."""
    limits = service.settings.serve
    while not service.stopping.is_set():
        await service.tail_pace.turn()
        listener.woken.clear()  # before the read: what comes during it wakes again
        before = opened.position
        items = await _read(service, opened, limits.tail_events_max)
        for item in items:
            service.metrics.tailed(1)
            name, data = shown(item)
            yield ServerSentEvent(event=name, id=item.position, data=data, sep="\n")
        passed_over = not items and opened.position != before  # what nobody asked for: there may be more
        if not items and not passed_over and not await _woken(service, listener, limits.heartbeat_s):
            yield ServerSentEvent(id=opened.position, comment="nothing new", sep="\n")


async def _read(service: Service, opened: Tail, limit: int) -> Sequence[Any]:
    """What there is now. While a tier cannot be read, nothing; whoever waits longer than that hears of it."""
    try:
        return await _threaded(service, lambda: opened.read(limit, timeout_s=0))
    except TierUnavailable:
        await asyncio.sleep(1)
        return await _threaded(service, lambda: opened.read(limit, timeout_s=0))


async def _woken(service: Service, listener: Listener, timeout_s: float) -> bool:
    """Whether there may be something to read; True too when the server stops."""
    waits = [asyncio.ensure_future(listener.wait(timeout_s)), asyncio.ensure_future(service.stopping.wait())]
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        return waits[1] in done or waits[0].result()
    finally:
        for wait in waits:
            wait.cancel()


async def _threaded(service: Service, act: Callable[[], Value]) -> Value:
    return await anyio.to_thread.run_sync(act, limiter=service.tailing)


def _message(item: Any) -> tuple[str, str]:
    if isinstance(item, Gap):
        told = {name: value for name, value in item._asdict().items() if name != "position"}
        return "gap", dumped(told).decode()
    [text] = event_objects([item.event])
    return "event", text.decode()


def _types(request: Request) -> list[str] | None:
    found = [name.strip() for text in request.query_params.getlist("event_types") for name in text.split(",") if name.strip()]
    if len(found) > TYPES_MAX:
        raise Problem(400, "bad-request", f"event_types names {len(found)}, at most {TYPES_MAX}: use * for any text in a name")
    return found or None


def _start(request: Request, conversation: str | None) -> str | int | dt.datetime:
    """Last-Event-ID, else `start`: now, begin, a seq of the conversation, a time, or a position."""
    text = request.headers.get("last-event-id") or request.query_params.get("start") or "now"
    if len(text) > START_BYTES_MAX:
        raise Problem(400, "bad-request", f"start is longer than {START_BYTES_MAX:,} bytes: it is no position of a tail")
    if text.isascii() and text.isdigit() and len(text) <= 18 and conversation is not None:
        return int(text)
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        return text
    if at.tzinfo is None:
        raise QueryRefused(f"start {text[:40]!r} has no time zone: write it as 2026-11-20T09:41:00Z")
    return at
