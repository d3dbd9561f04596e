"""What a merge writes, and in which steps: by UTC day, by conversation range where a day is too much for one segment, and
within an output in slices small enough to sort in memory. Segments are sorted by conversation, so a slice reads little else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from thermocline.config import WarmSettings

from .dense_rows import MERGE_SHARE, alone_bytes, dense_bytes, dense_bytes_max
from .duck import Connection, fresh_name, quoted
from .segment_file import MERGED_GROUP_ROWS, VECTOR_ROWS

_DAY_US = 86_400_000_000
THREADS_MAX = 2
"""Outputs of a merge that are written side by side, or steps of its only one, if warm.threads allows it."""
_MEMORY_PER_BYTE = 6
"""Memory DuckDB needs to read, sort and write a byte of large rows (measured: 256 MiB is too little for 57 MiB of events
of 1 MB each, 384 MiB is enough)."""
_SIZE = "strlen(content) + coalesce(strlen(metadata::VARCHAR), 0)"
_DAY = f"epoch_us(timestamp) // {_DAY_US}"
COUNTS = f"{_DAY} AS day, conversation_id, count(*) AS rows, sum({_SIZE})::BIGINT AS bytes, max({_SIZE}) AS largest"
"""The columns of what `shares` counts by, of rows of events GROUP BY day, conversation_id."""


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """The rows one output of a merge is made of."""

    day: str | None
    rows: int
    steps: tuple[str, ...]
    """Conditions on the rows of all inputs, to be written one after the other: each is sorted for itself, and what one
    gives is before what the next gives. Over all shares of a merge they are disjoint and cover every row."""
    group_rows: int
    """Rows of a row group of the output: a step is whole ones."""
    counts: str | None
    """A relation: what of the table of counts counts these rows; None for a part of a conversation."""


def shares(con: Connection, rows: str, settings: WarmSettings) -> list[Share]:
    """`counted_shares` of rows that are counted here."""
    counts = fresh_name("counts")
    con.execute(f"CREATE TEMP TABLE {counts} AS SELECT {COUNTS} FROM {rows} GROUP BY ALL")
    found = counted_shares(con, rows, counts, settings)
    con.execute(f"DROP TABLE {counts}")
    return found


def counted_shares(con: Connection, rows: str, counts: str, settings: WarmSettings) -> list[Share]:
    """The outputs of a merge of `rows`, a relation with the columns of events: days in order, the mixed ones last.

    A day with day_rows_min rows in this merge is its own; all others stay together. What passes segment_rows_max or
    segment_bytes_max (of content and metadata) becomes equal parts of whole conversations; one conversation beyond the
    limit stays whole. So it is with dense rows beyond what a segment may have, but a conversation of them becomes several. A step
    is about settle_batch_events or settle_batch_bytes at most, and fits memory_bytes_max.

    counts  a table of COUNTS of the rows
    """
    days = con.execute(f"SELECT day, sum(rows) FROM {counts} GROUP BY day ORDER BY day").fetchall()
    large = [day for day, count in days if count >= settings.day_rows_min]
    found = [
        part
        for day in large
        for part in _parts(
            con,
            rows,
            f"(SELECT * FROM {counts} WHERE day = {day})",
            day_text(day),
            f"timestamp >= make_timestamptz({day * _DAY_US}) AND timestamp < make_timestamptz({(day + 1) * _DAY_US})",
            settings,
        )
    ]
    if len(large) < len(days):
        others = f"day NOT IN ({', '.join(map(str, large))})" if large else "true"
        found += _parts(con, rows, f"(SELECT * FROM {counts} WHERE {others})", None, others.replace("day", f"({_DAY})"), settings)
    return found


def day_text(day: int) -> str:
    """The date of a number of days since 1970."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).strftime("%Y-%m-%d")


