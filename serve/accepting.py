"""Which of the forms on offer a client's Accept header asks for. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def chosen(accept: str, offered: Sequence[str]) -> str | None:
    """The offered media type with the highest weight, the first of equals; None when the client takes none of them."""
    if not accept.strip():
        return offered[0]
    best: tuple[float, int] | None = None
    for place, media_type in enumerate(offered):
        weight = _weight(accept, media_type)
        if weight > 0 and (best is None or weight > best[0]):
            best = (weight, place)
    return None if best is None else offered[best[1]]


def _weight(accept: str, media_type: str) -> float:
    """q of the most exact range that takes it; 0 when none does."""
    kind = media_type.partition("/")[0]
    found, exactness = 0.0, -1
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        level = {media_type: 2, f"{kind}/*": 1, "*/*": 0}.get(name, -1)
        if level > exactness:
            found, exactness = _quality(parameters), level
    return found


def _quality(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(1.0, max(0.0, float(value)))
            except ValueError:
                return 0.0
    return 1.0
