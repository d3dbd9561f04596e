"""What is wrong with a history. Pure: no clock, no store.

Every conversation is an object with two operations: append an event, read the events so far (all of them, the newest, how many,
or only the last seq). It is linearizable if all its operations can be put into one order in which each of them has its effect at
one instant between its invocation and its end, and every read is told exactly what was appended before it. In general finding
such an order needs a search that is exponential in how much overlaps; here there is nothing to search for:

* Each event has a number, and in the end all of them are read. So the order of the appends is given: that of the numbers. It is
  called the log; L[0], L[1] …
* What a read was told says where in this order it lies: after L[k-1] and before L[k], where L[k-1] is the last event it saw. Two
  reads between the same events change nothing and may be put in the order in which they began.

With that the order of all operations is fixed, and only two questions are left. Is each read told what this order says: is it
exactly the rows of the log up to L[k]? And does the order contradict real time anywhere: is there an operation that ended before
another began, and yet comes after it? An order of all operations that contradicts real time in no pair is a linearization, and as
the order was forced there is no other one: so the answer is exact in both directions. Of two operations each may be

    append, append   reordered: L[j] ended before L[i] was invoked, j > i. Enough: the earliest end of all after i
    append, read     stale: L[j] ended before the read was invoked, and j >= k. Enough: the earliest end from k on
    read, append     early: L[j] was invoked after the read ended, and j < k. Enough: the latest invocation before k
    read, read       backwards: one ended before the other was invoked, and saw more. Enough: the largest k of all that ended

which takes O(n log n) for the sorting and O(1) for each operation. An append whose outcome is unknown never ends: it may take
effect at any time after it was invoked. If it is not in the log in the end, it had no effect, and no read may have seen it.

Besides: everything acknowledged is in the log, once, at the seq it was said to have; what failed is not; what is unknown is there
at most once; seqs have no gap but for declared steps; the events of one call are in its order; an append that expected a seq came
right after it, and one that was refused was told of another one. Counts over all conversations lie between what was acknowledged
before and what was invoked until then, and do not go back.

A conversation that passes gives every client its own writes and never less than it saw before, in whatever tier the events were.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, TypeVar

from .record import Digests, History, Read, Row, Total, Write

NEVER = 1 << 62
"""When an append ended of which nobody knows."""
T = TypeVar("T")


class Problem(NamedTuple):
    kind: str
    text: str


def check(history: History, final: Mapping[str, Sequence[Row]], *, step: int = 0) -> list[Problem]:
    """Everything that is wrong; [] when every promise held.

    final  conversation → (seq, content) of all events, by seq, read when everything was over
    step   by whose multiples seqs may skip ahead; 0: not at all
    """
    writes: dict[str, list[Write]] = defaultdict(list)
    reads: dict[str, list[Read]] = defaultdict(list)
    for write in history.writes:
        writes[write.conversation].append(write)
    for read in history.reads:
        reads[read.conversation].append(read)
    problems: list[Problem] = []
    for name in sorted({*writes, *reads, *final}):
        conversation = _Conversation(name, writes[name], final.get(name, ()), step)
        problems += conversation.problems()
        problems += conversation.problems_of(reads[name])
    return problems + list(_of_totals(history, final))


class _Conversation:
    """The log of one conversation: its events by seq, and when each was invoked and ended."""

    def __init__(self, name: str, writes: Sequence[Write], rows: Sequence[Row], step: int) -> None:
        self._name, self._writes, self._rows, self._step = name, writes, rows, step
        self._by_content = {write.content: write for write in writes}
        self._log = [self._by_content.get(content) for _, content in rows]
        invoked = [write.invoked_ns if write else 0 for write in self._log]
        ended = [_end(write) for write in self._log]
        self._latest_invoked = [0, *accumulate(invoked, max)]
        """[k]: of the first k."""
        self._earliest_end = [*reversed([*accumulate(reversed(ended), min)]), NEVER]
        """[k]: of all from k on."""
        self._ended = ended
        self._index = {seq: place for place, (seq, _) in enumerate(rows)}
        self._digests = Digests(rows)

    def problems(self) -> Iterator[Problem]:
        """Of the appends."""
        yield from self._problems_of_numbers()
        there = Counter(content for _, content in self._rows)
        for content, count in there.items():
            write = self._by_content.get(content)
            if write is None:
                yield self._problem("stranger", f"{content!r} is there, and nobody appended it")
            elif write.outcome == "failed":
                yield self._problem("uninvited", f"{content!r} is there, and was said not to be stored")
            if count > 1:
                yield self._problem("doubled", f"{content!r} is there {count} times")
        for write in self._writes:
            if write.outcome == "ok" and write.content not in there:
                yield self._problem("lost", f"{write.content!r} was acknowledged as seq {write.seq}, and is not there")
        for place, ((seq, content), write) in enumerate(zip(self._rows, self._log, strict=True)):
            if write is not None:
                yield from self._problems_of_place(place, seq, content, write)
        yield from self._problems_of_calls()

    def _problems_of_numbers(self) -> Iterator[Problem]:
        for before, seq in pairwise([0, *(seq for seq, _ in self._rows)]):
            if seq <= before:
                yield self._problem("reused", f"seq {seq} comes after {before}")
            elif seq != before + 1 and not (self._step and (seq - before - 1) % self._step == 0):
                yield self._problem("gap", f"seq {seq} comes after {before}")

    def _problems_of_place(self, place: int, seq: int, content: str, write: Write) -> Iterator[Problem]:
        if write.seq not in (None, seq):
            yield self._problem("misplaced", f"{content!r} is seq {seq}, its receipt says {write.seq}")
        if self._earliest_end[place + 1] < write.invoked_ns:
            later = self._rows[self._ended.index(self._earliest_end[place + 1], place + 1)]
            yield self._problem("reordered", f"{content!r} is seq {seq}, before {later}, which ended before it was invoked")
        if write.expected_seq is not None and write.expected_seq != (self._rows[place - 1][0] if place else 0):
            yield self._problem("unexpected", f"{content!r} is seq {seq}, and was to be appended after {write.expected_seq}")

    def _problems_of_calls(self) -> Iterator[Problem]:
        last: dict[tuple[int, int], int] = {}
        for write in self._log:
            if write is not None:
                call = (write.client, write.call)
                if write.place < last.get(call, -1):
                    yield self._problem("scrambled", f"{write.content!r} comes after one that followed it in its call")
                last[call] = max(write.place, last.get(call, -1))

    def problems_of(self, reads: Sequence[Read]) -> Iterator[Problem]:
        """Of the reads."""
        placed: list[tuple[Read, int]] = []
        for read in reads:
            seen, wrong = self._seen(read)
            if wrong:
                yield self._problem("untrue", f"{wrong}: {read}")
                continue
            placed.append((read, seen))
            if self._earliest_end[seen] < read.invoked_ns:
                yield self._problem("stale", f"{self._missed(read, seen)}: {read}")
            if self._latest_invoked[seen] > read.ended_ns:
                yield self._problem("early", f"it saw what was appended later: {read}")
        for read, other in _backwards([(read.invoked_ns, read.ended_ns, seen, read) for read, seen in placed]):
            yield self._problem("backwards", f"{read} saw less than one that had ended: {other}")

    def _seen(self, read: Read) -> tuple[int, str]:
        """(how many events of the log had been appended for the read, what is wrong with what it was told)."""
        if read.kind == "count":
            return read.rows, "" if read.rows <= len(self._rows) else f"there are only {len(self._rows)} events"
        if read.last == 0:
            return 0, "" if read.rows == 0 else "rows without a number"
        if read.last not in self._index:
            return 0, f"there is no seq {read.last}"
        seen = self._index[read.last] + 1
        start = seen - read.rows
        if read.kind == "conflict":
            return seen, ""
        if start < 0 or self._rows[start][0] != read.first or self._digests.of(start, seen) != read.digest:
            return seen, "these are not the rows of the log"
        if start > 0 and (read.kind == "history" or read.rows != read.limit):
            return seen, f"{start} events before them are missing"
        return seen, ""

    def _missed(self, read: Read, seen: int) -> str:
        missed = [write for write in self._log[seen:] if write is not None and _end(write) < read.invoked_ns]
        own = [write for write in missed if write.client == read.client]
        return f"it missed its own {own[0]}" if own else f"it missed {missed[0]}"

    def _problem(self, kind: str, text: str) -> Problem:
        return Problem(kind, f"{self._name}: {text}")


def _end(write: Write | None) -> int:
    return NEVER if write is None or write.outcome != "ok" or write.ended_ns is None else write.ended_ns


def _backwards(calls: Sequence[tuple[int, int, int, T]]) -> Iterator[tuple[T, T]]:
    """Of (invoked, ended, seen, what): those that saw less than another one that had ended before they began, with that one."""
    by_end = sorted(calls, key=lambda call: call[1])
    most: tuple[int, T] | None = None
    next_ended = 0
    for invoked, _, seen, what in sorted(calls, key=lambda call: call[0]):
        while by_end[next_ended][1] < invoked:
            _, _, count, ended = by_end[next_ended]
            most = (count, ended) if most is None or count > most[0] else most
            next_ended += 1
        if most is not None and seen < most[0]:
            yield what, most[1]


def _of_totals(history: History, final: Mapping[str, Sequence[Row]]) -> Iterator[Problem]:
    """Counts over all conversations: each is of one instant between its invocation and its end."""
    there = {(name, content) for name, rows in final.items() for _, content in rows}
    stored = [write for write in history.writes if (write.conversation, write.content) in there]
    ended = sorted(_end(write) for write in stored)
    invoked = sorted(write.invoked_ns for write in stored)
    for total in history.totals:
        least, most = bisect_left(ended, total.invoked_ns), bisect_right(invoked, total.ended_ns)
        if total.rows != total.distinct:
            yield Problem("total", f"{total.rows - total.distinct} events are counted twice: {total}")
        if not least <= total.rows <= most:
            yield Problem("total", f"between {least} and {most} events were there: {total}")
    calls: list[tuple[int, int, int, Total]] = [(one.invoked_ns, one.ended_ns, one.rows, one) for one in history.totals]
    for total, other in _backwards(calls):
        yield Problem("total", f"{total} is less than one that had ended: {other}")
