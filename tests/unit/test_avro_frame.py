"""Whether an Avro file is whole, on files written byte by byte as the specification has them."""

from __future__ import annotations

import pytest

from thermocline.tiers.avro_frame import is_whole

MARKER = bytes(range(16))


def number(value: int) -> bytes:
    """A long as Avro writes it."""
    raw = (value << 1) ^ (value >> 63)
    found = bytearray()
    while raw > 0x7F:
        found.append(raw & 0x7F | 0x80)
        raw >>= 7
    return bytes([*found, raw])


def text(value: bytes) -> bytes:
    return number(len(value)) + value


PAIRS = [(b"avro.schema", b'"null"' + b" " * 100), (b"avro.codec", b"null")]
ENTRIES = b"".join(text(key) + text(value) for key, value in PAIRS)
SIZED = number(-len(PAIRS)) + number(len(ENTRIES)) + ENTRIES + number(0)
"""The header's map as a block that states its bytes, as some writers have it: its count is negative."""
PLAIN = number(len(PAIRS)) + ENTRIES + number(0)
APART = b"".join(number(1) + text(key) + text(value) for key, value in PAIRS) + number(0)


def file(header: bytes, *blocks: bytes) -> bytes:
    return b"Obj\x01" + header + MARKER + b"".join(number(3) + text(block) + MARKER for block in blocks)


@pytest.mark.parametrize("header", [PLAIN, SIZED, APART], ids=["plain", "sized", "apart"])
def test_a_file_is_whole_where_its_header_or_a_block_ends_and_nowhere_else(header: bytes) -> None:
    whole = file(header, b"x" * 200, b"", b"y")
    ends = [len(file(header)), len(file(header, b"x" * 200)), len(file(header, b"x" * 200, b"")), len(whole)]
    assert [size for size in range(len(whole) + 1) if is_whole(whole[:size])] == ends


def test_sizes_that_lead_out_of_the_file_or_backwards_are_not_followed() -> None:
    assert not is_whole(b"Obj\x01" + number(1) + number(-5) + MARKER)
    assert not is_whole(file(PLAIN) + number(1) + number(-17) + MARKER)
    assert not is_whole(file(PLAIN) + number(1) + number(1 << 40) + MARKER)


def test_what_is_no_avro_file_is_not_whole() -> None:
    assert not is_whole(b"")
    assert not is_whole(b"PAR1" + file(PLAIN)[4:])
