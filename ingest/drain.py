"""The spool's thread: sends what is in its files, oldest first, and notes what became of each block before it sends the next.

    before a round     which blocks, under which numbers: on disk. After a crash they are sent again under the same numbers, so
                       what was stored is answered DUP; all others were never sent, or surely not stored
    stored             noted; when all of a file is, the file is deleted
    Redis away, full,  tried again for as long as it takes. So is a store that is another one, or cannot be used: nothing of a
    another store      spool is given up for that
    too far ahead      noted as returned and handed back; the rest of the block is sent without it. The file stays until the
                       caller has been told, so that after a crash the next Producer hands it back again
    in doubt for more  returned with OutcomeUnknown: Redis remembers numbers for 7 days, and a resend could store them twice
    than 7 days

Within a conversation a block is sent only when every earlier one has its outcome, as in sender.py; blocks in doubt come first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, islice

from thermocline.config import IngestSettings
from thermocline.errors import InvalidEvent, ThermoclineError, TierCorrupt, TierUnavailable
from thermocline.tiers.block import Block

from .appender import Unresolved
from .buffer import Buffer
from .delivery import PAUSE_FIRST_S, PAUSE_MAX_S, Delivery
from .numbering import DOUBT_MAX_S
from .remainder import events_at, late_ordinals, never_known, without
from .sending import ROUND_BYTES_MAX, ClockAhead, Sending, Stored
from .source import Source
from .spool import Spool
from .spool_file import DAMAGED_SUFFIX, Contents, SpoolFile
from .spool_record import BLOCK, Damage, Returned, Round

BLOCKS_MAX = 256


class Stopped(Exception):
    """Internal: the Producer is closing."""


class Drain:
    """One thread, from `start` until `stop`. It uses `delivery` while the spool is not empty, the sender while it is."""

    def __init__(self, spool: Spool, buffer: Buffer, source: Source, ingest: IngestSettings) -> None:
        self.spool = spool
        self.buffer = buffer
        self.delivery = Delivery(source, ingest)
        self.shards = source.settings.hot.shards
        self.stopping = threading.Event()
        self.trouble: ThermoclineError | None = None
        """What keeps it from sending at the moment."""
        self._told: set[tuple[object, ...]] = set()
        self._thread = threading.Thread(target=self._run, name="thermocline-spool", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End after what is under way; whether it has ended. What is left stays in the spool."""
        self.stopping.set()
        self.spool.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def wait_empty(self, timeout_s: float | None, *, patient: bool) -> bool:
        """Whether the spool is empty, now or within the time.

        patient  wait also while something is in the way
        """
        self.spool.wait(lambda: self.spool.empty or (self.trouble is not None and not patient), timeout_s)
        return self.spool.empty

    def _run(self) -> None:
        pause_s = PAUSE_FIRST_S
        while not self.stopping.is_set():
            if not self.buffer.failing:
                self.spool.drop_finished()
            self.spool.wait(lambda: not self.spool.empty or self.stopping.is_set(), None)
            file = self.spool.head()
            if file is None or self.stopping.is_set():
                continue
            self.delivery.stop = self.stopping
            try:
                FileDrain(file, self).run()
                pause_s = PAUSE_FIRST_S
            except Stopped:
                break
            except Exception as exc:  # tried again from what the file says
                self.delivery.drop()
                self.in_the_way(_named(exc, file))
                self.stopping.wait(pause_s)
                pause_s = min(PAUSE_MAX_S, pause_s * 2)
        self.delivery.drop()

    def in_the_way(self, trouble: ThermoclineError | None) -> None:
        """Say what keeps the spool from being sent."""
        if trouble is not self.trouble:
            self.trouble = trouble
            self.spool.notify()

    def not_told(self, *key: object) -> bool:
        """Whether this has not been handed back in this process; from now on it has."""
        new = key not in self._told
        self._told.add(key)
        return new


