"""A coverage receipt as a header: short, ASCII, JSON. Pure."""

from __future__ import annotations

import json
from typing import Any, Final, Protocol

COVERAGE_HEADER: Final = "Thermocline-Coverage"
ENTRY_BYTES_MAX: Final = 400
"""Of one entry; the body has what is longer."""
HEADER_BYTES_MAX: Final = 4096


class Receipt(Protocol):
    """What of a Coverage is needed here."""

    def as_dict(self) -> dict[str, Any]: ...


def brief(coverage: Receipt) -> str:
    """The receipt's entries, without those that are long; what does not fit any more is left out too."""
    kept: dict[str, Any] = {}
    size = 2
    for name, value in coverage.as_dict().items():
        text = json.dumps({name: value}, ensure_ascii=True, separators=(",", ":"), default=str)
        if len(text) <= ENTRY_BYTES_MAX and size + len(text) <= HEADER_BYTES_MAX:
            kept[name] = value
            size += len(text)
    return json.dumps(kept, ensure_ascii=True, separators=(",", ":"), default=str)
