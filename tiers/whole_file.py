"""Local files that are there whole or not at all, and what the file system says about them in our words.

Steps, and what a crash leaves after each: written to `<random>.tmp` beside the target (an orphan); fsynced (an orphan); linked
or renamed to its name (the whole file, and perhaps a second name of it that is an orphan); the folder fsynced (durable).
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from thermocline.errors import TierUnavailable

UNFINISHED = ".tmp"
"""How names of unfinished files end."""


@contextmanager
def whole_file(target: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """A file to write into, which becomes `target` at the end, durably; when the block raises, nothing is left.

    replace  False: FileExistsError when there is a target already, which stays as it is
    """
    make_folder(target.parent)
    tmp = target.with_name(uuid.uuid4().hex + UNFINISHED)
    try:
        with tmp.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace:
            tmp.replace(target)
        else:
            _place_new(tmp, target)
    finally:
        tmp.unlink(missing_ok=True)
    sync(target.parent)


def _place_new(tmp: Path, target: Path) -> None:
    try:
        os.link(tmp, target)
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without links (FAT, some network ones) has no rename that spares its target either. Our names are
        # given out once, so a look is enough.
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from exc
        tmp.rename(target)


def make_folder(folder: Path) -> None:
    """Make the folder and those above it, durably. Nothing happens when it is there."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def sync(path: Path) -> None:
    """fsync a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def file_errors(subject: str, *, setting: str) -> Iterator[None]:
    """Turn what the file system raises about `subject` into TierUnavailable with the next thing to do.

    setting  the one that names the place
    """
    try:
        yield
    except OSError as exc:
        place = f" ({exc.filename})" if exc.filename and str(exc.filename) not in subject else ""
        raise TierUnavailable(f"{subject}: {exc.strerror or exc}{place}; {_fix(exc.errno, setting)}") from exc


def is_of_full_disk(error: TierUnavailable) -> bool:
    """Whether it was raised by `file_errors` for want of disk space."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _FULL


def _fix(number: int | None, setting: str) -> str:
    if number in _FULL:
        return "free disk space or raise the limit, then run again"
    if number in (errno.EACCES, errno.EPERM):
        return "let this user read and write the folder"
    if number == errno.EROFS:
        return f"mount it for writing, or point {setting} at a folder that can be written"
    if number in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return f"{setting} must be a folder, and no part of the path a file"
    if number in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files (ulimit -n)"
    if number == errno.ENOENT:
        return "it was moved or removed: is the disk mounted?"
    return "check the disk, then run again"
