"""Whether Redis still holds what the ledger says it should, decided once after every start of Redis.

Appends are refused (UNCONFIRMED) until the shard's `run` is the server's run_id. Only a process with the ledger writes it, here:

1. new            no ledger identity: the ledger gets one, then every shard its `:m`
2. same run       nothing to do
3. another store  `inc` is neither the ledger's nor its successor: refused
4. whole          a restart that lost nothing: appendfsync always, or Thermocline shut down in order the very server that was
                  confirmed last; and the worker never saw more than there is now
5. perhaps short  any other restart: the newest acknowledged events may be gone, and nobody can tell which. The era grows, so that
                  heads skip 1,000,000 and no seq is given twice; what the worker had seen and Redis lacks is declared lost
6. short          the log ends before what is settled, or the shard is gone (wiped): as 5, and the counters continue from the
                  ledger, the log's ids after the settled position, heads are rebuilt from the segments; a wiped Redis gets a new
                  incarnation, whose `prev` is the old one

The ledger is written before Redis: a crash between leaves an era that grew once for nothing, never one that did not grow.
"""

from __future__ import annotations

import fcntl
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from thermocline.config import Settings
from thermocline.errors import ConfigError, TierCorrupt
from thermocline.event import FORMAT

from .block import Position
from .hot import ServerFacts
from .hot_redis import RedisHot, ShardMeta
from .ledger import Ledger, Loss, ShardState, View
from .warm import Warm
from .whole_file import file_errors


class Confirmation(msgspec.Struct, frozen=True, kw_only=True):
    """What confirming found."""

    created: bool = False
    restarted: bool = False
    losses: tuple[Loss, ...] = ()
    heads_rebuilt: int = 0


def confirm(hot: RedisHot, warm: Warm, ledger: Ledger, settings: Settings) -> Confirmation:
    """Make appends possible, or say why not. Safe to call at any time, from any process with the ledger.

    ConfigError: this Redis may evict, keeps nothing on disk, or belongs to another store. TierUnavailable: it does not answer.
    """
    facts = hot.facts()
    check_server(facts, settings, hot.link.shown_url)
    with _alone(settings.namespace_dir / "confirm.lock"):
        identity = ledger.identity()
        metas = hot.metas()
        if identity is None:
            return _create(hot, warm, ledger, settings, metas, facts)
        _check_identity(identity, settings)
        if all(meta.get("run") == facts.run_id and meta.get("inc") == identity["incarnation"] for meta in metas):
            if identity.get("run") != facts.run_id:  # a ledger that was rebuilt, or not told because of a crash
                ledger.confirmed(incarnation=identity["incarnation"], eras={}, losses=[], now_us=_now_us(), run_id=facts.run_id)
            return Confirmation()
        view = ledger.view()
        _check_owner(hot, view.incarnation, identity.get("previous") or "", metas, settings)
        in_order = hot.shut_down_in_order(identity.get("run", ""))
        if facts.append_only and not in_order:
            hot.rewrite_file()  # before anything is written behind what a crash may have left
        whole = facts.append_fsync == "always" or in_order
        # `run` is the last thing `_create` writes; without it nothing was ever appended, unless the ledger was rebuilt
        made = "run" in identity or any(state.events for state in view.shards)
        return _after_restart(hot, warm, ledger, view, metas, facts, settings, whole=whole, made=made)


def check_server(facts: ServerFacts, settings: Settings, shown_url: str) -> None:
    """Refuse a Redis that would lose events by its settings."""
    problems = []
    if facts.maxmemory_policy not in ("noeviction", "unknown"):
        problems.append(
            f"Redis at {shown_url} may evict events (maxmemory-policy {facts.maxmemory_policy}): "
            "set `maxmemory-policy noeviction` in redis.conf, or `CONFIG SET maxmemory-policy noeviction`"
        )
    if not facts.append_only and not settings.hot.allow_volatile:
        problems.append(
            f"Redis at {shown_url} keeps nothing on disk (appendonly no): set `appendonly yes`, "
            "or accept the loss of events at a crash with hot.allow_volatile = true"
        )
    if problems:
        raise ConfigError(problems)


def _check_identity(identity: Mapping[str, str], settings: Settings) -> None:
    if identity["format"] != FORMAT:
        raise TierCorrupt(f"the ledger of {settings.namespace!r} has format {identity['format']!r}, this version knows {FORMAT}")
    for key, mine in (("shards", settings.hot.shards), ("buckets", settings.hot.buckets)):
        if int(identity[key]) != mine:
            raise ConfigError(
                f"hot.{key} is {mine}, but namespace {settings.namespace!r} was created with {identity[key]}: "
                f"set hot.{key} = {identity[key]}"
            )


def _create(
    hot: RedisHot, warm: Warm, ledger: Ledger, settings: Settings, metas: list[ShardMeta], facts: ServerFacts
) -> Confirmation:
    if any(metas):
        raise ConfigError(
            f"Redis at {hot.link.shown_url} already holds namespace {settings.namespace!r} of another data directory: "
            f"point data_dir at that one, run `thermocline recover` if its ledger is lost, or choose another namespace"
        )
    if warm.stored():
        raise ConfigError(
            f"{settings.namespace_dir} holds segments but no ledger: run `thermocline recover`, which makes it anew from them, "
            "or choose another namespace"
        )
    incarnation = uuid.uuid4().hex
    ledger.create(incarnation=incarnation, shards=hot.shards, buckets=settings.hot.buckets, now_us=_now_us())
    for shard in range(hot.shards):
        _put(hot, settings, ShardState(shard=shard), {}, incarnation=incarnation, prev="", run_id=facts.run_id, era=0)
    ledger.confirmed(incarnation=incarnation, eras={}, losses=[], now_us=_now_us(), run_id=facts.run_id)
    return Confirmation(created=True)


