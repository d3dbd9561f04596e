"""All fault points: the steps of every move, in the order in which they are first reached. A test holds it to the code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SEGMENT: Final = ("write segment", "read back", "write sum", "sync segment", "rename segment", "sync folder")
PUBLISH: Final = ("describe", "publish", "publish table", "commit", "keep copies")
STEPS: Final[Mapping[str, tuple[str, ...]]] = {
    "settle": ("read blocks", *SEGMENT, "log rejected", "commit"),
    "trim": ("trim",),
    "merge": (*SEGMENT, "commit"),
    "archive": ("give up", "intend", "write", *SEGMENT, "upload", "upload file", *PUBLISH),
    "compact": ("intend", "write", "upload", "upload file", *PUBLISH),
    "expire": ("intend", "write", *PUBLISH),
    "purge": ("move orphans", "remove orphans", "unlink", "forget files"),
    "clean": (
        *("expire snapshots", "delete orphans", "delete objects", "forget objects"),
        *("delete litter", "abandon uploads", "let copies go"),
    ),
    "mirror": ("copy ledger", "upload object", "upload snapshot", "clean mirror"),
    "rehydrate": ("look up", "copy file", "note copies"),
    "recover": ("read segments", "read archive", "move ledger aside", "write ledger", "drop segments"),
    "restore": ("fetch", "rename", "skip what Redis dropped"),
}
KINDS: Final = ("exception", "kill", "stop", "full", "eio")
"""raised there, the process goes on · kill -9 · stopped beyond all graces · the disk is full from there · each write fails."""


def points(move: str) -> list[str]:
    """Before and after every step of a move."""
    return [f"{step}{end}" for step in STEPS[move] for end in ("", " done")]
