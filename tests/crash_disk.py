"""What a disk may hold after a crash. Pure: what a process changed below one folder in, trees of files out.

    disk = Disk()
    disk.apply(Open(handle=1, path="a"))
    disk.apply(Write(handle=1, offset=0, data=b"hello"))
    disk.tree()                                   # {"a": b"hello"}: the process died, the kernel lives
    disk.after_power_loss(Loss.CUT, Random(0))    # {}: neither the name nor the bytes were synced

The model is what POSIX promises, and no file system does worse: bytes and the length of a file are safe after an fsync of the
file, names after one of their folder; an fsync covers what was finished before it began. Until then every write, whole or in
part, and every change of names may be there or not, whatever came before it or after. A rename is there as one or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from random import Random
from typing import NamedTuple

SECTORS = (512, 4096)
Tree = dict[str, bytes | None]
"""Path → the bytes of a file, None of a folder."""


class Open(NamedTuple):
    """A file is opened under a handle, and made when it is not there; or a folder is."""

    handle: int
    path: str
    truncate: bool = False


class Write(NamedTuple):
    handle: int
    offset: int | None
    """None: at the end."""
    data: bytes


class Resize(NamedTuple):
    handle: int
    size: int


class Allocate(NamedTuple):
    """The file has zeros up to there, if it was shorter."""

    handle: int
    upto: int


class Sync(NamedTuple):
    """fsync of a file or a folder."""

    handle: int
    since: int
    """How many changes were finished when it began."""


class Rename(NamedTuple):
    source: str
    target: str


class Link(NamedTuple):
    source: str
    target: str


class Unlink(NamedTuple):
    path: str


class MakeFolder(NamedTuple):
    path: str


class Mark(NamedTuple):
    """Nothing of the disk: something else happened here."""

    text: str


Change = Open | Write | Resize | Allocate | Sync | Rename | Link | Unlink | MakeFolder | Mark


class Loss(StrEnum):
    """What a loss of power does to what was not synced."""

    CUT = "cut"
    """All of it is gone."""
    ORDERED = "ordered"
    """Names are as they were at one moment; so is each file, at one of its own, its last write there in part."""
    REORDERED = "reordered"
    """Of names any are there; of a file any writes, some in part."""
    ZEROS = "zeros"
    """All names and lengths came, of some files or writes the bytes did not."""


class _Piece(NamedTuple):
    """Bytes at a place of a file; none when it is the length that changes."""

    at: int
    """The number of the change."""
    offset: int
    data: bytes | None


class _File:
    def __init__(self) -> None:
        self.live = bytearray()
        self.kept = bytearray()
        self.pending: list[_Piece] = []

    def change(self, piece: _Piece) -> None:
        _put(self.live, piece)
        self.pending.append(piece)

    def sync(self, since: int) -> bool:
        done = [piece for piece in self.pending if piece.at < since]
        for piece in done:
            _put(self.kept, piece)
        self.pending = self.pending[len(done) :]
        return bool(done)


class _Folder:
    def __init__(self) -> None:
        self.live: dict[str, _Node] = {}
        self.kept: dict[str, _Node] = {}


_Node = _File | _Folder
_Place = tuple[_Folder, str]


class _Naming(NamedTuple):
    """Names that change together."""

    at: int
    places: dict[tuple[int, str], tuple[_Folder, _Node | None]]
    """(id of the folder, name) → (the folder, what has that name then)."""


class Disk:
    """One folder and all below it, empty at first; later changes of what is there, and how much of it is on disk."""

    def __init__(self) -> None:
        self.changes = 0
        self._root = _Folder()
        self._handles: dict[int, _Node] = {}
        self._namings: list[_Naming] = []
        self._last: _File | None = None
        """What the last change wrote to."""

    def apply(self, change: Change) -> bool:
        """Let it happen; whether anything is different then, of what is there or of what is safe. KeyError when it is about
        something that is not there."""
        self._last = None
        different = self._apply(change)
        self.changes += 1
        return different

    def _apply(self, change: Change) -> bool:
        match change:
            case Open(handle, path, truncate):
                return self._opened(handle, path, truncate=truncate)
            case Write(handle, offset, data):
                file = self._file(handle)
                return self._put(file, len(file.live) if offset is None else offset, data)
            case Resize(handle, size):
                return self._put(self._file(handle), size, None)
            case Allocate(handle, upto):
                file = self._file(handle)
                return upto > len(file.live) and self._put(file, upto, None)
            case Sync(handle, since):
                return self._sync(self._handles[handle], since)
            case Rename(source, target):
                self._name((self._place(source), None), (self._place(target), self._node(source)))
            case Link(source, target):
                self._name((self._place(target), self._node(source)))
            case Unlink(path):
                self._name((self._place(path), None))
            case MakeFolder(path):
                self._name((self._place(path), _Folder()))
            case Mark():
                return False
        return True

    def tree(self) -> Tree:
        """What is there for every process, and after the death of all of them."""
        return _walk(self._root, lambda folder: folder.live, lambda file: bytes(file.live))

    def within(self, change: Change, dice: Random) -> Tree:
        """What is there when the process dies within `change`, the next one: of a write, some whole pages from its start."""
        tree = self.tree()
        if isinstance(change, Write):
            file = self._file(change.handle)
            offset = len(file.live) if change.offset is None else change.offset
            ends = range(-(offset + 1) % 4096 + 1, len(change.data), 4096)
            found = bytearray(file.live)
            if ends:
                _put(found, _Piece(0, offset, change.data[: dice.choice(ends)]))
            path = next((path for path, node in _paths(self._root) if node is file), None)
            if path is not None:
                tree[path] = bytes(found)
        return tree

    def after_power_loss(self, loss: Loss, dice: Random) -> Tree:
        """What may be there after the power came back."""
        chosen = self._chosen(loss, dice)
        names: dict[int, tuple[_Folder, dict[str, _Node]]] = {}
        for naming in chosen:
            for (key, name), (folder, node) in naming.places.items():
                found = names.setdefault(key, (folder, dict(folder.kept)))[1]
                if node is None:
                    found.pop(name, None)
                else:
                    found[name] = node
        contents: dict[int, bytes] = {}

        def content(file: _File) -> bytes:
            if id(file) not in contents:  # a file with two names has one content
                contents[id(file)] = _survived(file, loss, dice, is_last=file is self._last)
            return contents[id(file)]

        return _walk(self._root, lambda folder: names[id(folder)][1] if id(folder) in names else folder.kept, content)

    def _chosen(self, loss: Loss, dice: Random) -> list[_Naming]:
        if loss is Loss.CUT:
            return []
        if loss is Loss.ORDERED:
            return self._namings[: dice.randint(0, len(self._namings))]
        if loss is Loss.REORDERED:
            return [naming for naming in self._namings if dice.random() < 0.5]
        return self._namings

    def _opened(self, handle: int, path: str, *, truncate: bool) -> bool:
        if path == "":
            self._handles[handle] = self._root
            return False
        folder, name = self._place(path)
        node = folder.live.get(name)
        self._handles[handle] = node or _File()
        if node is None:
            self._name(((folder, name), self._handles[handle]))
            return True
        return truncate and isinstance(node, _File) and bool(node.live) and self._put(node, 0, None)

    def _put(self, file: _File, offset: int, data: bytes | None) -> bool:
        file.change(_Piece(self.changes, offset, data))
        self._last = file
        return True

    def _sync(self, node: _Node, since: int) -> bool:
        if isinstance(node, _File):
            return node.sync(since)
        done = [naming for naming in self._namings if naming.at < since and any(f is node for f, _ in naming.places.values())]
        for naming in done:
            for (_, name), (folder, found) in naming.places.items():
                if found is None:
                    folder.kept.pop(name, None)
                else:
                    folder.kept[name] = found
            self._namings.remove(naming)
            for older in [one for one in self._namings if one.at < naming.at]:  # it says nothing any more of the same names
                for place in naming.places:
                    older.places.pop(place, None)
        self._namings = [naming for naming in self._namings if naming.places]
        return bool(done)

    def _name(self, *found: tuple[_Place, _Node | None]) -> None:
        places: dict[tuple[int, str], tuple[_Folder, _Node | None]] = {}
        for (folder, name), node in found:
            places[id(folder), name] = (folder, node)
            if node is None:
                folder.live.pop(name)
            else:
                folder.live[name] = node
        self._namings.append(_Naming(self.changes, places))

    def _file(self, handle: int) -> _File:
        node = self._handles[handle]
        assert isinstance(node, _File), handle
        return node

    def _node(self, path: str) -> _Node:
        folder, name = self._place(path)
        return folder.live[name]

    def _place(self, path: str) -> _Place:
        """The folder a path is in, and its name there."""
        *parents, name = path.split("/")
        folder = self._root
        for parent in parents:
            node = folder.live[parent]
            assert isinstance(node, _Folder), path
            folder = node
        return folder, name


def _put(content: bytearray, piece: _Piece) -> None:
    offset, data = piece.offset, piece.data
    if data is None and offset < len(content):
        del content[offset:]
    elif len(content) < offset:
        content.extend(bytes(offset - len(content)))
    if data is not None:
        content[offset : offset + len(data)] = data


def _survived(file: _File, loss: Loss, dice: Random, *, is_last: bool) -> bytes:
    """The bytes of a file after the power came back."""
    if not file.pending or loss is Loss.CUT:
        return bytes(file.kept)
    found = bytearray(file.kept)
    pieces = file.pending
    if loss is Loss.ORDERED:
        pieces = pieces[: len(pieces) if is_last and dice.random() < 0.5 else dice.randint(0, len(pieces))]
        for number, piece in enumerate(pieces, start=1):
            for part in _torn(piece, dice, ordered=True) if number == len(pieces) and dice.random() < 0.7 else [piece]:
                _put(found, part)
    elif loss is Loss.REORDERED:
        for piece in pieces:
            fate = dice.random()
            for part in [piece] if fate < 0.4 else _torn(piece, dice, ordered=False) if fate < 0.6 else []:
                _put(found, part)
    else:
        whole = dice.random() < 0.5  # of this file nothing came, or of some writes
        for piece in pieces:
            empty = piece.data is not None and (whole or dice.random() < 0.5)
            _put(found, piece._replace(data=bytes(len(piece.data or b""))) if empty else piece)
    return bytes(found)


def _torn(piece: _Piece, dice: Random, *, ordered: bool) -> list[_Piece]:
    """Sectors of a write: some from its start when `ordered`, else any."""
    if piece.data is None:
        return [piece]
    unit = dice.choice(SECTORS)
    first = piece.offset - piece.offset % unit
    borders = [max(piece.offset, start) for start in range(first, piece.offset + len(piece.data), unit)]
    ends = [*borders[1:], piece.offset + len(piece.data)]
    parts = [
        _Piece(piece.at, start, piece.data[start - piece.offset : end - piece.offset])
        for start, end in zip(borders, ends, strict=True)
    ]
    if ordered:
        return parts[: dice.randint(0, len(parts))]
    return [part for part in parts if dice.random() < 0.5]


def _paths(folder: _Folder, prefix: str = "") -> list[tuple[str, _Node]]:
    found: list[tuple[str, _Node]] = []
    for name, node in folder.live.items():
        found.append((prefix + name, node))
        if isinstance(node, _Folder):
            found += _paths(node, f"{prefix}{name}/")
    return found


def _walk(
    folder: _Folder, names: Callable[[_Folder], dict[str, _Node]], content: Callable[[_File], bytes], prefix: str = ""
) -> Tree:
    """The tree below a folder."""
    tree: Tree = {}
    for name, node in sorted(names(folder).items()):
        if isinstance(node, _File):
            tree[prefix + name] = content(node)
        else:
            tree[prefix + name] = None
            tree |= _walk(node, names, content, f"{prefix}{name}/")
    return tree
