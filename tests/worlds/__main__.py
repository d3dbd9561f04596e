"""`python -m tests.worlds`: many histories, from one seed. Exit 0 when both worlds agreed at every step of all, 1 when not."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from tests.reporting import reported
from tests.servers import RedisServer, binary_version, redis_binaries

from .machine import Ground, counts, play

PIECE = 50
"""Histories between two fresh servers. Each piece has a seed of its own, from which it can be played again."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.worlds", description="Random histories against a plain list.")
    parser.add_argument("--histories", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10, help="of each history, about")
    parser.add_argument("--seed", type=int, default=1, help=f"of the first {PIECE} histories; the next have the next")
    parser.add_argument("--shrink", action="store_true", help="look for a shorter history that fails too")
    parser.add_argument("--redis", default=str(redis_binaries()[-1]), help="redis-server binary")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # pyiceberg has something to say of every file
    begun_s = time.monotonic()
    found: dict[str, Any] = {"histories": 0, "steps": 0, "by_rule": {}, "seen": {}}
    problems: list[str] = []
    for number, first in enumerate(range(0, options.histories, PIECE)):
        seed = options.seed + number
        folder = Path(tempfile.mkdtemp(prefix="thermocline-worlds-"))
        server = RedisServer(options.redis, folder / "redis", options={"appendfsync": "always"})
        ground = Ground(folder / "data", server)
        try:
            server.start()
            play(ground, min(PIECE, options.histories - first), options.steps, seed=seed, shrink=options.shrink)
        except Exception as exc:
            problems.append(f"seed {seed}: {''.join(traceback.format_exception(exc))}")
            print(problems[-1], file=sys.stderr, flush=True)  # noqa: T201
        finally:
            server.stop()
            shutil.rmtree(folder)
        found = _added(found, counts(ground))
        so_far = f"{found['histories']} histories, {found['steps']} steps, {len(problems)} problems"
        print(so_far, file=sys.stderr, flush=True)  # noqa: T201
    report = {
        "seed": options.seed,
        "redis": ".".join(map(str, binary_version(options.redis))),
        **found,
        "seconds": round(time.monotonic() - begun_s),
        "problems": problems,
    }
    return reported(report, problems)


def _added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The sums of two trees of counts, by name."""
    return {
        name: _added(one.get(name, {}), other.get(name, {}))
        if isinstance(one.get(name, other.get(name)), dict)
        else one.get(name, 0) + other.get(name, 0)
        for name in sorted(one.keys() | other.keys())
    }


if __name__ == "__main__":
    sys.exit(main())
