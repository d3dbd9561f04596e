"""Events as they come: what there is already, from every tier, and then what is appended, each once and in order.

A reader goes through the logs in Redis by position. Where its log no longer has what comes next, because that settled and was
trimmed, the events come from segments and archived files, in the order of (ingested_at, conversation_id, seq), up to where the
log begins; then it goes on there. Steps of one turn, none of which holds a lock on anything:

1. a cut of the logs: where each begins and ends at one instant
2. a shard that was trimmed beyond our place: events up to its first entry that is left come from the other tiers, in pages, each
   with a fresh view of the ledger. Only what has settled is ever trimmed, so every such view has all of them
3. otherwise a page of its log, and then where it begins now: beyond our place means that the page may lack entries, so again

Promised is the order of seq within a conversation, and of the log within a shard; across shards the order is about that of
ingestion. Pages are bounded in bytes, and nothing is read ahead of them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from thermocline.config import MIB
from thermocline.errors import QueryRefused, TierUnavailable
from thermocline.tiers.block import Position, shard_of
from thermocline.tiers.hot import ShardCut
from thermocline.tiers.hot_watch import LogWatch
from thermocline.tiers.ledger import View
from thermocline.tiers.opening import Tiers

from .cursor import CatchUp, Cursor, Key, Part, Place, Span
from .gaps import Continuity, Gap, Reason, may_lack, reason_of
from .log_rows import BlockRows, last_position, read_blocks
from .patterns import Patterns
from .settled import SettledEvents
from .starts import Start, begun, era_of, require_same

PAGE_BYTES_MAX: Final = 4 * MIB
"""Payload that a reader holds at most, and at least one event."""
PAGE_BYTES_MIN: Final = 64 << 10
"""Of a page of one log."""


class Followed:
    """One event, and where its reader is when it has taken it."""

    __slots__ = ("_cursor", "event")

    def __init__(self, event: dict[str, Any], cursor: Cursor) -> None:
        self.event = event
        """Columns as in `events`, values plain Python."""
        self._cursor = cursor

    @property
    def position(self) -> str:
        """Resumes exactly after this event: `start=` of another tail, at any later time and place. Printable ASCII."""
        return self._cursor.text()

    def __repr__(self) -> str:
        return f"<{self.event['conversation_id']} {self.event['seq']} {self.event['event_type']}>"


Item = Followed | Gap


class Following(NamedTuple):
    """What the tails of one store share."""

    tiers: Tiers
    settled: SettledEvents
    watch: LogWatch

    def close(self) -> None:
        self.watch.close()
        self.settled.close()


class Tail:
    """Events from a start on, and then as they come. A context manager; iterating waits for more and never ends.

    For one thread at a time. It holds nothing in any tier: one that is slow, or never closed, stops nothing.
    """

    def __init__(
        self,
        shared: Following,
        conversation_id: str | None = None,
        *,
        event_types: Sequence[str] | None = None,
        start: Start = "now",
        page_bytes_max: int = PAGE_BYTES_MAX,
    ) -> None:
        self._shared = shared
        self._hot = shared.tiers.hot
        self._types = Patterns(event_types)
        self._page_bytes_max = page_bytes_max
        self._continuity = Continuity()
        self._ready: deque[tuple[dict[str, Any] | Gap, Cursor]] = deque()
        self._closed = False
        self.caught_up = False
        """Whether `read` has given everything that was there when it looked last."""
        self._cursor = begun(conversation_id, start, self._cut())
        self._read_upto = self._cursor
        """Where the last item given by `read` ends."""
        if self._cursor.told is not None:
            self._continuity.note(*self._cursor.told)
        if self._cursor.conversation_id is not None and (self._cursor.seq or start in ("begin", 1)):
            self._continuity.note(self._cursor.conversation_id, self._cursor.seq)

    @property
    def conversation_id(self) -> str | None:
        return self._cursor.conversation_id

    @property
    def position(self) -> str:
        """Resumes after everything that `read` has given, and passed over: for readers of which nothing was wanted for long."""
        return (self._read_upto if self._ready else self._cursor).text()

    def read(self, limit: int = 500, timeout_s: float = 1.0) -> list[Item]:
        """The next events and gaps, at most `limit`; [] when none came within `timeout_s`.

        TierUnavailable, TierCorrupt: a tier cannot be read; the same call goes on from there later. StoreReplaced: Redis was
        wiped, so that positions in its logs mean nothing any more.
        """
        if limit < 1:
            raise QueryRefused(f"limit must be at least 1, not {limit!r}")
        deadline_s = time.monotonic() + timeout_s
        while not self._ready:
            self._shared.watch.require_open()
            if self._closed:
                raise TierUnavailable("this tail is closed: make another, from its position")
            self.caught_up = not self._advance()
            if self.caught_up:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return []
                places = zip(self._shards(), self._cursor.places, strict=True)
                self._shared.watch.wait({shard: place.position for shard, place in places}, left_s)
            elif not self._ready and time.monotonic() >= deadline_s:
                return []
        found: list[Item] = []
        while self._ready and len(found) < limit:
            item, self._read_upto = self._ready.popleft()
            found.append(item if isinstance(item, Gap) else Followed(item, self._read_upto))
        return found

    def __iter__(self) -> Iterator[Item]:
        while not self._closed:
            yield from self.read()

    def close(self) -> None:
        """Let go; `position` stays. Another thread's `read` ends with its timeout."""
        self._closed = True

    def __enter__(self) -> Tail:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Where it is

    def _shards(self) -> Sequence[int]:
        if self._cursor.conversation_id is None:
            return range(len(self._cursor.places))
        return [shard_of(self._cursor.conversation_id, self._hot.shards)]

    def _cut(self) -> tuple[ShardCut, ...]:
        """A cut of a Redis that is confirmed."""
        view = self._shared.tiers.ledger.view()
        try:
            cut = self._hot.cut()
            if all(
                one.incarnation == view.incarnation and one.era == state.era for one, state in zip(cut, view.shards, strict=True)
            ):
                return cut
        except TierUnavailable:
            pass
        self._shared.tiers.reconfirm()
        return self._hot.cut()

    # One turn

    def _advance(self) -> bool:
        """Make items ready, or move on without any; False when there is nothing to read now."""
        if self._cursor.catch_up is not None:
            self._read_settled(self._cursor.catch_up)
            return True
        cut = self._cut()
        require_same(self._cursor, cut)
        if era_of(cut) != self._cursor.era:
            self._go_back(cut)
        mine = [cut[shard] for shard in self._shards()]
        self._shared.watch.note({one.shard: one.last for one in mine})
        if self._begin_catch_up(mine) or self._read_logs(mine):
            return True
        return self._tell_of_end()

    def _go_back(self, cut: Sequence[ShardCut]) -> None:
        """Redis came back older: places that had not settled may be given again. What was read is known by its time."""
        settled = self._shared.tiers.ledger.view().shards
        places = [
            Place(min(place.position, max(cut[shard].trimmed, settled[shard].position)), place.us)
            for shard, place in zip(self._shards(), self._cursor.places, strict=True)
        ]
        self._cursor = msgspec.structs.replace(self._cursor, era=era_of(cut), places=tuple(places))

    def _tell_of_end(self) -> bool:
        """Tell of a gap at the end of a conversation of which everything was read, if there is one."""
        name = self._cursor.conversation_id
        last = None if name is None else self._continuity.known(name)
        if name is None or last is None:
            return False
        head = self._hot.head(name)
        if head <= last:
            return False
        [place] = self._cursor.places
        if self._cut()[self._shards()[0]].last > place.position:
            return True  # what the head counts is there by now
        self._gap(name, last + 1, head)
        return True

    # Logs

    def _read_logs(self, mine: Sequence[ShardCut]) -> bool:
        """Read a page of the logs that go on; False when none does."""
        behind = {
            one.shard: index
            for index, (one, place) in enumerate(zip(mine, self._cursor.places, strict=True))
            if one.last > place.position
        }
        if not behind:
            return False
        pages = self._pages(behind, mine)
        trimmed = self._hot.trimmed()
        if any(trimmed[shard] > self._cursor.places[behind[shard]].position for shard in pages):
            return True  # a page may lack entries, which have settled: look again
        blocks = read_blocks(self._shared.settled.parser, list(pages.values()), self._cursor.conversation_id, self._types)
        part = self._cursor.part
        blocks.sort(key=lambda block: part is None or (part.shard, part.us) != block[:2])  # first the one that was begun
        for block in blocks:
            index = behind[block.shard]
            if block.us > self._cursor.places[index].us and block.us >= self._cursor.from_us:
                self._give(block, part.seq if part is not None and (part.shard, part.us) == block[:2] else 0)
            self._move(index, block.position, block.us)
        for shard, page in pages.items():
            last_us = pc.max(page.column("ingested_us")).as_py() or 0
            position = last_position(page) or mine[behind[shard]].last
            self._move(behind[shard], position, last_us)
        return True

    def _pages(self, behind: Mapping[int, int], mine: Sequence[ShardCut]) -> dict[int, pa.Table]:
        """Pages of the logs that go on, first of the one that was begun and of those furthest behind, until they are enough."""
        share = max(PAGE_BYTES_MIN, self._page_bytes_max // len(behind))
        part, places = self._cursor.part, self._cursor.places
        pages: dict[int, pa.Table] = {}
        left = self._page_bytes_max
        for shard, index in sorted(behind.items(), key=lambda one: (part is None or part.shard != one[0], places[one[1]].us)):
            pages[shard] = self._hot.page(shard, places[index].position, mine[index].last, bytes_max=share)
            left -= pages[shard].nbytes
            if left <= 0:
                break
        return pages

    def _give(self, block: BlockRows, after_seq: int) -> None:
        """Make the events of a block ready that come after `after_seq`."""
        name = block.conversation_id
        known = self._continuity.known(name)
        known = max(after_seq, block.seq_first - 1) if known is None else max(after_seq, known)
        for seq in block.seqs:
            if seq <= known:
                continue
            if seq > known + 1:
                self._gap(name, known + 1, seq - 1, "rejected" if known + 1 >= block.seq_first else None)
            known = seq
            self._take(name, seq, block.rows.get(seq), part=Part(block.shard, block.us, seq))
        if known < block.seq_last:
            self._gap(name, known + 1, block.seq_last, "rejected")

    def _move(self, index: int, position: Position, us: int) -> None:
        """Note that all of a log up to `position` was read."""
        places = list(self._cursor.places)
        places[index] = Place(position, max(us, places[index].us))
        self._cursor = msgspec.structs.replace(self._cursor, places=tuple(places), part=None)

    # Segments and files

    def _begin_catch_up(self, mine: Sequence[ShardCut]) -> bool:
        """Whether events come next that a log does not have any more: then they are read from the other tiers.

        Of a single conversation everything that has settled is: a log has the blocks of all conversations of its shard.
        """
        targets = {one.shard: one.trimmed for one in mine}
        if self._cursor.conversation_id is not None:
            settled = self._shared.tiers.ledger.view().shards
            targets = {one.shard: max(one.trimmed, min(one.last, settled[one.shard].position)) for one in mine}
        spans, begin_us = [], []
        for one, place in zip(mine, self._cursor.places, strict=True):
            target = targets[one.shard]
            if target <= place.position:
                continue
            newest_us = one.newest_us or self._hot.facts().now_us
            first_us = self._hot.first_us(one.shard, target)  # after the time above: what is not there then had left by then
            spans.append(Span(one.shard, newest_us if first_us is None else first_us - 1, target))
            begin_us.append(place.us)
        if not spans:
            return False
        after = Key(max(min(begin_us), self._cursor.from_us), self._cursor.conversation_id or "", self._cursor.seq)
        self._cursor = msgspec.structs.replace(self._cursor, catch_up=CatchUp(after, tuple(spans)))
        return True

    def _read_settled(self, catch_up: CatchUp) -> None:
        """Read a page of what has settled."""
        spans = {span.shard: span for span in catch_up.spans}
        page = self._shared.settled.page(
            catch_up.after,
            max(span.us for span in catch_up.spans),
            conversation_id=self._cursor.conversation_id,
            wanted=lambda key, kind: self._types.match(kind) and self._is_due(key, spans),
            bytes_max=self._page_bytes_max,
        )
        due = [(key, kind) for key, kind in page.keys if self._is_due(key, spans)]
        befores = self._befores(page.view, [key for key, _ in due])
        for key, kind in due:
            name = key.conversation_id
            row = page.rows.get((name, key.seq))
            if row is None and self._types.match(kind):
                continue  # it left the archive between two queries
            known = self._continuity.known(name)
            known = befores.get(name, key.seq - 1) if known is None else known
            if key.seq > known + 1:
                self._gap(name, known + 1, key.seq - 1, view=page.view)
            self._take(name, key.seq, row, catch_up=CatchUp(key, catch_up.spans))
        if page.end is not None:
            self._cursor = msgspec.structs.replace(self._cursor, catch_up=CatchUp(page.end, catch_up.spans))
            return
        places = list(self._cursor.places)
        for index, shard in enumerate(self._shards()):
            if shard in spans:
                places[index] = Place(spans[shard].position, max(places[index].us, spans[shard].us))
        part = self._cursor.part
        part = None if part is not None and part.shard in spans else part
        self._cursor = msgspec.structs.replace(self._cursor, places=tuple(places), part=part, catch_up=None)

    def _is_due(self, key: Key, spans: Mapping[int, Span]) -> bool:
        """Whether an event that has settled is among those that are read now, and was not read before."""
        shard = shard_of(key.conversation_id, self._hot.shards)
        if shard not in spans or key.us > spans[shard].us or key.us < self._cursor.from_us:
            return False
        part = self._cursor.part
        if part is not None and (part.shard, part.us) == (shard, key.us):
            return key.seq > part.seq
        return key.us > self._cursor.places[self._shards().index(shard)].us

    def _befores(self, view: View, keys: Sequence[Key]) -> dict[str, int]:
        """conversation → seq of the event before the first of `keys`, where events of it may be gone and it is not known."""
        unknown = self._continuity.unknown([(key.conversation_id, key.seq) for key in keys])
        unknown = {name: seq for name, seq in unknown.items() if may_lack(view, shard_of(name, self._hot.shards))}
        return self._shared.settled.before(unknown) if unknown else {}

    # Items

    def _take(
        self, name: str, seq: int, row: dict[str, Any] | None, *, part: Part | None = None, catch_up: CatchUp | None = None
    ) -> None:
        """Note that an event was read; make it ready if it is wanted."""
        self._continuity.note(name, seq)
        self._cursor = msgspec.structs.replace(
            self._cursor,
            part=part or self._cursor.part,
            catch_up=catch_up or self._cursor.catch_up,
            seq=seq if self._cursor.conversation_id is not None else 0,
            told=None,
        )
        if row is not None:
            self._ready.append((row, self._cursor))

    def _gap(self, name: str, from_seq: int, to_seq: int, reason: Reason | None = None, *, view: View | None = None) -> None:
        """Make a gap ready."""
        shard = shard_of(name, self._hot.shards)
        view = view or self._shared.tiers.ledger.view()
        reason = reason or reason_of(view, name, shard, from_seq, to_seq, first=from_seq == 1)
        self._continuity.note(name, to_seq)
        seq = to_seq if self._cursor.conversation_id is not None else 0
        self._cursor = msgspec.structs.replace(self._cursor, seq=seq, told=(name, to_seq))
        self._ready.append((Gap(name, from_seq, to_seq, reason, self._cursor.text()), self._cursor))
