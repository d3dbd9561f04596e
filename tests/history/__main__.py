"""`python -m tests.history`: one run from the command line. Exit 0 when every promise held, 1 when not."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.reporting import reported

from .run import SHORT_S, run_history

DISK_MIB = 384
INSIDE = "--inside"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.history", description="Clients, faults, and a proof of what they saw.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--redis", default=shutil.which("redis-server"), help="redis-server binary")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rate", type=float, default=100, help="calls a second, of all clients")
    parser.add_argument("--folder", type=Path, help="keep everything here instead of in a temporary folder")
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    redis = shutil.which(options.redis or "") or parser.error(f"--redis {options.redis}: no such program")
    if not options.inside and (prefix := _own_mounts()):
        # everything again, in a mount namespace of its own, which ends with it
        os.execvp(prefix[0], [*prefix, sys.executable, "-m", "tests.history", *sys.argv[1:], INSIDE])
    folder = options.folder or Path(tempfile.mkdtemp(prefix="thermocline-history-"))
    folder.mkdir(parents=True, exist_ok=True)
    seconds = options.minutes * 60
    report = run_history(
        folder,
        redis=str(Path(redis).absolute()),
        seed=options.seed,
        seconds=seconds,
        clients=options.clients,
        rate=options.rate,
        gap_s=(0.2, 0.8) if seconds < SHORT_S else (0.5, 5),  # in a short one each kind comes too
        disk=_small_disk(folder) if options.inside else None,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    if reported(report):
        print(f"everything but the data directory, which was on a disk of its own, is kept in {folder}", file=sys.stderr)
        return 1
    if options.inside:
        subprocess.run(["umount", "-l", str(folder / "disk")], check=True)
    shutil.rmtree(folder)
    return 0


def _own_mounts() -> list[str]:
    """The command that runs another one where it may mount; [] when this machine does not let us."""
    prefix = ["unshare", "-m", "--propagation", "private", *(["-r"] if os.geteuid() else [])]
    with tempfile.TemporaryDirectory() as folder:
        trial = [*prefix, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
        try:
            return prefix if subprocess.run(trial, capture_output=True).returncode == 0 else []
        except FileNotFoundError:
            return []


def _small_disk(folder: Path) -> Path:
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(disk)], check=True)
    return disk


if __name__ == "__main__":
    sys.exit(main())
