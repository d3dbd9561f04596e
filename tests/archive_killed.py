"""A process that archives and dies by kill -9 at a step: `python -m tests.archive_killed SETTINGS.json STEP`.

STEP is what `Batches` calls it: `upload` before it begins, `upload done` after. Exit code 3: it never came there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from thermocline.archiver.archive import Archiver
from thermocline.archiver.lease import Lease
from thermocline.config import load
from thermocline.tiers.opening import open_tiers

STEPS = tuple(f"{name}{end}" for name in ("intend", "write", "upload", "describe", "publish", "commit") for end in ("", " done"))


def main() -> None:
    settings = load(json.loads(Path(sys.argv[1]).read_text()), environ={})

    def reach(step: str) -> None:
        if step == sys.argv[2]:
            os.kill(os.getpid(), signal.SIGKILL)

    with open_tiers(settings) as tiers:
        lease = Lease(settings.namespace_dir, tiers.ledger)
        Archiver(tiers, lease.epoch, reach=reach).step()
    sys.exit(3)


if __name__ == "__main__":
    main()
