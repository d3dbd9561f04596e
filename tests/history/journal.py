"""Journals of clients: one line when an append is invoked, one when it ends, one for every read; and a history made from them.

Each line is written by one system call, so that a process may be stopped or killed at any time. An append without its second line
has an unknown outcome.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from .record import History, Outcome, Read, Total, Write

Attempt = tuple[str, str, int | None]
"""conversation, content, expected_seq."""
Known = tuple[Outcome, int | None]
"""What became of an event, and its seq."""


class Line(msgspec.Struct, omit_defaults=True):
    """One of them is set, or `call` with `events` or `known`."""

    call: int = -1
    kind: str = ""
    at_ns: int = 0
    events: list[Attempt] | None = None
    known: list[Known] | None = None
    read: Read | None = None
    total: Total | None = None
    tiers: str = ""
    """Of a read: which of h(ot), w(arm), c(old) and R(edis alone) it rested on."""
    unavailable: str = ""
    """A read that could not be answered, and why."""
    broken: str = ""
    """Something happened that no call may end with."""
    done: bool = False


class Journal:
    """Of one client. Not thread-safe."""

    def __init__(self, folder: Path, client: int) -> None:
        self.client = client
        self._fd = os.open(folder / f"client-{client}.ndjson", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._calls = 0

    def invoke(self, kind: str, events: list[Attempt]) -> int:
        """The number of a call that begins now."""
        self._calls += 1
        self.write(call=self._calls, kind=kind, at_ns=time.monotonic_ns(), events=events)
        return self._calls

    def end(self, call: int, known: list[Known]) -> None:
        self.write(call=call, at_ns=time.monotonic_ns(), known=known)

    def write(self, **fields: Any) -> None:
        os.write(self._fd, msgspec.json.encode(Line(**fields)) + b"\n")


class Told(msgspec.Struct, kw_only=True):
    """Everything that the journals say."""

    history: History
    calls: dict[str, dict[str, int]]
    """Kind → outcome → how many events or reads."""
    tiers: dict[str, int]
    """Tier → reads that rested on it."""
    broken: list[str]
    """What no call may end with."""
    unfinished: list[str]
    """Clients that did not end in order."""


def read_journals(folder: Path) -> Told:
    told = Told(history=History(), calls={}, tiers={}, broken=[], unfinished=[])
    counts: dict[str, Counter[str]] = {}
    tiers: Counter[str] = Counter()
    decoder = msgspec.json.Decoder(Line)
    for path in sorted(folder.glob("client-*.ndjson")):
        client = int(path.stem.partition("-")[2])
        invoked: dict[int, Line] = {}
        ended: dict[int, Line] = {}
        line = Line()
        with path.open("rb") as file:
            for text in file:
                line = decoder.decode(text)
                if line.events is not None:
                    invoked[line.call] = line
                elif line.known is not None:
                    ended[line.call] = line
                elif line.read is not None:
                    told.history.reads.append(line.read)
                    counts.setdefault(line.read.kind, Counter())["ok"] += 1
                elif line.total is not None:
                    told.history.totals.append(line.total)
                    counts.setdefault("total", Counter())["ok"] += 1
                elif line.unavailable:
                    counts.setdefault(line.kind, Counter())["unavailable"] += 1
                elif line.broken:
                    told.broken.append(line.broken)
                tiers.update(line.tiers)
        if not line.done:
            told.unfinished.append(path.stem)
        for number, begun in invoked.items():
            for write in _writes(client, number, begun, ended.get(number)):
                told.history.writes.append(write)
                counts.setdefault(begun.kind, Counter())[write.outcome] += 1
    told.calls = {kind: dict(sorted(found.items())) for kind, found in sorted(counts.items())}
    told.tiers = dict(sorted(tiers.items()))
    return told


def _writes(client: int, call: int, begun: Line, end: Line | None) -> list[Write]:
    assert begun.events is not None
    known = end.known if end is not None and end.known is not None else [("unknown", None)] * len(begun.events)
    return [
        Write(
            client=client,
            call=call,
            place=place,
            conversation=conversation,
            content=content,
            invoked_ns=begun.at_ns,
            ended_ns=end.at_ns if end is not None and outcome != "unknown" else None,
            outcome=outcome,
            seq=seq,
            expected_seq=expected_seq,
        )
        for place, ((conversation, content, expected_seq), (outcome, seq)) in enumerate(zip(begun.events, known, strict=True))
    ]
