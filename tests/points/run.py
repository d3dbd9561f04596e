"""One run: a store for every move, all chains of faults, and a report."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.servers import RedisServer, redis_binaries

from .catalogue import STEPS, points
from .cells import Harness
from .choice import Chain
from .moves import prepare
from .world import DATABASES, World

ON_SMALL_DISK, PLAIN = "tmpfs", "refused writes"


class How(msgspec.Struct, frozen=True, kw_only=True):
    """How a run goes on."""

    is_small_disk: bool
    """Whether `work` may be filled."""
    thorough: bool
    """Look for what is left over after every chain, also where no process died."""
    seconds: float = 0
    """Begin nothing after so long; 0: go on to the end."""
    says: bool = False
    """Tell on stderr how far it is."""


class Report(msgspec.Struct, kw_only=True):
    """What came of a run."""

    cells: int = 0
    """Faults that were tried."""
    chosen: int = 0
    """Faults that were to be tried."""
    by_kind: dict[str, int] = {}
    points: int = 0
    """Before and after every step of every move."""
    full_disk: str
    """How a disk was full: tmpfs, or refused writes where none could be mounted."""
    prepared_s: float = 0
    seconds: float = 0
    problems: list[str] = []

    def note(self, chain: Chain, problems: Sequence[str]) -> None:
        """A chain was tried."""
        self.problems += problems
        self.cells += len(chain)
        for cell in chain:
            self.by_kind[cell.kind] = self.by_kind.get(cell.kind, 0) + 1


def run(folder: Path, chains: Sequence[Chain], how: How) -> Report:
    """Try every chain in a store below `folder`, whose `work` may be a small file system."""
    logging.getLogger("pyiceberg").setLevel(logging.ERROR)
    report = Report(full_disk=ON_SMALL_DISK if how.is_small_disk else PLAIN, points=sum(len(points(move)) for move in STEPS))
    report.chosen = sum(len(chain) for chain in chains)
    server = RedisServer(redis_binaries()[-1], folder / "redis", options={"appendfsync": "always", "databases": DATABASES})
    began_s = time.monotonic()
    server.start()
    try:
        world = World(folder, server)
        prepare(world, dict.fromkeys(cell.move for chain in chains for cell in chain))
        report.prepared_s = round(time.monotonic() - began_s, 1)
        with Harness(world, is_small_disk=how.is_small_disk, log=folder / "children.log") as harness:
            for chain in chains:
                if how.seconds and time.monotonic() - began_s > how.seconds:
                    break
                report.note(chain, harness.run(chain, thorough=how.thorough))
                if how.says:
                    _say(report, time.monotonic() - began_s)
        world.close()
    finally:
        server.stop()
    report.seconds = round(time.monotonic() - began_s, 1)
    return report


def _say(report: Report, seconds: float) -> None:
    print(f"{report.cells} of {report.chosen}, {seconds:.0f} s", *report.problems, sep="\n  ", file=sys.stderr, flush=True)
