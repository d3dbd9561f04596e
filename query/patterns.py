"""Names of event types, with `*` for any text. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from thermocline.errors import QueryRefused

PATTERNS_MAX: Final = 100


class Patterns:
    """Which event types are wanted; all of them without any."""

    def __init__(self, patterns: Sequence[str] | None) -> None:
        """patterns  `tool.call`, `tool.*`, `*.error`. QueryRefused: they are no such list"""
        if isinstance(patterns, str):
            patterns = [patterns]
        if patterns is not None and (not all(isinstance(one, str) and one for one in patterns) or len(patterns) > PATTERNS_MAX):
            raise QueryRefused(f"event_types must be up to {PATTERNS_MAX} names, with * for any text, not {patterns!r}")
        self.patterns = None if not patterns else tuple(sorted(set(patterns)))
        self._known: dict[str, bool] = {}
        texts = "|".join(".*".join(map(re.escape, one.split("*"))) for one in self.patterns or ())
        self._matches = re.compile(texts, re.DOTALL).fullmatch
        self.expression = texts if any("*" in one for one in self.patterns or ()) else None
        """A regular expression of the same; None when there is no * among them."""

    def match(self, name: str) -> bool:
        """Whether events of this type are wanted."""
        if self.patterns is None:
            return True
        known = self._known.get(name)
        if known is None:
            if len(self._known) > 10_000:
                self._known.clear()
            known = self._known[name] = self._matches(name) is not None
        return known
