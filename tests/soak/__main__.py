"""`python -m tests.soak`: one soak from the command line. Exit 0 when nothing grew and nothing was lost, 1 when not."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import msgspec

from tests.reporting import reported_with

from .run import peak, run_soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Half an hour in which nothing may grow.")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, help="events a second; default: half of the peak, which is measured first")
    parser.add_argument("--peak", action="store_true", help="only measure what settle keeps up with")
    parser.add_argument("--peak-s", type=float, default=60, help="how long it is measured")
    parser.add_argument("--redis", default=shutil.which("redis-server"), help="redis-server binary")
    parser.add_argument("--producers", type=int, default=2)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--queries-rate", type=float, default=4, help="queries a second, of all readers")
    parser.add_argument("--day-s", type=float, default=60, help="how long a day lasts")
    parser.add_argument("--sample-s", type=float, default=10)
    parser.add_argument("--folder", type=Path, help="keep everything here instead of in a temporary folder")
    options = parser.parse_args()
    redis = shutil.which(options.redis or "") or parser.error(f"--redis {options.redis}: no such program")
    redis = str(Path(redis).absolute())
    folder = options.folder or Path(tempfile.mkdtemp(prefix="thermocline-soak-"))
    rate = options.rate
    if options.peak or rate is None:
        (folder / "peak").mkdir(parents=True, exist_ok=True)
        found = peak(folder / "peak", redis=redis, seconds=options.peak_s, producers=options.producers)
        print(f"peak: {found:.0f} events a second settle", file=sys.stderr, flush=True)
        shutil.rmtree(folder / "peak")
        if options.peak:
            print(msgspec.json.encode({"peak": round(found)}).decode())
            return 0
        rate = round(found / 2)
    (folder / "soak").mkdir(parents=True, exist_ok=True)
    report = run_soak(
        folder / "soak",
        redis=redis,
        minutes=options.minutes,
        rate=rate,
        producers=options.producers,
        readers=options.readers,
        queries_rate=options.queries_rate,
        day_s=options.day_s,
        sample_s=options.sample_s,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    return reported_with(folder, report)


if __name__ == "__main__":
    sys.exit(main())
