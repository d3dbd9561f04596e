"""Which fault comes when and for how long: a list from a seed. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, get_args

import msgspec

Kind = Literal[
    "kill worker",
    "kill Redis",
    "stop worker",
    "stop Redis",
    "stop clients",
    "clock of Redis",
    "clock of worker",
    "clock of all",
    "disk full",
    "S3 down",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
JUMPS_S = (-7200, -400, 400, 7200)
WAYS = ("refuse", "drop", "hang")
"""How S3 is down: it says so; it does what is asked and breaks the connection; it does it and says nothing."""
LASTS_S: dict[Kind, tuple[float, float]] = {
    "kill worker": (0, 0),
    "kill Redis": (0, 1.5),
    "stop worker": (0.3, 3),
    "stop Redis": (0.2, 2.5),
    "stop clients": (0.3, 3),
    "clock of Redis": (1, 5),
    "clock of worker": (1, 5),
    "clock of all": (1, 5),
    "disk full": (1, 4),
    "S3 down": (1, 8),
}


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    kind: Kind
    at_s: float
    """After the beginning."""
    until_s: float
    number: int
    """Chooses what is stopped, how far a clock jumps, in which way S3 is down."""


def make_plan(seed: int, *, until_s: float, gap_s: tuple[float, float], kinds: Sequence[Kind] = KINDS) -> list[Fault]:
    """Faults until then, every kind once before any comes again. They overlap, but not with one of their own kind.

    gap_s  between the beginnings of two
    """
    dice = random.Random(seed)
    plan: list[Fault] = []
    over_s = dict.fromkeys(kinds, 0.0)
    at_s = 0.0
    while True:
        for kind in dice.sample(kinds, len(kinds)):
            at_s = max(at_s + dice.uniform(*gap_s), over_s[kind])
            lasts_s, number = dice.uniform(*LASTS_S[kind]), dice.randrange(1000)
            if at_s + lasts_s > until_s:
                return plan
            over_s[kind] = at_s + lasts_s + gap_s[0]
            plan.append(Fault(kind=kind, at_s=at_s, until_s=at_s + lasts_s, number=number))
