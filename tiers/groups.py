"""Groups of consumers: where each is in every shard's log, what it has leased and what it has parked; kept in Redis by scripts.

All keys of a shard share its tag, so that every change is one script on one slot (docs/formats.md, "Groups"). Events are named
`<seq> <conversation>`; their contents stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

import msgspec
import pyarrow as pa

from .block import Position
from .hot_redis import RedisHot
from .log_page import blocks_table
from .redis_link import Arg, CommandFailed, Script

CLAIM: Final = Script("group_claim")
FEED: Final = Script("group_feed")
ANSWER: Final = Script("group_answer")
MAKE: Final = Script("group_make")
PARKED: Final = Script("group_parked")
PARKED_MAX: Final = 10_000
"""Parked events of a group in one shard; beyond it what fails stays pending."""
SEQ_MAX: Final = (1 << 53) - 1
Answer = Literal["start", "ack", "nack", "park", "release", "extend"]


class Claim(msgspec.Struct, frozen=True):
    """An event that is leased."""

    shard: int
    entry: bytes
    """Its block in the log; `-` when the log does not have it any more."""
    name: bytes
    before: int
    """Deliveries there were."""

    @property
    def place(self) -> tuple[str, int]:
        """(conversation, seq)."""
        seq, _, conversation_id = self.name.decode().partition(" ")
        return conversation_id, int(seq)


class Claimed(msgspec.Struct, frozen=True):
    """What one shard leased."""

    claims: Sequence[Claim]
    behind: bool
    """Its log was trimmed beyond the group's place."""
    due_s: float | None
    """Until a pending event is due; None when there is none."""
    parked: int
    """Events that were parked just now."""


class GroupState(msgspec.Struct, frozen=True, kw_only=True):
    """A group in one shard."""

    shard: int
    made: str
    position: Position
    us: int
    seq: int
    """Everything up to (us, seq) was taken, by ingested_at and seq."""
    events: int
    """Of all events ever appended to the shard, those it is past."""
    pending: int
    parked: int
    seen_ms: int
    """When a consumer last asked, by Redis' clock."""


class ParkedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event that was set aside."""

    conversation_id: str
    seq: int
    deliveries: int
    parked_ms: int
    reason: str


class Hold(msgspec.Struct, frozen=True):
    """What a group still needs of one shard's log: everything after `position`."""

    group: str
    position: Position
    seen_ms: int


