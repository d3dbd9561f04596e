"""What went wrong, as problem documents (RFC 9457): kind, status, and a detail that names the limit and the fix."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from thermocline.errors import (
    Backpressure,
    ConfigError,
    IncompleteAnswer,
    InvalidEvent,
    LeaseHeld,
    OutcomeUnknown,
    QueryRefused,
    SequenceConflict,
    StoreReplaced,
    ThermoclineError,
    TierCorrupt,
    TierUnavailable,
)

log = logging.getLogger("thermocline.serve")
MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 1.0
"""When nothing better is known."""

KINDS: Final[dict[str, str]] = {
    "bad-request": "The request cannot be understood",
    "not-found": "There is no such thing",
    "method-not-allowed": "This address does not take that method",
    "not-acceptable": "No form of the answer that the client accepts",
    "unsupported-media-type": "The body is in a form that is not taken",
    "too-large": "The body is too large",
    "headers-too-large": "The headers are too large",
    "too-slow": "The request did not arrive in time",
    "too-many-requests": "Too many requests",
    "too-busy": "The server has no room for the request now",
    "unknown-host": "The server is not called by that name",
    "cross-site": "A page of another site may not do this",
    "not-authenticated": "A token is missing or not good",
    "not-allowed": "The token does not allow this",
    "invalid-events": "No event of the request can be stored",
    "invalid-event": "What is given breaks a rule of events",
    "backpressure": "The store sheds load",
    "outcome-unknown": "The events may be stored",
    "sequence-conflict": "The conversation has moved on",
    "query-refused": "It cannot be answered as asked",
    "query-cancelled": "The query was cancelled",
    "query-id-in-use": "A query with that id is running",
    "store-replaced": "The position is of a store that is gone",
    "incomplete-answer": "The answer would rest on a sample",
    "unavailable": "A part of the store cannot be used now",
    "corrupt": "Stored data is not what was written",
    "misconfigured": "The server's settings are in the way",
    "internal": "The server failed",
}
"""Kind → title. The kind is the end of `type`."""


class Problem(Exception):
    """A request ends with this answer."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        """more  members of the document beside RFC 9457's"""
        self.status = status
        self.kind = kind
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})
        self.more = more
        super().__init__(detail)

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "type": f"urn:thermocline:problem:{self.kind}",
            "title": KINDS[self.kind],
            "status": self.status,
            "detail": self.detail,
        }
        if self.retry_after_s is not None:
            found["retry_after_s"] = self.retry_after_s
        return found | self.more

    def response(self) -> Response:
        headers = dict(self.headers)
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        headers.setdefault("Cache-Control", "no-store")
        return Response(orjson.dumps(self.document()), self.status, headers, MEDIA_TYPE)


def problem_of(error: ThermoclineError) -> Problem:
    """The library's error as an answer."""
    text = str(error)
    if isinstance(error, InvalidEvent):
        return Problem(422, "invalid-event", text, field=error.field)
    if isinstance(error, Backpressure):
        return Problem(503, "backpressure", text, retry_after_s=error.retry_after_s)
    if isinstance(error, OutcomeUnknown):
        return Problem(503, "outcome-unknown", f"{text.partition(';')[0]}; {RESEND}", retry_after_s=RETRY_AFTER_S)
    if isinstance(error, SequenceConflict):
        return Problem(409, "sequence-conflict", text, expected_seq=error.expected_seq, last_seq=error.last_seq)
    if isinstance(error, QueryRefused):
        return Problem(400, "query-refused", text)
    if isinstance(error, StoreReplaced):
        return Problem(410, "store-replaced", text)
    if isinstance(error, IncompleteAnswer):
        return Problem(409, "incomplete-answer", text)
    if isinstance(error, TierUnavailable):
        return Problem(503, "unavailable", text, retry_after_s=RETRY_AFTER_S)
    if isinstance(error, LeaseHeld):
        return Problem(409, "unavailable", text)
    if isinstance(error, TierCorrupt):
        return Problem(500, "corrupt", text)
    if isinstance(error, ConfigError):
        return Problem(500, "misconfigured", text)
    return Problem(500, "internal", text)


RESEND: Final = (
    "send the same request again with the same event ids or Idempotency-Key within 10 minutes: nothing is stored twice"
)

_HTTP: Final = {
    400: "bad-request",
    404: "not-found",
    405: "method-not-allowed",
    406: "not-acceptable",
    413: "too-large",
    415: "unsupported-media-type",
}


async def on_problem(request: Request, exc: Exception) -> Response:
    """Starlette's handler for Problem, our errors, and Starlette's own."""
    if isinstance(exc, Problem):
        return exc.response()
    if isinstance(exc, ThermoclineError):
        return told(request, exc).response()
    if isinstance(exc, HTTPException):
        return unrouted(request, exc).response()
    raise exc


def unrouted(request: Request, exc: HTTPException) -> Problem:
    """Starlette's own error as an answer: an address or a method that there is not."""
    headers = dict(exc.headers or {})
    detail = {
        404: "there is no such address: /openapi.json lists what there is",
        405: f"{request.method} is not one of its methods: {headers.get('Allow', '')}",
    }
    kind = _HTTP.get(exc.status_code, "bad-request" if exc.status_code < 500 else "internal")
    return Problem(exc.status_code, kind, detail.get(exc.status_code, str(exc.detail)), headers=headers)


def told(request: Request, error: ThermoclineError) -> Problem:
    """The library's error as this request's answer, without secrets; in the log when it is not the client's."""
    found = problem_of(error)
    found.detail = request.app.state.service.mask.text(found.detail)
    if found.status >= 500:
        log.warning("%s %s: %s", request.method, request.url.path, error)
    return found


def internal() -> Problem:
    """What a fault of ours looks like from outside: the log has the rest."""
    return Problem(500, "internal", f"{HTTPStatus(500).phrase}: the server's log says more; please report it")
