"""Names for the columns of an answer: a query may give several one name. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, count


def told_apart(names: Iterable[str]) -> list[str]:
    """The names, those that come again with a number."""
    found: list[str] = []
    for name in names:
        options = chain([name], (f"{name}_{number}" for number in count(1)))
        found.append(next(option for option in options if option not in found))
    return found
