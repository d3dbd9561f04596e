"""The sum of a segment's file: `<id>.sum` beside it, written before the segment has its name (docs/formats.md, "Sum").

DuckDB checks the blocks it reads. The sum is of every byte, so a changed bit is found wherever it lies: in a header, in a free
block, in a rollup nobody asks for. The sum file has a sum of its own; without one, or with a damaged one, the rows are what is
checked instead.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import xxhash

from thermocline.errors import TierCorrupt

SUM_SUFFIX: Final = ".sum"
PIECE_BYTES: Final = 1 << 20
_LINES: Final = re.compile(r"([0-9a-f]{32})  (\S+)\n# ([0-9a-f]{16})\n")


def sum_path(path: Path) -> Path:
    """Where the sum of a segment's file is."""
    return path.with_suffix(SUM_SUFFIX)


def sum_of(path: Path, *, from_disk: bool = False) -> str:
    """The XXH128 of a file's bytes, in hexadecimal. OSError when it cannot be read.

    from_disk  have the system read it again, as far as it can be asked to, instead of taking what it keeps in memory
    """
    digest = xxhash.xxh128()
    with path.open("rb", buffering=0) as file:
        if from_disk:
            forget(file.fileno())
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def forget(descriptor: int) -> None:
    """Ask the system to drop what it keeps of a file in memory. Nothing happens where that is not known."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def write_sum(target: Path, found: str) -> None:
    """Write the sum of the file that is, or will be, `target`. Durable once its folder is synced too."""
    line = f"{found}  {target.name}\n"
    with sum_path(target).open("w") as file:
        file.write(f"{line}# {xxhash.xxh64_hexdigest(line.encode())}\n")
        file.flush()
        os.fsync(file.fileno())


def read_sum(target: Path) -> str | None:
    """What the file should hash to; None when that was never written. TierCorrupt when it was, and cannot be believed."""
    path = sum_path(target)
    try:
        text = path.read_bytes().decode("ascii", errors="replace")
    except FileNotFoundError:
        return None
    match = _LINES.fullmatch(text)
    if match is None or match[2] != target.name or xxhash.xxh64_hexdigest(text.partition("#")[0].encode()) != match[3]:
        raise TierCorrupt(f"{path}: it is not what was written; `thermocline scrub` reads the rows instead and writes it anew")
    return match[1]
