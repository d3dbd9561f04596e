"""Who calls, and what they may do: bearer tokens of ours, signed tokens of an issuer, or, on loopback without either, anybody."""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from thermocline.config import Settings
from thermocline.errors import ConfigError
from thermocline.serve_settings import is_loopback

from .jwt_tokens import Issuer
from .limits import Rates
from .problems import RETRY_AFTER_S, Problem
from .tokens import SCOPES, Tokens

log = logging.getLogger("thermocline.serve")
COOKIE: Final = "thermocline_token"
"""Where a browser keeps a token: HttpOnly, SameSite=Strict, set by the page."""
CREDENTIAL_BYTES_MAX: Final = 8192
SAFE: Final = ("GET", "HEAD", "OPTIONS")


class Caller(NamedTuple):
    """Who makes a request."""

    name: str
    """For the audit log and the rates: `token:<id>`, `jwt:<subject>`, `local`, or `open`: nobody was asked."""
    scopes: frozenset[str]
    address: str


class Access:
    """Decides about every request. ConfigError when the server would be open to others."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        serve = settings.serve
        self.tokens = Tokens(settings.data_dir)
        self.issuer = Issuer(serve) if serve.jwt_issuer is not None else None
        self._denied = Rates(serve.denied_per_min / 60, serve.denied_per_min)
        self._hosts = {name.lower().rstrip(".") for name in serve.hosts} | {"localhost"}
        if not serve.loopback and not self.required:
            raise ConfigError(
                f"serve.host is {serve.host!r}, which others can reach, and there are no tokens: "
                "`thermocline tokens create NAME --scope append` makes one, serve.jwt_issuer takes those of an issuer, "
                'and serve.host = "127.0.0.1" keeps the server to this machine'
            )

    @property
    def required(self) -> bool:
        """Whether a credential is asked for."""
        return self.tokens.required or self.issuer is not None

    def check_host(self, host: str) -> None:
        """Problem 421 unless the server may be called that: a page of another name that leads here could read our answers."""
        name = _host_name(host)
        if name is None or not (name in self._hosts or name == self._settings.serve.host.lower() or _is_address(name)):
            detail = f"Host {host[:100]!r} is no name of this server: call it by its address, or add the name to serve.hosts"
            raise Problem(421, "unknown-host", detail)

    def check_origin(self, method: str, headers: Mapping[str, str]) -> None:
        """Problem 403 when a page of another site makes a browser do something here."""
        if method in SAFE:
            return
        origin = headers.get("origin")
        if origin is not None and _site(origin) != headers.get("host", "").lower():
            raise Problem(403, "cross-site", f"a page of {origin[:100]!r} may not do this: only pages of this server may")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Problem(403, "cross-site", "a page of another site may not do this: only pages of this server may")

    async def caller(self, headers: Mapping[str, str], cookies: Mapping[str, str], address: str) -> Caller:
        """Who it is. Problem 401 when that is not shown, 403 when it is not for this namespace, 429 after too many tries."""
        try:
            self.tokens.reload()
        except ConfigError as exc:
            log.error("%s", exc)
            detail = "the tokens cannot be read, so none is good: the server's log says why"
            raise Problem(503, "misconfigured", detail, retry_after_s=RETRY_AFTER_S) from exc
        if not self.required:
            return Caller("local", frozenset(SCOPES), address)
        wait_s = self._denied.wait_s(address, time.monotonic(), take=False)
        if wait_s:
            detail = f"too many refused credentials from {address} (serve.denied_per_min): wait"
            raise Problem(429, "too-many-requests", detail, retry_after_s=wait_s)
        try:
            return await self._known(_credential(headers, cookies), address)
        except Problem as problem:
            if problem.status == 401:
                self._denied.wait_s(address, time.monotonic())
            raise

    async def _known(self, given: bytes, address: str) -> Caller:
        if not given:
            detail = "send `Authorization: Bearer TOKEN`; `thermocline tokens create NAME --scope query` makes a token"
            raise Problem(401, "not-authenticated", detail, headers=challenge())
        token = self.tokens.find(given, time.time())
        if token is not None:
            self._check_namespace(token.namespaces)
            return Caller(f"token:{token.id}", frozenset(token.scopes), address)
        if self.issuer is not None and given.count(b".") == 2:
            found = await self.issuer.verified(given)
            if found.namespaces is not None:
                self._check_namespace(found.namespaces, listed=True)
            return Caller(f"jwt:{found.subject}", found.scopes, address)
        detail = "the token is unknown, expired or revoked: `thermocline tokens list` shows which are good"
        raise Problem(
            401,
            "not-authenticated",
            detail,
            headers=challenge("invalid_token"),
        )

    def _check_namespace(self, namespaces: tuple[str, ...], *, listed: bool = False) -> None:
        if (namespaces or listed) and self._settings.namespace not in namespaces:
            detail = f"the token is not for the namespace {self._settings.namespace!r} that is served here: make one that is"
            raise Problem(403, "not-allowed", detail)


def require(caller: Caller, scope: str) -> None:
    """Problem 403 unless the caller has the scope; admin has all."""
    if scope not in caller.scopes and "admin" not in caller.scopes:
        detail = (
            f"this needs the scope {scope!r}, and the token has {', '.join(sorted(caller.scopes)) or 'none'}: make one with it"
        )
        raise Problem(
            403,
            "not-allowed",
            detail,
            headers=challenge("insufficient_scope", scope),
        )


def challenge(error: str = "", scope: str = "") -> dict[str, str]:
    """The header that says what credential is asked for, and what was wrong with the one given (RFC 6750)."""
    parts = ['Bearer realm="thermocline"', f'error="{error}"' if error else "", f'scope="{scope}"' if scope else ""]
    return {"WWW-Authenticate": ", ".join(filter(None, parts))}


def _credential(headers: Mapping[str, str], cookies: Mapping[str, str]) -> bytes:
    """The token a request carries; nothing when it has none."""
    kind, _, given = headers.get("authorization", "").partition(" ")
    text = given.strip() if kind.lower() == "bearer" else "" if kind else cookies.get(COOKIE, "")
    return text.encode("utf-8", "surrogatepass")[:CREDENTIAL_BYTES_MAX]


def _host_name(host: str) -> str | None:
    """The name of a Host header, without its port; None when it has none."""
    try:
        parts = urlsplit(f"//{host}")
        if parts.username is not None or parts.path or parts.query or parts.fragment or (parts.port or 0) < 0:
            return None
        return (parts.hostname or "").rstrip(".") or None
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    """Whether it is an address: no other name can be made to lead here by it."""
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _site(origin: str) -> str:
    """host:port of an Origin header."""
    return urlsplit(origin).netloc.lower() if "://" in origin else origin


def is_local(address: str) -> bool:
    """Whether a peer's address is this machine."""
    return is_loopback(address)
