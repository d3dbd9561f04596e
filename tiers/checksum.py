"""Checksums over rows of events, as SQL aggregates (docs/formats.md, "Checksum"). Pure text: nothing is run here.

Both are sums: the order of rows does not matter and parts add up. Never xor: a doubled row would cancel itself.
"""

from __future__ import annotations

from typing import Final

from thermocline.event import COLUMN_NAMES

from .cold_schema import SQL_TYPES

COLUMN_LIST: Final = ", ".join(COLUMN_NAMES)

ROW_HASH: Final = f"coalesce(sum(hash({COLUMN_LIST})::HUGEINT), 0)"
"""Aggregate: the sum of the hashes of rows of events."""

HASH_KIND: Final = (
    "to_hex(hash('thermocline', 1::BIGINT, 1.5::DOUBLE, NULL::VARCHAR, make_timestamptz(1),"
    " '00000000-0000-4000-8000-000000000001'::UUID, '{}'::JSON))"
)
"""The hash of one fixed row, in hexadecimal: two versions of DuckDB that agree on it hash alike."""

SEGMENT_CHECKSUM: Final = f"concat({HASH_KIND}, ':', {ROW_HASH})"
"""Aggregate: the checksum of a segment."""


def row_hash(kind: str) -> str:
    """Expression over a row of a cold file: its hash, a UBIGINT."""
    return f"hash({', '.join(SQL_TYPES[kind])})"


def file_checksum(kind: str) -> str:
    """Aggregate: what a cold file says in its metadata of its rows."""
    return f"concat({HASH_KIND}, ':', coalesce(sum({row_hash(kind)}::HUGEINT), 0))"


def same_kind(one: str, other: str) -> bool:
    """Whether two segment checksums were made by versions of DuckDB that hash alike, so that they can be compared."""
    return one.partition(":")[0] == other.partition(":")[0]


def hash_sum(checksum: str) -> int:
    """The sum in a segment checksum."""
    return int(checksum.partition(":")[2])
