"""Which fault comes when: a list from a seed. Pure."""

from __future__ import annotations

import random
from typing import Literal

import msgspec

Kind = Literal["kill-worker", "kill-worker-merging", "kill-redis", "stop-worker", "stop-redis", "stop-producer", "stop-reader"]
STOPPABLE: tuple[Kind, ...] = ("stop-worker", "stop-redis", "stop-producer", "stop-reader")
WAIT_S_MAX = 0.6


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    kind: Kind
    wait_s: float
    """After the fault before it is over and the worker has been seen at work again."""
    delay_s: float
    """For kill-worker-merging: how far into the merge. For stops: how long."""
    cut_bytes: int = 0
    """For kill-redis: how much of its append-only file is gone."""


def make_plan(
    seed: int, *, worker_kills: int, redis_kills: int, stops: int, wait_s_max: float = WAIT_S_MAX, cut_bytes_max: int = 0
) -> list[Fault]:
    """Every fault in the order to inject it: half of the worker's kills while it merges, the kinds mixed by `seed`."""
    dice = random.Random(seed)
    kinds: list[Kind] = ["kill-worker-merging"] * (worker_kills // 2)
    kinds += ["kill-worker"] * (worker_kills - len(kinds))
    kinds += ["kill-redis"] * redis_kills
    kinds += [STOPPABLE[index % len(STOPPABLE)] for index in range(stops)]
    dice.shuffle(kinds)
    return [
        Fault(
            kind=kind,
            wait_s=dice.uniform(0.05, wait_s_max),
            delay_s=dice.uniform(0.3, 2.5) if kind.startswith("stop") else dice.uniform(0, 0.08),
            cut_bytes=dice.randint(0, cut_bytes_max) if kind == "kill-redis" and cut_bytes_max else 0,
        )
        for kind in kinds
    ]
