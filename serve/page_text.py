"""Text of strangers made fit to be looked at: what has no shape is given one, JSON is laid out, what is long is cut. Pure."""

from __future__ import annotations

import json
import re
from typing import Any, Final, NamedTuple

PRETTY_CHARS_MAX: Final = 64_000
"""Of JSON that is laid out; longer text is shown as it is."""
FOLD_CHARS: Final = 700
FOLD_LINES: Final = 12
_HIDDEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


class Shown(NamedTuple):
    """A text as it is shown."""

    head: str
    """What stands there at once."""
    rest: str
    """What is folded away; the head again, and more. Empty when the head is all."""
    cut: int
    """Characters there are beyond that, not sent."""
    kind: str
    """json or text."""


def readable(text: object) -> str:
    """The text with a mark for every character that is not seen or changes how others are: escapes, overrides, marks of order."""
    return _HIDDEN.sub(_mark, str(text).replace("\r\n", "\n"))


def _mark(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"


def pretty(text: str) -> str | None:
    """JSON laid out over lines; None when it is no JSON object or list, or too long."""
    if len(text) > PRETTY_CHARS_MAX or text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return None


def shown(text: str | None, length: int | None = None) -> Shown | None:
    """How a text is shown; None when there is none. length: characters of the whole, of which `text` is the beginning."""
    if not text:
        return None
    cut = max(0, (length or 0) - len(text))
    laid_out = pretty(text) if not cut else None
    whole = readable(laid_out if laid_out is not None else text)
    lines = whole.split("\n")
    head = "\n".join(lines[:FOLD_LINES])[:FOLD_CHARS]
    short = len(whole) <= FOLD_CHARS * 1.3 and len(lines) <= FOLD_LINES + 3
    return Shown(whole if short else head, "" if short else whole, cut, "json" if laid_out is not None else "text")


def cell(value: Any, chars_max: int = 200) -> str:
    """A value in a cell of a table, on one line."""
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 1e15 else repr(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    text = readable(str(value)[: chars_max + 1]).replace("\n", " ")
    return text if len(text) <= chars_max else f"{text[:chars_max]}…"
