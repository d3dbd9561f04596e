"""One file of a spool: blocks, fsynced, and then, while it is sent, notes of what was sent and what became of it.

    create      header and the first blocks, one write, fsync, fsync of the folder: a crash leaves all of it or a torn end
    append      more blocks, one write, fsync
    note_round  before blocks are sent: which, under which numbers, fsync. After a crash the last round is in doubt and is sent
                again under the same numbers; no other block can be
    note_done   their outcome. Without fsync: a note that is lost leaves its round in doubt, which is resolved in the same way
    note_returned  lines that will not be sent, with the reason, fsync

Whoever opens a file that another process left reads it whole: `load`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from thermocline.errors import TierCorrupt
from thermocline.tiers.block import Block

from .spool_record import (
    BLOCK,
    DONE,
    FILE_MARK,
    HEADER,
    RETURNED,
    ROUND,
    SPOOL_FORMAT,
    Damage,
    Header,
    Record,
    Returned,
    Round,
    block_of_record,
    block_record,
    decoded,
    scan,
    struct_record,
)

SUFFIX: Final = ".spool"
DAMAGED_SUFFIX: Final = ".damaged"
MODE: Final = 0o600
FIRST_BLOCK: Final = 2
"""Record number of a file's first block."""


class Contents(msgspec.Struct, kw_only=True):
    """What a file says is to be done."""

    namespace: str | None = None
    """None when no header could be read."""
    blocks: dict[int, Block] = {}
    """By record number, in order: those that are not done."""
    originals: dict[int, Block] = {}
    """Those of `returned`, done or not."""
    returned: dict[int, Returned] = {}
    """By record number: the lines of blocks that are not to be sent."""
    round: Round | None = None
    """The last one; `numbers` are of the blocks that are still in doubt."""
    damages: list[Damage] = []
    number: int = 0
    """The highest of a record."""
    end: int = 0

    @property
    def notes_damaged(self) -> bool:
        """A note may be missing: of no block that is left it is known whether it was sent."""
        return self.namespace is None or any(damage.kind not in (BLOCK, HEADER) for damage in self.damages)


class SpoolFile:
    """One file on disk. Not thread-safe. OSError: nothing of the call is in the file."""

    def __init__(self, path: Path) -> None:
        """path  of a file that is there, to note in what becomes of it"""
        self.path = path
        self.size = path.stat().st_size
        self.number = -1
        """Of the last record."""
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    @classmethod
    def create(cls, path: Path, header: Header, blocks: Sequence[Block]) -> SpoolFile:
        """A new file with `blocks`, on disk for good. The record number of the first of them is FIRST_BLOCK."""
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE))
        file = cls(path)
        try:
            said = struct_record(HEADER, 0, header) + struct_record(HEADER, 1, header)  # two: damage may hit one
            file._append(FILE_MARK + said + _records(blocks, FIRST_BLOCK), FIRST_BLOCK + len(blocks))
            sync_folder(path.parent)
        except BaseException:
            file.close()
            path.unlink()
            raise
        return file

    def append(self, blocks: Sequence[Block]) -> None:
        """More blocks, on disk for good."""
        self._append(_records(blocks, self.number + 1), len(blocks))

    def note_round(self, round: Round) -> None:
        self._append(struct_record(ROUND, self.number + 1, round), 1)

    def note_done(self, numbers: Sequence[int]) -> None:
        self._append(struct_record(DONE, self.number + 1, list(numbers)), 1, sync=False)

    def note_returned(self, returned: Returned) -> None:
        self._append(struct_record(RETURNED, self.number + 1, returned), 1)

    def _append(self, data: bytes, records: int, *, sync: bool = True) -> None:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            if sync:
                os.fsync(self._fd)
        except BaseException:
            os.ftruncate(self._fd, self.size)
            raise
        self.size += len(data)
        self.number += records

    def sync(self) -> None:
        os.fsync(self._fd)

    def load(self, shards: int) -> Contents:
        """What is to be done; an end that was never finished is cut off. TierCorrupt when another version wrote it."""
        contents = read_contents(self.path, shards)
        if contents.end < self.size:
            os.ftruncate(self._fd, contents.end)
            os.fsync(self._fd)
            self.size = contents.end
        self.number = max(self.number, contents.number)
        return contents

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def remove(self) -> None:
        """Delete it, for good."""
        self.close()
        self.path.unlink()
        sync_folder(self.path.parent)

    def keep_damaged(self) -> Path:
        """Set it aside under a name that no Producer reads; the name."""
        self.close()
        kept = self.path.with_suffix(DAMAGED_SUFFIX)
        self.path.rename(kept)
        sync_folder(self.path.parent)
        return kept


