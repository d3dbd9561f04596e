"""One file per table: what is measured, against what, and the target. TABLES are in the order of the report."""

from __future__ import annotations

from bench.case import Table

from . import (
    aggregate,
    append,
    archive,
    estimates,
    growth,
    history,
    limits,
    memory,
    merge,
    producer,
    recent,
    settle,
    shards,
    statistics,
    stress,
    visible,
)

TABLES: tuple[Table, ...] = (
    append.TABLE,
    producer.TABLE,
    settle.TABLE,
    merge.TABLE,
    archive.TABLE,
    visible.TABLE,
    recent.TABLE,
    history.TABLE,
    statistics.TABLE,
    aggregate.TABLE,
    estimates.TABLE,
    memory.TABLE,
    growth.TABLE,
    stress.TABLE,
    shards.TABLE,
    limits.TABLE,
)
