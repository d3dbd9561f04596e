"""/healthz, /readyz, /metrics and /v1/status: whether it lives, whether it can serve, how it is doing."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from thermocline.errors import ThermoclineError

from .access import is_local
from .metrics import MEDIA_TYPE
from .problems import RETRY_AFTER_S, Problem
from .rows import JSON, dumped
from .service import Service

NO_STORE: Final = {"Cache-Control": "no-store"}


async def healthz(request: Request) -> Response:
    """200 while the process answers; nothing else is looked at."""
    return Response(b'{"status":"ok"}\n', headers=NO_STORE, media_type=JSON)


async def readyz(request: Request) -> Response:
    """200 when appends and queries can be served; 503 says why not, to this machine in full."""
    service: Service = request.app.state.service
    address = request.client.host if request.client else ""
    if service.stopping.is_set():
        raise _not_ready("the server is about to end", tell=True)
    try:
        status = await service.read(service.status)
    except ThermoclineError as exc:
        raise _not_ready(str(exc), tell=is_local(address)) from exc
    if status.health == "red":
        raise _not_ready("; ".join(status.reasons), tell=is_local(address))
    return Response(dumped({"status": "ready", "health": status.health}) + b"\n", headers=NO_STORE, media_type=JSON)


async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    service: Service = request.app.state.service
    text = await service.read(service.metrics.text)
    return Response(text, headers={**NO_STORE, "Content-Type": MEDIA_TYPE})


async def status(request: Request) -> Response:
    """What each tier holds, what waits, the health and why."""
    service: Service = request.app.state.service
    found = await service.read(service.status)
    return Response(dumped(found.as_dict()) + b"\n", headers=NO_STORE, media_type=JSON)


def _not_ready(reason: str, *, tell: bool) -> Problem:
    detail = (
        reason if tell else "not ready: `thermocline status` on the server's machine, or GET /v1/status with a token, says why"
    )
    return Problem(503, "unavailable", detail, retry_after_s=RETRY_AFTER_S)