def _records(blocks: Sequence[Block], first: int) -> bytes:
    return b"".join([block_record(block, number) for number, block in enumerate(blocks, first)])


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_contents(path: Path, shards: int) -> Contents:
    """What a file says, with whatever is wrong with it. TierCorrupt when another version wrote it."""
    return contents_of(path.read_bytes(), shards, path)


def contents_of(data: bytes, shards: int, path: Path) -> Contents:
    """`read_contents` of a file with these bytes."""
    found = scan(data)
    contents = Contents(end=found.end, damages=_with_kinds(found.damages, found.records))
    doubt: dict[int, int] = {}
    done: set[int] = set()
    for item in _in_order(found.records):
        contents.number = max(contents.number, item.number)
        match item.kind:
            case _ if item.kind == HEADER:
                header = decoded(item, Header)
                if header.format != SPOOL_FORMAT:
                    raise TierCorrupt(
                        f"{path} has spool format {header.format!r}, this version knows {SPOOL_FORMAT!r}: "
                        "drain it with the version that wrote it, or a newer one"
                    )
                contents.namespace, contents.round = header.namespace, header.round
                doubt = dict(header.round.numbers) if header.round else {}
            case _ if item.kind == BLOCK:
                contents.blocks[item.number] = block_of_record(item, shards)
            case _ if item.kind == ROUND:
                contents.round = decoded(item, Round)
                doubt = dict(contents.round.numbers)
            case _ if item.kind == DONE:
                done.update(decoded(item, list[int]))
            case _ if item.kind == RETURNED:
                _take_back(contents, doubt, decoded(item, Returned))
            case _:
                raise TierCorrupt(f"{path}: a record of kind {chr(item.kind)!r} at byte {item.offset}: another version wrote it")
    contents.returned = {number: item for number, item in contents.returned.items() if number in contents.blocks}
    contents.originals = {number: contents.blocks[number] for number in contents.returned}
    contents.blocks = {number: block for number, block in contents.blocks.items() if number not in done}
    if contents.round is not None:
        numbers = {number: doubt[number] for number in contents.blocks if number in doubt}
        contents.round = msgspec.structs.replace(contents.round, numbers=numbers) if numbers else None
    return contents


def _take_back(contents: Contents, doubt: dict[int, int], returned: Returned) -> None:
    """Of a block that was returned before, in part, the ordinals add up."""
    before = contents.returned.get(returned.number)
    if before is not None:
        returned = msgspec.structs.replace(returned, ordinals=sorted({*before.ordinals, *returned.ordinals}))
    contents.returned[returned.number] = returned
    doubt.pop(returned.number, None)


def _in_order(records: Sequence[Record]) -> Iterator[Record]:
    """Those whose numbers ascend, which is all that one writer wrote."""
    last = -1
    for item in records:
        if item.number > last:
            last = item.number
            yield item


def _with_kinds(damages: Sequence[Damage], records: Sequence[Record]) -> list[Damage]:
    """Also of what the damaged record itself does not tell: blocks come before notes, so before a block there was a block."""
    blocks_upto = max((item.offset for item in records if item.kind == BLOCK), default=-1)
    notes_from = min((item.offset for item in records if item.kind in (ROUND, DONE, RETURNED)), default=1 << 62)
    kinds = []
    for damage in damages:
        among_blocks = damage.offset < blocks_upto and damage.offset < notes_from
        kinds.append(damage.kind or (HEADER if damage.offset < len(FILE_MARK) else BLOCK if among_blocks else 0))
    return [damage._replace(kind=kind) for damage, kind in zip(damages, kinds, strict=True)]
