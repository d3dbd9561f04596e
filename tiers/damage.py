"""What scrub found damaged, and what of it is gone: values that are shown, kept in scrub.json, and compared."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

CONVERSATIONS_SHOWN_MAX = 100
"""Of one damaged object; how many there are is told in any case."""


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of a file, from 0; half-open."""

    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.start:,} to {self.end - 1:,}"


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Events of one conversation that damaged rows hold."""

    conversation_id: str
    seq_min: int
    seq_max: int
    events: int


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """One object that is not what was written."""

    item: str
    """Its key among the items of a scrub."""
    place: str
    """Path, URL, or shard and position."""
    problem: str
    events: int
    """Events that it holds and that may be wrong or cannot be read; 0 when all its rows are sound, or are kept elsewhere."""
    rows: tuple[Rows, ...] = ()
    """Which of its rows, where that can be told."""
    parts: tuple[Part, ...] = ()
    """The conversations in those rows, the first CONVERSATIONS_SHOWN_MAX."""
    conversations: int = 0
    """How many there are; 0 when it cannot be told."""
    mended: str = ""
    """How it was mended; empty when it was not."""
    hint: str = ""
    """What to do when it was not mended."""

    def lines(self) -> list[str]:
        """What there is to say of it, for people; the first line names it."""
        where = f" (rows {', '.join(map(str, self.rows))})" if self.rows else ""
        said = [f"{self.place}: {self.problem}{where}"]
        if self.mended:
            return [*said, f"  mended: {self.mended}"]
        if self.events:
            said.append(f"  gone unless it is restored: {self.events:,} events{_of(self.conversations)}")
        said += [
            f"    {part.conversation_id}: {part.events:,} events, seq {part.seq_min:,} to {part.seq_max:,}" for part in self.parts
        ]
        if self.conversations > len(self.parts) > 0:
            said.append(f"    and {self.conversations - len(self.parts):,} conversations more")
        return [*said, f"  {self.hint}"] if self.hint else said


def _of(conversations: int) -> str:
    return f" of {conversations:,} conversation{'' if conversations == 1 else 's'}" if conversations else ""


def joined(ranges: Sequence[Rows]) -> tuple[Rows, ...]:
    """The same rows in as few ranges; given in order."""
    found: list[Rows] = []
    for one in ranges:
        if found and found[-1].end == one.start:
            found[-1] = Rows(start=found[-1].start, end=one.end)
        else:
            found.append(one)
    return tuple(found)
