"""A small file system for one command: in a mount namespace of its own, which root may make, and others in a user namespace."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

SIZE = "256m"
MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'


def on_small_disk(folder: Path, command: Sequence[str]) -> list[str]:
    """The command that runs `command` with a file system of SIZE on `folder`, which only it sees, and which ends with it."""
    options = ["--mount"] if os.geteuid() == 0 else ["--map-root-user", "--mount"]
    return ["unshare", *options, "sh", "-c", MOUNT, "sh", SIZE, str(folder), *command]


def can_be_made(folder: Path) -> bool:
    """Whether this user may mount one here. Where containers forbid it, writes are refused as if the disk were full."""
    try:
        return subprocess.run(on_small_disk(folder, ["true"]), capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
