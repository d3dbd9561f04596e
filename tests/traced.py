"""What a process changes below a folder, as a list of changes: the process runs under strace, whose record is read here.

    changes = read_trace(run_traced([sys.executable, "-m", "tests.traced_worker", …], record), root, marks)

Everything that can change a file is traced; what is met and not understood here is an error, never left out. Order is that of
the ends of the calls; an fsync covers what had ended when it began. Files whose name ends in `-shm` are left out: SQLite maps
them into memory, and makes them anew when nobody else has them open.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.crash_disk import Allocate, Change, Link, MakeFolder, Mark, Open, Rename, Resize, Sync, Unlink, Write

MISSING = "strace is not installed, and these tests read with it what a worker writes: apt-get install strace (Linux only)"
_OPENED = ("open", "openat", "openat2", "creat")
_CALLS = (
    *_OPENED,
    *("close", "dup", "dup2", "dup3", "lseek", "write", "writev", "pwrite64", "pwritev", "pwritev2", "ftruncate", "truncate"),
    *("fallocate", "fsync", "fdatasync", "sync", "syncfs", "sync_file_range", "msync", "mmap", "sendfile", "copy_file_range"),
    *("splice", "rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "symlink", "symlinkat", "mkdir"),
    *("mkdirat", "rmdir", "clone", "clone3", "fork", "vfork", "io_uring_setup"),
)
_WHOLE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+|\?)(?:<([^>]*)>)?(?:\(deleted\))?(?: .*)?\n?", re.DOTALL)
_BEGUN = re.compile(r"(\d+) +(\w+)\((.*?) ?<unfinished \.\.\.>\n?", re.DOTALL)
_RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)", re.DOTALL)
_DESCRIPTOR = re.compile(r"(-?\d+|AT_FDCWD)(?:<([^>]*)>)?(?:\(deleted\))?")
_TEXT = re.compile(r'"([^"]*)"(\.\.\.)?')
_VECTOR = re.compile(r'iov_base="([^"]*)"(\.\.\.)?')


class Unreadable(Exception):
    """The record has something that is not understood."""


class Call(NamedTuple):
    """A system call that succeeded."""

    pid: int
    name: str
    args: Sequence[str]
    answer: int
    path: str
    """What the answer is a descriptor of."""
    begun: int
    """How many calls had ended when it began."""


def run_traced(command: Sequence[str], record: Path, *, timeout_s: float = 3600, **how: Any) -> Path:
    """Run the command to its end under strace; where the record is. FileNotFoundError without strace, RuntimeError with what it
    said when the command fails."""
    strace = shutil.which("strace")
    if strace is None:
        raise FileNotFoundError(MISSING)
    options = ["-f", "--seccomp-bpf", "-y", "-xx", "-s", "100000000", "-e", "signal=none", "-e", f"trace={','.join(_known())}"]
    done = subprocess.run([strace, *options, "-o", str(record), *command], capture_output=True, timeout=timeout_s, **how)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-2000:]}")
    return record


def _known() -> Iterator[str]:
    """The calls; a question mark lets strace skip those that a processor does not have."""
    return (f"?{name}" for name in _CALLS)


def read_trace(record: Path, root: Path, marks: Path) -> list[Change]:
    """The changes below `root`, and what was written to the file `marks`, line by line, as Mark. Unreadable names the line."""
    reader = _Reader(f"{root}", f"{marks}")
    for call in _calls(record):
        try:
            reader.take(call)
        except (KeyError, ValueError, AssertionError, AttributeError) as exc:
            raise Unreadable(f"{call.name}({', '.join(arg[:120] for arg in call.args)}) = {call.answer}: {exc!r}") from exc
    return reader.changes


def _calls(record: Path) -> Iterator[Call]:
    """The calls that succeeded, in the order of their ends."""
    begun: dict[str, tuple[str, str, int]] = {}
    ended = 0
    with record.open(encoding="ascii") as file:
        for line in file:
            text, since = line, ended
            if match := _BEGUN.fullmatch(line):
                begun[match[1]] = (match[2], match[3], ended)
                if match[2] != "close":
                    continue
                text = f"{match[1]} close({match[3]}) = 0"  # its number is free from here on, and may be given anew
            elif match := _RESUMED.fullmatch(line):
                name, first, since = begun.pop(match[1])
                if name == "close":
                    continue
                text = f"{match[1]} {name}({first}{match[3]}"
            if match := _WHOLE.fullmatch(text):
                if match[4] != "?" and not match[4].startswith("-"):
                    ended += 1
                    yield Call(int(match[1]), match[2], match[3].split(", "), int(match[4], 0), _decoded(match[5] or ""), since)
            elif "+++" not in line and "---" not in line:
                raise Unreadable(line[:300])


class _Descriptor:
    """An open file: its handle and where the next write goes, None at the end."""

    def __init__(self, handle: int, *, at: int | None) -> None:
        self.handle = handle
        self.at = at


class _Reader:
    """Turns calls into changes. One process, of any number of threads, may change what is below the root."""

    def __init__(self, root: str, marks: str) -> None:
        self.changes: list[Change] = []
        self._root = root
        self._marks = marks
        self._open: dict[int, _Descriptor] = {}
        self._ended: list[int] = []
        self._handles = 0
        self._process = 0
        self._others: set[int] = set()

    def take(self, call: Call) -> None:
        self._process = self._process or call.pid
        name = call.name
        if name in ("fork", "vfork") or (name in ("clone", "clone3") and "CLONE_THREAD" not in "".join(call.args)):
            self._others.add(call.answer)
        if call.pid in self._others:
            self._refuse_changes(call)
        else:
            self._take(call)
        self._ended.append(len(self.changes))

    def _refuse_changes(self, call: Call) -> None:
        paths = [self._below(_decoded(found)) for arg in call.args for found in re.findall(r'["<]([^">]*)[">]', arg)]
        writing = call.name not in (*_OPENED, "close", "mmap", "lseek", "dup", "dup2", "dup3") or "O_RD" not in "".join(call.args)
        assert call.name == "close" or not writing or not any(path is not None for path in paths), "another process writes there"

    def _take(self, call: Call) -> None:
        match call.name:
            case "open" | "openat" | "openat2" | "creat":
                self._opened(call)
            case "close":
                self._open.pop(_number(call.args[0]), None)
            case "dup" | "dup2" | "dup3":
                found = self._open.get(_number(call.args[0]))
                self._open.pop(call.answer, None)
                if found is not None:
                    self._open[call.answer] = found
            case "lseek":
                found = self._open.get(_number(call.args[0]))
                if found is not None and found.at is not None:
                    found.at = call.answer
            case "write" | "writev":
                self._written(call)
            case "pwrite64" | "pwritev" | "pwritev2":
                if (found := self._descriptor(call)) is not None:
                    offset = int(call.args[-2] if call.name == "pwritev2" else call.args[-1])
                    self.changes.append(Write(found.handle, offset, _data(call)))
            case "ftruncate":
                if (found := self._descriptor(call)) is not None:
                    self.changes.append(Resize(found.handle, int(call.args[1])))
            case "fallocate":
                if (found := self._descriptor(call)) is not None:
                    assert call.args[1] == "0", "only what lengthens a file"
                    self.changes.append(Allocate(found.handle, int(call.args[2]) + int(call.args[3])))
            case "fsync" | "fdatasync":
                if (found := self._descriptor(call)) is not None:
                    since = self._ended[call.begun - 1] if call.begun else 0
                    self.changes.append(Sync(found.handle, since))
            case "mmap":
                shared = "MAP_SHARED" in call.args[3] and "PROT_WRITE" in call.args[2]
                assert not shared or self._descriptor_path(call.args[4]) is None, "it writes to a file through memory"
            case "sendfile" | "copy_file_range" | "splice" | "sync_file_range":
                assert all(self._descriptor_path(arg) is None for arg in call.args if _DESCRIPTOR.fullmatch(arg)), "unexpected"
            case "sync" | "syncfs" | "msync" | "io_uring_setup":
                raise AssertionError("unexpected")
            case _:
                self._named(call)

    def _named(self, call: Call) -> None:
        """Changes of names."""
        paths = [self._below(path) for path in _paths(call)]
        if all(path is None for path in paths):
            return
        assert None not in paths, "one end is not below the root"
        texts = [path for path in paths if path is not None]
        match call.name:
            case "rename" | "renameat" | "renameat2":
                assert call.name != "renameat2" or call.args[-1] == "0", "only a plain rename"
                self.changes.append(Rename(*texts))
            case "link" | "linkat":
                self.changes.append(Link(*texts))
            case "unlink" | "unlinkat" | "rmdir":
                self.changes.append(Unlink(*texts))
            case "mkdir" | "mkdirat":
                self.changes.append(MakeFolder(*texts))
            case _:
                raise AssertionError("unexpected")

    def _opened(self, call: Call) -> None:
        self._open.pop(call.answer, None)
        if call.path == self._marks:
            self._open[call.answer] = _Descriptor(0, at=0)
            return
        path = self._below(call.path)
        if path is None:
            return
        flags = "O_CREAT|O_TRUNC|O_WRONLY" if call.name == "creat" else next(arg for arg in call.args if "O_" in arg)
        assert not {"O_TMPFILE", "O_SYNC", "O_DSYNC", "O_DIRECT"} & set(flags.split("|")), flags
        self._handles += 1
        truncate = "O_TRUNC" in flags
        self.changes.append(Open(self._handles, path, truncate))
        self._open[call.answer] = _Descriptor(self._handles, at=None if "O_APPEND" in flags else 0)

    def _written(self, call: Call) -> None:
        found = self._descriptor(call)
        if found is None:
            return
        data = _data(call)
        if found.handle == 0:
            self.changes += [Mark(line) for line in data.decode().splitlines()]
            return
        self.changes.append(Write(found.handle, found.at, data))
        if found.at is not None:
            found.at += len(data)

    def _descriptor(self, call: Call) -> _Descriptor | None:
        """What the first argument is open as; None when that is not below the root."""
        found = self._open.get(_number(call.args[0]))
        assert found is not None or self._descriptor_path(call.args[0]) is None, "its opening was not seen"
        return found

    def _descriptor_path(self, arg: str) -> str | None:
        match = _DESCRIPTOR.fullmatch(arg)
        return self._below(_decoded(match[2] or "")) if match else None

    def _below(self, path: str) -> str | None:
        """The path from the root; None when it is elsewhere, or left out."""
        if path == self._root:
            return ""
        below = path.startswith(f"{self._root}/") and not path.endswith("-shm")
        return path[len(self._root) + 1 :] if below else None


def _paths(call: Call) -> list[str]:
    """The absolute paths a call names."""
    found: list[str] = []
    base = ""
    for arg in call.args:
        if (match := _DESCRIPTOR.fullmatch(arg)) and match[2]:
            base = _decoded(match[2])
        elif match := _TEXT.fullmatch(arg):
            path = _decoded(match[1])
            found.append(path if path.startswith("/") else f"{base}/{path}")
    return found


def _number(arg: str) -> int:
    match = _DESCRIPTOR.fullmatch(arg)
    assert match is not None, arg
    return int(match[1])


def _data(call: Call) -> bytes:
    """What was written, as far as it was."""
    found = _VECTOR.findall(", ".join(call.args)) if "writev" in call.name else _TEXT.findall(call.args[1])
    assert not any(cut for _, cut in found), "the record has it in part only"
    return b"".join(_bytes(text) for text, _ in found)[: call.answer]


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _decoded(text: str) -> str:
    return _bytes(text).decode() if text.startswith("\\x") else text


__all__ = ["MISSING", "Unreadable", "read_trace", "run_traced"]
