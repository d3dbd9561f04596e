"""Iceberg's files through the cold store: every request of pyiceberg has our timeouts, our deadline and our errors.

pyiceberg makes its FileIO by class name, out of properties that are text. So the store is handed over by a ticket: `Handed`
keeps it for as long as the catalog lives, and its `properties` name this class and the ticket.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import count
from types import TracebackType
from typing import Any
from weakref import WeakValueDictionary

from pyiceberg.io import FileIO, InputFile, OutputFile

from thermocline.errors import ConfigError, TierCorrupt, TierUnavailable

from .avro_frame import is_whole
from .cold import Cold

TICKET = "thermocline.cold"
METADATA_END = ".metadata.json"
WHOLE_BYTES_MAX = 1 << 20
"""A data file of that size is read in one go: of a part nobody can tell whether it came as it was stored."""


class Handed:
    """A store that file IOs of this process can be made for, while this object lives."""

    def __init__(self, cold: Cold) -> None:
        self.cold = cold
        ticket = str(next(_TICKETS))
        _HANDED[ticket] = self
        self.properties = {"py-io-impl": f"{ColdFileIO.__module__}.{ColdFileIO.__qualname__}", TICKET: ticket}


class ColdFileIO(FileIO):
    """Errors are those of the store, and pass through pyiceberg as they are."""

    def __init__(self, properties: Mapping[str, Any]) -> None:
        super().__init__(dict(properties))
        self._cold = _HANDED[properties[TICKET]].cold

    def new_input(self, location: str) -> ColdInput:
        return ColdInput(self._cold, location)

    def new_output(self, location: str) -> ColdOutput:
        return ColdOutput(self._cold, location)

    def delete(self, location: str | InputFile | OutputFile) -> None:
        """Remove an old version of the metadata; leave everything else to the janitor.

        pyiceberg removes the manifests of a commit that it takes for failed. Whether it failed is only known for certain
        later, so they stay until nothing refers to them and the grace is over. An old version that cannot be removed now is
        an OSError, which pyiceberg notes and survives: the janitor finds that file too.
        """
        url = location if isinstance(location, str) else location.location
        if not url.endswith(METADATA_END):
            return
        try:
            self._cold.delete([self._cold.key_of(url)])
        except (TierUnavailable, ConfigError) as error:
            raise OSError(str(error)) from error


class ColdInput(InputFile):
    """TierCorrupt when there is no such object, or it is a manifest that is not whole."""

    def __init__(self, cold: Cold, location: str) -> None:
        super().__init__(location)
        self._cold = cold
        self._key = cold.key_of(location)

    def __len__(self) -> int:
        size = self._cold.size(self._key)
        if size is None:
            raise FileNotFoundError(f"{self.location} is not there")
        return size

    def exists(self) -> bool:
        return self._cold.size(self._key) is not None

    def open(self, seekable: bool = True) -> io.BytesIO | ColdStream:
        if not self._key.endswith(".avro"):
            is_small = self._key.endswith(".parquet") and (self._cold.size(self._key) or 0) <= WHOLE_BYTES_MAX
            return io.BytesIO(self._cold.get(self._key)) if is_small else ColdStream(self._cold, self._key)
        content = self._cold.get(self._key)
        if not is_whole(content):
            raise TierCorrupt(
                f"{self.location} is damaged or cut short ({len(content)} bytes): restore it, or roll the table back"
            )
        return io.BytesIO(content)


class ColdStream(io.RawIOBase):
    """An object as a seekable stream. A read of all that is left is one request, and so is every other read: nothing is kept."""

    def __init__(self, cold: Cold, key: str) -> None:
        self._cold = cold
        self._key = key
        self._place = 0
        self._size: int | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place}.get(whence)
        self._place = (self._end() if base is None else base) + offset
        return self._place

    def readall(self) -> bytes:
        if self._size is not None and self._place >= self._size:
            return b""
        content = self._cold.get(self._key, offset=self._place)
        self._place += len(content)
        self._size = self._place
        return content

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._end() - self._place)
        if wanted <= 0:
            return 0
        content = self._cold.get(self._key, offset=self._place, length=wanted)
        view[: len(content)] = content
        self._place += len(content)
        return len(content)

    def _end(self) -> int:
        if self._size is None:
            self._size = self._cold.size(self._key) or 0
        return self._size


class ColdOutput(OutputFile):
    """Written once, under the unique name that pyiceberg drew."""

    def __init__(self, cold: Cold, location: str) -> None:
        super().__init__(location)
        self._cold = cold
        self._key = cold.key_of(location)
        self._written: int | None = None

    def __len__(self) -> int:
        return len(self.to_input_file()) if self._written is None else self._written

    def exists(self) -> bool:
        return self._cold.size(self._key) is not None

    def to_input_file(self) -> ColdInput:
        return ColdInput(self._cold, self.location)

    def create(self, overwrite: bool = False) -> Upload:
        return Upload(self)

    def store(self, content: bytes) -> None:
        self._cold.put(self._key, content)
        self._written = len(content)


class Upload(io.BytesIO):
    """Becomes the object when it is closed, unless the block it was opened for raised."""

    def __init__(self, output: ColdOutput) -> None:
        super().__init__()
        self._output = output

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            self._output.store(content)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            super().close()
        self.close()

    def __del__(self) -> None:
        super().close()  # never by the garbage collector: half a file must not become an object


_TICKETS = count(1)
_HANDED: WeakValueDictionary[str, Handed] = WeakValueDictionary()

__all__ = ["METADATA_END", "ColdFileIO", "Handed"]
