"""States of conversations: events folded by a projection, from the last state that is kept.

1. the conversation's last number, from Redis: every event up to it was acknowledged before
2. the latest state that is kept, sound, of this version of the projection and of this era of the shard; else the initial one
3. the events after it by SQL over all tiers, in order of seq, a page at a time; numbers that are missing are gaps
4. states on the way and at the end are kept

Numbers are never given twice, and what has one never changes: so a state stays right, also when its events have been sampled out.
Only a declared loss takes numbers back; the era counts those, and states of an earlier one are not used.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from thermocline.errors import IncompleteAnswer, QueryRefused, ThermoclineError
from thermocline.event import COLUMN_NAMES
from thermocline.tiers.block import shard_of
from thermocline.tiers.opening import Tiers
from thermocline.tiers.state_file import Snapshot, StateFile

from .covered import at
from .projection import Projection, checked, encoded
from .run import Runner

PAGE_ROWS: Final = 500
SNAPSHOT_EVERY: Final = 1_000
"""Events between two states that are kept on the way."""
PENDING_MAX: Final = 32
"""States of one reading that wait to be kept; of more the latest."""
PROJECTIONS_MAX: Final = 100
GAPS_MAX: Final = 10_000
_PAGE: Final = (
    f"SELECT {', '.join(COLUMN_NAMES)} FROM events WHERE conversation_id = $name AND seq > $after AND seq <= $upto"
    f" ORDER BY seq LIMIT {PAGE_ROWS}"
)


class State(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation as a projection sees it after the event of number `seq`."""

    state: Any
    seq: int
    conversation_id: str
    projection: str
    version: str
    checksum: str
    """SHA-256 over all of it, as it is kept."""
    gaps: tuple[tuple[int, int], ...] = ()
    """First and last numbers of events that were not there; empty unless the projection has a `gap`."""
    from_seq: int = 0
    """The kept state that it was made from; 0: from the first event."""

    @property
    def complete(self) -> bool:
        """Whether it was made from every event."""
        return not self.gaps


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A state that is kept, and whether it would be used."""

    projection: str
    version: str
    seq: int
    bytes: int
    checksum: str
    made_at: dt.datetime
    sound: bool
    """Its checksum is right, and no acknowledged events were declared lost since."""


class States:
    """Thread-safe."""

    def __init__(self, tiers: Tiers, runner: Runner) -> None:
        self._tiers = tiers
        self._runner = runner
        self._bytes_max = tiers.settings.query.state_bytes_max
        self._file = StateFile(tiers.settings.namespace_dir, bytes_max=tiers.settings.query.states_bytes_max)
        self._known: dict[str, Projection] = {}

    def register(self, projection: Any) -> Projection:
        """Make a projection known by its name."""
        found = checked(projection)
        if found.name not in self._known and len(self._known) >= PROJECTIONS_MAX:
            raise QueryRefused(f"at most {PROJECTIONS_MAX} projections may be registered")
        self._known[found.name] = found
        return found

    def state(self, conversation_id: str, projection: Any, *, at_seq: int | None, keep: bool) -> State:
        """See Store.state."""
        fold = self._fold(conversation_id, projection, at_seq)
        *_, found = fold.run(every=None)
        if keep:
            self._file.keep(fold.pending)
        return found

    def history(
        self, conversation_id: str, projection: Any, *, from_seq: int, until_seq: int | None, every: int
    ) -> Iterator[State]:
        """See Store.states_history."""
        for name, value in (("from_seq", from_seq), ("every", every)):
            _check_number(name, value, 1)
        fold = self._fold(conversation_id, projection, until_seq, below=from_seq)
        for found in fold.run(every=every):
            if found.seq >= from_seq:
                yield found

    def kept(self, conversation_id: str, projection: str | None) -> list[Kept]:
        """See Store.states_kept."""
        identity = self._identity(conversation_id)
        return [
            Kept(
                projection=one.projection,
                version=one.version,
                seq=one.seq,
                bytes=len(one.state),
                checksum=one.checksum,
                made_at=at(one.made_us),
                sound=one.sound and one.identity == identity,
            )
            for one in self._file.listed(conversation_id, projection)
        ]

    def _fold(self, conversation_id: str, projection: Any, upto: int | None, *, below: int | None = None) -> _Fold:
        """below  only a kept state of a lower number is started from"""
        if not isinstance(conversation_id, str):
            raise QueryRefused(f"conversation_id must be a str, not {type(conversation_id).__name__}")
        if isinstance(projection, str):
            if projection not in self._known:
                raise QueryRefused(f"there is no projection {projection!r}: store.register(…) makes one known")
            projection = self._known[projection]
        wanted = checked(projection)
        identity = self._identity(conversation_id)
        last = self._tiers.hot.head(conversation_id)
        if upto is not None:
            _check_number("at_seq", upto, 0)
            if upto > last:
                raise QueryRefused(f"conversation {conversation_id!r} is at seq {last}: there is no state at {upto} yet")
            last = upto
        highest = last if below is None else min(last, below - 1)
        start = self._file.latest(wanted.name, str(wanted.version), conversation_id, identity=identity, seq_max=highest)
        return _Fold(self._runner, wanted, conversation_id, identity, start, last, bytes_max=self._bytes_max)

    def _identity(self, conversation_id: str) -> str:
        view = self._tiers.ledger.view()
        shard = shard_of(conversation_id, self._tiers.settings.hot.shards)
        return f"{view.incarnation}/{view.shards[shard].era}"


class _Fold:
    """One run of a projection over a conversation, from a kept state to the number `last`."""

    def __init__(
        self,
        runner: Runner,
        projection: Projection,
        conversation_id: str,
        identity: str,
        start: Snapshot | None,
        last: int,
        *,
        bytes_max: int,
    ) -> None:
        self._runner = runner
        self._projection = projection
        self._conversation_id = conversation_id
        self._identity = identity
        self._start = start
        self._last = last
        self._bytes_max = bytes_max
        self.pending: list[Snapshot] = []
        """States worth keeping."""

    def run(self, *, every: int | None) -> Iterator[State]:
        """The states after each `every`th event, None: none of them, and at last the one at the end."""
        start = self._start
        self._seq = 0 if start is None else start.seq
        self._state = self._called("initial") if start is None else msgspec.json.decode(start.state)
        self._gaps = [] if start is None else msgspec.json.decode(start.gaps, type=list[tuple[int, int]])
        shown = -1
        while self._seq < self._last:
            asked = {"name": self._conversation_id, "after": self._seq, "upto": self._last}
            page = self._runner.sql(_PAGE, asked).to_arrow()
            for event in page.to_pylist():
                self._missing(event["seq"] - 1)
                self._state = self._called("apply", self._state, event)
                self._seq = event["seq"]
                if self._seq % SNAPSHOT_EVERY == 0:
                    self._found(keep=True)
                if every is not None and self._seq % every == 0:
                    shown = self._seq
                    yield self._found(keep=False)
            if page.num_rows < PAGE_ROWS:
                self._missing(self._last)
        if shown != self._seq:
            yield self._found(keep=self._seq > (0 if start is None else start.seq))

    def _missing(self, upto: int) -> None:
        """Everything after the state up to this number is not there, if there is anything."""
        if upto <= self._seq:
            return
        first = self._seq + 1
        if self._projection.gap is None:
            raise IncompleteAnswer(
                f"events {first} to {upto} of conversation {self._conversation_id!r} are not there any more (sampled out, "
                "expired, rejected or lost), and a state without them is not the state: "
                f"give projection {self._projection.name!r} a gap(state, first_seq, last_seq), or ask for an earlier at_seq"
            )
        self._state = self._called("gap", self._state, first, upto)
        if len(self._gaps) >= GAPS_MAX:
            raise IncompleteAnswer(f"conversation {self._conversation_id!r} has more than {GAPS_MAX:,} gaps up to seq {upto}")
        self._gaps.append((first, upto))
        self._seq = upto

    def _called(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._projection, method)(*arguments)
        except ThermoclineError:
            raise
        except Exception as exc:
            place = f"after seq {self._seq} of conversation {self._conversation_id!r}" if arguments else ""
            raise QueryRefused(
                f"projection {self._projection.name!r}: {method} failed {place}: {type(exc).__name__}: {exc}"
            ) from exc

    def _found(self, *, keep: bool) -> State:
        """The state now; a copy of its own."""
        text = encoded(self._projection, self._state, bytes_max=self._bytes_max)
        snapshot = Snapshot.of(
            projection=self._projection.name,
            conversation_id=self._conversation_id,
            version=str(self._projection.version),
            seq=self._seq,
            identity=self._identity,
            gaps=msgspec.json.encode(self._gaps).decode(),
            state=text,
            made_us=time.time_ns() // 1000,
        )
        if keep and (not self.pending or self.pending[-1].seq < self._seq):
            self.pending = [*self.pending[-PENDING_MAX + 1 :], snapshot]
        return State(
            state=msgspec.json.decode(text),
            seq=self._seq,
            conversation_id=self._conversation_id,
            projection=self._projection.name,
            version=str(self._projection.version),
            checksum=snapshot.checksum,
            gaps=tuple((first, last) for first, last in self._gaps),
            from_seq=0 if self._start is None else self._start.seq,
        )


def _check_number(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise QueryRefused(f"{name} must be an integer from {least} up, not {value!r}")