class Groups:
    """Thread-safe. Errors as of `Link`."""

    def __init__(self, hot: RedisHot) -> None:
        self._hot = hot
        self._link = hot.link

    def _key(self, shard: int, kind: str, group: str) -> str:
        return self._hot.keys.of(shard, f"{kind}:{group}")

    def _names(self, shard: int) -> str:
        return self._hot.keys.of(shard, "g")

    def make(self, group: str, made: str, shard: int, *, position: Position, us: int, from_us: int, events: int | None) -> str:
        """Make a group in one shard; the id it was made under, which is another's when it was there."""
        keys = [self._hot.keys.meta(shard), self._names(shard), self._key(shard, "g", group)]
        args: list[Arg] = [group, made, str(position), us, SEQ_MAX if us else 0, from_us, "" if events is None else events]
        found: bytes = self._link.script(MAKE, keys, args)
        return found.decode()

    def claim(
        self, group: str, shard: int, lease: str, *, limit: int, ack_wait_s: float, deliveries_max: int, pending_max: int
    ) -> Claimed | None:
        """What the shard leased; None when the group is not there."""
        keys = [self._hot.keys.meta(shard), self._hot.keys.log(shard), *(self._key(shard, kind, group) for kind in _KINDS)]
        args: list[Arg] = [lease, limit, int(1000 * ack_wait_s), deliveries_max, pending_max, PARKED_MAX]
        code, *reply = self._link.script(CLAIM, keys, args)
        if code == b"NONE":
            return None
        behind, due_ms, parked, *flat = reply
        claims = [Claim(shard, entry, name, int(before)) for entry, name, before in zip(*[iter(flat)] * 3, strict=True)]
        return Claimed(claims, bool(behind), int(due_ms) / 1000 if due_ms else None, int(parked))

    def feed(
        self,
        group: str,
        state: GroupState,
        events: Sequence[tuple[int, int, str]],
        *,
        upto_us: int,
        position: Position | None,
        pending_max: int,
    ) -> int:
        """Give a shard of the group (us, seq, conversation) that come after `state`; how many it took, -1 when it has moved on.

        upto_us   everything up to it is among them, or was given before
        position  where in the log it goes on after them
        """
        keys = [self._key(state.shard, kind, group) for kind in ("g", "gp", "go", "gd")]
        flat: list[Arg] = [part for event in events for part in event]
        args: list[Arg] = [state.us, state.seq, pending_max, upto_us, "" if position is None else str(position), *flat]
        return int(self._link.script(FEED, keys, args))

    def answer(
        self,
        group: str,
        what: Answer,
        claims: Sequence[Claim],
        lease: str,
        *,
        wait_s: float = 0,
        deliveries_max: int = 0,
        reason: str = "",
    ) -> list[int]:
        """What group_answer.lua says of each, one round trip."""
        by_shard: dict[int, list[int]] = {}
        for index, claim in enumerate(claims):
            by_shard.setdefault(claim.shard, []).append(index)
        commands = []
        for shard, places in by_shard.items():
            keys = [self._key(shard, kind, group) for kind in ("gp", "go", "gd", "gk")]
            args: list[Arg] = [what, lease, int(1000 * wait_s), deliveries_max, reason, *(claims[place].name for place in places)]
            commands.append(ANSWER.command(keys, args))
        answers = [0] * len(claims)
        for places, reply in zip(by_shard.values(), self._run(ANSWER, commands), strict=True):
            for place, one in zip(places, reply, strict=True):
                answers[place] = int(one)
        return answers

    def blocks(self, claims: Iterable[Claim]) -> pa.Table:
        """The blocks that these are in, as far as the logs have them."""
        wanted = sorted({(claim.shard, claim.entry) for claim in claims if claim.entry != b"-"})
        replies = self._link.pipeline([("XRANGE", self._hot.keys.log(shard), entry, entry) for shard, entry in wanted])
        return blocks_table([(shard, entry) for (shard, _), reply in zip(wanted, replies, strict=True) for entry in reply])

    def names(self) -> list[str]:
        """Of all groups, sorted."""
        replies = self._link.pipeline([("SMEMBERS", self._names(shard)) for shard in range(self._hot.shards)])
        return sorted({name.decode() for reply in replies for name in reply})

    def states(self, group: str) -> list[GroupState | None]:
        """Of every shard; None where the group is not."""
        commands: list[tuple[str | int, ...]] = []
        for shard in range(self._hot.shards):
            key = self._key(shard, "g", group)
            commands += [
                ("HMGET", key, "made", "at", "us", "seq", "N", "seen"),
                ("ZCARD", self._key(shard, "gp", group)),
                ("HLEN", self._key(shard, "gk", group)),
            ]
        replies = self._link.pipeline(commands)
        found: list[GroupState | None] = []
        for shard, (state, pending, parked) in enumerate(zip(*[iter(replies)] * 3, strict=True)):
            if state[0] is None:
                found.append(None)
                continue
            made, at, us, seq, events, seen = (value.decode() for value in state)
            found.append(
                GroupState(
                    shard=shard,
                    made=made,
                    position=Position.parse(at),
                    us=int(us),
                    seq=int(seq),
                    events=int(events),
                    pending=pending,
                    parked=parked,
                    seen_ms=int(seen),
                )
            )
        return found

    def parked(self, group: str, limit: int) -> list[ParkedEvent]:
        """Parked events, the oldest first."""
        found = []
        for shard in range(self._hot.shards):
            flat = self._link.call("HGETALL", self._key(shard, "gk", group))
            for name, value in zip(flat[0::2], flat[1::2], strict=True):
                seq, _, conversation_id = name.decode().partition(" ")
                count, at_ms, _, reason = value.decode(errors="replace").split(" ", 3)
                found.append(
                    ParkedEvent(
                        conversation_id=conversation_id,
                        seq=int(seq),
                        deliveries=int(count),
                        parked_ms=int(at_ms),
                        reason=reason,
                    )
                )
        return sorted(found, key=lambda one: (one.parked_ms, one.conversation_id, one.seq))[:limit]

    def take_out(self, group: str, what: Literal["replay", "discard"], events: Iterable[ParkedEvent]) -> int:
        """Deliver parked events anew, or forget them; how many there were."""
        from .block import shard_of

        by_shard: dict[int, list[str]] = {}
        for one in events:
            shard = shard_of(one.conversation_id, self._hot.shards)
            by_shard.setdefault(shard, []).append(f"{one.seq} {one.conversation_id}")
        commands = [
            PARKED.command([self._key(shard, kind, group) for kind in ("gp", "go", "gd", "gk")], [what, *names[at : at + 500]])
            for shard, names in by_shard.items()
            for at in range(0, len(names), 500)
        ]
        return sum(int(reply) for reply in self._run(PARKED, commands))

    def delete(self, group: str) -> None:
        """Forget the group, what it has pending and what is parked. Safe to repeat."""
        commands: list[tuple[str, ...]] = []
        for shard in range(self._hot.shards):
            commands += [("UNLINK", self._key(shard, kind, group)) for kind in _KINDS]
            commands.append(("SREM", self._names(shard), group))
        self._link.pipeline(commands)

    def holds(self) -> dict[int, list[Hold]]:
        """shard → what groups need of its log; a group that is past something never comes back to it."""
        found: dict[int, list[Hold]] = {}
        replies = self._link.pipeline([("SMEMBERS", self._names(shard)) for shard in range(self._hot.shards)])
        pairs = [(shard, name.decode()) for shard, reply in enumerate(replies) for name in reply]
        commands: list[tuple[str | int, ...]] = []
        for shard, group in pairs:
            commands.append(("HMGET", self._key(shard, "g", group), "at", "seen"))
            commands.append(("ZRANGE", self._key(shard, "go", group), 0, 0, "WITHSCORES"))
        flat = self._link.pipeline(commands) if commands else []
        for (shard, group), (state, pending) in zip(pairs, zip(*[iter(flat)] * 2, strict=True), strict=True):
            if state[0] is not None:
                position = Position.parse(state[0])
                if pending:
                    position = min(position, Position(int(float(pending[1])) - 1, SEQ_MAX))
                found.setdefault(shard, []).append(Hold(group, position, int(state[1])))
        return found

    def _run(self, script: Script, commands: Sequence[Any]) -> list[Any]:
        """The replies, one round trip; the script is loaded when the server does not know it."""
        if not commands:
            return []
        replies = self._link.replies(commands)
        if any(isinstance(reply, CommandFailed) and reply.no_script for reply in replies):
            self._link.call("SCRIPT", "LOAD", script.text)
            again = [index for index, reply in enumerate(replies) if isinstance(reply, CommandFailed) and reply.no_script]
            for index, reply in zip(again, self._link.replies([commands[index] for index in again]), strict=True):
                replies[index] = reply
        for reply in replies:
            if isinstance(reply, CommandFailed):
                raise self._link.refusal(reply) from reply
        return replies


_KINDS: Final = ("g", "gp", "go", "gd", "gk")
