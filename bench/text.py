"""Text to cut events' contents from, and strings that are cut from it without copying. Seeded; made once per process."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

POOL_BYTES = 1 << 24
VOCABULARY_WORDS = 8_000
INLINE_BYTES = 12
"""A string view of at most so many bytes holds them itself."""
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"


@cache
def pool(seed: int) -> npt.NDArray[np.uint8]:
    """Words of a made-up language, the frequent ones short, as often as in a real one (rank times frequency is constant)."""
    dice = np.random.default_rng(seed)
    ranks = np.arange(VOCABULARY_WORDS)
    lengths = 2 + np.log2(ranks + 2).astype(int) // 2
    letters = np.frombuffer(LETTERS.encode(), np.uint8)
    words = ["".join(map(chr, dice.choice(letters, size))) for size in lengths]
    chosen = dice.choice(VOCABULARY_WORDS, POOL_BYTES // 5, p=(1 / (ranks + 1)) / (1 / (ranks + 1)).sum())
    text = " ".join([words[one] for one in chosen]).encode()
    return np.frombuffer(text[:POOL_BYTES], np.uint8)


class Cuttings:
    """Strings out of one buffer of bytes."""

    def __init__(self, source: npt.NDArray[np.uint8]) -> None:
        self._source = source
        self._buffer = pa.py_buffer(source)

    @property
    def size(self) -> int:
        return len(self._source)

    def cut(self, starts: npt.NDArray[Any], lengths: npt.NDArray[Any], *, nulls: npt.NDArray[np.bool_] | None = None) -> pa.Array:
        """The strings at `starts` with `lengths` bytes each, as a string view over this buffer."""
        count = len(starts)
        views = np.zeros((count, 16), np.uint8)
        views[:, 0:4] = lengths.astype("<i4").reshape(-1, 1).view(np.uint8)
        places = np.arange(INLINE_BYTES)
        head = self._source[np.minimum(starts[:, None] + places, len(self._source) - 1)]
        views[:, 4:16] = np.where(places < lengths[:, None], head, 0)
        long = lengths > INLINE_BYTES
        views[long, 8:12] = 0
        views[long, 12:16] = starts[long].astype("<i4").reshape(-1, 1).view(np.uint8)
        mask = None if nulls is None else pa.array(~nulls).buffers()[1]
        return pa.Array.from_buffers(pa.string_view(), count, [mask, pa.py_buffer(views.tobytes()), self._buffer])


class Choices:
    """A list of texts to choose from by number."""

    def __init__(self, texts: list[str]) -> None:
        raw = [text.encode() for text in texts]
        self._lengths = np.array([len(one) for one in raw], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._lengths)[:-1]])
        self._cuttings = Cuttings(np.frombuffer(b"".join(raw) or b" ", np.uint8))
        self.count = len(texts)

    def take(self, numbers: npt.NDArray[Any], *, nulls: npt.NDArray[np.bool_] | None = None) -> pa.Array:
        return self._cuttings.cut(self._starts[numbers], self._lengths[numbers], nulls=nulls)
