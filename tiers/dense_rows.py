"""Rows so large that a vector of them may not fit in memory: how much of them a segment may have.

Whoever reads a row of a table of DuckDB holds the vector of 2,048 rows it lies in. Rows are *dense* where that is more than fits.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from thermocline.config import SETTLE_BATCHES, WarmSettings

from .ledger import Segment
from .segment_file import VECTOR_ROWS

MERGE_SHARE: Final = 0.6
"""Of warm.memory_bytes_max, for a merge: not all that the DuckDB before it had goes back to the system."""
ARCHIVE_SHARE: Final = 1 / 3
"""For the archive: more is taken by row groups that are written and read back. With a half it took as long."""
_MEMORY_BYTES_MIN: Final = 256 << 20
"""When so much is allowed at all: below it no step may fit."""
_VECTORS_AT_ONCE: Final = 4
"""Two threads of the archive read one each, and hash or sort what is in it. Outputs of a merge are written two at a time, and
each reads one and writes one (measured: with 460 MiB and one output, 418 MiB in a vector are written and 456 MiB are not)."""
_Counts = npt.NDArray[np.int64]


def alone_bytes(settings: WarmSettings, share: float) -> int:
    """What a DuckDB has that runs beside what needs memory of its own: that share, and not too little."""
    return max(int(settings.memory_bytes_max * share), min(settings.memory_bytes_max, _MEMORY_BYTES_MIN))


def settle_memory_bytes(settings: WarmSettings) -> int:
    """What the DuckDB has that settles and counts. It fills what it may with what it has read, so not all there is (with all,
    a worker that merges 1 M events takes 1,185 MiB instead of 900, and no less time); but a full batch fits."""
    least = SETTLE_BATCHES * settings.settle_batch_bytes
    return min(settings.memory_bytes_max, max(least, alone_bytes(settings, MERGE_SHARE)))


def dense_bytes_max(settings: WarmSettings) -> int:
    """Bytes of dense rows in one segment at most, and of what is not dense in one vector."""
    return alone_bytes(settings, min(MERGE_SHARE, ARCHIVE_SHARE)) // _VECTORS_AT_ONCE


def vector_bytes(segment: Segment) -> float:
    """Bytes of content in a vector of a segment, on average."""
    return segment.content_bytes * min(1.0, VECTOR_ROWS / segment.rows)


def dense_bytes(rows: _Counts, sizes: _Counts, largest: _Counts, bytes_max: int) -> _Counts:
    """Of each conversation all its bytes where a vector with rows of it may have more than `bytes_max`, else 0.

    rows, sizes, largest  of the conversations, in the order of the segment: how many, their bytes, and those of the largest row
    """
    at_most = np.minimum(sizes, VECTOR_ROWS * largest)
    ends, before = np.cumsum(rows), np.concatenate(([0], np.cumsum(at_most)))
    last = np.minimum(np.searchsorted(ends, ends + VECTOR_ROWS), len(ends) - 1)
    crowded = np.flatnonzero(before[last + 1] - before[:-1] > bytes_max)
    changes = np.zeros(len(ends) + 1, dtype=np.int64)
    np.add.at(changes, crowded, 1)
    np.add.at(changes, last[crowded] + 1, -1)
    return np.where(np.cumsum(changes[:-1]) > 0, sizes, 0)
