"""What is known of every write and read of a history. Pure data, and digests that make rows comparable.

Times are of one clock that no fault moves: ns of CLOCK_MONOTONIC, the same in every process of a machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

Outcome = Literal["ok", "failed", "unknown"]
Row = tuple[int, str]
"""seq, content."""
PRIME = (1 << 61) - 1
BASE = 0x1F2E_3D4C_5B6A_7988


class Write(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One event that one call tried to append. Contents are unique in a history."""

    client: int
    call: int
    """Of this client."""
    place: int
    """Within the call."""
    conversation: str
    content: str
    invoked_ns: int
    ended_ns: int | None
    """None when the outcome is unknown: it may take effect at any time after it was invoked, or never."""
    outcome: Outcome
    seq: int | None = None
    """What the receipt says; None when there is none, as from a Producer."""
    expected_seq: int | None = None


class Read(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one call was told of one conversation.

    history   all of its rows
    recent    the last `limit` of them
    count     only how many there are
    conflict  only its last seq: what a refused expected_seq was told
    """

    client: int
    kind: Literal["history", "recent", "count", "conflict"]
    conversation: str
    invoked_ns: int
    ended_ns: int
    rows: int = 0
    first: int = 0
    """seq of the first row; 0 without rows."""
    last: int = 0
    digest: int = 0
    limit: int = 0


class Total(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How many events there are in all conversations together, as one call was told."""

    client: int
    invoked_ns: int
    ended_ns: int
    rows: int
    distinct: int


class History(msgspec.Struct, kw_only=True):
    """Everything that the clients wrote down."""

    writes: list[Write] = []
    reads: list[Read] = []
    totals: list[Total] = []


def digest(rows: Iterable[Row]) -> int:
    """A number that rows which differ in anything, also in their order, do not share."""
    value = 0
    for row in rows:
        value = (value * BASE + _value(row)) % PRIME
    return value


class Digests:
    """The digest of every range of some rows, each in constant time."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._prefixes, self._powers = [0], [1]
        for row in rows:
            self._prefixes.append((self._prefixes[-1] * BASE + _value(row)) % PRIME)
            self._powers.append(self._powers[-1] * BASE % PRIME)

    def of(self, start: int, end: int) -> int:
        return (self._prefixes[end] - self._prefixes[start] * self._powers[end - start]) % PRIME


def _value(row: Row) -> int:
    seq, content = row
    return int.from_bytes(hashlib.blake2b(f"{seq} {content}".encode(), digest_size=7).digest(), "big") + 1
