"""The text behind a URL, within bounds of bytes and time; httpx is imported here only, as far as the server goes."""

from __future__ import annotations

import asyncio

import httpx

from thermocline.errors import TierUnavailable


async def fetched(url: str, *, bytes_max: int, timeout_s: float) -> bytes:
    """The body of a 200. TierUnavailable: there is none, it is too long, or it takes too long. Redirects are not followed."""
    try:
        async with (
            asyncio.timeout(timeout_s),
            httpx.AsyncClient(timeout=timeout_s, trust_env=False) as client,
            client.stream("GET", url, headers={"Accept": "application/json"}) as answer,
        ):
            if answer.status_code != 200:
                raise TierUnavailable(f"{url} answers {answer.status_code}")
            found = bytearray()
            async for chunk in answer.aiter_bytes():
                found += chunk
                if len(found) > bytes_max:
                    raise TierUnavailable(f"{url} sends more than {bytes_max:,} bytes (serve.jwks_bytes_max)")
            return bytes(found)
    except TimeoutError as exc:
        raise TierUnavailable(f"{url} takes longer than {timeout_s:g} s (serve.jwks_timeout_s)") from exc
    except httpx.HTTPError as exc:
        raise TierUnavailable(f"{url}: {type(exc).__name__}") from exc
