"""One namespace with everything a test needs to move events through it by hand: append, settle, merge, trim, read."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from thermocline.archiver.merge import Merger
from thermocline.archiver.settle import Settler
from thermocline.config import load
from thermocline.event import Receipt
from thermocline.ingest.append import Client
from thermocline.store import Store, connect
from thermocline.tiers.block import Block
from thermocline.tiers.ledger import View
from thermocline.tiers.opening import open_tiers

DAY_US = 86_400_000_000


class Site:
    """A store over a Redis with `appendfsync always`, so that what was appended can be settled at once. A context manager.

    sections  settings of a section by keyword, over those a test wants: warm={"fan_in": 2}
    """

    def __init__(self, folder: Path, redis_url: str, **sections: Mapping[str, Any]) -> None:
        hot = {"durable_lag_s": 0, "shards": 4, **sections.pop("hot", {})}
        self.settings = load({"data_dir": folder, "redis_url": redis_url, "hot": hot, **sections}, environ={})
        self.tiers = open_tiers(self.settings)
        self.client = Client(self.settings)
        self.store = connect(self.settings)
        epoch = self.tiers.ledger.take_epoch("test", time.time_ns() // 1000)
        self._settler = Settler(self.tiers, epoch)
        self._merger = Merger(self.tiers, epoch)

    def append(self, events: Iterable[Mapping[str, Any]]) -> list[Receipt]:
        return self.client.append_many(events)

    def settle(self) -> None:
        """Everything that waits becomes one segment."""
        while self._settler.step(force=True).events:
            pass

    def merge(self) -> bool:
        """Whether there was something to merge."""
        return self._merger.step(force=True) is not None

    def trim(self) -> None:
        """Redis forgets what has settled, without grace."""
        states = self.tiers.ledger.view().shards
        for state in states:
            self.tiers.hot.trim(
                state.shard, state.position, settled_events=state.events, settled_bytes=state.bytes, others_bytes=0
            )

    def purge(self, view: View) -> None:
        """The files of `view` that have left the ledger are gone."""
        live = {segment.segment_id for segment in self.tiers.ledger.view().segments}
        for segment in view.segments:
            if segment.segment_id not in live:
                Path(self.tiers.warm.path(segment.segment_id)).unlink()

    def send(self, block: Block) -> None:
        """Store a block as it is, unchecked."""
        session = self.tiers.hot.session()
        [reply] = session.send(f"raw-{block.block_id}", [(block, 1, None)], deadline_s=5)
        session.close()
        assert reply.code == "OK"

    def count(self, store: Store | None = None) -> int:
        """Events a query sees; fails if one is there twice."""
        counted = (store or self.store).sql("SELECT count(*), count(DISTINCT (conversation_id, seq)) FROM events").fetchone()
        assert counted is not None
        assert counted[0] == counted[1]
        return int(counted[0])

    def close(self) -> None:
        self.store.close()
        self.client.close()
        self.tiers.close()

    def __enter__(self) -> Site:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def chats(count: int, *, conversations: int = 10, **fields: Any) -> list[dict[str, Any]]:
    """`count` events, spread over conversations chat-0, chat-1 …"""
    return [
        {
            "conversation_id": f"chat-{number % conversations}",
            "event_type": ("output.chunk", "tool.call", "error")[number % 3],
            "content": f"text {number}",
            "task_id": f"task-{number % 4}",
            "metadata": {"number": number},
            **fields,
        }
        for number in range(count)
    ]


def changed(block: Block, **fields: Any) -> Block:
    return msgspec.structs.replace(block, **fields)