def _parts(con: Connection, rows: str, counts: str, day: str | None, where: str, settings: WarmSettings) -> Iterator[Share]:
    """The outputs for the rows `where`, which `counts` counts per conversation."""
    found = con.sql(
        "SELECT conversation_id, sum(rows)::BIGINT AS rows, sum(bytes)::BIGINT AS bytes, max(largest)::BIGINT AS largest"
        f" FROM {counts} GROUP BY conversation_id ORDER BY conversation_id"
    ).to_arrow_table()
    counted, sizes = found["rows"].to_numpy(), found["bytes"].to_numpy()
    dense_max = dense_bytes_max(settings)
    dense = dense_bytes(counted, sizes, found["largest"].to_numpy(), dense_max)
    fulls = (counted / settings.segment_rows_max, sizes / settings.segment_bytes_max, dense / dense_max)
    for first, last in equal_ranges(np.maximum.reduce(fulls)):
        part = found.slice(first, last - first)
        limits = [where]
        if first > 0:
            limits.append(f"conversation_id >= {quoted(part['conversation_id'][0].as_py())}")
        if last < found.num_rows:
            limits.append(f"conversation_id < {quoted(found['conversation_id'][last].as_py())}")
        total, size = int(counted[first:last].sum()), int(sizes[first:last].sum())
        step_rows, group_rows = _step_rows(total, size, settings)
        steps = tuple(_steps(con, rows, " AND ".join(limits), part, step_rows=step_rows))
        if dense[first] > dense_max:  # a single conversation
            steps_max = max(1, dense_max * total // (size * step_rows))
            yield from _pieces(day, steps, total, step_rows=step_rows, group_rows=group_rows, steps_max=steps_max)
        else:
            of_counts = f"(SELECT * FROM {counts} WHERE {' AND '.join(limits[1:]) or 'true'})"
            yield Share(day=day, rows=total, steps=steps, group_rows=group_rows, counts=of_counts)


def _pieces(
    day: str | None, steps: tuple[str, ...], rows: int, *, step_rows: int, group_rows: int, steps_max: int
) -> Iterator[Share]:
    """Outputs of `steps_max` steps each, but for the last."""
    for first in range(0, len(steps), steps_max):
        rest = rows - first * step_rows
        some = steps[first : first + steps_max]
        yield Share(day=day, rows=min(steps_max * step_rows, rest), steps=some, group_rows=group_rows, counts=None)


def _step_rows(rows: int, size: int, settings: WarmSettings) -> tuple[int, int]:
    """(rows to sort at once, rows of a row group): what is sorted at once is whole row groups, or it would wait in memory, as it
    is, until the file is closed (a merge of 1.5 M rows: 15.3 instead of 9.6 µs of CPU an event, and 600 MiB spilled)."""
    bytes_max = min(settings.settle_batch_bytes, alone_bytes(settings, MERGE_SHARE) // (THREADS_MAX * _MEMORY_PER_BYTE))
    fitting = max(1, min(settings.settle_batch_events, bytes_max * rows // max(1, size)))
    group = min(MERGED_GROUP_ROWS, max(VECTOR_ROWS, fitting // VECTOR_ROWS * VECTOR_ROWS))
    return max(fitting // group * group, min(fitting, group)), group


def _steps(con: Connection, rows: str, where: str, part: pa.Table, *, step_rows: int) -> Iterator[str]:
    """Conditions that cut the rows `where` into ranges of `step_rows` rows in the order of segments."""
    ends = np.cumsum(part["rows"].to_numpy())
    after = ""
    for rank in range(step_rows, int(ends[-1]), step_rows):
        index = int(np.searchsorted(ends, rank, side="right"))
        offset = rank - (int(ends[index - 1]) if index else 0)
        same = f"conversation_id = {quoted(part['conversation_id'][index].as_py())}"
        [(stamp, seq)] = con.execute(
            f"SELECT epoch_us(timestamp), seq FROM {rows} WHERE {where} AND {same}"
            f" ORDER BY timestamp, seq LIMIT 1 OFFSET {offset}"
        ).fetchall()
        yield where + after + _beside("<", same, stamp, seq)
        after = _beside(">", same, stamp, seq)
    yield where + after


def _beside(sign: str, same: str, stamp: int, seq: int) -> str:
    """Condition for the rows before (<) the row of that conversation, time and seq, or from it on (>)."""
    time, equal = f"make_timestamptz({stamp})", "=" if sign == ">" else ""
    beyond = same.replace("=", sign, 1)
    # The first half says nothing new, but prunes: DuckDB pushes it into the scan.
    return (
        f" AND {same.replace('=', sign + '=', 1)}"
        f" AND ({beyond} OR timestamp {sign} {time} OR (timestamp = {time} AND seq {sign}{equal} {seq}))"
    )


def equal_ranges(weights: Sequence[float] | npt.NDArray[np.float64]) -> list[tuple[int, int]]:
    """Half-open ranges of indices that cover `weights`, about equal in weight and none above 1, but for a single item
    that is heavier alone. As few as possible, or some more when the items are large."""
    ends = np.cumsum(np.asarray(weights, dtype=np.float64))
    target = ends[-1] / np.ceil(ends[-1])
    ranges, first = [], 0
    while first < len(ends):
        before = ends[first - 1] if first else 0.0
        last = min(int(np.searchsorted(ends, before + target * (1 - 1e-9))) + 1, len(ends))
        if last - first > 1 and ends[last - 1] - before > 1 + 1e-9:
            last -= 1
        ranges.append((first, last))
        first = last
    return ranges
