"""A process that dies by kill -9 at a step: `python -m tests.killed SETTINGS.json ACTION STEP`.

STEP is what the archiver calls it: `upload` before it begins, `upload done` after. Exit code 3: it never came there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from thermocline.archiver.archive import Archiver
from thermocline.archiver.compact import Compactor
from thermocline.archiver.janitor import Janitor
from thermocline.archiver.lease import Lease
from thermocline.archiver.purge import Purger
from thermocline.config import Settings, load
from thermocline.tiers.opening import Tiers, open_tiers
from thermocline.tiers.steps import Reach


def _before_and_after(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}{end}" for name in names for end in ("", " done"))


BATCH_STEPS = _before_and_after("intend", "write", "upload", "describe", "publish", "commit")
IN_SHORT = ("upload done", "publish done")
"""What every change is tested with, here: where something of a batch is visible to others and the ledger does not list it.
tests/points has every step of every move in every change; the long ring has all of them here too."""
VISIBLE_FROM = BATCH_STEPS.index("describe done")
"""From here on the next start finishes a batch instead of giving it up."""
PURGE_STEPS = (
    *_before_and_after("move orphans", "remove orphans", "unlink", "forget files"),
    *_before_and_after("expire snapshots", "delete orphans", "delete objects", "forget objects"),
    *_before_and_after("delete litter", "abandon uploads", "let copies go"),
)
"""Those of segments, then those of objects."""
LATER_US = 40 * 86_400_000_000
"""How much later than now things are purged: snapshots are old by then."""


def steps(chosen: Sequence[str] = BATCH_STEPS) -> list[Any]:
    """Parameters: those of `chosen` in IN_SHORT for every change, all of them for the long ring."""
    return [step if step in IN_SHORT else pytest.param(step, marks=pytest.mark.long) for step in chosen]


def killed_at(step: str, action: str, settings: Settings) -> None:
    """Let a process do `action` and die at `step`."""
    file = settings.data_dir / "settings.json"
    file.write_bytes(msgspec.json.encode(settings.model_dump(mode="json")))
    found = subprocess.run([sys.executable, "-m", "tests.killed", str(file), action, step], capture_output=True, timeout=120)
    assert found.returncode == -signal.SIGKILL, (action, step, found.returncode, found.stderr.decode())


def purge(tiers: Tiers, epoch: int, reach: Reach = lambda _: None) -> None:
    """Purge segments and objects, as it will be done when all graces are over."""
    now_us = time.time_ns() // 1000 + LATER_US
    Purger(tiers, epoch, reach=reach).step(now_us=now_us)
    Janitor(tiers, epoch, reach=reach).step(now_us=now_us)


def _act(action: str, tiers: Tiers, epoch: int, reach: Reach) -> None:
    match action:
        case "archive":
            Archiver(tiers, epoch, reach=reach).step()
        case "compact":
            Compactor(tiers, epoch, reach=reach).step()
        case "purge":
            purge(tiers, epoch, reach)


def main() -> None:
    file, action, step = sys.argv[1:]

    def reach(reached: str) -> None:
        if reached == step:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = load(msgspec.json.decode(Path(file).read_bytes()), environ={})
    with open_tiers(settings) as tiers:
        _act(action, tiers, Lease(settings.namespace_dir, tiers.ledger).epoch, reach)
    sys.exit(3)


if __name__ == "__main__":
    main()
