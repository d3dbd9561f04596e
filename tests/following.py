"""Readers that follow a store, held against the plain list of what was appended, whatever moves meanwhile."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.archiving import settle_all
from tests.servers import RedisServer
from tests.tidying import DAY_US, Archive
from thermocline.archiver.archive import Archiver
from thermocline.archiver.merge import Merger
from thermocline.archiver.settle import Settler
from thermocline.ingest.append import Client
from thermocline.query.follow import Following, Tail
from thermocline.query.gaps import Gap
from thermocline.query.settled import SettledEvents
from thermocline.tiers.hot_watch import LogWatch

CONVERSATIONS = 9
TYPES = ("output.chunk", "tool.call", "error")
PAGE_BYTES = 3000
KEYS = 11


class Reader:
    """One that follows, is closed and begins again where it was, as often as it likes."""

    def __init__(self, world: World, name: str, *, start: Any, conversation_id: str | None = None, types: Any = None) -> None:
        self.name = name
        self._world = world
        self._how = {"conversation_id": conversation_id, "event_types": types}
        self.types = types
        self.conversation_id = conversation_id
        self.seen: dict[str, list[tuple[int, int, str | None]]] = defaultdict(list)
        """conversation → (first seq, last seq, content or None for a gap)."""
        self.gaps: list[Gap] = []
        self.began_again = False
        self.tail = self._open(start)

    def _open(self, start: Any) -> Tail:
        return Tail(self._world.shared, start=start, page_bytes_max=PAGE_BYTES, **self._how)

    def read(self, limit: int) -> int:
        items = self.tail.read(limit, timeout_s=0)
        for item in items:
            if isinstance(item, Gap):
                self.gaps.append(item)
                self.seen[item.conversation_id].append((item.from_seq, item.to_seq, None))
            else:
                event = item.event
                self.seen[event["conversation_id"]].append((event["seq"], event["seq"], event["content"]))
                assert self.types is None or event["event_type"] in self.types
        self._last = items[-1].position if items else self.tail.position
        return len(items)

    def begin_again(self, *, at_item: bool) -> None:
        """Go on with another tail."""
        self.began_again = True
        self.tail.close()
        self.tail = self._open(self._last if at_item else self.tail.position)

    def passes_over(self, kind: str) -> bool:
        return self.types is not None and kind not in self.types

    def read_all(self) -> None:
        while self.read(1000) or not self.tail.caught_up:
            pass


class World:
    """A store, the list of what it was given, and the dice."""

    def __init__(self, folder: Path, server: RedisServer, seed: int) -> None:
        self.dice = random.Random(seed)
        self.archive = Archive(folder, server)
        self.tiers = self.archive.tiers
        self.shared = Following(self.tiers, SettledEvents(self.tiers, keys_max=KEYS), LogWatch(self.tiers.hot))
        self.appended: dict[str, list[tuple[str, str]]] = defaultdict(list)
        """conversation → (type, content), in the order of seq."""
        self.count = 0

    def close(self) -> None:
        self.shared.close()
        self.archive.close()

    def append(self) -> None:
        with Client(self.tiers.settings, tiers=self.tiers) as client:
            for _ in range(self.dice.randrange(1, 5)):
                name = f"c{self.dice.randrange(CONVERSATIONS)}"
                events = []
                for _ in range(self.dice.choice((1, 1, 3, 12))):
                    kind = self.dice.choice(TYPES)
                    content = f"{self.count} " + "x" * self.dice.choice((0, 5, 900))
                    days = self.dice.choice((0, 1, 9, 12, 12, 12))
                    at_us = self.archive.now_us - days * DAY_US
                    events.append({"conversation_id": name, "event_type": kind, "content": content, "timestamp": at_us})
                    self.appended[name].append((kind, content))
                    self.count += 1
                client.append_many(events)

    def settle(self) -> None:
        Settler(self.tiers, self.archive.epoch).step(force=True)

    def merge(self) -> None:
        Merger(self.tiers, self.archive.epoch).step(force=True)

    def to_archive(self) -> None:
        Archiver(self.tiers, self.archive.epoch).step()

    def compact(self) -> None:
        self.archive.compact()

    def trim(self) -> None:
        """Drop what has settled from the log of some shards."""
        for state in self.tiers.ledger.view().shards:
            if self.dice.random() < 0.7:
                self.tiers.hot.trim(
                    state.shard, state.position, settled_events=state.events, settled_bytes=state.bytes, others_bytes=0
                )

    def clear(self) -> None:
        """Archive what is old, and leave nothing of it in the logs."""
        self.settle()
        self.to_archive()
        for state in self.tiers.ledger.view().shards:
            self.tiers.hot.trim(
                state.shard, state.position, settled_events=state.events, settled_bytes=state.bytes, others_bytes=0
            )

    def step(self) -> None:
        self.dice.choice(
            (
                self.append,
                self.append,
                self.append,
                self.settle,
                self.settle,
                self.merge,
                self.to_archive,
                self.compact,
                self.trim,
                self.trim,
            )
        )()

    def stored(self) -> set[tuple[str, int]]:
        """(conversation, seq) of what queries see."""
        return set(self.archive.store.sql("SELECT conversation_id, seq FROM events").fetchall())

    def settle_all(self) -> None:
        settle_all(Settler(self.tiers, self.archive.epoch))


def check(world: World, reader: Reader, *, begun: dict[str, int]) -> None:
    """Every event exactly once, in order, and gaps where there is nothing.

    begun  conversation → events it had when the reader started, if that was later
    """
    stored = world.stored()
    for name, appended in world.appended.items():
        if reader.conversation_id not in (None, name):
            assert name not in reader.seen
            continue
        at = begun.get(name, 0)
        for first, last, content in reader.seen[name]:
            if content is None:
                assert all((name, seq) not in stored for seq in range(first, last + 1)), (reader.name, name, first, last)
                # One that began again forgot what it was given, which may have left the store since.
                begin = max(first, at + 1) if reader.began_again and reader.conversation_id is None else first
            else:
                assert appended[first - 1][1] == content, (reader.name, name, first)
                begin = first
            assert begin > at, (reader.name, name, first, at)
            passed = [seq for seq in range(at + 1, begin) if not reader.passes_over(appended[seq - 1][0])]
            assert passed == [], (reader.name, name, first)
            at = max(at, last)
        left = [seq for seq in range(at + 1, len(appended) + 1) if not reader.passes_over(appended[seq - 1][0])]
        assert not left or (reader.conversation_id is None and not any((name, seq) in stored for seq in left)), (name, left)


def play(world: World, steps: int) -> list[Reader]:
    """Let things happen at random while readers read, stop and begin again; all of them are checked at the end."""
    readers = [
        Reader(world, "all", start="begin"),
        Reader(world, "one", start="begin", conversation_id="c1"),
        Reader(world, "errors", start="begin", types=["error"]),
        Reader(world, "late", start="begin"),
    ]
    begun: list[dict[str, int]] = [{} for _ in readers]
    for number in range(steps):
        world.step()
        if number == steps // 3:
            begun.append({name: len(appended) for name, appended in world.appended.items()})
            readers.append(Reader(world, "now", start="now"))
        for reader in readers:
            if reader.name == "late":
                continue
            if world.dice.random() < 0.5:
                reader.read(world.dice.choice((1, 2, 7, 100)))
                if world.dice.random() < 0.5:
                    reader.begin_again(at_item=world.dice.random() < 0.5)
    for reader, before in zip(readers, begun, strict=True):
        if reader.name == "late":
            world.clear()
        reader.read_all()
        check(world, reader, begun=before)
    return readers
