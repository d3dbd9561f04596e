"""A folder of spool files: what a Producer keeps on disk while Redis is away. One process at a time; bounded; oldest first.

Blocks are appended to the last file; the first one is being sent. A file that is being sent takes no more blocks, and a file all
of whose blocks have their outcome is deleted (spool_file.py says what a crash leaves).
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from thermocline.errors import Backpressure, ConfigError, TierCorrupt, TierUnavailable
from thermocline.tiers.block import Block

from .sending import RETRY_AFTER_S
from .spool_file import FIRST_BLOCK, SUFFIX, SpoolFile, read_contents, sync_folder
from .spool_record import RECORD_BYTES, SPOOL_FORMAT, Header, Round

FILE_BYTES: Final = 16 << 20
"""A file that has reached this takes no more blocks."""
BLOCK_BYTES: Final = 512
"""More than a block takes beyond its payload, names at their longest left out."""
RESERVE_BYTES: Final = 1 << 20
"""Room for the notes of what is sent: a disk that the spool has filled must not keep it from being emptied."""
RESERVE_NAME: Final = "reserve"
LOCK_NAME: Final = "LOCK"
FOLDER_MODE: Final = 0o700


class Waiting(NamedTuple):
    """A file's share of what waits."""

    file: SpoolFile
    events: int


