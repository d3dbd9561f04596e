"""POST /v1/events: what became of every event of a request."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from thermocline.errors import (
    Backpressure,
    ConfigError,
    InvalidEvent,
    OutcomeUnknown,
    PartialAppend,
    ThermoclineError,
    TierCorrupt,
)
from thermocline.event import Event, Receipt
from thermocline.feed import check
from thermocline.ingest.encode import blocks_of
from thermocline.ingest.line import line_of
from thermocline.ingest.validate import fields_of

from .bodies import body_of
from .parsing import JSON_TYPE, TYPES, Item, items_of, with_ids
from .problems import RESEND, RETRY_AFTER_S, Problem, problem_of
from .rows import dumped
from .service import Service

KEY_BYTES_MAX: Final = 256
"""Of an Idempotency-Key."""
OUTCOMES: Final = ("stored", "refused", "not_stored", "unknown")
Outcome = dict[str, Any]


async def append_events(request: Request) -> Response:
    """200: all are stored. 207: some are. 422: none, each has a fault. 503: none, the store could not take them."""
    service: Service = request.app.state.service
    media_type = request.headers.get("content-type", JSON_TYPE).partition(";")[0].strip().lower()
    if media_type not in TYPES:
        raise Problem(
            415, "unsupported-media-type", f"Content-Type {media_type[:60]!r} is not taken: send one of {', '.join(TYPES)}"
        )
    atomic = _flag(request, "atomic")
    expected_seq = _expected(request)
    key = request.headers.get("idempotency-key", "")
    if len(key.encode()) > KEY_BYTES_MAX:
        raise Problem(400, "bad-request", f"Idempotency-Key is longer than {KEY_BYTES_MAX} bytes: use a UUID, say")
    begin_s = time.perf_counter()
    async with body_of(request, service) as body:

        def act() -> tuple[list[Outcome], ThermoclineError | None]:
            limits = service.settings.serve
            items = items_of(body, media_type, depth_max=limits.json_depth_max, items_max=limits.batch_events_max)
            if key:
                items = with_ids(items, key)
            return _Batch(service, items, line_numbers=media_type not in (JSON_TYPE,)).run(atomic, expected_seq)

        outcomes, cause = await service.append(act)
    took_s = time.perf_counter() - begin_s
    service.metrics.appended(outcomes, took_s)
    return _answer(outcomes, cause)


class _Batch:
    """The events of one request on their way to one outcome each."""

    def __init__(self, service: Service, items: Sequence[tuple[int, Item]], *, line_numbers: bool) -> None:
        self._service = service
        self._items = items
        self._outcomes: list[Outcome] = [{"index": index} for index in range(len(items))]
        if line_numbers:
            for outcome, (place, _) in zip(self._outcomes, items, strict=True):
                outcome["line"] = place

    def run(self, atomic: bool, expected_seq: int | None) -> tuple[list[Outcome], ThermoclineError | None]:
        """(outcomes in order, why what was good is not stored)."""
        if not self._items:
            raise Problem(400, "bad-request", "the body holds no event: send a JSON object, an array of them, or one a line")
        good: list[tuple[int, Event]] = []
        for index, (_, item) in enumerate(self._items):
            if isinstance(item, InvalidEvent):
                self._refuse(index, item)
            else:
                good.append((index, item))
        if atomic:
            good = self._sifted(good)
            self._require_atomic(good)
        if expected_seq is not None:
            self._append_expecting(good, expected_seq)
            return self._outcomes, None
        return self._outcomes, self._store(good)

    def _append_expecting(self, good: Sequence[tuple[int, Event]], expected_seq: int) -> None:
        if len(self._items) != 1:
            raise Problem(400, "bad-request", f"expected_seq is for one event, not {len(self._items)}: send them one by one")
        for index, event in good:
            fields = {name: getattr(event, name) for name in Event.__struct_fields__}
            self._stored(index, self._one(partial(self._service.client.append, **fields, expected_seq=expected_seq)))

    def _one(self, call: Callable[[], Receipt]) -> Receipt:
        """The receipt; a lost reply is asked for once more."""
        return self._settled(lambda: [call()])[0]

    def _require_atomic(self, good: Sequence[tuple[int, Event]]) -> None:
        """Problem unless all will be stored by one command of the store, or none."""
        if len(good) < len(self._items):
            raise Problem(
                422, "invalid-events", "atomic: nothing is stored, because of the outcomes named", outcomes=self._faults()
            )
        names = {event.conversation_id for _, event in good}
        if len(names) > 1:
            raise Problem(422, "invalid-events", f"atomic: all events must be of one conversation, these are of {len(names)}")
        settings = self._service.settings
        now_us = time.time_ns() // 1000
        lines = [line_of(fields_of(event), now_us) for _, event in good]
        limits = {"events_max": settings.ingest.block_events_max, "bytes_max": settings.ingest.block_bytes_max}
        blocks = sum(1 for _ in blocks_of(names.pop(), lines, shards=settings.hot.shards, **limits))
        if blocks > 1:
            most = f"{limits['events_max']} events (ingest.block_events_max) and {limits['bytes_max']:,} bytes (block_bytes_max)"
            detail = f"atomic: what is stored as one may have at most {most}: send less, or without atomic"
            raise Problem(422, "invalid-events", detail)

    def _store(self, good: Sequence[tuple[int, Event]]) -> ThermoclineError | None:
        """Append what is good; what only Redis' clock can refuse is set aside and the rest sent again."""
        left = list(good)
        while left:
            try:
                call = partial(self._service.client.append_many, [event for _, event in left])
                receipts: Sequence[Receipt | None] = self._settled(call)
                cause: ThermoclineError | None = None
            except PartialAppend as exc:
                receipts, cause = exc.receipts, exc.cause
            except ThermoclineError as exc:
                receipts, cause = [None] * len(left), exc
            for (index, _), receipt in zip(left, receipts, strict=True):
                if receipt is not None:
                    self._stored(index, receipt)
            left = [one for one, receipt in zip(left, receipts, strict=True) if receipt is None]
            if not isinstance(cause, InvalidEvent):
                self._leave(left, cause)
                return cause
            self._refuse(left.pop(cause.index or 0)[0], cause)
            left = self._sifted(left)
        return None

    def _sifted(self, events: Sequence[tuple[int, Event]]) -> list[tuple[int, Event]]:
        """Those without a fault that can be seen without the store."""
        kept = []
        for index, event in events:
            problem = _fault(event)
            if problem is None:
                kept.append((index, event))
            else:
                self._refuse(index, problem)
        return kept

    def _settled(self, call: Callable[[], list[Receipt]]) -> list[Receipt]:
        """The receipts; a lost reply is asked for once more before the client has to."""
        try:
            return call()
        except PartialAppend as exc:
            if not isinstance(exc.cause, OutcomeUnknown):
                raise
            try:
                rest: Sequence[Receipt | None] = exc.cause.retry()
                cause: ThermoclineError | None = None
            except PartialAppend as again:
                rest, cause = again.receipts, again.cause
            except ThermoclineError as again_whole:
                rest, cause = [None] * len(exc.rest), again_whole
            receipts = list(exc.receipts)
            for place, receipt in zip(exc.rest_indices, rest, strict=True):
                receipts[place] = receipt
            missing = [place for place, receipt in enumerate(receipts) if receipt is None]
            if not missing or cause is None:
                return [receipt for receipt in receipts if receipt is not None]
            known = dict(zip(exc.rest_indices, exc.rest, strict=True))
            raise PartialAppend(
                str(cause), receipts=receipts, rest=[known[place] for place in missing], rest_indices=missing, cause=cause
            ) from cause
        except OutcomeUnknown as exc:
            return exc.retry()

    def _stored(self, index: int, receipt: Receipt) -> None:
        self._outcomes[index] |= {
            "outcome": "stored",
            "conversation_id": receipt.conversation_id,
            "seq": receipt.seq,
            "event_id": receipt.event_id,
            "durability": receipt.durability,
            "duplicate": receipt.duplicate,
        }

    def _refuse(self, index: int, problem: InvalidEvent) -> None:
        self._outcomes[index] |= {"outcome": "refused", "field": problem.field, "problem": problem.problem}

    def _leave(self, left: Sequence[tuple[int, Event]], cause: ThermoclineError | None) -> None:
        for index, _ in left:
            if isinstance(cause, OutcomeUnknown):
                self._outcomes[index] |= {"outcome": "unknown", "problem": RESEND}
            else:
                self._outcomes[index] |= {"outcome": "not_stored", "problem": str(cause), "retry_after_s": retry_after_s(cause)}

    def _faults(self) -> list[Outcome]:
        return [outcome for outcome in self._outcomes if "outcome" in outcome]