def _check_owner(hot: RedisHot, incarnation: str, previous: str, metas: list[ShardMeta], settings: Settings) -> None:
    """ConfigError unless every shard is this ledger's: of its incarnation, or of the one it replaced when that was cut short."""
    for meta in filter(None, metas):
        if meta["inc"] not in (incarnation, previous):
            raise ConfigError(
                f"Redis at {hot.link.shown_url} belongs to another store (its namespace {settings.namespace!r} has incarnation "
                f"{meta['inc']}, the ledger {incarnation}): check redis_url and data_dir"
            )
        if meta["format"] != FORMAT:
            raise TierCorrupt(f"Redis at {hot.link.shown_url} has format {meta['format']!r}, this version knows {FORMAT}")


def _after_restart(
    hot: RedisHot,
    warm: Warm,
    ledger: Ledger,
    view: View,
    metas: list[ShardMeta],
    facts: ServerFacts,
    settings: Settings,
    *,
    whole: bool,
    made: bool,
) -> Confirmation:
    """whole  there is proof that the last writes before the restart were on disk
    made   the namespace was created to the end, so something may have been appended
    """
    wiped = not all(metas)
    short = [_is_short(state, meta) for state, meta in zip(view.shards, metas, strict=True)]
    seen_more = any(state.observed_events > int(meta.get("N", 0)) for state, meta in zip(view.shards, metas, strict=True))
    intact = (whole and not wiped and not any(short) and not seen_more) or not made
    incarnation = uuid.uuid4().hex if wiped else metas[0]["inc"]
    losses, eras = [], {}
    for state, meta in zip(view.shards, metas, strict=True):
        era = max(state.era, int(meta.get("era", 0)))
        if not intact:
            era += 1
            losses.append(_loss(state, meta, era, wiped=wiped))
        eras[state.shard] = era
    ledger.confirmed(incarnation=incarnation, eras=eras, losses=losses, now_us=_now_us(), run_id=facts.run_id)
    rebuilt = _rebuild_heads(hot, warm, view, eras) if wiped or any(short) else 0
    for state, meta, is_short in zip(view.shards, metas, short, strict=True):
        if is_short or not meta:
            prev = view.incarnation if wiped else meta.get("prev", "")
            _put(hot, settings, state, meta, incarnation=incarnation, prev=prev, run_id=facts.run_id, era=eras[state.shard])
        else:
            extra = {"inc": incarnation, "prev": view.incarnation} if wiped else {}
            hot.put_meta(state.shard, {**extra, "era": eras[state.shard], "t": _newest_us(state, meta), "run": facts.run_id})
    return Confirmation(restarted=True, losses=tuple(loss for loss in losses if loss.events), heads_rebuilt=rebuilt)


def _is_short(state: ShardState, meta: ShardMeta) -> bool:
    """Whether Redis lacks something that has settled."""
    if not meta:
        return True
    return Position.parse(meta["L"]) < state.position or int(meta["N"]) < state.events


def _loss(state: ShardState, meta: ShardMeta, era: int, *, wiped: bool) -> Loss:
    there = max(int(meta.get("N", 0)), state.events)
    return Loss(
        shard=state.shard,
        era=era,
        observed=max(0, state.observed_events - there),
        reported=0,
        at_us=_now_us(),
        reason="Redis was wiped" if wiped else "Redis restarted without proof that its last writes were on disk",
    )


def _newest_us(state: ShardState, meta: Mapping[str, str]) -> int:
    """No block ever had a later ingested_at, as far as anybody knows: those to come are after it, whatever the clock says."""
    known_ms = max(state.position.ms, state.observed_position.ms)
    return max(int(meta.get("t", 0)), known_ms * 1000 + 999 if known_ms else 0)


def _put(
    hot: RedisHot,
    settings: Settings,
    state: ShardState,
    meta: Mapping[str, str],
    *,
    incarnation: str,
    prev: str,
    run_id: str,
    era: int,
) -> None:
    """Write a shard's `:m` so that it continues after `state`. `run` comes with it: from here on appends are taken."""
    hot.raise_last_id(state.shard, state.position)
    position, events, size = str(state.position), state.events, state.bytes
    hot.put_meta(
        state.shard,
        {
            "format": FORMAT,
            "shards": hot.shards,
            "buckets": settings.hot.buckets,
            "inc": incarnation,
            "prev": prev,
            "era": era,
            "N": events,
            "B": size,
            "L": position,
            "t": _newest_us(state, meta),
            "T": position,
            "tB": size,
            "sN": events,
            "sB": size,
            "oB": 0,
            "run": run_id,
        },
    )


def _rebuild_heads(hot: RedisHot, warm: Warm, view: View, eras: dict[int, int]) -> int:
    """Store the head of every conversation that has settled events; how many. It counts as one of the era before, so it skips."""
    count = 0
    for batch in warm.last_seqs(view.segments):
        pairs = zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)
        count += hot.put_heads((conversation_id, seq, _era_before(eras)) for conversation_id, seq in pairs)
    return count


def _era_before(eras: dict[int, int]) -> int:
    """The era every shard was in before this one; eras of a namespace grow together."""
    return max(0, min(eras.values()) - 1)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One confirming process at a time."""
    with file_errors(str(path), setting="data_dir"):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _now_us() -> int:
    return time.time_ns() // 1000


__all__ = ["Confirmation", "check_server", "confirm"]
