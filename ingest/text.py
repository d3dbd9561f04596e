"""Text as UTF-8, and how a wrong value is named in an error. Pure."""

from __future__ import annotations

import orjson

from thermocline.errors import InvalidEvent


def exact_text(field: str, value: object) -> str:
    if not isinstance(value, str):
        fix = ": decode it first" if isinstance(value, bytes | bytearray) else ""
        raise InvalidEvent(field, f"must be text (str), not {type_name(value)}{fix}")
    return str.__str__(value)


def utf8_size(field: str, text: str) -> int:
    try:
        return len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as exc:
        problem = f"holds a lone surrogate (U+{ord(text[exc.start]):04X} at {exc.start}), which is not UTF-8"
        raise InvalidEvent(field, f"{problem}: decode the source with errors='replace'") from exc


def type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def quoted(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:60] + "…")


def shown(character: str) -> str:
    return f"U+{ord(character):04X}"


def json_problem(raw: bytes, exc: Exception) -> str:
    """orjson's words, which say where and what, if it refuses the text too."""
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError as better:
        return str(better)
    return str(exc)
