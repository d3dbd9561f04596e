"""Which faults are tried on every change, and which in the long run."""

from __future__ import annotations

from collections.abc import Sequence

from .catalogue import STEPS, points
from .cells import Cell
from .child import EACH

Chain = list[Cell]
"""Faults of one move, one after the other in one store, none of them mended in between."""
FINISHED_AFTER = "commit done"
"""A move that was broken off here has nothing left to do: what comes after it is not reached by trying again."""
BREAKING = ("kill", "eio", "full")
ALWAYS_REACHED = {
    "trim": "trim",
    "purge": "remove orphans",
    "clean": "expire snapshots",
    "rehydrate": "look up",
    "restore": "fetch",
}
"""Where a full disk is tried first: moves that may come to their end on one, so that later points have no work."""


def all_chains(moves: Sequence[str], kinds: Sequence[str], only: str | None = None) -> list[Chain]:
    """Every kind at every point of every move, each in a store of its own."""
    chosen = [only] if only else None
    return [[Cell(move, point, kind)] for move in moves for point in chosen or points(move) for kind in kinds]


def short_chains(moves: Sequence[str]) -> list[Chain]:
    """An exception at every point, and every other kind at one point of each move, not the same one for all."""
    return [chain for move in moves for chain in _short(move)]


def _short(move: str) -> list[Chain]:
    there = points(move)
    chains = [[Cell(move, EACH, "exception")], _chain(move)]
    if FINISHED_AFTER in there[:-1]:
        chains.append([Cell(move, there[-1], "exception")])
    if move == "rehydrate":  # readers find the disk full before anything was copied
        chains.append([Cell(move, ALWAYS_REACHED[move], "full")])
    return chains


def _chain(move: str) -> Chain:
    """kill -9, EIO and a full disk in turn, each at a later step, then stopped until all graces are over, which goes on to the
    end."""
    there = points(move)
    before = there[: there.index(FINISHED_AFTER)] if FINISHED_AFTER in there else there
    number = list(STEPS).index(move)
    places = [before[(2 * turn + 1) * len(before) // 6] for turn in range(3)]
    stop = there[-2] if FINISHED_AFTER in there[:-1] else before[-1]
    if move in ALWAYS_REACHED:
        places, stop = [ALWAYS_REACHED[move]] * 3, ALWAYS_REACHED[move]
    kinds = [BREAKING[(number + turn) % 3] for turn in range(3)]
    return [Cell(move, point, kind) for point, kind in zip([*places, stop], [*kinds, "stop"], strict=True)]
