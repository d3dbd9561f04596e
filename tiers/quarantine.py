"""Where damaged files are kept, each under its own name: `<namespace>/trash/quarantine/`. Nothing of ours ever removes them."""

from __future__ import annotations

import os
from pathlib import Path

from .whole_file import make_folder, sync

FOLDER = "trash/quarantine"


def keep_aside(namespace_dir: Path, path: Path) -> Path:
    """Give a file a second name in the quarantine; that name. The first may then be replaced or removed.

    Safe to repeat: a file that is there already is not kept twice.
    """
    target = _target(namespace_dir, path)
    if not target.exists():
        os.link(path, target)
        sync(target.parent)
    return target


def set_aside(namespace_dir: Path, path: Path) -> Path:
    """Move a file to the quarantine; its new name. FileNotFoundError when it is gone."""
    target = _target(namespace_dir, path)
    path.replace(target)
    sync(target.parent)
    return target


def kept(namespace_dir: Path) -> tuple[int, int]:
    """(files, bytes) in the quarantine."""
    folder = namespace_dir / FOLDER
    sizes = [path.stat().st_size for path in folder.iterdir()] if folder.is_dir() else []
    return len(sizes), sum(sizes)


def _target(namespace_dir: Path, path: Path) -> Path:
    """A name in the quarantine that is free, or that this very file has."""
    folder = namespace_dir / FOLDER
    make_folder(folder)
    target, number = folder / path.name, 1
    while target.exists() and not target.samefile(path):
        number += 1
        target = folder / f"{path.name}.{number}"
    return target
