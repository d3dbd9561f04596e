"""rejected/<UTC day>.ndjson: every line settle could not use, with the reason (docs/formats.md, "Data directory").

Lines are on disk before the ledger says that their blocks have settled. A crash in between leaves lines of blocks that settle
again; they are recognised by their position, which is beyond the settled one, and not written twice.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from thermocline.errors import TierUnavailable
from thermocline.tiers.block import Position
from thermocline.tiers.ledger import ShardState
from thermocline.tiers.warm import Rejected

Place = tuple[int, str, int]


class _Line(msgspec.Struct):
    """The part of a line that says where it came from."""

    shard: int
    position: str
    ordinal: int
    events: int = 1


class RejectedLog:
    """The rejected/ folder of a namespace. One writer: the worker."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def append(self, rejected: Sequence[Rejected], settled: Mapping[int, ShardState], *, now_us: int) -> None:
        """Write and fsync those that are not there yet. TierUnavailable when the disk does not take them.

        settled  shard → state before this settle
        """
        if not rejected:
            return
        day = datetime.fromtimestamp(now_us / 1e6, UTC)
        path = self._folder / f"{day:%Y-%m-%d}.ndjson"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            left = _unsettled(path, settled) | _unsettled(self._folder / f"{day - timedelta(days=1):%Y-%m-%d}.ndjson", settled)
            fresh = [one for one in rejected if (one.shard, one.position, one.ordinal) not in left]
            _append(path, b"".join(msgspec.json.encode(one) + b"\n" for one in fresh))
        except OSError as exc:
            raise TierUnavailable(f"{path}: {exc.strerror}: rejected lines must be kept before their blocks may settle") from exc

    def counted(self, shard: int, after: Position, upto: Position) -> int:
        """Events of one shard rejected in (after, upto], over all days."""
        found: dict[Place, int] = {}
        for path in sorted(self._folder.glob("*.ndjson")):
            for line in _lines(path):
                if line.shard == shard and after < Position.parse(line.position) <= upto:
                    found[line.shard, line.position, line.ordinal] = line.events
        return sum(found.values())


def _append(path: Path, data: bytes) -> None:
    """Add whole lines: a line that a crash cut short gets its end first."""
    with path.open("a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            data = data if file.read(1) == b"\n" else b"\n" + data
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _unsettled(path: Path, settled: Mapping[int, ShardState]) -> set[Place]:
    """Places of lines already there whose blocks have not settled."""
    return {
        (line.shard, line.position, line.ordinal)
        for line in _lines(path)
        if line.shard in settled and Position.parse(line.position) > settled[line.shard].position
    }


def _lines(path: Path) -> list[_Line]:
    """The lines of a file, but for one that a crash cut short."""
    if not path.exists():
        return []
    found = []
    with path.open("rb") as file:
        for line in file:
            try:
                found.append(msgspec.json.decode(line, type=_Line))
            except msgspec.DecodeError:
                continue
    return found
