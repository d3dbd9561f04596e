"""A store in memory that answers appends as the append script does, and whose sessions fail on order. For fault tests only."""

from __future__ import annotations

import copy
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

import orjson

from thermocline.errors import TierCorrupt, TierUnavailable
from thermocline.event import CLOCK_AHEAD_MAX_US
from thermocline.tiers.block import ERA_SEQ_STEP, Block
from thermocline.tiers.hot import OutcomeLost, Reply

NOW_US = 1_780_000_000_000_000
SHARDS_MAX = 16


class ModelShard:
    def __init__(self) -> None:
        self.stored: list[tuple[str, int, str]] = []
        """(conversation, seq, content) in the order stored."""
        self.heads: dict[str, tuple[int, int]] = {}
        self.last: dict[str, int] = {}
        self.taken: dict[tuple[str, int], tuple[int, dict[int, int]]] = {}
        self.ids: dict[tuple[str, str], int] = {}
        self.era = 0

    def append(self, producer: str, block: Block, number: int, expected: int | None, store: ModelStore) -> Reply:
        last = self.last.get(producer, 0)
        if number <= last:
            known = self.taken.get((producer, number))
            if known is None or number <= last - 16:
                return Reply(code="OLD", detail=last, era=self.era)
            if known[0] == 0:
                return Reply(code="VOID", detail=number, era=self.era)
            return Reply(code="DUP", seq_first=known[0], skipped=known[1], era=self.era)
        if number > last + 1:
            return Reply(code="GAP", detail=last, era=self.era)
        seq, head_era = self.heads.get(block.conversation_id, (0, 0))
        if expected is not None and expected != seq:
            return Reply(code="CONFLICT", detail=seq, era=self.era)
        if block.timestamp_max_us > store.now_us + CLOCK_AHEAD_MAX_US:
            return Reply(code="CLOCK", detail=store.now_us, era=self.era)
        if store.refusing:
            return Reply(code=store.refusing, era=self.era if store.refusing == "BUSY" else 0)
        seq += (self.era - head_era) * ERA_SEQ_STEP
        return self._store(producer, block, number, seq)

    def void(self, producer: str, number: int) -> Reply:
        last = self.last.get(producer, 0)
        if number <= last:
            first, skipped = self.taken[producer, number]
            return Reply(code="DUP" if first else "VOID", seq_first=first, skipped=skipped, era=self.era)
        if number > last + 1:
            return Reply(code="GAP", detail=last, era=self.era)
        self.last[producer] = number
        self.taken[producer, number] = (0, {})
        return Reply(code="VOID", detail=number, era=self.era)

    def _store(self, producer: str, block: Block, number: int, seq: int) -> Reply:
        first, skipped, given = seq + 1, {}, dict(block.event_ids)
        for ordinal, line in enumerate(block.payload.split(b"\n")):
            key = (block.conversation_id, given.get(ordinal, ""))
            if key[1] and key in self.ids:
                skipped[ordinal] = self.ids[key]
                continue
            seq += 1
            if key[1]:
                self.ids[key] = seq
            self.stored.append((block.conversation_id, seq, orjson.loads(line).get("content", "")))
        self.heads[block.conversation_id] = (seq, self.era)
        self.last[producer] = number
        self.taken[producer, number] = (first, skipped)
        return Reply(code="OK", seq_first=first, skipped=skipped, era=self.era)


