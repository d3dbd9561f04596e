"""How a namespace is doing: what each tier holds, what waits, what the worker last said."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from thermocline.config import MIB
from thermocline.errors import TierUnavailable
from thermocline.tiers.cold_copies import PINS
from thermocline.tiers.hot import Hot, ServerFacts, ShardCut
from thermocline.tiers.ledger import Loss, View
from thermocline.tiers.opening import Tiers
from thermocline.tiers.quarantine import kept as quarantined
from thermocline.tiers.scrub_state import read_state

WORKER_FILE: Final = "worker.json"
"""In the namespace folder: what the worker last said of itself."""
DAY_US: Final = 86_400_000_000
ARCHIVE_TAKES_S: Final = 600
"""How long a pass of the archive may take before it is worth a word."""

DISK_BYTES_MIN: Final = 16 * MIB
"""Free on the disk of the data directory, below which a settle or a merge will hardly find room."""
REDIS_FULL_RATIO: Final = 0.95
"""Of maxmemory: beyond it Redis refuses, or soon will, what needs memory."""
LEDGER_WAL_BYTES: Final = 64 * MIB
"""Of the ledger's write-ahead log. The worker empties it as it goes, unless somebody reads for ever."""
MIRROR_TAKES_S: Final = 600
"""How far behind the mirror may be before it is worth a word."""


class TierStatus(msgspec.Struct, frozen=True, kw_only=True):
    tier: str
    """hot (in Redis, not settled), warm (segments) or cold (archived files)."""
    events: int
    files: int
    bytes: int
    """hot: payload; else what the files take on disk."""


class CachedStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What has settled and can still be read from Redis. These events are counted in warm."""

    events: int
    bytes: int
    """Payload."""


class RedisStatus(msgspec.Struct, frozen=True, kw_only=True):
    version: str
    url: str
    durability: str
    """What an acknowledged append survives."""
    used_bytes: int
    bytes_max: int
    """maxmemory; 0 is no limit."""
    write_ok: bool


class KeptStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Local copies of archived events, made by `thermocline rehydrate`. They are counted in cold."""

    files: int
    bytes: int
    until_us: int
    """When the last of them may go."""


class OverdueStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Days older than the warm window that are still warm."""

    oldest_day: str
    segments: int
    waits_s: float
    """How long the first of them has been due."""


class ScrubStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far reading everything again has come."""

    passed_us: int
    """When the last pass ended."""
    oldest_us: int
    """Everything there is was read, or written and read back, since then."""
    damaged: int
    """Objects that are not what was written and were not mended."""
    quarantined: int
    """Damaged files that are kept in trash/quarantine/."""
    quarantined_bytes: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    namespace: str
    data_dir: str
    health: str
    """green; yellow: needs attention; red: the store sheds load, or will."""
    reasons: tuple[str, ...]
    """Why health is not green, and what to do."""
    tiers: tuple[TierStatus, ...]
    cached: CachedStatus
    redis: RedisStatus
    shards: int
    segments_by_level: dict[int, int]
    rejected: int
    """Events settle could not use, ever; rejected/ has them."""
    lost: int
    losses: tuple[Loss, ...]
    oldest_unsettled_s: float | None
    """How long the oldest event that has not settled waits."""
    kept: KeptStatus | None
    """None when there are no such copies."""
    overdue: OverdueStatus | None
    """None when everything older than the warm window is archived."""
    scrub: ScrubStatus | None
    """None before the first pass."""
    worker: dict[str, Any] | None
    """What the worker last said (worker.json); None when none ever ran."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found: dict[str, Any] = msgspec.to_builtins(self, str_keys=True)
        return found


def status(tiers: Tiers) -> Status:
    """The state of a namespace now. TierUnavailable when Redis or the ledger is."""
    view = tiers.ledger.view()
    try:
        cut = tiers.hot.cut()
    except TierUnavailable:
        tiers.reconfirm()
        view, cut = tiers.ledger.view(), tiers.hot.cut()
    facts = tiers.hot.facts()
    worker = _worker(tiers.settings.namespace_dir / WORKER_FILE)
    cached, oldest_us = _in_log(tiers.hot, view, cut)
    waiting = _waiting(view, cut)
    oldest_s = None if oldest_us is None else max(0.0, (facts.now_us - oldest_us) / 1e6)
    overdue = _overdue(view, window_days=tiers.settings.warm.window_days, now_us=time.time_ns() // 1000)
    scrubbed = _scrubbed(tiers)
    reasons = _reasons(tiers, facts, view, waiting, oldest_s, overdue, worker)
    if scrubbed is not None and scrubbed.damaged:
        told = f"{scrubbed.damaged:,} stored objects are damaged: `thermocline scrub` names them and says what is gone"
        reasons.insert(0, (True, told))
    levels: dict[int, int] = {}
    for segment in view.segments:
        levels[segment.level] = levels.get(segment.level, 0) + 1
    return Status(
        namespace=tiers.settings.namespace,
        data_dir=str(tiers.settings.data_dir),
        health="red" if any(red for red, _ in reasons) else "yellow" if reasons else "green",
        reasons=tuple(reason for _, reason in reasons),
        tiers=(waiting, *_files(view)),
        cached=cached,
        redis=RedisStatus(
            version=facts.version,
            url=tiers.hot.link.shown_url,
            durability=_durability(facts),
            used_bytes=facts.used_memory,
            bytes_max=facts.maxmemory,
            write_ok=facts.write_ok,
        ),
        shards=len(cut),
        segments_by_level=dict(sorted(levels.items())),
        rejected=sum(state.rejected for state in view.shards),
        lost=sum(loss.events for loss in view.losses),
        losses=tuple(loss for loss in view.losses if loss.events),
        oldest_unsettled_s=oldest_s,
        kept=_kept(tiers, view),
        overdue=overdue,
        scrub=scrubbed,
        worker=worker,
    )


def _waiting(view: View, cut: Sequence[ShardCut]) -> TierStatus:
    return TierStatus(
        tier="hot",
        events=sum(shard.events_total - state.events for state, shard in zip(view.shards, cut, strict=True)),
        files=0,
        bytes=sum(shard.bytes_total - state.bytes for state, shard in zip(view.shards, cut, strict=True)),
    )


def _files(view: View) -> list[TierStatus]:
    events = [file for file in view.files if file.kind == "events"]
    return [
        TierStatus(
            tier="warm",
            events=sum(segment.rows for segment in view.segments),
            files=len(view.segments),
            bytes=sum(segment.file_bytes for segment in view.segments),
        ),
        TierStatus(
            tier="cold",
            events=sum(file.rows for file in events),
            files=len(view.files),
            bytes=sum(file.file_bytes for file in view.files),
        ),
    ]


def _in_log(hot: Hot, view: View, cut: Sequence[ShardCut]) -> tuple[CachedStatus, int | None]:
    """What is cached, and when the oldest unsettled event was ingested: from the first blocks of the log's two parts."""
    events = size = 0
    ingested = []
    for state, shard in zip(view.shards, cut, strict=True):
        cached_bytes = state.bytes - shard.trimmed_bytes
        if cached_bytes > 0:
            first = hot.page(shard.shard, shard.trimmed, shard.last, bytes_max=1).slice(0, 1).to_pylist()
            events += sum(state.events - block["events_total"] + block["events"] for block in first)
            size += cached_bytes
        if shard.last > state.position:
            first = hot.page(shard.shard, state.position, shard.last, bytes_max=1).slice(0, 1).to_pylist()
            ingested += [block["ingested_us"] for block in first]
    return CachedStatus(events=events, bytes=size), min(ingested, default=None)


def _reasons(
    tiers: Tiers,
    facts: ServerFacts,
    view: View,
    waiting: TierStatus,
    oldest_s: float | None,
    overdue: OverdueStatus | None,
    worker: dict[str, Any] | None,
) -> list[tuple[bool, str]]:
    """(whether it is red, what is wrong and what to do), worst first."""
    warm, hot = tiers.settings.warm, tiers.settings.hot
    found = []
    if worker is not None and worker.get("health") == "red":
        found.append((True, f"the worker reports: {worker.get('problem') or 'health red'}"))
    stored = sum(segment.file_bytes for segment in view.segments)
    if warm.bytes_max and stored >= warm.bytes_max:
        found.append((True, f"segments take {stored:,} bytes, warm.bytes_max is {warm.bytes_max:,}: settle has stopped"))
    if waiting.bytes >= hot.unsettled_bytes_max:
        found.append((True, f"{waiting.bytes // MIB} MiB wait to settle: append sheds load; is `thermocline worker` running?"))
    if not facts.write_ok:
        found.append((True, "Redis cannot write to its disk: check its free space and log"))
    found += _crowded(tiers, facts)
    if oldest_s is not None and oldest_s > 2 * warm.settle_latest_s:
        found.append((False, f"events wait {oldest_s:.0f} s to settle: start `thermocline worker`"))
    if overdue is not None and overdue.waits_s > 2 * tiers.settings.worker.archive_every_s + ARCHIVE_TAKES_S:
        found.append((False, _overdue_reason(overdue, worker)))
    lag_s = float((worker or {}).get("mirror_lag_s") or 0)
    if tiers.settings.warm.mirror is not None and lag_s > MIRROR_TAKES_S:
        found.append((False, f"the mirror is {lag_s:,.0f} s behind: if this disk is lost, what settled since then is gone"))
    if not facts.append_only:
        found.append((False, "Redis keeps nothing on disk (hot.allow_volatile): a crash loses what has not settled"))
    lost = sum(loss.events for loss in view.losses)
    if lost:
        found.append((False, f"{lost:,} acknowledged events were lost by Redis: `thermocline verify` says where"))
    return found


