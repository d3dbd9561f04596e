"""What a server and the process of one untrusted query say to each other: frames over two pipes.

    server → child   ASK      the query and its limits
    child → server   READING  which rows it can use, as query/prune.py has it
    server → child   HANDED   what to attach; then the unsettled events, as an Arrow stream outside of frames
    child → server   LABELS   how far each column of the answer can be trusted
    child → server   BATCH    an Arrow stream of at most one batch; the first has the schema alone
                     END      the last word of an answer
                     FAILED   the last word of anything else

The server believes nothing of what a child says but its shape: a frame has a limit, and what is in it a type.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

from thermocline.query.handed import Handover

HEADER: Final = struct.Struct(">cI")
READY: Final = b"r"
ASK: Final = b"q"
READING: Final = b"p"
HANDED: Final = b"h"
LABELS: Final = b"l"
BATCH: Final = b"b"
END: Final = b"e"
FAILED: Final = b"x"
TALK_BYTES_MAX: Final = 4 << 20
"""Of any frame but a batch."""


class Ready(msgspec.Struct, frozen=True):
    """The child's first word."""

    guards: tuple[str, ...]
    """What the kernel holds it to, beside limits: `seccomp`, `landlock`."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Of one query; the names are those of settings."""

    deadline_s: float
    rows_max: int
    answer_bytes_max: int
    row_bytes_max: int
    columns_max: int
    memory_bytes_max: int
    spill_bytes_max: int
    threads: int


class Ask(msgspec.Struct, frozen=True):
    query: str
    parameters: list[Any] | dict[str, Any] | None
    limits: Limits
    of_user: tuple[str, ...] = ()
    """Names of the user's rollups."""


class Handed(msgspec.Struct, frozen=True):
    handover: Handover
    spill: str
    """Folder of its own for what does not fit in memory; empty: none."""


class Labels(msgspec.Struct, frozen=True):
    columns: tuple[Literal["exact", "estimated", "unknown"], ...]


class End(msgspec.Struct, frozen=True):
    rows: int
    cut_by: Literal["", "rows_max", "answer_bytes_max"]
    """The setting that ended the answer before its last row."""


class Failed(msgspec.Struct, frozen=True):
    kind: Literal["refused", "gone", "broken"]
    """The query cannot be run; a file is not there any more; anything else."""
    text: str


class Hangup(Exception):
    """The other side has closed its end."""


class BadFrame(Exception):
    """What came is no frame of ours, or a larger one than it may be."""


encode = msgspec.msgpack.encode


def frame(kind: bytes, content: bytes = b"") -> bytes:
    return HEADER.pack(kind, len(content)) + content


def read_frame(read: Callable[[int], bytes], *, bytes_max: int) -> tuple[bytes, bytes]:
    """The next frame. read gives so many bytes, fewer at the end. Hangup; BadFrame."""
    head = _exactly(read, HEADER.size)
    kind, size = HEADER.unpack(head)
    if size > bytes_max:
        raise BadFrame(f"a frame of {size} bytes")
    return kind, _exactly(read, size)


def _exactly(read: Callable[[int], bytes], count: int) -> bytes:
    found = read(count) if count else b""
    if len(found) != count:
        raise Hangup
    return found
