"""Whether an Avro file is whole, told by its frame: header, blocks, and the marker after each. Pure.

pyiceberg 0.12's decoder does not look where its input ends: of a manifest that was cut short it reads on in memory that is not
the file's. (https://avro.apache.org/docs/1.12.0/specification/#object-container-files)
"""

from __future__ import annotations

from typing import Final

MAGIC: Final = b"Obj\x01"
MARKER_BYTES: Final = 16


def is_whole(content: bytes) -> bool:
    """True when the file ends where a block ends, or right after its header. Says nothing of what is in the blocks."""
    try:
        place = _end_of_header(content)
        marker = content[place - MARKER_BYTES : place]
        while place < len(content):
            _, place = _number(content, place)
            size, place = _number(content, place)
            place = _skipped(content, place, size + MARKER_BYTES)
            if content[place - MARKER_BYTES : place] != marker:
                return False
    except IndexError:
        return False
    return True


def _end_of_header(content: bytes) -> int:
    """After magic, a map of text to bytes, and the marker. IndexError when it is not there."""
    if not content.startswith(MAGIC):
        raise IndexError
    place = len(MAGIC)
    while True:
        count, place = _number(content, place)
        if count == 0:
            return _skipped(content, place, MARKER_BYTES)
        if count < 0:  # then the map's block states its size, too
            _, place = _number(content, place)
        for _ in range(2 * abs(count)):
            size, place = _number(content, place)
            place = _skipped(content, place, size)


def _number(content: bytes, place: int) -> tuple[int, int]:
    """A zigzag variable-length integer and where it ends. IndexError when the file ends before."""
    raw = shift = 0
    while True:
        byte = content[place]
        place += 1
        raw |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (raw >> 1) ^ -(raw & 1), place


def _skipped(content: bytes, place: int, size: int) -> int:
    if size < 0 or place + size > len(content):
        raise IndexError
    return place + size


__all__ = ["is_whole"]
