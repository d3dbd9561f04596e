"""What every request passes before anything of it is parsed: size of headers, name of the host, origin, who calls, how often;
and what every answer gets: headers that keep browsers careful, an end when nobody reads it, a line of metrics and of audit."""

from __future__ import annotations

import asyncio
import logging
import time
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from .access import Caller, is_local, require
from .bodies import too_large
from .page import PAGES
from .page_login import refused
from .problems import Problem, internal
from .protocol import ABORT
from .service import Service

log = logging.getLogger("thermocline.serve")
OPEN: Final = "open"
"""Instead of a scope: nobody is asked who he is."""
METRICS: Final = "metrics"
"""Instead of a scope: open to this machine when only it can reach the server; else `query`."""
LENGTH_DIGITS_MAX: Final = 15
ANSWER_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""Each unless the answer has its own."""


class Front:
    """The outermost layer."""

    def __init__(self, app: Starlette, service: Service, scopes: Any) -> None:
        """scopes  (method, path) → (route, scope), as routing.Scopes"""
        self._app = app
        self._service = service
        self._scopes = scopes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin_s = time.perf_counter()
        answer = _Answer(send, self._service)
        route, needed = self._scopes(scope["method"], scope["path"])
        scope["caller"] = Caller("open", frozenset(), _address(scope))
        self._service.metrics.open_requests.inc()
        try:
            await self._admit(scope, needed)
            await self._app(scope, receive, answer)
        except Problem as problem:
            self._service.metrics.refused(problem.kind)
            await self._refusal(scope, route, problem)(scope, receive, answer)
        except SlowReader:
            self._service.metrics.slow_reader()
            log.info("%s %s: closed, because nothing was read (serve.write_timeout_s)", scope["method"], route)
            await _abort(scope)
        except Exception:
            log.exception("%s %s failed: please report this", scope["method"], route or "?")
            if answer.status:
                await _abort(scope)
            else:
                await internal().response()(scope, receive, answer)
        finally:
            self._service.metrics.open_requests.dec()
            self._service.metrics.answered(
                scope["method"] if route else "other", route or "none", answer.status, time.perf_counter() - begin_s
            )
            self._record(scope, route, needed, answer.status)

    def _refusal(self, scope: Scope, route: str, problem: Problem) -> Response:
        """The answer to who may not go on; to people at the page, a page."""
        if route not in PAGES or problem.status in (421, 431):
            return problem.response()
        scope["app"] = self._app
        return refused(Request(scope), problem)

    async def _admit(self, scope: Scope, needed: str) -> None:
        """Nothing; Problem when the request may not go on."""
        service = self._service
        limits = service.settings.serve
        size = (
            sum(len(name) + len(value) + 4 for name, value in scope["headers"])
            + len(scope["raw_path"])
            + len(scope["query_string"])
        )
        if size > limits.headers_bytes_max:
            detail = f"headers and address have {size:,} bytes, at most {limits.headers_bytes_max:,} (serve.headers_bytes_max)"
            raise Problem(431, "headers-too-large", f"{detail}: send fewer or shorter ones")
        headers = Headers(scope=scope)
        access = service.access
        access.check_host(headers.get("host", ""))
        access.check_origin(scope["method"], headers)
        length = headers.get("content-length", "0")
        if length.isdigit() and (len(length) > LENGTH_DIGITS_MAX or int(length) > limits.body_bytes_max):
            raise too_large(limits.body_bytes_max)
        address = _address(scope)
        local = limits.loopback and is_local(address)
        if needed != OPEN and not (needed == METRICS and local):
            scope["caller"] = await access.caller(headers, _cookies(headers), address)
        caller: Caller = scope["caller"]
        who = caller.name if caller.name not in ("open", "local") else address
        wait_s = service.rates.wait_s(who, time.monotonic())
        if wait_s:
            detail = (
                f"more than {limits.requests_per_s:g} requests a second (serve.requests_per_s): wait, or send more events in each"
            )
            raise Problem(429, "too-many-requests", detail, retry_after_s=wait_s)
        if needed not in (OPEN, METRICS):
            require(caller, needed)
        elif needed == METRICS and not local:
            require(caller, "query")

    def _record(self, scope: Scope, route: str, needed: str, status: int) -> None:
        """A line of the audit log: for what was read, what only an administrator may do, and who may not do what he asks."""
        more = scope.get("audit")
        caller: Caller = scope["caller"]
        denied = status == 403 and caller.name != "open"
        if more is None and needed != "admin" and not denied:
            return
        self._service.audit.write(
            caller=caller.name,
            address=caller.address,
            method=scope["method"],
            route=route,
            path=scope["path"],
            status=status,
            **(more or {}),
        )


class SlowReader(Exception):
    """Nothing of the answer was read for serve.write_timeout_s."""


class _Answer:
    """`send` with the headers every answer gets, and with an end."""

    def __init__(self, send: Send, service: Service) -> None:
        self._send = send
        self._timeout_s = service.settings.serve.write_timeout_s
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            there = {name.lower() for name, _ in message.get("headers", [])}
            more = [pair for pair in ANSWER_HEADERS if pair[0] not in there]
            message = {**message, "headers": [*message.get("headers", []), *more]}
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(message)
        except TimeoutError as exc:
            raise SlowReader from exc


async def _abort(scope: Scope) -> None:
    """End the connection at once: what it has not read is dropped with it."""
    scope["state"][ABORT]()
    await asyncio.sleep(0)  # the server learns of it, and does not look for the rest of the answer


def _address(scope: Scope) -> str:
    return scope["client"][0] if scope.get("client") else ""


def _cookies(headers: Headers) -> dict[str, str]:
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(headers.get("cookie", "")).items()}
    except CookieError:
        return {}
