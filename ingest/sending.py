"""One call's way from blocks to outcomes: what waits, what is on the wire, what each reply means. No connection, no clock.

Blocks go out in rounds, at most `unacked_max` per shard. In a round's replies, shard by shard in the order sent:

    OK, DUP             stored
    CONFLICT, CLOCK     refused for certain: the block's conversation has failed, later blocks of it are not sent
    BUSY, FULL          refused for certain: the store sheds load, nothing more of the call is sent
    UNCONFIRMED, INC,   not taken. If the round is in doubt (an earlier reply to it was lost) that says nothing about the
    FORMAT              earlier sending: the block is kept, to be resent under the same number; else it waits again
    GAP                 after a block that is kept: kept too
                        after a block that was not taken: surely not stored, waits again, for a new number
                        else: the store lacks acknowledged blocks (see appender.py); surely not stored, waits again
    VOID                its number was used up for nothing by a look (appender.py): not stored, waits again, for a new number
    OLD, other          cannot be, unless two producers share an id: TierCorrupt, nothing more is sent

While anything is kept nothing else is sent, so that a block in doubt is resolved before its producer's numbering may change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

from thermocline.errors import Backpressure, InvalidEvent, SequenceConflict, ThermoclineError, TierCorrupt
from thermocline.event import CLOCK_AHEAD_MAX_US
from thermocline.tiers.block import Block
from thermocline.tiers.hot import Reply

from .numbering import Numbering

ROUND_BYTES_MAX: Final = 8 << 20
"""Payload on the wire at once: a slow line then still answers within one timeout."""
RETRY_AFTER_S: Final = 1.0
"""What Backpressure advises: the worker settles about once a second."""

NOT_TAKEN: Final = frozenset(("UNCONFIRMED", "INC", "FORMAT"))
"""Answers that the append script gives before it looks at the number."""


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A block's place: the outcome of one that the store has."""

    seq_first: int
    skipped: Mapping[int, int]
    """ordinal → seq of the first copy, for events whose id was there before."""


class ClockAhead(InvalidEvent):
    """An event's timestamp is too far after Redis' clock; `latest_us` is the last one allowed."""

    def __init__(self, problem: str, *, latest_us: int, index: int | None = None) -> None:
        self.latest_us = latest_us
        super().__init__("timestamp", problem, index=index)


Outcome = Stored | ThermoclineError
"""An error here means: surely not stored."""


class Sent(NamedTuple):
    """A block on the wire, or to be sent again under the same number."""

    place: int
    """In the call's blocks."""
    number: int


class Round(msgspec.Struct, kw_only=True):
    """What a round's replies say beyond its blocks' outcomes."""

    lasts: dict[int, int] = {}
    """shard → last number the store knows, for shards that lack acknowledged blocks."""
    era: int = 0
    codes: set[str] = set()
    """Those of the answers that left a block without outcome."""


