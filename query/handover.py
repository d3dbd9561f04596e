"""What a process beside this one needs to answer a query: files to attach, the unsettled events, and the relations over them.

The other process gets no way to a tier: it reads segments and cold files from disk, and the hot tail from a stream. Cold files
on S3 are copied first, whole, where rollup files are copied anyway, and found there by the next query: files never change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import pyarrow as pa

from thermocline.errors import QueryRefused
from thermocline.tiers.ledger import ColdFile
from thermocline.tiers.opening import Tiers

from .attached import SegmentGone, alias
from .bounds import HOUR_US, Bounds, Texts
from .coverage import SAMPLE, Coverage
from .handed import TAIL, Handover
from .relations import COLUMNS_SQL, relation_sql, tail_sql
from .run import Plan, Runner

if TYPE_CHECKING:
    from .prune import Reading

T = TypeVar("T")
TAIL_ROWS_AT_ONCE: Final = 2048

Use = Callable[[Handover, pa.RecordBatchReader, Coverage], T]


class Lender:
    """Plans of one store, for other processes. Thread-safe."""

    def __init__(self, tiers: Tiers, runner: Runner) -> None:
        self._tiers = tiers
        self._runner = runner
        self._definitions = {one.relation: one for one in tiers.rollups}

    def lend(self, reading: Reading, use: Use[T], *, copied_bytes_max: int) -> T:
        """What `use` makes of a handover for a query that reads so, of its tail and its coverage.

        use               called again with a fresh one when it raises SegmentGone. What it is given is valid until it returns
        copied_bytes_max  archived events that one query may have copied from S3

        QueryRefused when it needs more than that; else errors are those of `Store.sql`, and what `use` raises.
        """
        return self._runner.planned(reading, lambda plan: self._lent(plan, reading.bounds, use, copied_bytes_max))

    def _lent(self, plan: Plan, bounds: Mapping[str, Bounds], use: Use[T], copied_bytes_max: int) -> T:
        files = {file.file_id: file for source in plan.sources.values() for file in source.files}
        if files:
            self._copy(list(files.values()), copied_bytes_max)
        places = {file_id: self._tiers.copies.place(file.key) for file_id, file in files.items()}
        found = Handover(
            segments={
                alias(segment.segment_id): self._tiers.warm.path(segment.segment_id)
                for source in plan.sources.values()
                for segment in source.segments
            },
            files=tuple(places.values()),
            relations={
                name: relation_sql(
                    name, source, tail=TAIL, place=lambda file: places[file.file_id], definitions=self._definitions
                )
                for name, source in plan.sources.items()
            },
            sampled=tuple(name for name, label in plan.coverage.relations.items() if label == SAMPLE),
        )
        where, values = tail_filter(bounds)
        con = self._runner.cursor()
        try:
            rows = con.sql(f"SELECT {COLUMNS_SQL} FROM ({tail_sql(plan.cut.tail.chunks)}) WHERE {where}", params=values)
            return use(found, rows.to_arrow_reader(TAIL_ROWS_AT_ONCE), plan.coverage)
        finally:
            con.close()

    def _copy(self, files: Sequence[ColdFile], bytes_max: int) -> None:
        """Have every file on disk. SegmentGone when one has left the archive meanwhile."""
        if self._tiers.cold.is_local:
            return
        needed = sum(file.file_bytes for file in files)
        if needed > bytes_max:
            raise QueryRefused(
                f"the query reads {needed:,} bytes of archived events, more than sandbox.copied_bytes_max ({bytes_max:,}) "
                "lets it copy from S3: bound it by timestamp or conversation_id"
            )
        try:
            self._tiers.copies.ensure(file.key for file in files)
        except Exception as exc:
            listed = {file.file_id for file in self._tiers.ledger.view().files}
            if all(file.file_id in listed for file in files):
                raise
            raise SegmentGone("an archived file") from exc


def tail_filter(bounds: Mapping[str, Bounds]) -> tuple[str, list[Any]]:
    """(condition, parameters) of the unsettled events that a query with these bounds can use; FALSE if it uses none."""
    either: Bounds | None = None
    for found in bounds.values():
        bound = found
        if found.time_max_us is not None:  # of a relation by hours it bounds the hour's start; to read more is never wrong
            bound = msgspec.structs.replace(found, time_max_us=found.time_max_us + HOUR_US)
        either = bound if either is None else either | bound
    if either is None or either.empty:
        return "FALSE", []
    terms: list[str] = []
    values: list[Any] = []
    for sign, value in ((">=", either.time_min_us), ("<=", either.time_max_us)):
        if value is not None:
            terms.append(f"epoch_us(timestamp) {sign} ?")
            values.append(value)
    for column, texts in (("conversation_id", either.conversations), ("event_type", either.event_types)):
        for term, one in _within(column, texts):
            terms.append(term)
            values.append(one)
    return " AND ".join(terms) or "TRUE", values


def _within(column: str, texts: Texts) -> list[tuple[str, Any]]:
    if texts.values is not None:
        return [(f"{column} IN (SELECT unnest(?::VARCHAR[]))", sorted(texts.values))]
    return [(f"{column} {sign} ?", end) for sign, end in ((">=", texts.low), ("<=", texts.high)) if end is not None]
