"""`python -m tests.chaos`: one chaos run from the command line. Exit 0 when every promise held, 1 when not."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.reporting import reported_with

from .plan import WAIT_S_MAX
from .run import RESTART_S_MAX, run_chaos


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Kill and stop everything; check every event.")
    parser.add_argument("--redis", default=shutil.which("redis-server"), help="redis-server binary")
    parser.add_argument("--fsync", choices=["always", "everysec"], default="always")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worker-kills", type=int, default=50, help="half of them while it merges")
    parser.add_argument("--redis-kills", type=int, default=5)
    parser.add_argument("--stops", type=int, default=10, help="SIGSTOPs of worker, Redis, producers and readers")
    parser.add_argument("--producers", type=int, default=2)
    parser.add_argument("--readers", type=int, default=3)
    parser.add_argument("--queries-min", type=int, default=10_000)
    parser.add_argument(
        "--rate", dest="events_rate", type=float, default=0, help="events a second, of all producers; 0: no limit"
    )
    parser.add_argument("--queries-rate", type=float, default=0, help="queries a second, of all readers; 0: no limit")
    parser.add_argument("--wait-s-max", type=float, default=WAIT_S_MAX, help="longest time between two faults")
    parser.add_argument("--restart-s-max", type=float, default=RESTART_S_MAX, help="a worker that takes longer is a problem")
    parser.add_argument(
        "--cut-bytes-max", type=int, default=0, help="what a killed Redis loses of its file, as in a power failure; everysec only"
    )
    parser.add_argument("--folder", type=Path, help="keep everything here instead of in a temporary folder")
    options = vars(parser.parse_args())
    if options["redis"] is None:
        parser.error("no redis-server on PATH: name one with --redis")
    options["redis"] = shutil.which(options["redis"]) or parser.error(f"--redis {options['redis']}: no such program")
    options["redis"] = str(Path(options["redis"]).absolute())
    folder = options.pop("folder") or Path(tempfile.mkdtemp(prefix="thermocline-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    report = run_chaos(folder, **options, say=lambda text: print(text, file=sys.stderr, flush=True))
    return reported_with(folder, report)


if __name__ == "__main__":
    sys.exit(main())
