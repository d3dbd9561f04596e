"""Faults at every named step of every move: `python -m tests.points [--choice short|all] [--kinds kill,full] [--moves settle]`.

Prints a JSON report and exits with 1 when it has problems. Steps and kinds are in catalogue.py.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.reporting import reported

from .catalogue import KINDS, STEPS
from .small_disk import can_be_made, on_small_disk


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.folder is None:
        with tempfile.TemporaryDirectory(prefix="thermocline-points-") as name:
            sys.exit(_inside(Path(name), sys.argv[1:] if arguments is None else arguments))

    from .choice import all_chains, short_chains
    from .run import How, run

    is_short = options.choice == "short"
    kinds = KINDS if options.kinds == "all" else options.kinds.split(",")
    moves = list(STEPS) if options.moves == "all" else options.moves.split(",")
    chains = short_chains(moves) if is_short else all_chains(moves, kinds, options.point)
    if options.seed is not None:
        random.Random(options.seed).shuffle(chains)
    how = How(is_small_disk=options.small_disk, thorough=not is_short, seconds=options.seconds, says=options.says)
    report = run(options.folder, chains, how)
    sys.exit(reported(report))


def _inside(folder: Path, arguments: Sequence[str]) -> int:
    """Run the same again in `folder`, on a small disk where one can be made."""
    (folder / "work").mkdir()
    command = [sys.executable, "-m", "tests.points", *arguments, "--folder", str(folder)]
    if can_be_made(folder / "work"):
        command = on_small_disk(folder / "work", [*command, "--small-disk"])
    return subprocess.run(command).returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.points", description=__doc__)
    parser.add_argument("--choice", choices=("short", "all"), default="all", help="short: what every change is tested with")
    parser.add_argument("--kinds", default="all", help=f"some of {','.join(KINDS)}")
    parser.add_argument("--moves", default="all", help=f"some of {','.join(STEPS)}")
    parser.add_argument("--point", help="only this one: 'upload' is before it, 'upload done' after")
    parser.add_argument("--seed", type=int, help="try them in another order")
    parser.add_argument("--seconds", type=float, default=0, help="begin nothing after so long")
    parser.add_argument("--says", action="store_true", help="tell on stderr how far it is")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--small-disk", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