class Sending:
    """The state of one call; survives a lost reply, so that a retry continues with the very same blocks and numbers."""

    def __init__(self, blocks: Sequence[Block], expected_seq: int | None = None) -> None:
        self.expected_seq = expected_seq
        self.outcomes: list[Outcome | None] = []
        self.resolved = 0
        """Blocks that got their outcome from a reply."""
        self.sent: list[Sent] = []
        self.in_doubt = False
        """A reply to the round in `sent` was lost: its blocks may be stored."""
        self._waiting: dict[int, deque[int]] = {}
        self._failed: dict[str, ThermoclineError] = {}
        self._halted: ThermoclineError | None = None
        self.blocks: list[Block] = []
        self.extend(blocks)

    @classmethod
    def in_doubt_about(cls, block: Block, expected_seq: int | None, numbering: Numbering) -> Sending:
        """Of one block that was sent under its next number, and whose reply was lost."""
        sending = cls([block], expected_seq)
        sending.in_doubt = sending.fill(numbering, 1)
        return sending

    @classmethod
    def resumed(cls, blocks: Sequence[Block], numbers: Sequence[int]) -> Sending:
        """Of blocks that were sent under these numbers by a process that did not see the replies."""
        sending = cls(blocks)
        sending._waiting = {}
        sending.sent = [Sent(place, number) for place, number in enumerate(numbers)]
        sending.in_doubt = True
        return sending

    def extend(self, blocks: Sequence[Block]) -> None:
        """More blocks, to be sent after those there are."""
        for place, block in enumerate(blocks, len(self.blocks)):
            self._waiting.setdefault(block.shard, deque()).append(place)
        self.blocks += blocks
        self.outcomes += [None] * len(blocks)

    @property
    def unfinished(self) -> bool:
        return bool(self.sent or self._waiting)

    def result(self) -> list[Outcome]:
        """One outcome per block, once nothing is left to send."""
        done = [outcome for outcome in self.outcomes if outcome is not None]
        assert len(done) == len(self.blocks), "every block has an outcome when nothing is left to send"
        return done

    def fill(self, numbering: Numbering, unacked_max: int) -> bool:
        """Make the next round, unless one is to be sent again; False when nothing is left to send."""
        if self._halted is not None and not self.sent:
            self.fail(self._halted)
        size = 0
        for shard in [] if self.sent else list(self._waiting):
            waiting = self._waiting[shard]
            number = numbering.last(shard)
            upto = number + unacked_max
            while waiting and number < upto:
                block = self.blocks[waiting[0]]
                failure = self._failed.get(block.conversation_id)
                if failure is not None:
                    self.outcomes[waiting.popleft()] = failure
                    continue
                size += len(block.payload)
                if self.sent and size > ROUND_BYTES_MAX:
                    return True
                number += 1
                self.sent.append(Sent(waiting.popleft(), number))
            if not waiting:
                del self._waiting[shard]
        return bool(self.sent)

    def requests(self) -> list[tuple[Block, int, int | None]]:
        return [(self.blocks[sent.place], sent.number, self.expected_seq) for sent in self.sent]

    def withdraw(self) -> None:
        """What is on the wire is surely not stored: it waits again, for new numbers."""
        self._wait_again(self.sent)
        self.sent, self.in_doubt = [], False

    def fail(self, error: ThermoclineError) -> None:
        """Everything without an outcome is not stored, because of `error`."""
        self.outcomes = [error if outcome is None else outcome for outcome in self.outcomes]
        self.sent, self.in_doubt = [], False
        self._waiting = {}

    def take(self, replies: Sequence[Reply], numbering: Numbering, now_s: float) -> Round:
        """Give the round's blocks their outcomes, or their place in a later round."""
        found = Round()
        first_missing: dict[int, str] = {}  # shard → answer to its first block of this round that is not stored
        left = []
        for sent, reply in zip(self.sent, replies, strict=True):
            found.era = max(found.era, reply.era)
            outcome = self._outcome(sent, reply, numbering, now_s)
            shard = self.blocks[sent.place].shard
            if not isinstance(outcome, Stored):
                if shard not in first_missing and reply.code == "GAP":
                    found.lasts[shard] = reply.detail
                first_missing.setdefault(shard, reply.code)
            if outcome is None:
                found.codes.add(reply.code)
                left.append(sent)
            else:
                self.outcomes[sent.place] = outcome
                self.resolved += 1
        self.in_doubt = self.in_doubt and not found.codes.isdisjoint(NOT_TAKEN)
        kept = {shard for shard, code in first_missing.items() if self.in_doubt and code in NOT_TAKEN}
        self.sent = [sent for sent in left if self.blocks[sent.place].shard in kept]
        self._wait_again([sent for sent in left if self.blocks[sent.place].shard not in kept])
        return found

    def _wait_again(self, sent: Sequence[Sent]) -> None:
        for item in reversed(sent):
            self._waiting.setdefault(self.blocks[item.place].shard, deque()).appendleft(item.place)

    def _outcome(self, sent: Sent, reply: Reply, numbering: Numbering, now_s: float) -> Outcome | None:
        block = self.blocks[sent.place]
        error: ThermoclineError
        match reply.code:
            case "OK" | "DUP":
                numbering.acknowledged(block.shard, sent.number, block.lines - len(reply.skipped), now_s)
                return Stored(seq_first=reply.seq_first, skipped=reply.skipped)
            case "VOID":
                numbering.acknowledged(block.shard, sent.number, 0, now_s)
                return None
            case code if code == "GAP" or code in NOT_TAKEN:
                return None
            case "CONFLICT":
                expected = -1 if self.expected_seq is None else self.expected_seq
                error = SequenceConflict(block.conversation_id, expected_seq=expected, last_seq=reply.detail)
            case "CLOCK":
                error = _clock_ahead(block, reply.detail)
            case "BUSY":
                limits = "hot.unsettled_bytes_max or hot.unsettled_blocks_max"
                self._halted = error = Backpressure(
                    f"what is not settled has reached {limits}; is the worker running (`thermocline status`)?",
                    retry_after_s=RETRY_AFTER_S,
                )
            case "FULL":
                self._halted = error = Backpressure(
                    "Redis refuses writes: it is out of memory (maxmemory) or cannot write to its disk",
                    retry_after_s=RETRY_AFTER_S,
                )
            case _:
                self._halted = error = TierCorrupt(
                    f"block {sent.number} of producer {numbering.producer} in shard {block.shard} was answered {reply.code}: "
                    "the number was used by another producer; run `thermocline verify`"
                )
        self._failed.setdefault(block.conversation_id, error)
        return error


def _clock_ahead(block: Block, clock_us: int) -> ClockAhead:
    ahead_s = (block.timestamp_max_us - clock_us) / 1e6
    shown = datetime.fromtimestamp(clock_us / 1e6, UTC).isoformat(timespec="seconds")
    problem = (
        f"is {ahead_s:,.0f} s after Redis' clock ({shown}), at most {CLOCK_AHEAD_MAX_US // 1_000_000} s are allowed: "
        "correct the timestamp, or the clock of this machine or of Redis"
    )
    return ClockAhead(problem, latest_us=clock_us + CLOCK_AHEAD_MAX_US)
