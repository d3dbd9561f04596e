"""The cold tier's objects in a local folder (contract: cold.py). whole_file.py says what a crash leaves after each step."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from thermocline.errors import TierCorrupt

from .cold import Finding, StoredObject
from .cold_keys import checked_base, checked_key, key_below
from .cold_probe import probe
from .whole_file import UNFINISHED, file_errors, sync, whole_file

COPY_BYTES = 1 << 20


class FolderCold:
    """Objects are files, keys their paths below `folder`, which is made by the first write.

    setting  the one that names the folder, for error messages
    """

    is_local = True

    def __init__(self, folder: Path, *, setting: str = "cold_url") -> None:
        self._folder = folder.resolve()
        self._setting = setting
        self.url = checked_base(f"file://{self._folder}")

    def url_of(self, key: str) -> str:
        return f"{self.url}/{checked_key(key)}"

    def key_of(self, url: str) -> str:
        return key_below(self.url, url)

    def path(self, key: str) -> Path:
        return self._folder / checked_key(key)

    def put_file(self, key: str, source: Path) -> None:
        def copy(file: BinaryIO) -> None:
            with source.open("rb") as content:
                shutil.copyfileobj(content, file, COPY_BYTES)

        with self._errors(key):
            self._put_new(key, copy, lambda: _sha256(source))

    def put(self, key: str, content: bytes, *, replace: bool = False) -> None:
        with self._errors(key):
            if replace:
                with whole_file(self.path(key)) as file:
                    file.write(content)
            else:
                self._put_new(key, lambda file: file.write(content), lambda: hashlib.sha256(content).hexdigest())

    def _put_new(self, key: str, write: Callable[[BinaryIO], object], digest: Callable[[], str]) -> None:
        path = self.path(key)
        if not path.exists():
            try:
                with whole_file(path, replace=False) as file:
                    write(file)
                return
            except FileExistsError:
                if not path.is_file():
                    raise
        if _sha256(path) != digest():
            raise TierCorrupt(f"{path} is there already and holds other bytes: it was not changed; see which of the two is right")
        sync(path)  # whoever wrote it may have died before this
        sync(path.parent)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        with self._errors(key), self._open(key) as file:
            file.seek(offset)
            return file.read() if length is None else file.read(length)

    def fetch(self, key: str, target: Path) -> None:
        with self._errors(key), self._open(key) as content, whole_file(target) as file:
            shutil.copyfileobj(content, file, COPY_BYTES)

    def size(self, key: str) -> int | None:
        with self._errors(key):
            try:
                return self.path(key).stat().st_size
            except FileNotFoundError:
                return None

    def objects(self, prefix: str = "") -> Iterator[StoredObject]:
        for key, found in self._files(prefix):
            if not key.endswith(UNFINISHED):
                yield StoredObject(key=key, size_bytes=found.st_size, modified_us=found.st_mtime_ns // 1000)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            with self._errors(key):
                self.path(key).unlink(missing_ok=True)

    def abandon_uploads(self, *, before_us: int) -> int:
        count = 0
        for key, found in self._files(""):
            if key.endswith(UNFINISHED) and found.st_mtime_ns // 1000 < before_us:
                with self._errors(key):
                    (self._folder / key).unlink(missing_ok=True)
                count += 1
        return count

    def probe(self) -> list[Finding]:
        return probe(self, self._overwrites)

    def _overwrites(self, key: str) -> str | None:
        with self._errors(key):
            try:
                with whole_file(self.path(key), replace=False) as file:
                    file.write(b"other")
            except FileExistsError:
                return None
        return "a file that is there can be overwritten unawares: use another file system"

    def close(self) -> None:
        pass

    def _open(self, key: str) -> BinaryIO:
        path = self.path(key)
        try:
            return path.open("rb")
        except FileNotFoundError as exc:
            if not self._folder.exists():
                raise  # the disk may not be mounted: that says nothing about the object
            raise TierCorrupt(f"{path} is not there any more: restore it from a copy, or take a fresh view") from exc

    def _files(self, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
        """Files by key, unfinished ones too; those that go away meanwhile may be missing."""
        base = prefix.rpartition("/")[0]
        folders = [base + "/" if base else ""]
        while folders:
            folder = folders.pop()
            if not folder.endswith("/") and folder:
                with self._errors(folder):
                    found = _stat(self._folder / folder)
                if found is not None:
                    yield folder, found
                continue
            with self._errors(folder):
                names = self._names(folder)
            below = [folder + name for name in names]
            folders += [key for key in reversed(below) if key.startswith(prefix) or prefix.startswith(key)]

    def _names(self, folder: str) -> list[str]:
        """What is in the folder, in the order of keys: folders with a slash at the end. Unprintable names are not ours."""
        try:
            with os.scandir(self._folder / folder) as entries:
                names = [entry.name + "/" if entry.is_dir() else entry.name for entry in entries]
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            if not self._folder.is_dir():
                raise
            return []
        return sorted(name for name in names if name.isprintable())

    def _errors(self, key: str) -> AbstractContextManager[None]:
        return file_errors(str(self._folder / key), setting=self._setting)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