class Spool:
    """Thread-safe: one thread appends, another takes from the front."""

    def __init__(self, folder: Path, *, namespace: str, shards: int, bytes_max: int) -> None:
        """Open `folder`, made if need be, and count what is there.

        TierUnavailable: another process has it, or it cannot be written. ConfigError: it is another namespace's. TierCorrupt:
        another version wrote it.
        """
        self.folder = folder
        self.bytes_max = bytes_max
        self._namespace = namespace
        self._shards = shards
        self._changed = threading.Condition()
        self._lock_fd = _locked(folder)
        self._tail: SpoolFile | None = None
        self._files: list[Waiting] = []
        self._finished: list[SpoolFile] = []
        self._reserved = False
        try:
            self._find()
        except BaseException:
            self.close()
            raise
        self._next = 1 + max((int(path.stem) for path in folder.iterdir() if path.stem.isdecimal()), default=0)

    def _find(self) -> None:
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            contents = read_contents(path, self._shards)
            if contents.namespace not in (None, self._namespace):
                raise ConfigError(
                    f"spool_dir: {self.folder} holds events of namespace {contents.namespace!r}, this Producer's is "
                    f"{self._namespace!r}: give each namespace a folder of its own"
                )
            gone = {number: len(returned.ordinals) for number, returned in contents.returned.items()}
            events = sum(block.lines - gone.get(number, 0) for number, block in contents.blocks.items())
            self._files.append(Waiting(SpoolFile(path), events))

    @property
    def events(self) -> int:
        """Events that wait here."""
        return sum([waiting.events for waiting in self._files])

    @property
    def bytes(self) -> int:
        """Size of the files."""
        return sum([waiting.file.size for waiting in self._files]) + sum([file.size for file in self._finished])

    @property
    def empty(self) -> bool:
        return not self._files

    def append(self, blocks: Sequence[Block], round: Round | None = None) -> None:
        """Keep `blocks`, on disk for good when this returns.

        round  of those that may be stored: index in `blocks` → number; only into an empty spool

        Backpressure: there is no room, in the spool or on the disk; none of them is kept.
        """
        size = sum([len(block.payload) + len(block.conversation_id) + BLOCK_BYTES + RECORD_BYTES for block in blocks])
        with self._changed:
            if self.bytes + size > self.bytes_max:
                raise Backpressure(
                    f"the spool in {self.folder} is full ({self.events:,} events, {self.bytes:,} of {self.bytes_max:,} bytes: "
                    "ingest.spool_bytes_max): bring Redis back, or raise the limit",
                    retry_after_s=RETRY_AFTER_S,
                )
            try:
                self._make_reserve()
                self._write(blocks, round)
            except OSError as exc:
                self._tail = None  # what comes next goes into a new file
                raise Backpressure(
                    f"the spool in {self.folder} cannot be written ({exc.strerror}): free space on its disk, or mend it",
                    retry_after_s=RETRY_AFTER_S,
                ) from exc
            self._changed.notify_all()

    def _write(self, blocks: Sequence[Block], round: Round | None) -> None:
        events = sum([block.lines for block in blocks])
        if self._tail is not None and round is None:
            self._tail.append(blocks)
            self._files[-1] = Waiting(self._tail, self._files[-1].events + events)
        else:
            if round is not None:
                numbers = {FIRST_BLOCK + index: number for index, number in round.numbers.items()}
                round = msgspec.structs.replace(round, numbers=numbers)
            path = self.folder / f"{self._next:016}{SUFFIX}"
            self._next += 1
            self._tail = file = SpoolFile.create(path, Header(SPOOL_FORMAT, self._namespace, round), blocks)
            self._files.append(Waiting(file, events))
        if self._tail.size >= FILE_BYTES:
            self._tail = None

    def _make_reserve(self) -> None:
        if self._reserved:
            return
        path = self.folder / RESERVE_NAME
        try:
            if not path.exists() or path.stat().st_size < RESERVE_BYTES:
                with path.open("wb") as stream:
                    stream.write(os.urandom(RESERVE_BYTES))
                    stream.flush()
                    os.fsync(stream.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise
        self._reserved = True

    def wait(self, condition: Callable[[], object], timeout_s: float | None) -> bool:
        """Wait for a condition that appending, finishing or `notify` can bring about; whether it holds."""
        with self._changed:
            return bool(self._changed.wait_for(condition, timeout_s))

    def notify(self) -> None:
        """Let those who wait look again."""
        with self._changed:
            self._changed.notify_all()

    # What follows is for the one who empties it.

    def head(self) -> SpoolFile | None:
        """The oldest file; it takes no more blocks. None when there is nothing to do."""
        with self._changed:
            if not self._files:
                return None
            file = self._files[0].file
            if file is self._tail:
                self._tail = None
            return file

    def give_reserve(self) -> bool:
        """Free the room kept for notes; False when that was done before. Until it can be kept again nothing is appended."""
        with self._changed:
            path = self.folder / RESERVE_NAME
            there = path.exists()
            path.unlink(missing_ok=True)
            self._reserved = False
            return there

    def done(self, events: int) -> None:
        """So many of the oldest file's events do not wait any more."""
        with self._changed:
            self._files[0] = Waiting(self._files[0].file, max(0, self._files[0].events - events))
            self._changed.notify_all()

    def finish(self, *, damaged: bool, keep: bool) -> None:
        """The oldest file has nothing left to send.

        damaged  set it aside for whoever wants to look
        keep     not yet: `drop_finished` deletes it
        """
        with self._changed:
            file = self._files[0].file
            if damaged:
                file.keep_damaged()
            elif keep:
                self._finished.append(file)
            else:
                file.remove()
            del self._files[0]
            self._changed.notify_all()

    def drop_finished(self) -> None:
        """Delete the files that were only kept for what their callers had not been told yet."""
        with self._changed:
            while self._finished:
                self._finished.pop().remove()

    def close(self) -> None:
        """Let go of the folder; what is there stays. Safe to repeat. In a forked child the parent keeps its lock."""
        for file in [*(waiting.file for waiting in self._files), *self._finished]:
            file.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
        self._lock_fd = -1


def _locked(folder: Path) -> int:
    """A lock on the folder, for as long as the descriptor is open. TierUnavailable: somebody has it."""
    try:
        if not folder.is_dir():
            folder.mkdir(mode=FOLDER_MODE, parents=True)
            sync_folder(folder.parent)
        fd = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise TierUnavailable(f"spool_dir: {folder} cannot be used ({exc.strerror}): make it a folder one may write to") from exc
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as exc:
        owner = os.pread(fd, 32, 0).decode(errors="replace").strip()
        os.close(fd)
        raise TierUnavailable(
            f"spool_dir: {folder} is in use by process {owner or 'unknown'}: give each Producer a folder of its own, "
            "or open this one when the other has ended"
        ) from exc
    except OSError as exc:
        os.close(fd)
        raise TierCorrupt(f"spool_dir: {folder} cannot be locked ({exc.strerror}): it has to be on a local file system") from exc
    return fd
