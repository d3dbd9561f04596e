"""Recover: make the ledger again from what the segments and the archive say of themselves.

1. the namespace's lock, so that no worker moves anything
2. read every segment's own info and the descriptions of archived batches, find
   what is live, check that the sums close                                          a crash leaves nothing
3. move the old ledger aside, if there is one                                       no ledger: run recover again
4. one transaction: the new ledger                                                  done
5. files that are not live go to trash/, where purge finds them                     orphans

Redis is asked for the incarnation and how far it has trimmed; it is not changed. Whoever opens the namespace next confirms it.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from thermocline.config import Settings
from thermocline.errors import ConfigError, ThermoclineError, TierCorrupt
from thermocline.tiers.block import Position
from thermocline.tiers.cold_opening import open_cold
from thermocline.tiers.embedded import ensure
from thermocline.tiers.hot import Hot
from thermocline.tiers.hot_redis import RedisHot, ShardMeta
from thermocline.tiers.iceberg import IcebergTables
from thermocline.tiers.ledger import Segment, ShardState
from thermocline.tiers.ledger_sql import SqlLedger
from thermocline.tiers.opening import definitions_of, open_link
from thermocline.tiers.segment_sum import sum_path
from thermocline.tiers.steps import Reach, named, unheard
from thermocline.tiers.warm import Warm
from thermocline.tiers.warm_duckdb import DuckWarm
from thermocline.tiers.whole_file import file_errors

from .lease import Lock
from .moves import reconstruct
from .recover_cold import published_batches
from .rejected import RejectedLog


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """What `recover` did."""

    incarnation: str
    shards: tuple[ShardState, ...]
    segments: int
    batches: int
    """Of the archive."""
    rows: int
    """In the segments."""
    dropped: tuple[str, ...]
    """Segment ids whose events live segments hold too; their files went to trash/."""
    unreadable: tuple[str, ...]
    """What is wrong with files that could not be read; they were left where they are."""
    ledger_aside: str | None
    """The old ledger's new name."""


def recover(settings: Settings, *, force: bool = False, reach: Reach = unheard) -> Recovery:
    """Rebuild the ledger of a namespace. Opens what it needs and closes it again.

    force  also when there is a ledger that can be read and lists segments; it is moved aside, never deleted
    reach  told the name of every step before and after it

    ConfigError: there is a ledger, or the settings do not fit what is stored. TierUnavailable: Redis does not answer.
    TierCorrupt: the segments do not add up. LeaseHeld: a worker runs. In all these cases nothing was changed.
    """
    folder = settings.namespace_dir
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no namespace {settings.namespace!r} here: check data_dir and namespace")
    with ExitStack() as stack:
        stack.enter_context(Lock(folder, role="recover"))
        endpoint = ensure(settings.data_dir, settings.hot) if settings.redis_url is None else None
        if endpoint is not None:
            stack.callback(endpoint.close)
        hot = RedisHot(open_link(settings, endpoint), settings.namespace, settings.hot)
        stack.callback(hot.close)
        warm = DuckWarm(folder / "segments", settings.warm, shards=settings.hot.shards, rollups=definitions_of(settings))
        stack.callback(warm.close)
        ledger = SqlLedger(settings.ledger_url or f"sqlite:///{folder.resolve()}/ledger.db", folder=folder)
        stack.callback(ledger.close)
        if not force:
            _refuse_if_in_use(ledger)
        return _rebuild(settings, hot, warm, ledger, reach)


def _refuse_if_in_use(ledger: SqlLedger) -> None:
    """ConfigError when the ledger can be read and knows of events: then nothing is to be recovered."""
    try:
        view = ledger.view()
    except TierCorrupt as exc:
        if _is_readable(ledger):
            raise ConfigError(f"{exc}; add --force to make a new one from the segments all the same") from exc
        return
    except ThermoclineError:
        return
    if view.segments or any(state.events for state in view.shards):
        raise ConfigError(
            f"there is a ledger, with {len(view.segments)} segments: nothing to recover; "
            "add --force to move it aside and make a new one from the segments"
        )


def _is_readable(ledger: SqlLedger) -> bool:
    """Whether a ledger that cannot be used is not damaged, but of another format."""
    try:
        return ledger.identity() is not None
    except ThermoclineError:
        return False


