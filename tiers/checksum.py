"""Checksums over rows of events, as SQL aggregates (docs/formats.md, "Checksum"). Pure text: nothing is run here.

Both are sums: the order of rows does not matter and parts add up. Never xor: a doubled row would cancel itself.
"""

from __future__ import annotations

from typing import Final

from thermocline.event import COLUMN_NAMES, COLUMNS, Column

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


def _canonical(column: Column) -> str:
    """The pieces of `concat` that are one column of a row's canonical text (docs/formats.md, "Checksum")."""
    name = column.name
    match column.sql_type:
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
    if column.nullable:
        return f"coalesce(strlen({value}) || ':', '-;'), {value}"
    return f"strlen({value}), ':', {value}"


_TEXT: Final = f"concat({', '.join(_canonical(column) for column in COLUMNS)})"

FILE_CHECKSUM: Final = f"coalesce(sum((md5_number({_TEXT}) >> 64)::HUGEINT), 0)::VARCHAR"
"""Aggregate: the checksum of a cold file, the same in every version and easily computed by others. (The upper half of DuckDB's
`md5_number` is its `md5_number_lower`, which takes twice as long.)"""


def same_kind(one: str, other: str) -> bool:
    """Whether two segment checksums were made by versions of DuckDB that hash alike, so that they can be compared."""
    return one.partition(":")[0] == other.partition(":")[0]


def hash_sum(checksum: str) -> int:
    """The sum in a segment checksum."""
    return int(checksum.partition(":")[2])
