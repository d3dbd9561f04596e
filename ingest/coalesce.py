"""Merge consecutive output chunks of one conversation into one event. Pure.

Agents stream text a few characters at a time; storing each piece is what drowned the original system. Two chunks become one
when they follow each other in their conversation within the window, neither has an id or metadata of its own, and everything
but content, counts, cost and duration is equal (the task among it). The first timestamp stays; contents are joined; tokens, cost
and duration are added, absent counting as nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import orjson

from thermocline.event import INT64_MAX, INT64_MIN

from .line import Line, encoded
from .validate import FIELDS

COALESCED_TYPE: Final = "output.chunk"
_SUMS: Final = ("duration_ms", "cost_usd", "input_tokens", "output_tokens")
_SAME: Final = tuple(name for name in FIELDS if name not in ("timestamp", "content", *_SUMS))
_SUMS_BYTES_MAX: Final = 200
"""How much longer the sums, with their keys, can make a line."""


def mergeable(values: Mapping[str, Any]) -> bool:
    """Whether an event, as `checked` gives it, may be merged at all."""
    return values["event_type"] == COALESCED_TYPE and "event_id" not in values and "metadata" not in values


class Chunk:
    """A growing output chunk."""

    __slots__ = ("_bytes", "_contents", "_same", "_until_s", "_values")

    def __init__(self, values: Mapping[str, Any], *, until_s: float, line_bytes: int) -> None:
        """values   of the first event, as `checked` gives them
        until_s  when the window ends, on the clock that `merge` is given
        """
        self._values = dict(values)
        self._contents = [values.get("content", "")]
        self._same = tuple(map(values.get, _SAME))
        self._until_s = until_s
        self._bytes = line_bytes + _SUMS_BYTES_MAX

    def merge(self, values: Mapping[str, Any], now_s: float, *, bytes_max: int) -> bool:
        """Take the event in, if it belongs here; False changes nothing."""
        if now_s > self._until_s or tuple(map(values.get, _SAME)) != self._same:
            return False
        content = values.get("content", "")
        grown = self._bytes + len(orjson.dumps(content))
        sums = {name: self._values.get(name, 0) + values[name] for name in _SUMS if name in values}
        if grown > bytes_max or not all(map(_storable, sums.values())):
            return False
        self._bytes = grown
        self._contents.append(content)
        self._values.update(sums)
        return True

    def line(self) -> Line:
        """The one event, encoded."""
        content = "".join(self._contents)
        if content:
            self._values["content"] = content
        return encoded({name: self._values[name] for name in FIELDS if name in self._values})


def _storable(number: float) -> bool:
    return math.isfinite(number) if isinstance(number, float) else INT64_MIN <= number <= INT64_MAX