class FileDrain:
    """One file on its way to the store."""

    def __init__(self, file: SpoolFile, drain: Drain) -> None:
        self._file = file
        self._drain = drain
        self._spool, self._buffer, self._delivery = drain.spool, drain.buffer, drain.delivery
        self._numbers: list[int] = []  # record numbers of the blocks that are being sent, by their place
        self._lines: dict[int, list[int]] = {}  # record number → ordinals that are left, of blocks of which some are not
        self._noted: Round | None = None
        self._done: set[int] = set()
        self._returned = False

    def run(self) -> None:
        """Send all of it, then let go of it. Stopped, or any error: nothing is lost, and it can be run again."""
        contents = self._file.load(self._drain.shards)
        left = self._left(contents)
        for damage in contents.damages:
            self._tell(damage)
        if contents.notes_damaged:
            self._return_unsure(left, "it was noted in a damaged part of the spool whether they were sent")
            left = {}
        elif contents.round is not None:
            self._settle(contents.round, left)
        while left:
            chunk = dict(islice(left.items(), _count_of(left.values())))
            left = {number: block for number, block in left.items() if number not in chunk}
            self._send(list(chunk), Sending(list(chunk.values())))
        self._file.sync()
        self._spool.finish(damaged=bool(contents.damages), keep=self._returned)
        self._drain.in_the_way(None)

    def _left(self, contents: Contents) -> dict[int, Block]:
        """The blocks to be sent; what was returned is handed back again, as its caller may not have been told."""
        left = contents.blocks
        for number, returned in contents.returned.items():
            self._hand_back(contents.originals[number], returned)
            if number in left:
                self._keep_rest(left, number, left.pop(number), returned.ordinals)
        return dict(sorted(left.items()))

    def _keep_rest(self, left: dict[int, Block], number: int, block: Block, ordinals: Sequence[int]) -> None:
        """Put into `left` what is left of a block without some of its lines, as they are counted in the file."""
        lines = self._lines.get(number) or list(range(block.lines))
        self._lines[number] = [ordinal for ordinal in lines if ordinal not in ordinals]
        rest = without(block, {place for place, ordinal in enumerate(lines) if ordinal in ordinals})
        if rest is not None:
            left[number] = rest

    def _settle(self, round: Round, left: dict[int, Block]) -> None:
        """Find out about the blocks that were on the wire when the last process died, or when the sender gave up on them."""
        blocks = {number: left.pop(number) for number in round.numbers if number in left}
        numbers = [round.numbers[number] for number in blocks]
        if time.time() - round.at_us / 1e6 > DOUBT_MAX_S:
            self._return_unsure(blocks, "they were sent more than 7 days ago, and the reply never came")
            return
        lasts: dict[int, int] = {}
        for block, number in zip(blocks.values(), numbers, strict=True):
            lasts[block.shard] = min(lasts.get(block.shard, number), number - 1)
        known = self._delivery.appender
        self._delivery.go_on_as(round.producer, round.incarnation, lasts)
        self._noted = round
        self._send(list(blocks), Sending.resumed(list(blocks.values()), numbers))
        if self._delivery.appender is not known:
            self._delivery.drop()  # the last numbers of its other shards are not known here

    def _send(self, numbers: list[int], sending: Sending) -> None:
        """Bring blocks of these record numbers to their outcomes."""
        self._numbers, pause_s = numbers, PAUSE_FIRST_S
        while True:
            if self._drain.stopping.is_set():
                raise Stopped
            try:
                self._delivery.attempt(sending, note=self._note)
            except Unresolved as exc:
                self._drain.in_the_way(TierUnavailable(f"Redis stopped answering ({exc.reason})"))
                if self._noted is not None and time.time() - self._noted.at_us / 1e6 > DOUBT_MAX_S:
                    raise TierUnavailable("blocks have been in doubt for 7 days") from exc  # the next run returns them
                continue
            again, trouble = self._sort(sending)
            self._drain.in_the_way(trouble)
            if not again:
                return
            self._numbers, sending = list(again), Sending(list(again.values()))
            if trouble is not None:
                self._drain.stopping.wait(pause_s)
                pause_s = min(PAUSE_MAX_S, pause_s * 2)

    def _note(self, producer: str, incarnation: str, sending: Sending) -> None:
        """Write down what goes out now, unless that was written down before and nothing else since."""
        numbers = {self._numbers[sent.place]: sent.number for sent in sending.sent}
        noted = self._noted
        same = noted is not None and (noted.producer, noted.incarnation) == (producer, incarnation)
        if same and noted is not None and numbers.items() <= noted.numbers.items():
            return
        round = Round(producer, incarnation, time.time_ns() // 1000, numbers)
        self._note_done([self._numbers[place] for place, found in enumerate(sending.outcomes) if isinstance(found, Stored)])
        self._write(lambda: self._file.note_round(round))
        self._noted = round

    def _note_done(self, numbers: Sequence[int]) -> None:
        new = [number for number in numbers if number not in self._done]
        if new:
            self._write(lambda: self._file.note_done(new))
            self._done.update(new)

    def _write(self, note: Callable[[], None]) -> None:
        """Write a note, on a full disk with the room that was kept for it. TierUnavailable: there is none."""
        try:
            try:
                note()
            except OSError:
                if not self._spool.give_reserve():
                    raise
                note()
        except OSError as exc:
            raise TierUnavailable(
                f"what becomes of the spool cannot be written to {self._file.path} ({exc.strerror}), so nothing of it is sent: "
                "free space on its disk, or mend it"
            ) from exc

    def _sort(self, sending: Sending) -> tuple[dict[int, Block], ThermoclineError | None]:
        """Let go of what is stored; what is to be sent again, in order, and why if not only for what was taken out of it."""
        again: dict[int, Block] = {}
        trouble: ThermoclineError | None = None
        stored = {}
        for number, block, outcome in zip(self._numbers, sending.blocks, sending.result(), strict=True):
            if isinstance(outcome, Stored):
                stored[number] = block.lines
            elif isinstance(outcome, ClockAhead):
                self._without_late(again, number, block, outcome)
            else:
                trouble = outcome
                again[number] = block
        self._note_done(list(stored))
        self._spool.done(sum(stored.values()))
        return again, trouble

    def _without_late(self, again: dict[int, Block], number: int, block: Block, error: ClockAhead) -> None:
        late = late_ordinals(block, error)
        if not late:  # an earlier block of its conversation had them
            again[number] = block
            return
        lines = self._lines.get(number) or range(block.lines)
        self._return(number, block, Returned(number, [lines[place] for place in late], error.problem), late)
        self._keep_rest(again, number, block, [lines[place] for place in late])

    def _return_unsure(self, blocks: Mapping[int, Block], why: str) -> None:
        """Hand back blocks that may be stored."""
        for number, block in blocks.items():
            lines = self._lines.get(number) or list(range(block.lines))
            self._return(number, block, Returned(number, lines, why, True), range(block.lines))

    def _return(self, number: int, block: Block, returned: Returned, places: Sequence[int]) -> None:
        """Note that these lines will not be sent, then hand them back."""
        self._write(lambda: self._file.note_returned(returned))
        self._noted = None  # what is left of the block is another one, and has to be noted anew
        self._spool.done(len(places))
        self._hand_back(block, returned, places)

    def _hand_back(self, block: Block, returned: Returned, places: Sequence[int] | None = None) -> None:
        """Have the next call raise it, once in this process.

        places  of the lines in `block`, if it is not the one in the file
        """
        self._returned = True
        pairs = zip(returned.ordinals, returned.ordinals if places is None else places, strict=True)
        fresh = [place for ordinal, place in pairs if self._drain.not_told(self._file.path, returned.number, ordinal)]
        if not fresh:
            return
        events = events_at(block, fresh)
        error: ThermoclineError = InvalidEvent("timestamp", returned.reason)
        if returned.unsure:
            error = never_known(
                f"{len(events)} events of conversation {block.conversation_id!r} may be stored and are not sent again, because "
                f"{returned.reason}: look for them (SELECT … WHERE conversation_id = …) before you append them again"
            )
        self._buffer.fail(events, error)

    def _tell(self, damage: Damage) -> None:
        what = f"a block of {damage.events} events" if damage.kind == BLOCK and damage.events else "a record"
        kept = self._file.path.with_suffix(DAMAGED_SUFFIX)
        problem = f"{what} at byte {damage.offset} of {self._file.path} is damaged ({damage.size} bytes) and was not sent"
        if self._drain.not_told(self._file.path, "damage", damage.offset):
            self._buffer.fail([], TierCorrupt(f"{problem}; the file is kept as {kept.name}"))


def _count_of(blocks: Iterable[Block]) -> int:
    """How many of the first blocks are sent together."""
    sizes = accumulate(len(block.payload) for block in islice(blocks, BLOCKS_MAX))
    return max(1, sum(size <= ROUND_BYTES_MAX for size in sizes))


def _named(exc: Exception, file: SpoolFile) -> ThermoclineError:
    if isinstance(exc, ThermoclineError):
        return exc
    if isinstance(exc, OSError):
        return TierUnavailable(f"{file.path} cannot be read or written ({exc.strerror}): mend its disk")
    error = ThermoclineError(f"internal error while {file.path} was sent: {exc!r}")
    error.__cause__ = exc
    return error
