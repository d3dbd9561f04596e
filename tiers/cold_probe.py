"""What a cold store can do, tried out with an object of its own that is removed again."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from thermocline.errors import ThermoclineError, TierCorrupt

from .cold import Cold, Finding

CONTENT = bytes(range(256)) * 16
LISTED_WITHIN_S = 5


def probe(cold: Cold, overwrites: Callable[[str], str | None], *, wait_s: float = 0.2) -> list[Finding]:
    """One finding per ability, in the contract's order. After one that fails the later ones may be missing.

    overwrites  tries to write other bytes to the key without looking first; what is wrong if that went through, else None
    """
    key = f"probe/{uuid.uuid4().hex}"
    findings: list[Finding] = []
    try:
        for name, attempt in (
            ("write", lambda: cold.put(key, CONTENT)),
            ("read", lambda: _read(cold, key)),
            ("ranged read", lambda: _read_range(cold, key)),
            ("list after write", lambda: _listed(cold, key, wait_s)),
            ("conditional write", lambda: overwrites(key)),
            ("delete", lambda: _delete(cold, key)),
        ):
            findings.append(_finding(name, attempt))
            if name == "write" and not findings[-1].ok:
                break
    finally:
        _remove(cold, key)
    return findings


def _finding(name: str, attempt: Callable[[], str | None]) -> Finding:
    started = time.monotonic()
    try:
        problem = attempt()
    except ThermoclineError as exc:
        problem = str(exc)
    took_ms = (time.monotonic() - started) * 1000
    return Finding(name=name, ok=problem is None, detail=problem or f"as it should be, {took_ms:.0f} ms")


def _read(cold: Cold, key: str) -> str | None:
    return None if cold.get(key) == CONTENT else "other bytes came back than were written: do not use this store"


def _read_range(cold: Cold, key: str) -> str | None:
    right = cold.get(key, offset=300, length=500) == CONTENT[300:800]
    return None if right else "a part of an object came back wrong: do not use this store"


def _listed(cold: Cold, key: str, wait_s: float) -> str | None:
    deadline = time.monotonic() + LISTED_WITHIN_S
    while not any(stored.key == key and stored.size_bytes == len(CONTENT) for stored in cold.objects(key)):
        if time.monotonic() > deadline:
            return (
                f"an object is not listed {LISTED_WITHIN_S} s after it was written: orphans will be found late, nothing is lost"
            )
        time.sleep(wait_s)
    return None


def _delete(cold: Cold, key: str) -> str | None:
    cold.delete([key])
    return None if cold.size(key) is None else "an object is still there after it was deleted: does the store keep versions?"


def _remove(cold: Cold, key: str) -> None:
    try:
        cold.delete([key])
    except (ThermoclineError, TierCorrupt):
        pass  # the findings have said why
