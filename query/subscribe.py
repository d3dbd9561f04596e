"""Events for competing consumers: each is leased to one of them, delivered again when nobody answers, and parked in the end.

A consumer leases some events at once and counts a delivery when it hands one out, before the caller has it: an event that kills
its consumer is so counted each time, the others that were leased with it are not. What is delivered comes from Redis' log, or,
when the log does not have it any more, from segments and archived files. Delivered at least once; what the archive's sample left
out, or has expired, before a group came to it is not delivered.

What a crash leaves: leases that end with their ack wait; then whoever asks next gets the events.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Final

from thermocline.config import MIB
from thermocline.errors import QueryRefused, TierUnavailable
from thermocline.tiers.block import Position, shard_of
from thermocline.tiers.groups import Answer, Claim, Groups, GroupState

from .cursor import Key
from .follow import Following
from .groups import Record, StoreGroups
from .log_rows import read_blocks
from .patterns import Patterns

PAGE_BYTES_MAX: Final = 4 * MIB
POLL_S: Final = 1.0
"""How often an idle consumer looks for leases that are over."""
REASON_CHARS_MAX: Final = 500
Row = dict[str, Any]


class Delivery:
    """One event, leased until it is answered for or its ack wait is over."""

    __slots__ = ("_claim", "_subscription", "answered", "deliveries", "event")

    def __init__(self, subscription: Subscription, claim: Claim, event: Row, deliveries: int) -> None:
        self._subscription = subscription
        self._claim = claim
        self.event = event
        """Columns as in `events`, values plain Python."""
        self.deliveries = deliveries
        """The how manieth it is, this one included."""
        self.answered = False

    def ack(self) -> bool:
        """Done: it will not be delivered again, whoever has it by now. False when it was done already, or parked."""
        return self._answer("ack")

    def nack(self, delay_s: float = 0.0, *, reason: str = "") -> bool:
        """Deliver it again, after `delay_s`; it is parked when there were deliveries_max. False when the lease was over."""
        if not delay_s >= 0:
            raise QueryRefused(f"delay_s must be 0 or more, not {delay_s!r}")
        return self._answer("nack", wait_s=delay_s, reason=reason)

    def park(self, reason: str = "") -> bool:
        """Set it aside now. False when the lease was over."""
        return self._answer("park", reason=reason)

    def extend(self, seconds: float | None = None) -> bool:
        """Keep it for `seconds` more, the ack wait by default. False when the lease was over."""
        return self._subscription._say("extend", self._claim, wait_s=seconds)

    def _answer(self, what: Answer, *, wait_s: float | None = None, reason: str = "") -> bool:
        done = self._subscription._say(what, self._claim, wait_s=wait_s, reason=reason)
        self.answered = True
        return done

    def __repr__(self) -> str:
        return f"<{self.event['conversation_id']} {self.event['seq']} {self.event['event_type']}, delivery {self.deliveries}>"


class Subscription:
    """One consumer of a group. A context manager; iterating waits for more and never ends. For one thread at a time."""

    def __init__(
        self,
        shared: Following,
        groups: StoreGroups,
        record: Record,
        *,
        ack_wait_s: float,
        deliveries_max: int,
        prefetch: int,
        pending_max: int,
    ) -> None:
        self._shared = shared
        self._groups = groups
        self._redis: Groups = groups.redis
        self._record = record
        self._types = Patterns(record.event_types)
        self._ack_wait_s = ack_wait_s
        self._deliveries_max = deliveries_max
        self._prefetch = prefetch
        self._pending_max = pending_max
        self._lease = uuid.uuid4().hex
        self._shards = shared.tiers.hot.shards
        self._ready: deque[tuple[Claim, Row]] = deque()
        self._next = 0
        self._due_s = 0.0
        self._closed = False

    @property
    def group(self) -> str:
        return self._record.name

    def read(self, limit: int = 1, timeout_s: float = 1.0) -> list[Delivery]:
        """The next deliveries, at most `limit`; [] when there is none within `timeout_s`. All of them count as delivered.

        StoreReplaced: Redis was wiped, and the group is gone. TierUnavailable: it is away; the same call goes on later.
        """
        if limit < 1:
            raise QueryRefused(f"limit must be at least 1, not {limit!r}")
        deadline_s = time.monotonic() + timeout_s
        while not self._closed:
            self._shared.watch.require_open()
            started = self._start(limit)
            if started:
                return started
            if self._ready:
                continue
            ends = self._ends()
            if self._claim():
                continue
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return []
            self._shared.watch.wait(ends, min(left_s, POLL_S, max(0.01, self._due_s)))
        raise TierUnavailable("this subscription is closed: subscribe again")

    def __iter__(self) -> Iterator[Delivery]:
        while not self._closed:
            yield from self.read()

    def close(self) -> None:
        """Give back what is leased and was not delivered. What was, and is not answered, comes back when its ack wait is over."""
        if self._closed:
            return
        self._closed = True
        try:
            self._redis.answer(self.group, "release", [claim for claim, _ in self._ready], self._lease)
        except TierUnavailable:
            pass  # the leases end by themselves
        self._ready.clear()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _say(self, what: Answer, claim: Claim, *, wait_s: float | None = None, reason: str = "") -> bool:
        reason = " ".join(reason.split())[:REASON_CHARS_MAX]
        [answer] = self._redis.answer(
            self.group,
            what,
            [claim],
            self._lease,
            wait_s=self._ack_wait_s if wait_s is None else wait_s,
            deliveries_max=self._deliveries_max,
            reason=reason,
        )
        return answer > 0

    def _start(self, limit: int) -> list[Delivery]:
        """Count the next events as delivered, and hand them out; those whose lease is over by now are left to others."""
        chosen = [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]
        if not chosen:
            return []
        counts = self._redis.answer(self.group, "start", [claim for claim, _ in chosen], self._lease, wait_s=self._ack_wait_s)
        return [Delivery(self, claim, row, count) for (claim, row), count in zip(chosen, counts, strict=True) if count]

    def _ends(self) -> dict[int, Position]:
        """Where the logs end, of a Redis that is confirmed."""
        hot, tiers = self._shared.tiers.hot, self._shared.tiers
        try:
            cut = hot.cut()
        except TierUnavailable:
            tiers.reconfirm()
            cut = hot.cut()
        ends = {one.shard: one.last for one in cut}
        self._shared.watch.note(ends)
        return ends

    def _claim(self) -> bool:
        """Lease more, shard by shard; whether there may be something to hand out, or more to lease."""
        claims: list[Claim] = []
        behind = []
        self._due_s = POLL_S
        for _ in range(self._shards):
            shard = self._next
            found = self._redis.claim(
                self.group,
                shard,
                self._lease,
                limit=self._prefetch - len(claims),
                ack_wait_s=self._ack_wait_s,
                deliveries_max=self._deliveries_max,
                pending_max=self._pending_max,
            )
            if found is None:
                self._groups.check(self._record)
                raise TierUnavailable(f"group {self.group!r} was deleted: subscribe again to make it anew")
            claims += found.claims
            if found.behind:
                behind.append(shard)
            if found.due_s is not None:
                self._due_s = min(self._due_s, found.due_s)
            if len(claims) >= self._prefetch:
                break
            self._next = (shard + 1) % self._shards
        if claims:
            self._resolve(claims)
            return True
        return bool(behind) and self._feed(behind)

    def _resolve(self, claims: Sequence[Claim]) -> None:
        """Find the events; those nobody wants, or nobody has any more, are done."""
        rows: dict[tuple[str, int], Row] = {}
        there: set[tuple[str, int]] = set()
        blocks = self._redis.blocks(claims)
        for block in read_blocks(self._shared.settled.parser, [blocks], None, self._types):
            rows |= {(block.conversation_id, seq): row for seq, row in block.rows.items()}
            there |= {(block.conversation_id, seq) for seq in range(block.seq_first, block.seq_last + 1)}
        missing = [claim.place for claim in claims if claim.place not in there]
        if missing:
            found = self._shared.settled.rows_of(missing)
            rows |= {place: row for place, row in found.items() if self._types.match(row["event_type"])}
        done = [claim for claim in claims if claim.place not in rows]
        if done:
            self._redis.answer(self.group, "ack", done, self._lease)
        self._ready += [(claim, rows[claim.place]) for claim in claims if claim.place in rows]

    # What the logs do not have any more

    def _feed(self, behind: Sequence[int]) -> bool:
        """Give the group a page of what has settled; whether anything has changed."""
        tiers = self._shared.tiers
        cut = tiers.hot.cut()
        states = {state.shard: state for state in self._groups.check(self._record) if state.shard in behind}
        spans: dict[int, int] = {}
        for shard in states:
            newest_us = cut[shard].newest_us or tiers.hot.facts().now_us
            first_us = tiers.hot.first_us(shard, cut[shard].trimmed)
            spans[shard] = newest_us if first_us is None else first_us - 1
        page = self._shared.settled.page(
            Key(min(state.us for state in states.values()), "", 0),
            max(spans.values()),
            conversation_id=None,
            wanted=lambda key, kind: False,
            bytes_max=PAGE_BYTES_MAX,
        )
        events: dict[int, list[tuple[int, int, str]]] = {shard: [] for shard in states}
        for key, kind in page.keys:
            shard = shard_of(key.conversation_id, self._shards)
            state = states.get(shard)
            if (
                state is not None
                and (state.us, state.seq) < (key.us, key.seq)
                and key.us <= spans[shard]
                and self._types.match(kind)
            ):
                events[shard].append((key.us, key.seq, key.conversation_id))
        changed = False
        for shard, state in states.items():
            changed |= self._fed(state, events[shard], page.end, spans[shard], cut[shard].trimmed)
        return changed

    def _fed(
        self, state: GroupState, events: Sequence[tuple[int, int, str]], end: Key | None, upto_us: int, trimmed: Position
    ) -> bool:
        """Give one shard what a page has of it; whether it took any or moved on."""
        whole = end is None or end.us > upto_us
        taken = self._redis.feed(
            self.group,
            state,
            events,
            upto_us=upto_us if whole or end is None else end.us - 1,
            position=trimmed if whole else None,
            pending_max=self._pending_max,
        )
        return taken > 0 or (taken == 0 and not events) or taken < 0


def check_limits(ack_wait_s: float, deliveries_max: int, prefetch: int, pending_max: int) -> None:
    """QueryRefused when one is out of its bounds."""
    for name, value, low, high in (
        ("ack_wait_s", ack_wait_s, 0.01, 86_400),
        ("deliveries_max", deliveries_max, 1, 1_000_000),
        ("prefetch", prefetch, 1, 10_000),
        ("pending_max", pending_max, 1, 100_000),
    ):
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise QueryRefused(f"{name} must be from {low} to {high}, not {value!r}")