def _fault(event: Event) -> InvalidEvent | None:
    try:
        check(event)
    except InvalidEvent as exc:
        return exc
    return None


def retry_after_s(cause: ThermoclineError | None) -> float | None:
    """When the same may succeed; None: not before somebody mends something."""
    if isinstance(cause, Backpressure):
        return cause.retry_after_s
    return None if isinstance(cause, TierCorrupt | ConfigError) else RETRY_AFTER_S


def _answer(outcomes: Sequence[Outcome], cause: ThermoclineError | None) -> Response:
    counts = {
        name: sum(outcome["outcome"] == name for outcome in outcomes) for name in ("stored", "refused", "not_stored", "unknown")
    }
    if not counts["stored"]:
        if cause is not None:
            found = problem_of(cause)
            found.more["outcomes"] = outcomes
            return found.response()
        detail = f"{counts['refused']:,} events, and each breaks a rule: the outcomes name field, limit and what to do"
        return Problem(422, "invalid-events", detail, outcomes=outcomes).response()
    body = dumped({**counts, "duplicates": sum(bool(outcome.get("duplicate")) for outcome in outcomes), "outcomes": outcomes})
    headers = {"Cache-Control": "no-store"}
    wait_s = retry_after_s(cause) if cause is not None else None
    if wait_s is not None:
        headers["Retry-After"] = str(max(1, round(wait_s)))
    return Response(body, 200 if counts["stored"] == len(outcomes) else 207, headers, JSON_TYPE)


def _flag(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "false").lower()
    if text not in ("true", "false", "1", "0", ""):
        raise Problem(400, "bad-request", f"{name} must be true or false, not {text[:40]!r}")
    return text in ("true", "1") or (text == "" and name in request.query_params)


def _expected(request: Request) -> int | None:
    text = request.query_params.get("expected_seq")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise Problem(400, "bad-request", f"expected_seq must be the conversation's last seq, 0 or more, not {text[:40]!r}")
    return int(text)
