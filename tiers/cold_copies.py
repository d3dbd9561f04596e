"""Where cold files are read from: the folder they are in, a local copy, or the bucket itself.

Statistics never wait for S3: rollup files are copied on a miss and kept while there is room. Copies of event files are only
made when asked for (`thermocline rehydrate`) and are kept until their time is over. Objects never change, so a copy is as good
as the object.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Final

from .cold import Cold
from .steps import Reach, named, unheard
from .whole_file import UNFINISHED, file_errors, whole_file

SCHEME: Final = "cold"
"""Of the paths that DuckDB hands to `cold_reading.ColdFiles`."""
PINS: Final = "kept-until.json"
"""In the folder: until when copies are kept."""


class ColdCopies:
    """Copies of one namespace's cold objects in `folder`. Thread-safe; several processes may share the folder."""

    def __init__(self, cold: Cold, folder: Path, *, bytes_max: int) -> None:
        self._cold = cold
        self._folder = folder.absolute()
        self._bytes_max = bytes_max
        self._lock = threading.Lock()

    def place(self, key: str) -> str:
        """What DuckDB reads the object by: a path when there is one, else `cold://<key>`."""
        if self._cold.is_local:
            return str(self._cold.path(key))
        copy = self._folder / key
        return str(copy) if copy.exists() else f"{SCHEME}://{key}"

    def ensure(self, keys: Iterable[str], *, reach: Reach = unheard) -> None:
        """Copy what is not there yet. Then all of them are there, whatever room that takes. Errors are those of `Cold.fetch`."""
        if self._cold.is_local:
            return
        wanted = list(keys)
        missing = [key for key in wanted if not (self._folder / key).exists()]
        with self._lock:
            for key in missing:
                with named(reach, "copy file"):
                    self._fetch(key)
        if missing:
            self._make_room(set(wanted))

    def take(self, key: str, path: Path) -> None:
        """Make a local file the copy of an object; the file is gone afterwards."""
        if self._cold.is_local:
            path.unlink()
            return
        target = self._folder / key
        with self._errors():
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)

    def keep(self, keys: Iterable[str], *, until_us: int, reach: Reach = unheard) -> int:
        """Copy objects and keep the copies until then, µs since the epoch; the bytes they take."""
        wanted = list(keys)
        self.ensure(wanted, reach=reach)
        if self._cold.is_local:
            return sum(self._cold.path(key).stat().st_size for key in wanted)
        kept = self.kept()
        kept.update({key: max(until_us, kept.get(key, 0)) for key in wanted})
        with named(reach, "note copies"):
            self._write_pins(kept)
        return sum((self._folder / key).stat().st_size for key in wanted)

    def kept(self) -> dict[str, int]:
        """key → until when its copy is kept, µs."""
        try:
            found = json.loads((self._folder / PINS).read_text())
        except (OSError, ValueError):
            return {}
        return {str(key): int(until) for key, until in found.items()}

    def let_go(self, *, now_us: int, live: Iterable[str], unfinished_before_us: int = 0) -> int:
        """Remove copies whose time is over, and those of objects that are not `live` any more; how many.

        unfinished_before_us  what was begun before it and never finished is removed too: whoever made it has died
        """
        if self._cold.is_local or not self._folder.is_dir():
            return 0
        with self._errors():
            self._remove_unfinished(unfinished_before_us)
            return self._let_go(now_us, live)

    def _remove_unfinished(self, before_us: int) -> None:
        for path in self._folder.rglob(f"*{UNFINISHED}"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime_ns // 1000 < before_us:
                    path.unlink()

    def _let_go(self, now_us: int, live: Iterable[str]) -> int:
        kept = self.kept()
        over = {key for key, until in kept.items() if until <= now_us}
        gone = {path.relative_to(self._folder).as_posix() for path in self._copies()} - set(live)
        for key in over | gone:
            (self._folder / key).unlink(missing_ok=True)
        if over:
            self._write_pins({key: until for key, until in kept.items() if key not in over})
        return len(over | gone)

    def _fetch(self, key: str) -> None:
        target = self._folder / key
        if not target.exists():
            with self._errors():
                target.parent.mkdir(parents=True, exist_ok=True)
            self._cold.fetch(key, target)

    def _make_room(self, needed: set[str]) -> None:
        """Remove the copies read longest ago until the rest fits; never one that is needed now or kept on purpose."""
        spared = needed | self.kept().keys()
        found = []
        for path in self._copies():
            with suppress(FileNotFoundError):
                facts = path.stat()
                found.append((max(facts.st_atime, facts.st_mtime), facts.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._bytes_max:
                return
            if path.relative_to(self._folder).as_posix() not in spared:
                path.unlink(missing_ok=True)
                total -= size

    def _copies(self) -> list[Path]:
        return list(self._folder.rglob("*.parquet")) if self._folder.is_dir() else []

    def _write_pins(self, kept: dict[str, int]) -> None:
        with self._errors(), whole_file(self._folder / PINS) as file:
            file.write(json.dumps(kept, indent=1, sort_keys=True).encode())

    def _errors(self) -> AbstractContextManager[None]:
        return file_errors(str(self._folder), setting="data_dir")
