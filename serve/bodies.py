"""The body of a request, read within its limits of bytes and time, its bytes counted while they are held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from .problems import RETRY_AFTER_S, Problem
from .service import Service


@asynccontextmanager
async def body_of(request: Request, service: Service) -> AsyncIterator[bytes]:
    """The whole body, for as long as the block runs.

    Problem: 413 beyond serve.body_bytes_max, 408 when it takes longer than serve.body_timeout_s, 503 when all that are held
    together exceed serve.bodies_bytes_max, 415 when it is compressed.
    """
    limits = service.settings.serve
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        detail = f"Content-Encoding {encoding[:40]!r} is not taken: send the body as it is"
        raise Problem(415, "unsupported-media-type", detail, headers={"Accept-Encoding": "identity"})
    held = 0
    chunks: list[bytes] = []
    try:
        try:
            async with asyncio.timeout(limits.body_timeout_s):
                async for chunk in request.stream():
                    if held + len(chunk) > limits.body_bytes_max:
                        raise too_large(limits.body_bytes_max)
                    if not service.bodies.take(len(chunk)):
                        detail = (
                            f"bodies of {limits.bodies_bytes_max:,} bytes (serve.bodies_bytes_max) are held already: try again"
                        )
                        raise Problem(503, "too-busy", detail, retry_after_s=RETRY_AFTER_S)
                    held += len(chunk)
                    chunks.append(chunk)
        except TimeoutError as exc:
            detail = f"the body did not arrive within {limits.body_timeout_s:g} s (serve.body_timeout_s): send less at once"
            raise Problem(408, "too-slow", detail, headers={"Connection": "close"}) from exc
        except ClientDisconnect as exc:
            raise Problem(400, "bad-request", "the client left before the body was there") from exc
        yield b"".join(chunks)
    finally:
        service.bodies.give_back(held)


def too_large(limit: int) -> Problem:
    return Problem(413, "too-large", f"the body is longer than {limit:,} bytes (serve.body_bytes_max): send it in parts")