def _rebuild(settings: Settings, hot: RedisHot, warm: Warm, ledger: SqlLedger, reach: Reach) -> Recovery:
    with named(reach, "read segments"):
        files, unreadable = _read_infos(warm)
    cold = open_cold(settings)
    try:
        with named(reach, "read archive"):
            batches = published_batches(cold, IcebergTables(cold, settings))
    finally:
        cold.close()
    _check_settings(settings, hot, files)
    metas = hot.metas()
    try:
        found = reconstruct(files, shards=settings.hot.shards, batches=batches)
        shards = [_with_hot(state, metas[state.shard], hot, settings) for state in found.shards]
    except TierCorrupt as exc:
        raise TierCorrupt("; ".join([str(exc), *unreadable])) from exc
    incarnation = next((meta["inc"] for meta in metas if meta), uuid.uuid4().hex)
    with named(reach, "move ledger aside"):
        aside = ledger.move_aside(time.strftime("%Y%m%dT%H%M%SZ.old", time.gmtime()))
    with named(reach, "write ledger"):
        ledger.rebuild(
            incarnation=incarnation,
            shards=shards,
            segments=found.live,
            batches=batches,
            buckets=settings.hot.buckets,
            now_us=time.time_ns() // 1000,
        )
    live = {one.segment_id for one in found.live}
    dropped = [one.segment_id for one in files if one.segment_id not in live]
    with named(reach, "drop segments"):
        _drop(dropped, warm, settings.namespace_dir / "trash")
    return Recovery(
        incarnation=incarnation,
        shards=tuple(shards),
        segments=len(found.live),
        batches=len(batches),
        rows=sum(one.rows for one in found.live),
        dropped=tuple(dropped),
        unreadable=tuple(unreadable),
        ledger_aside=aside,
    )


def _drop(segment_ids: Sequence[str], warm: Warm, trash: Path) -> None:
    """Move files that are not live to trash/."""
    with file_errors(str(trash), setting="data_dir"):
        trash.mkdir(exist_ok=True)
        for segment_id in segment_ids:
            path = Path(warm.path(segment_id)).replace(trash / f"{segment_id}.duckdb")
            os.utime(path)  # purge counts its grace from now
            sum_path(Path(warm.path(segment_id))).unlink(missing_ok=True)


def _read_infos(warm: Warm) -> tuple[list[Segment], list[str]]:
    """(what every file says of itself, what is wrong with those that say nothing)."""
    files, unreadable = [], []
    for segment_id in warm.stored():
        try:
            files.append(warm.read_info(segment_id))
        except TierCorrupt as exc:
            unreadable.append(str(exc))
    return files, unreadable


def _check_settings(settings: Settings, hot: RedisHot, files: Sequence[Segment]) -> None:
    """ConfigError unless shards and buckets are what the store was created with, as far as that is still known."""
    problems = []
    for meta in hot.metas():
        for key, mine in (("shards", settings.hot.shards), ("buckets", settings.hot.buckets)):
            if meta and int(meta[key]) != mine:
                problems.append(f"hot.{key} is {mine}, but the store was created with {meta[key]}: set hot.{key} = {meta[key]}")
    highest = max((part.shard for one in files for part in one.ranges), default=-1)
    if highest >= settings.hot.shards:
        problems.append(
            f"hot.shards is {settings.hot.shards}, but there are segments of shard {highest}: set it as it was at creation"
        )
    if problems:
        raise ConfigError(sorted(set(problems)))


def _with_hot(state: ShardState, meta: ShardMeta, hot: Hot, settings: Settings) -> ShardState:
    """The state, moved on over blocks that Redis trimmed and of which nothing but rejected lines was left.

    TierCorrupt when Redis trimmed events that are neither in a segment nor rejected: a file is missing.
    """
    if not meta:
        return state
    state = msgspec.structs.replace(state, era=int(meta["era"]))
    trimmed, last = Position.parse(meta["T"]), Position.parse(meta["L"])
    if trimmed <= state.position:
        return state
    first = hot.page(state.shard, trimmed, last, bytes_max=1).slice(0, 1).to_pylist()
    events = first[0]["events_total"] - first[0]["events"] if first else int(meta["N"])
    rejected = RejectedLog(settings.namespace_dir / "rejected").counted(state.shard, state.position, trimmed)
    if state.events + rejected != events:
        raise TierCorrupt(
            f"gap in shard {state.shard}: Redis has dropped its events up to {events} as settled, but segments and rejected "
            f"lines hold only {state.events + rejected}: put the missing segment files back, then run `thermocline recover` again"
        )
    return msgspec.structs.replace(
        state,
        position=trimmed,
        events=events,
        bytes=int(meta["tB"]),
        rejected=state.rejected + rejected,
        observed_events=events,
        observed_position=trimmed,
    )
