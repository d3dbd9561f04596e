"""What a merge writes: its rows split by UTC day and, where that is still too much for one segment, by conversation range."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import numpy.typing as npt

from thermocline.config import WarmSettings

from .duck import Connection, quoted

_DAY_US = 86_400_000_000
_DAY = f"epoch_us(timestamp) // {_DAY_US}"
_BYTES = "sum(strlen(content) + coalesce(strlen(metadata::VARCHAR), 0))"


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """The rows one output of a merge is made of."""

    day: str | None
    where: str
    """Condition on the rows of all inputs; the shares of a merge are disjoint and cover them."""
    rows: int
    bytes: int
    """Of content and metadata, before compression."""


def shares(con: Connection, rows: str, settings: WarmSettings) -> list[Share]:
    """The outputs of a merge of `rows`, a relation with the columns of events: days in order, the mixed ones last.

    A day with day_rows_min rows in this merge is its own; all others stay together. What passes segment_rows_max or
    segment_bytes_max becomes equal parts of whole conversations; one conversation beyond the limit stays whole.
    """
    days = con.execute(f"SELECT {_DAY} AS day, count(*), {_BYTES} FROM {rows} GROUP BY day ORDER BY day").fetchall()
    large = [found for found in days if found[1] >= settings.day_rows_min]
    small = [found for found in days if found[1] < settings.day_rows_min]
    wholes = [
        Share(
            day=(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).strftime("%Y-%m-%d"),
            where=f"timestamp >= make_timestamptz({day * _DAY_US}) AND timestamp < make_timestamptz({(day + 1) * _DAY_US})",
            rows=count,
            bytes=int(size),
        )
        for day, count, size in large
    ]
    if small:
        others = ", ".join(str(day) for day, _, _ in large)
        wholes.append(
            Share(
                day=None,
                where=f"{_DAY} NOT IN ({others})" if others else "true",
                rows=sum(count for _, count, _ in small),
                bytes=sum(int(size) for _, _, size in small),
            )
        )
    return [part for whole in wholes for part in _parts(con, rows, whole, settings)]


def _parts(con: Connection, rows: str, whole: Share, settings: WarmSettings) -> Iterator[Share]:
    """The share itself if it fits one segment, else its parts by conversation range."""
    if whole.rows <= settings.segment_rows_max and whole.bytes <= settings.segment_bytes_max:
        yield whole
        return
    found = con.sql(
        f"SELECT conversation_id, count(*) AS rows, {_BYTES} AS bytes FROM {rows} WHERE {whole.where}"
        " GROUP BY conversation_id ORDER BY conversation_id"
    ).to_arrow_table()
    counts, sizes = (found[name].cast("int64").to_numpy() for name in ("rows", "bytes"))
    weights = np.maximum(counts / settings.segment_rows_max, sizes / settings.segment_bytes_max)
    for first, last in equal_ranges(weights):
        where = [whole.where]
        if first > 0:
            where.append(f"conversation_id >= {quoted(found['conversation_id'][first].as_py())}")
        if last < len(weights):
            where.append(f"conversation_id < {quoted(found['conversation_id'][last].as_py())}")
        yield Share(
            day=whole.day,
            where=" AND ".join(where),
            rows=int(counts[first:last].sum()),
            bytes=int(sizes[first:last].sum()),
        )


def equal_ranges(weights: Sequence[float] | npt.NDArray[np.float64]) -> list[tuple[int, int]]:
    """Half-open ranges of indices that cover `weights`, about equal in weight and none above 1, but for a single item
    that is heavier alone. As few as possible, or one or two more when the items are large."""
    ends = np.cumsum(np.asarray(weights, dtype=np.float64))
    target = ends[-1] / np.ceil(ends[-1])
    ranges, first = [], 0
    while first < len(ends):
        before = ends[first - 1] if first else 0.0
        last = int(np.searchsorted(ends, before + target * (1 - 1e-9))) + 1
        if last - first > 1 and ends[min(last, len(ends)) - 1] - before > 1 + 1e-9:
            last -= 1
        last = min(last, len(ends))
        ranges.append((first, last))
        first = last
    return ranges
