"""Decide which cold files become one. Pure: no clock, no disk, no logging.

A file is rewritten only together with so many others that it ends in one several times its size, so a byte is rewritten a number
of times that grows with the logarithm of what there is, not with the number of batches. With the defaults (8 files, 32 MiB) that
is every 7 arrivals while its file has less than 64 KiB, then once each time the file grows fourfold, 5 times at most from there.
Rollups may shrink when they are added up; a file that did not grow waits for as many others as before.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from thermocline.tiers.block import Position
from thermocline.tiers.cold_schema import KINDS
from thermocline.tiers.ledger import ColdFile

TINY_BYTES: Final = 64 << 10
"""Up to this size all files are alike: a request for one costs more than its bytes."""
FILES_MAX: Final = 1000
"""In one group, and in one batch."""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Files of one kind that become one; more only if they do not fit in one."""

    kind: str
    day: str
    """The earliest day among them; of event files the day of all."""
    files: tuple[ColdFile, ...]

    @property
    def file_bytes(self) -> int:
        return sum(file.file_bytes for file in self.files)

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


def due_groups(
    files: Sequence[ColdFile],
    *,
    files_min: int,
    small_bytes_max: int,
    file_bytes_max: int,
    rows_max: int,
    batch_bytes_max: int,
    taken: Collection[str] = (),
) -> list[Group]:
    """What the next batch rewrites: rollups first, as every statistic reads all of them, then days, the oldest first; [] when
    nothing is due.

    files_min        small files of one day, or of one kind of rollup, that make it due
    small_bytes_max  a file of this size or more is left alone; so is one of half of file_bytes_max
    file_bytes_max   of what a group becomes, about
    rows_max         of all groups, about: settling waits for a batch. A file with half of them is left alone
    batch_bytes_max  of all groups, about: at least one group, whatever its size
    taken            ids of files that must not be used
    """
    small_bytes = min(small_bytes_max, file_bytes_max // 2)
    found: dict[tuple[int, str], list[ColdFile]] = {}
    for file in files:
        if file.file_bytes < small_bytes and file.rows < max(2, rows_max // 2) and file.file_id not in taken:
            place = KINDS.index(file.kind) or len(KINDS)  # events come last
            found.setdefault((place, file.day if file.kind == "events" else ""), []).append(file)
    groups: list[Group] = []
    bytes_left, rows_left, files_left = batch_bytes_max, rows_max, FILES_MAX
    for _, small in sorted(found.items(), key=lambda item: item[0]):
        chosen = _worth_it(small, files_min=files_min, bytes_max=file_bytes_max, rows_max=rows_max)
        if not chosen:
            continue
        group = Group(kind=chosen[0].kind, day=min(file.day for file in chosen), files=tuple(chosen))
        bytes_left, rows_left = bytes_left - group.file_bytes, rows_left - group.rows
        files_left -= len(chosen)
        if groups and min(bytes_left, rows_left, files_left) < 0:
            break
        groups.append(group)
    return groups


def _worth_it(small: Sequence[ColdFile], *, files_min: int, bytes_max: int, rows_max: int) -> list[ColdFile]:
    """The most of these files that may become one, by id; [] when it is not yet worth it.

    They are the smallest ones, and at least `files_min`, unless fewer fill a file: as none has half of what fills one, what
    they become is then no longer small.
    """
    by_size = sorted(small, key=lambda file: (file.file_bytes, file.file_id))
    growth = max(1.5, files_min / 2)
    total = sum(file.file_bytes for file in by_size)
    while len(by_size) >= files_min and by_size[-1].file_bytes > max(TINY_BYTES, total / growth):
        total -= by_size.pop().file_bytes
    if len(by_size) < files_min:
        return []
    chosen: list[ColdFile] = []
    size = rows = 0
    for file in by_size[:FILES_MAX]:
        size, rows = size + file.file_bytes, rows + file.rows
        if len(chosen) >= 2 and (size > bytes_max or rows > rows_max):
            break
        chosen.append(file)
    return sorted(chosen, key=lambda file: file.file_id)


def hull(ranges: Sequence[str]) -> str:
    """The text of `thermocline.ranges` of a file made of files with these: by shard, from the first position to the last."""
    first: dict[int, Position] = {}
    last: dict[int, Position] = {}
    for text in ranges:
        for shard, after, upto in msgspec.json.decode(text, type=list[tuple[int, str, str]]):
            first[shard] = min(first.get(shard, Position.parse(after)), Position.parse(after))
            last[shard] = max(last.get(shard, Position.parse(upto)), Position.parse(upto))
    return msgspec.json.encode([(shard, str(first[shard]), str(last[shard])) for shard in sorted(first)]).decode()
