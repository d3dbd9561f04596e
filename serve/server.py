"""`thermocline serve`: the service opened, the worker beside it, uvicorn run until SIGTERM; then all is closed in order."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn

from thermocline.archiver.termination import ending
from thermocline.config import Settings
from thermocline.errors import ConfigError
from thermocline.masking import log_to_stderr

from .app import application
from .protocol import bounded
from .service import Service, open_service
from .working import Beside

log = logging.getLogger("thermocline.serve")
BACKLOG: Final = 512
SWITCH_S: Final = 0.001
"""How long a thread that computes may keep an append's thread from going on; Python's default is 5 ms, for each such thread."""
UNSENT_BYTES_MAX: Final = 64 << 10
"""What the system holds of an answer beyond what is on its way to a client. Its own bound is some MiB for each connection,
which many slow readers would first have filled with what they never read."""
HEADERS_HARD_MAX: Final = 512 << 10
"""Beyond it HTTP itself is refused; serve.headers_bytes_max is the bound below it."""


class Server(uvicorn.Server):
    """uvicorn's, its signals left to us."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[str], None]) -> None:
        super().__init__(config)
        self._service = service
        self._ready = ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._service.connections = lambda: len(self.server_state.connections)
        if self.started:
            self._ready(self.url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.stopping.set()
        await super().shutdown(sockets)

    @property
    def url(self) -> str:
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http{'s' if self.config.ssl else ''}://{f'[{host}]' if ':' in host else host}:{port}"


def serve(settings: Settings, *, ready: Callable[[str], None] = lambda url: None) -> None:
    """Serve until SIGTERM or SIGINT. Main thread only.

    ready  called with the address, once requests are taken

    ConfigError: without tokens it listens on loopback only; TierUnavailable, TierCorrupt: the store cannot be opened.
    """
    limits = settings.serve
    log_to_stderr(settings)
    sys.setswitchinterval(SWITCH_S)
    service, opened = open_service(settings)
    beside = Beside(settings) if limits.worker else None
    with opened:
        listening = listening_on(limits.host, limits.port)
        server = Server(config_of(service), service, ready)

        def stop() -> None:
            server.should_exit = True
            if beside is not None:
                beside.tell()

        within_s = max(limits.stop_within_s, settings.worker.stop_within_s)
        with ending(stop, within_s=within_s):
            if beside is not None:
                beside.start()
            try:
                asyncio.run(server.serve(sockets=[listening]))
            finally:
                listening.close()
                if beside is not None and not beside.stop(settings.worker.stop_within_s):
                    log.warning("the worker's step in hand takes too long: it is left, and repeated at the next start")
    sys.stdout.flush()


def config_of(service: Service) -> uvicorn.Config:
    """How uvicorn runs the application, every limit of its own set."""
    limits = service.settings.serve
    protocol = bounded(
        connections_max=limits.connections_max, headers_timeout_s=limits.headers_timeout_s, refused=service.metrics.refused
    )
    return uvicorn.Config(
        application(service),
        http=protocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=HEADERS_HARD_MAX,
        timeout_keep_alive=int(limits.keep_alive_s) or 1,
        timeout_graceful_shutdown=int(limits.stop_within_s) or 1,
        ssl_certfile=None if limits.tls_cert_file is None else str(limits.tls_cert_file),
        ssl_keyfile=None if limits.tls_key_file is None else str(limits.tls_key_file),
    )


def listening_on(host: str, port: int) -> socket.socket:
    """A socket bound there. ConfigError: it cannot be."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as exc:
        raise ConfigError(f"serve.host {host!r} is no address of this machine: {exc.strerror}") from exc
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX)  # connections inherit it
        listening.bind(address)
    except OSError as exc:
        listening.close()
        raise ConfigError(f"serve.host {host!r}, serve.port {port}: {exc.strerror}: choose another, or stop who has it") from exc
    return listening
