"""Checksums over rows of events, as SQL aggregates (docs/formats.md, "Checksum"). Pure text: nothing is run here.

Both are sums: the order of rows does not matter and parts add up. Never xor: a doubled row would cancel itself.
"""

from __future__ import annotations

from typing import Final

from thermocline.event import COLUMN_NAMES

from .cold_schema import SCHEMAS, SQL_TYPES

COLUMN_LIST: Final = ", ".join(COLUMN_NAMES)

ROW_HASH: Final = f"coalesce(sum(hash({COLUMN_LIST})::HUGEINT), 0)"
"""Aggregate: a sum good within one version of DuckDB, an order of magnitude faster than the canonical one."""

HASH_KIND: Final = (
    "to_hex(hash('thermocline', 1::BIGINT, 1.5::DOUBLE, NULL::VARCHAR, make_timestamptz(1),"
    " '00000000-0000-4000-8000-000000000001'::UUID, '{}'::JSON))"
)
"""The hash of one fixed row, in hexadecimal: two versions of DuckDB that agree on it hash alike."""

SEGMENT_CHECKSUM: Final = f"concat({HASH_KIND}, ':', {ROW_HASH})"
"""Aggregate: the checksum of a segment."""


def _canonical(name: str, sql_type: str, *, nullable: bool) -> str:
    """The pieces of `concat` that are one column of a row's canonical text (docs/formats.md, "Checksum")."""
    match sql_type:
        case "UUID":
            return f"'36:', {name}"
        case "TIMESTAMPTZ":
            value = f"epoch_us({name})::VARCHAR"
        case "DOUBLE":
            value = f"printf('%.17g', {name})"
        case _:
            value = f"{name}::VARCHAR"
    if name == "sample_rate":
        return f"CASE WHEN {name} = 1 THEN '1:1' ELSE concat(strlen({value}), ':', {value}) END"
    if nullable:
        return f"coalesce(strlen({value}) || ':', '-;'), {value}"
    return f"strlen({value}), ':', {value}"


def row_sum(kind: str) -> str:
    """Expression over a row of a cold file: its share of the file's checksum, a UBIGINT. (The upper half of DuckDB's
    `md5_number` is its `md5_number_lower`, which takes twice as long.)"""
    pieces = [_canonical(name, SQL_TYPES[kind][name], nullable=SCHEMAS[kind].field(name).nullable) for name in SQL_TYPES[kind]]
    return f"(md5_number(concat({', '.join(pieces)})) >> 64)::UBIGINT"


def file_checksum(kind: str) -> str:
    """Aggregate: the checksum of a cold file, the same in every version and easily computed by others."""
    return f"coalesce(sum({row_sum(kind)}::HUGEINT), 0)::VARCHAR"


def row_hash(kind: str) -> str:
    """Expression over a row of a cold file: its hash, a UBIGINT, good within one process."""
    return f"hash({', '.join(SQL_TYPES[kind])})"


def same_kind(one: str, other: str) -> bool:
    """Whether two segment checksums were made by versions of DuckDB that hash alike, so that they can be compared."""
    return one.partition(":")[0] == other.partition(":")[0]


def hash_sum(checksum: str) -> int:
    """The sum in a segment checksum."""
    return int(checksum.partition(":")[2])
