"""Signed tokens (JWT) of an issuer: who is meant, and what they may do. PyJWT checks; keys come from a file or a URL, bounded."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import jwt
from jwt import PyJWK, PyJWKSet

from thermocline.errors import ConfigError, TierUnavailable
from thermocline.serve_settings import ServeSettings

from .jwks import fetched
from .problems import Problem
from .tokens import SCOPES

KEY_TYPES: Final = ("RSA", "EC", "OKP")
"""Those with a public half: a shared secret among the keys would let every server forge."""
AGAIN_S: Final = 30.0
"""Between two fetches because of a key that is not known."""
SUBJECT_MAX: Final = 200


class Verified(NamedTuple):
    """What a good token says."""

    subject: str
    scopes: frozenset[str]
    namespaces: tuple[str, ...] | None
    """None: all."""


class Issuer:
    """Checks tokens of the one issuer in the settings."""

    def __init__(self, settings: ServeSettings) -> None:
        """ConfigError: the key file cannot be used."""
        self._settings = settings
        self._keys: dict[str, PyJWK] = {}
        self._single: Any = None
        self._fetched_s = self._tried_s = -1e9
        self._lock = asyncio.Lock()
        if settings.jwt_key_file is not None:
            self._read(settings.jwt_key_file)

    async def verified(self, given: bytes) -> Verified:
        """What the token says. Problem 401: it is not good. Problem 503: the issuer's keys cannot be had."""
        try:
            header = jwt.get_unverified_header(given)
        except jwt.InvalidTokenError as exc:
            raise _refused(exc) from exc
        key = await self._key(header)
        settings = self._settings
        try:
            claims = jwt.decode(
                given,
                key,
                algorithms=list(settings.jwt_algorithms),
                audience=settings.jwt_audience,
                issuer=settings.jwt_issuer,
                leeway=settings.jwt_leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError) as exc:
            raise _refused(exc) from exc
        namespaces = claims.get(settings.jwt_namespace_claim)
        return Verified(
            subject=str(claims["sub"])[:SUBJECT_MAX],
            scopes=frozenset(_words(claims.get(settings.jwt_scope_claim))) & frozenset(SCOPES),
            namespaces=None if namespaces is None else tuple(_words(namespaces)),
        )

    async def _key(self, header: dict[str, Any]) -> Any:
        if self._single is not None:
            return self._single
        kid = header.get("kid")
        if self._settings.jwt_jwks_url is not None:
            await self._refresh(kid)
        found = (
            self._keys.get(str(kid))
            if kid is not None
            else next(iter(self._keys.values()), None)
            if len(self._keys) == 1
            else None
        )
        if found is None:
            raise Problem(
                401, "not-authenticated", "the token is signed with a key that its issuer does not name: ask for a new one"
            )
        return found

    async def _refresh(self, kid: object) -> None:
        """Fetch the keys when they are old, or when this one is not among them."""
        async with self._lock:
            now_s = time.monotonic()
            stale = now_s - self._fetched_s > self._settings.jwks_cache_s
            unknown = kid is not None and str(kid) not in self._keys
            if not (stale or unknown) or now_s - self._tried_s < min(AGAIN_S, self._settings.jwks_cache_s):
                return
            self._tried_s = now_s
            assert self._settings.jwt_jwks_url is not None, "the caller has looked"
            try:
                text = await fetched(
                    self._settings.jwt_jwks_url, bytes_max=self._settings.jwks_bytes_max, timeout_s=self._settings.jwks_timeout_s
                )
                self._keys = _key_set(json.loads(text))
                self._fetched_s = now_s
            except (TierUnavailable, ValueError, jwt.PyJWTError) as exc:
                if not self._keys:
                    raise Problem(503, "unavailable", f"the issuer's keys cannot be had: {exc}", retry_after_s=AGAIN_S) from exc

    def _read(self, path: Path) -> None:
        try:
            text = path.read_text()
            if text.lstrip().startswith("{"):
                given = json.loads(text)
                self._keys = _key_set(given if "keys" in given else {"keys": [given]})
            else:
                from cryptography.hazmat.primitives.serialization import load_pem_public_key

                self._single = load_pem_public_key(text.encode())
        except (OSError, ValueError, jwt.PyJWTError) as exc:
            raise ConfigError(
                f"serve.jwt_key_file {path}: no public key can be read from it ({type(exc).__name__}: {exc})"
            ) from exc


def _key_set(given: dict[str, Any]) -> dict[str, PyJWK]:
    """Key id → key, of those that have a public half and are for signatures."""
    kept = [key for key in given.get("keys", []) if key.get("kty") in KEY_TYPES and key.get("use", "sig") == "sig"]
    found = PyJWKSet.from_dict({"keys": kept})
    return {str(key.key_id): key for key in found.keys}


def _words(given: object) -> list[str]:
    if isinstance(given, str):
        return given.split()
    return [word for word in given if isinstance(word, str)] if isinstance(given, list) else []


def _refused(exc: Exception) -> Problem:
    return Problem(
        401,
        "not-authenticated",
        f"the signed token is not good: {exc}"[:300],
        headers={"WWW-Authenticate": 'Bearer realm="thermocline", error="invalid_token"'},
    )
