"""What a Redis that lives has dropped as settled, and a restored ledger does not know to have settled: counted, by name.

Those events had settled into segments that were not in the mirror yet. They are gone; the ledger goes on after them, with a line
in rejected/ for each shard, so that the sums close and nobody has to guess.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

import msgspec

from thermocline.config import EMBEDDED_FOLDER, Settings
from thermocline.tiers.block import Position
from thermocline.tiers.embedded import ensure
from thermocline.tiers.hot_redis import RedisHot
from thermocline.tiers.ledger import ShardState
from thermocline.tiers.ledger_sql import SqlLedger
from thermocline.tiers.opening import open_link
from thermocline.tiers.warm import Rejected

from .lease import Lease
from .rejected import RejectedLog

REASON = "lost with the disk: Redis had dropped it as settled, and the mirror did not have its segment yet"


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """Events of one shard that neither Redis nor the mirror has."""

    shard: int
    events: int
    after: str
    upto: str


def skip_dropped(settings: Settings) -> list[Skipped]:
    """Let the ledger go on after what Redis has dropped; what that was, by shard; [] when Redis has all that is needed, is empty,
    or is another store's. TierUnavailable when it does not answer. An embedded one is asked when its folder is there."""
    folder = settings.namespace_dir
    if settings.redis_url is None and not (settings.data_dir / EMBEDDED_FOLDER).exists():
        return []
    with ExitStack() as stack:
        endpoint = ensure(settings.data_dir, settings.hot) if settings.redis_url is None else None
        if endpoint is not None:
            stack.callback(endpoint.close)
        hot = RedisHot(open_link(settings, endpoint), settings.namespace, settings.hot)
        stack.callback(hot.close)
        ledger = SqlLedger(settings.ledger_url or f"sqlite:///{folder.resolve()}/ledger.db", folder=folder)
        stack.callback(ledger.close)
        view, identity = ledger.view(), ledger.identity() or {}
        ours = {view.incarnation, identity.get("previous")}
        pairs = [(state, meta) for state, meta in zip(view.shards, hot.metas(), strict=True) if meta and meta["inc"] in ours]
        moved = [(state, _after(hot, state, meta)) for state, meta in pairs]
        moved = [(state, new) for state, new in moved if new.events > state.events]
        if not moved:
            return []
        lease = Lease(folder, ledger)
        stack.callback(lease.release)
        now_us = time.time_ns() // 1000
        lines = [
            Rejected(
                shard=old.shard,
                position=str(new.position),
                ordinal=-1,
                conversation_id="",
                reason=REASON,
                line="",
                events=new.events - old.events,
            )
            for old, new in moved
        ]
        RejectedLog(folder / "rejected").append(lines, {old.shard: old for old, _ in moved}, now_us=now_us)
        ledger.settled(lease.epoch, None, [new for _, new in moved], now_us=now_us)
        return [
            Skipped(shard=old.shard, events=new.events - old.events, after=str(old.position), upto=str(new.position))
            for old, new in moved
        ]


def _after(hot: RedisHot, state: ShardState, meta: dict[str, str]) -> ShardState:
    """The state after what Redis has dropped."""
    trimmed, last = Position.parse(meta["T"]), Position.parse(meta["L"])
    if trimmed <= state.position:
        return state
    first = hot.page(state.shard, trimmed, last, bytes_max=1).slice(0, 1).to_pylist()
    events = first[0]["events_total"] - first[0]["events"] if first else int(meta["N"])
    return msgspec.structs.replace(
        state,
        position=trimmed,
        events=events,
        bytes=max(state.bytes, int(meta["tB"])),
        rejected=state.rejected + events - state.events,
    )
