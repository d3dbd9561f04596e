"""One producer at one connection: sends blocks until every one is stored, refused, or the deadline has passed.

What it knows: a Numbering (producer id, last number acknowledged per shard), the store's incarnation and era, and of the call
in hand a Sending. A round of blocks goes out, its replies come back, and one of these follows:

    replies             each block has its outcome or waits again (sending.py); then the next round
    reply lost          the round is in doubt: connect again, resend all of it in order under the same numbers; what was stored
                        is answered DUP. At the deadline: Unresolved, whose Sending goes on later, here, with the same numbers
    no connection       nothing was sent: bring the store back if this process can (`reconfirm`), connect again, go on.
                        At the deadline: TierUnavailable for what has no outcome
    UNCONFIRMED         Redis restarted and nobody has confirmed it yet: the same
    INC                 connect again. The new store descends from ours (else TierCorrupt): new producer id, numbers from 1. A
                        round in doubt is resent: the append script never took it under the new incarnation
    GAP                 the store lacks acknowledged blocks. If its era has grown they are lost, and the store is told how many
                        events; else it only forgot a producer that was idle for a week. New producer id, numbers from 1
    era has grown       Redis came back older, perhaps: every shard is asked for the last number of this producer id, and of the
                        ones used before, and judged as for GAP

    a look              asks what became of the blocks in doubt and uses up the numbers of those that are not stored

A numbering changes only while nothing is in doubt. A process that dies leaves at most one round in doubt and nothing to clean
up. An Appender that raised anything else must not be used again: what it sent last may be stored under a number it would reuse.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import uuid_utils

from thermocline.errors import ConfigError, ThermoclineError, TierCorrupt, TierUnavailable
from thermocline.event import FORMAT
from thermocline.tiers.block import Block
from thermocline.tiers.hot import AppendSession, OutcomeLost, Reply

from .numbering import Numbering
from .sending import NOT_TAKEN, Outcome, Round, Sending, Stored

PAUSE_FIRST_S = 0.01
PAUSE_MAX_S = 0.5
FORMER_MAX = 8


class Unresolved(Exception):
    """Internal: the deadline passed with a round in doubt. `resume` goes on; the appender takes nothing else until then."""

    def __init__(self, sending: Sending, reason: BaseException) -> None:
        self.sending = sending
        self.reason = reason
        super().__init__(str(reason))


class Appender:
    """Not thread-safe. The session is the appender's own; it is connected at the first send."""

    def __init__(
        self,
        session: AppendSession,
        *,
        unacked_blocks_max: int = 16,
        reconfirm: Callable[[], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        """reconfirm  makes the store usable again after a restart of Redis; given when this process has the ledger"""
        self._session = session
        self._unacked_max = unacked_blocks_max
        self._reconfirm = reconfirm
        self._clock = clock
        self._pause = pause
        self._numbering = Numbering(_new_producer())
        self._connected = False
        self.note: Callable[[str, str, Sending], object] | None = None
        """Told producer, incarnation and Sending before a round of `resume` goes out; what it raises keeps the round from it."""
        self.incarnation = ""
        """Of the store, once connected."""
        self.usable = True
        """False once the store turned out not to be the one this appender knew."""
        self._era = 0
        self._era_grew = False
        self._former: deque[Numbering] = deque(maxlen=FORMER_MAX)
        """Numberings given up: the next loss may be of what was acknowledged under them."""
        self._lasts: dict[str, dict[int, int]] = {}
        """producer → shard → last number the store was found to know."""
        self._unreported: list[tuple[str, int, dict[int, int]]] = []

    @classmethod
    def resumed(
        cls,
        session: AppendSession,
        numbering: Numbering,
        incarnation: str,
        *,
        reconfirm: Callable[[], object] | None,
        pause: Callable[[float], object],
    ) -> Appender:
        """One that goes on as another that had this numbering at a store of that incarnation, in this process or one before."""
        session.incarnation = incarnation  # it refuses a store that does not descend from that one
        appender = cls(session, reconfirm=reconfirm, pause=pause)
        appender._numbering, appender.incarnation = numbering, incarnation
        return appender

    @property
    def producer(self) -> str:
        """The id under which blocks go out at the moment."""
        return self._numbering.producer

    @property
    def durability(self) -> str:
        return self._session.durability

    def send(self, blocks: Sequence[Block], *, expected_seq: int | None = None, deadline_s: float) -> list[Outcome]:
        """One outcome per block: Stored, or the error that kept it from being stored.

        deadline_s  how long to go on without any block getting its outcome

        Unresolved when a block may be stored. Every other trouble is an outcome.
        """
        return self.resume(Sending(blocks, expected_seq), deadline_s=deadline_s)

    def try_one(self, block: Block, expected_seq: int | None, *, deadline_s: float) -> Stored | Sending:
        """Send one block in one round trip; what `resume` goes on from when that did not store it."""
        if not self._connected or self._lasts or self._era_grew or self._unreported:
            return Sending([block], expected_seq)
        number = self._numbering.last(block.shard) + 1
        try:
            [reply] = self._session.send(self._numbering.producer, [(block, number, expected_seq)], deadline_s=deadline_s)
        except (TierUnavailable, TierCorrupt, ConfigError):
            self._connected = False
            return Sending([block], expected_seq)
        except OutcomeLost:
            self._connected = False
            return Sending.in_doubt_about(block, expected_seq, self._numbering)
        except BaseException:
            self._connected = False
            raise
        if reply.code != "OK":
            return Sending([block], expected_seq)  # which gets the same answer
        self._numbering.acknowledged(block.shard, number, block.lines - len(reply.skipped), self._clock())
        if reply.era > self._era:
            self._era, self._era_grew = reply.era, True
            self._account_at_leisure()
        return Stored(seq_first=reply.seq_first, skipped=reply.skipped)

    def resume(self, sending: Sending, *, deadline_s: float) -> list[Outcome]:
        """Go on with a call that ended Unresolved."""
        deadline, pause_s, resolved = self._clock() + deadline_s, 0.0, sending.resolved
        while sending.unfinished:
            try:
                self._round(sending, max(0.05, deadline - self._clock()))
                problem: Exception | None = None
            except (OutcomeLost, TierUnavailable, TierCorrupt, ConfigError) as exc:
                problem = self._recovered(exc)
            if sending.resolved > resolved:
                deadline, pause_s, resolved = self._clock() + deadline_s, 0.0, sending.resolved
            if problem is None:
                continue
            left_s = deadline - self._clock()
            self.usable = not isinstance(problem, TierCorrupt)
            if left_s <= 0 or isinstance(problem, TierCorrupt | ConfigError):
                return _given_up(sending, problem)
            if pause_s:
                self._pause(min(pause_s, left_s))
            pause_s = min(PAUSE_MAX_S, pause_s * 2 or PAUSE_FIRST_S)
        self._account_at_leisure()
        return sending.result()

    def look(self, sending: Sending, *, deadline_s: float) -> None:
        """Make certain what became of the blocks in doubt, and store none: those that are not stored wait again, for new numbers,
        and what may still be on its way to Redis will not be taken. Unresolved: it is still not known."""
        deadline, pause_s = self._clock() + deadline_s, 0.0
        while sending.in_doubt:
            try:
                self._look_once(sending, max(0.05, deadline - self._clock()))
                continue
            except (OutcomeLost, TierUnavailable, TierCorrupt, ConfigError) as exc:
                problem = self._recovered(exc)
            left_s = deadline - self._clock()
            if left_s <= 0 or isinstance(problem, TierCorrupt | ConfigError):
                raise Unresolved(sending, problem) from problem
            if pause_s:
                self._pause(min(pause_s, left_s))
            pause_s = min(PAUSE_MAX_S, pause_s * 2 or PAUSE_FIRST_S)

    def _look_once(self, sending: Sending, left_s: float) -> None:
        if not self._connected:
            self._session.reconnect()
            if self._session.incarnation != self.incarnation:
                reason = "the store in Redis was replaced by a new one, and what the old one had settled is in files: ask by SQL"
                raise Unresolved(sending, TierUnavailable(reason))
            self._connected = True
        sent = [(sending.blocks[each.place], each.number) for each in sending.sent]
        replies = self._session.void(self._numbering.producer, sent, deadline_s=left_s)
        found = self._taken(sending, replies)
        if not found.codes.isdisjoint(NOT_TAKEN):
            raise TierUnavailable(f"Redis does not say what became of it ({', '.join(sorted(found.codes))})")

    def disconnect(self) -> None:
        """Free the connection; the next send or resume opens it again."""
        self._connected = False
        self._session.close()

    def close(self) -> None:
        """Close the connection, after a last try to tell the store what was found lost."""
        self._account_at_leisure()
        self.disconnect()

    def _round(self, sending: Sending, left_s: float) -> None:
        """Send what `fill` made and take the replies; raises what is in the way of the next round."""
        if not self._connected:
            self._connect(sending)
        if not sending.sent:
            self._account()
        if not sending.fill(self._numbering, self._unacked_max):
            return
        try:
            if self.note is not None:
                self.note(self._numbering.producer, self.incarnation, sending)
            replies = self._session.send(self._numbering.producer, sending.requests(), deadline_s=left_s)
        except (TierUnavailable, TierCorrupt, ConfigError):
            if not sending.in_doubt:
                sending.withdraw()
            raise
        except BaseException:  # the reply is lost, or the caller was interrupted while it waited
            self._connected, sending.in_doubt = False, True
            raise
        found = self._taken(sending, replies)
        if "FORMAT" in found.codes:
            raise TierCorrupt(
                f"the namespace in Redis has another format than {FORMAT}: use the version that wrote it, or a newer one"
            )
        if "INC" in found.codes:
            raise TierUnavailable("the store in Redis was replaced by a new one")
        if "UNCONFIRMED" in found.codes:
            raise TierUnavailable(
                "Redis was restarted and nobody has confirmed yet what it still holds: "
                "start `thermocline worker`, which does, or run `thermocline doctor`"
            )

    def _taken(self, sending: Sending, replies: Sequence[Reply]) -> Round:
        """What a round's replies say, remembered."""
        found = sending.take(replies, self._numbering, self._clock())
        if found.lasts:
            self._lasts[self._numbering.producer] = found.lasts
        if found.era > self._era:
            self._era, self._era_grew = found.era, True
        return found

    def _recovered(self, problem: Exception) -> Exception:
        """The problem that is left after what this process can do against it. The connection is opened anew next."""
        self._connected = False
        if self._reconfirm is None or not isinstance(problem, TierUnavailable):
            return problem
        try:
            self._reconfirm()
        except (TierUnavailable, TierCorrupt, ConfigError) as exc:
            return exc
        except OutcomeLost:
            pass
        return problem

    def _connect(self, sending: Sending) -> None:
        self._session.reconnect()
        if self.incarnation not in ("", self._session.incarnation):
            self._numbering = Numbering(_new_producer())
            self._former.clear()
            self._lasts = {}
            sending.withdraw()
        self.incarnation = self._session.incarnation
        self._connected = True

    def _account_at_leisure(self) -> None:
        """Look for losses now, in case nothing is appended any more; what fails is left to the next send."""
        if self._connected:
            try:
                self._account()
            except (OutcomeLost, TierUnavailable, TierCorrupt, ConfigError):
                self._connected = False

    def _account(self) -> None:
        """Find acknowledged blocks that the store lacks, go on under new numbers if there are any, report them if the era grew.

        Only while nothing is on the wire. Interrupted anywhere, it goes on where it was.
        """
        if self._era_grew:
            for numbering in (*self._former, self._numbering):
                lasts = self._session.last_numbers(numbering.producer, numbering.shards)
                self._lasts[numbering.producer] = self._lasts.get(numbering.producer, {}) | lasts
        if self._lasts:
            self._take_back()
        self._era_grew = False
        while self._unreported:
            self._session.report_loss(*self._unreported[0])
            del self._unreported[0]

    def _take_back(self) -> None:
        """Judge what `_lasts` says."""
        for numbering in (*self._former, self._numbering):
            short, lost = numbering.take_back(self._lasts.pop(numbering.producer, {}), self._clock())
            if lost and self._era_grew:
                self._unreported.append((numbering.producer, self._era, lost))
            if short and numbering is self._numbering:
                self._renumber()

    def _renumber(self) -> None:
        self._former.append(self._numbering)
        self._numbering = Numbering(_new_producer())


def _given_up(sending: Sending, problem: Exception) -> list[Outcome]:
    if sending.in_doubt:
        raise Unresolved(sending, problem) from problem
    if isinstance(problem, ThermoclineError):
        sending.fail(problem)
    else:
        error = TierUnavailable(f"Redis stopped answering ({problem}); nothing was stored")
        error.__cause__ = problem
        sending.fail(error)
    return sending.result()


def _new_producer() -> str:
    return str(uuid_utils.uuid7().hex)