def _crowded(tiers: Tiers, facts: ServerFacts) -> list[tuple[bool, str]]:
    """What has no room left, or soon will not have."""
    found = []
    if facts.maxmemory and facts.used_memory >= REDIS_FULL_RATIO * facts.maxmemory:
        used = f"Redis uses {facts.used_memory:,} of {facts.maxmemory:,} bytes (maxmemory)"
        found.append((True, f"{used}: append sheds load; is `thermocline worker` running? Else raise maxmemory"))
    folder = tiers.settings.namespace_dir
    free = shutil.disk_usage(folder).free
    if free < DISK_BYTES_MIN:
        found.append((True, f"{folder}: {free:,} bytes are free on its disk: free disk space, or nothing can settle"))
    log = folder / "ledger.db-wal"
    size = log.stat().st_size if log.exists() else 0
    if size > LEDGER_WAL_BYTES:
        told = f"{log} has {size // MIB} MiB: a process has been reading the ledger all the time"
        found.append((False, f"{told}: end the process (`fuser {log}` names it), and it is emptied"))
    return found


def _overdue(view: View, *, window_days: int, now_us: int) -> OverdueStatus | None:
    """Segments with events older than the window. One is due since its oldest day left it, or since it was written."""
    before_us = (now_us // DAY_US - window_days) * DAY_US
    due = [segment for segment in view.segments if segment.timestamp_min_us < before_us]
    if not due:
        return None
    oldest_us = min(segment.timestamp_min_us for segment in due)
    since_us = min(max(segment.created_us, (segment.timestamp_min_us // DAY_US + 1 + window_days) * DAY_US) for segment in due)
    day = f"{dt.datetime.fromtimestamp(oldest_us / 1e6, dt.UTC):%Y-%m-%d}"
    return OverdueStatus(oldest_day=day, segments=len(due), waits_s=max(0.0, (now_us - since_us) / 1e6))


def _overdue_reason(overdue: OverdueStatus, worker: dict[str, Any] | None) -> str:
    told = f"events of {overdue.oldest_day} on have waited {overdue.waits_s / 3600:.0f} h to be archived"
    if worker is None or not worker.get("running"):
        return f"{told}: start `thermocline worker`"
    return f"{told}: `thermocline doctor` looks at the cold tier, `thermocline archive --dry-run` at the days"


def _scrubbed(tiers: Tiers) -> ScrubStatus | None:
    state = read_state(tiers.settings.namespace_dir)
    if not state.passed_us:
        return None
    files, size = quarantined(tiers.settings.namespace_dir)
    return ScrubStatus(
        passed_us=state.passed_us,
        oldest_us=state.oldest_us,
        damaged=len(state.damaged),
        quarantined=files,
        quarantined_bytes=size,
    )


def _kept(tiers: Tiers, view: View) -> KeptStatus | None:
    """The copies that are kept on purpose. The cold tier is not opened when there are none."""
    if not (tiers.settings.namespace_dir / "cold" / PINS).exists():
        return None
    now_us = time.time_ns() // 1000
    live = {file.key: file.file_bytes for file in view.files}
    kept = {key: until for key, until in tiers.copies.kept().items() if until > now_us and key in live}
    if not kept:
        return None
    return KeptStatus(files=len(kept), bytes=sum(live[key] for key in kept), until_us=max(kept.values()))


def _durability(facts: ServerFacts) -> str:
    if not facts.append_only or facts.append_fsync == "no":
        return "memory"
    return "fsync" if facts.append_fsync == "always" else "fsync within 2 s"


def _worker(path: Path) -> dict[str, Any] | None:
    """What the worker last wrote, with `age_s`; None when there is nothing to read."""
    try:
        text = path.read_text()
        age_s = time.time() - path.stat().st_mtime
        said = json.loads(text)
    except (OSError, ValueError):
        return None
    return {**said, "age_s": round(age_s, 1)} if isinstance(said, dict) else None
