"""What a query probably meant that names a table which is not there. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Final

_MISSING: Final = re.compile(r'(Catalog Error: Table with name (\S+) does not exist!)(?: Did you mean "(.*)"\?)?')
_CATALOG: Final = ("pg_", "duckdb_", "sqlite_", "information_schema")
"""How the names of DuckDB's own tables begin, which nobody meant."""


def with_suggestion(message: str, relations: Sequence[str]) -> str:
    """DuckDB's message, with the relation that is meant, or all there are, where it would name a table of its own or none."""
    found = _MISSING.fullmatch(message)
    if found is None:
        return message
    if close := difflib.get_close_matches(found[2].lower(), relations, 1):
        return f'{found[1]} Did you mean "{close[0]}"?'
    if found[3] and not found[3].startswith(_CATALOG):
        return message
    return f"{found[1]} There are {', '.join(relations)}"