class ModelStore:
    """Shards, and what the next sends shall run into: `faults`, one per send, then `lasting_fault`."""

    def __init__(self) -> None:
        self.incarnation, self.previous = uuid.uuid4().hex, ""
        self.shards: dict[int, ModelShard] = {}
        self.now_us = NOW_US
        self.refusing = ""
        self.down = False
        self.faults: deque[str] = deque()
        self.lasting_fault = ""
        self.reported: dict[tuple[int, int, str], int] = {}
        """(shard, era, producer) → events."""
        self.sessions = 0
        self.format = "1"
        self.era = 0
        self.unconfirmed: set[int] = set()
        self.on_send: Callable[[], None] | None = None

    def heal(self) -> None:
        """No more faults."""
        self.faults.clear()
        self.lasting_fault = ""

    def shard(self, number: int) -> ModelShard:
        if number not in self.shards:
            self.shards[number] = ModelShard()
            self.shards[number].era = self.era
        return self.shards[number]

    @property
    def stored(self) -> list[tuple[str, int, str]]:
        return [event for shard in self.shards.values() for event in shard.stored]

    def contents(self, conversation_id: str) -> list[str]:
        """By seq."""
        return [
            content for conversation, _, content in sorted(self.stored, key=lambda e: e[1]) if conversation == conversation_id
        ]

    def copy(self) -> dict[int, ModelShard]:
        return copy.deepcopy(self.shards)

    def restart(self, shards: dict[int, ModelShard] | None = None, *, confirmed: bool = False) -> None:
        """Come back, as `shards` were if given, in a new era; appends wait for `confirm`."""
        self.era += 1
        self.unconfirmed = set(range(SHARDS_MAX))
        if shards is not None:
            self.shards = copy.deepcopy(shards)
        if confirmed:
            self.confirm()

    def confirm(self, upto: int = SHARDS_MAX) -> None:
        """Take appends again, in the shards below `upto`."""
        for number in range(upto):
            self.shard(number).era = self.era
        self.unconfirmed -= set(range(upto))

    def wipe(self) -> None:
        """All data gone; a new incarnation that descends from the old one."""
        self.incarnation, self.previous, self.shards = uuid.uuid4().hex, self.incarnation, {}

    def session(self, durability: str = "memory") -> ModelSession:
        self.sessions += 1
        return ModelSession(self)


class ModelSession:
    """AppendSession over a ModelStore. Faults: `down`, `lost before`, `lost after`, `lost after N` blocks."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self.incarnation = ""
        self.durability = "memory"
        self.closed = False

    def send(self, producer: str, requests: Sequence[tuple[Block, int, int | None]], *, deadline_s: float) -> list[Reply]:
        store = self._store
        if store.on_send is not None:
            store.on_send()
        fault = store.faults.popleft() if store.faults else store.lasting_fault
        if store.down or fault == "down":
            raise TierUnavailable("the model is down")
        if fault == "lost before":
            raise OutcomeLost("the model hung up before")
        upto = int(fault.rpartition(" ")[2]) if fault.startswith("lost after ") else len(requests)
        replies = [self._answer(producer, *request) for request in requests[:upto]]
        if fault.startswith("lost after"):
            raise OutcomeLost("the model hung up after")
        return replies

    def _answer(self, producer: str, block: Block, number: int, expected: int | None) -> Reply:
        refusal = self._refusal(block)
        if refusal is not None:
            return refusal
        return self._store.shard(block.shard).append(producer, block, number, expected, self._store)

    def void(self, producer: str, sent: Sequence[tuple[Block, int]], *, deadline_s: float) -> list[Reply]:
        store = self._store
        fault = store.faults.popleft() if store.faults else store.lasting_fault
        if store.down or fault == "down":
            raise TierUnavailable("the model is down")
        if fault == "lost before":
            raise OutcomeLost("the model hung up before")
        replies = [self._refusal(block) or store.shard(block.shard).void(producer, number) for block, number in sent]
        if fault.startswith("lost after"):
            raise OutcomeLost("the model hung up after")
        return replies

    def _refusal(self, block: Block) -> Reply | None:
        if block.shard in self._store.unconfirmed:
            return Reply(code="UNCONFIRMED")
        if self._store.format != "1":
            return Reply(code="FORMAT")
        return Reply(code="INC") if self.incarnation != self._store.incarnation else None

    def _ask(self) -> None:
        if self._store.down:
            raise TierUnavailable("the model is down")

    def report_loss(self, producer: str, era: int, losses: Mapping[int, int]) -> None:
        self._ask()
        for shard, events in losses.items():
            self._store.reported[shard, era, producer] = events

    def last_numbers(self, producer: str, shards: Iterable[int]) -> dict[int, int]:
        self._ask()
        return {shard: self._store.shard(shard).last.get(producer, 0) for shard in shards}

    def reconnect(self) -> None:
        self._ask()
        store = self._store
        if self.incarnation not in ("", store.incarnation, store.previous):
            raise TierCorrupt("the model is another store")
        self.incarnation, self.closed = store.incarnation, False

    def close(self) -> None:
        self.closed = True


class ModelTiers:
    """What Client and Producer need of opened tiers."""

    def __init__(self, store: ModelStore) -> None:
        self.hot = store
        self.confirming = True
        self.closed = False

    def reconfirm(self) -> None:
        if self.confirming and not self.hot.down:
            self.hot.confirm()

    def close(self) -> None:
        self.closed = True
