"""Look at what Thermocline stands on: Python, Redis, the data directory, the ledger, the cold tier, the mirror, the clocks.

Changes nothing, but for one object that is written to the cold tier, and to the mirror, to try it, and removed again.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from thermocline.config import Settings, mask_url
from thermocline.errors import ThermoclineError
from thermocline.tiers import embedded
from thermocline.tiers.cold import Cold
from thermocline.tiers.cold_opening import open_cold, open_store
from thermocline.tiers.confirm import check_server
from thermocline.tiers.hot import ServerFacts
from thermocline.tiers.hot_redis import RedisHot
from thermocline.tiers.ledger_sql import SqlLedger
from thermocline.tiers.opening import open_link
from thermocline.tiers.server_binary import choose

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "fail"

FREE_BYTES_MIN: Final = 256 << 20
FREE_BYTES_GOOD: Final = 4 << 30
"""Room for the logs of the embedded Redis (1 GiB, twice while it rewrites them) and a day of segments."""
OPEN_FILES_GOOD: Final = 1024
"""A query holds every segment it reads open."""
CLOCK_GOOD_S: Final = 1.0
CLOCK_MAX_S: Final = 300.0
"""An event may lie this far after Redis' clock."""
REMOTE: Final = ("nfs", "cifs", "smb", "9p", "afs", "ceph", "glusterfs", "lustre", "fuse.")
VOLATILE: Final = ("tmpfs", "ramfs")
MOUNTS: Final = Path("/proc/self/mountinfo")
COLD_DESIRABLE: Final = ("list after write", "delete")
"""What the archive is right without: without it, objects that nothing needs stay."""


class Finding(NamedTuple):
    """One thing looked at; what was found says how to mend it when it is not in order."""

    verdict: str
    subject: str
    found: str

    def as_dict(self) -> dict[str, str]:
        return self._asdict()


def examine(settings: Settings) -> list[Finding]:
    """Everything that was looked at, in the order in which to mend it. Never raises for what it finds."""
    findings = [_python(), _open_files()]
    findings += _data_dir(settings.data_dir)
    findings += _redis(settings)
    findings.append(_guarded("ledger", lambda: _ledger(settings)))
    findings += _cold(settings)
    findings += _mirror(settings)
    return findings


def _guarded(subject: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except (ThermoclineError, OSError) as exc:
        return Finding(FAIL, subject, str(exc))


def _python() -> Finding:
    return Finding(OK, "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _open_files() -> Finding:
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES_GOOD:
        return Finding(
            WARN, "open files", f"up to {soft} a process, queries open every segment: raise it (ulimit -n {OPEN_FILES_GOOD})"
        )
    return Finding(OK, "open files", "no limit" if soft == resource.RLIM_INFINITY else f"up to {soft:,} a process")


def _data_dir(data_dir: Path) -> Iterator[Finding]:
    place = data_dir.absolute()
    there = next(path for path in (place, *place.parents) if os.path.exists(path))  # noqa: PTH110  (raises for no folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield Finding(FAIL, "data directory", f"{place}: you may not write to {there}: set data_dir or its permissions")
        return
    yield Finding(OK, "data directory", f"{place}" if there == place else f"{place} will be made at first use")
    kind = file_system(there.resolve())
    if kind.startswith(REMOTE):
        yield Finding(
            FAIL, "file system", f"{kind} is a network file system, whose locks the ledger cannot rely on: move data_dir"
        )
    elif kind in VOLATILE:
        yield Finding(WARN, "file system", f"{kind} is memory, gone with a restart of the machine: move data_dir")
    else:
        yield Finding(OK, "file system", f"{kind}, local" if kind else "not known here")
    free = shutil.disk_usage(there).free
    verdict = FAIL if free < FREE_BYTES_MIN else WARN if free < FREE_BYTES_GOOD else OK
    advice = "" if verdict == OK else f": free some, {FREE_BYTES_GOOD / 2**30:.0f} GiB are comfortable"
    yield Finding(verdict, "free space", f"{free / 2**30:,.1f} GiB{advice}")


def file_system(path: Path, mounts: Path = MOUNTS) -> str:
    """The type of the file system that holds `path`, as Linux calls it; empty where nothing tells."""
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    for line in lines:
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")
        if len(point) >= len(best) and path.is_relative_to(point):
            best, kind = point, after.split()[0]
    return kind


def _redis(settings: Settings) -> Iterator[Finding]:
    if settings.redis_url is None:
        binary = _guarded("redis-server", lambda: _binary(settings.data_dir))
        yield binary
        if binary.verdict == FAIL:
            return
        try:
            info = embedded.running(settings.data_dir)
        except (ThermoclineError, OSError) as exc:
            yield Finding(FAIL, "redis", str(exc))
            return
        if info is None:
            yield Finding(OK, "redis", "embedded, not running: the first user starts it, the last one ends it")
            return
    try:
        facts, shown = _facts(settings)
    except (ThermoclineError, OSError) as exc:
        yield Finding(FAIL, "redis", str(exc))
        return
    yield Finding(OK, "redis", f"{facts.version} at {shown}")
    yield _guarded("redis settings", lambda: _server_settings(facts, settings, shown))
    yield _durability(facts, settings)
    yield _disk(facts)
    yield _clock(facts.now_us / 1e6 - time.time())


def _binary(data_dir: Path) -> Finding:
    return Finding(OK, "redis-server", str(choose(data_dir.absolute() / embedded.FOLDER)))


def _facts(settings: Settings) -> tuple[ServerFacts, str]:
    """What the server says of itself, and where it is. The embedded one must be running."""
    endpoint = embedded.ensure(settings.data_dir, settings.hot) if settings.redis_url is None else None
    try:
        link = open_link(settings, endpoint)
        try:
            return RedisHot(link, settings.namespace, settings.hot).facts(), link.shown_url
        finally:
            link.close()
    finally:
        if endpoint is not None:
            endpoint.close()


def _server_settings(facts: ServerFacts, settings: Settings, shown: str) -> Finding:
    check_server(facts, settings, shown)
    found = f"maxmemory-policy {facts.maxmemory_policy}, appendonly {'yes' if facts.append_only else 'no'}"
    if not facts.append_only:
        return Finding(WARN, "redis settings", f"{found}: a crash loses what has not settled")
    if facts.append_fsync == "no":
        return Finding(WARN, "redis settings", f"{found}, appendfsync no: set everysec or always")
    wanted = settings.hot.log_bytes_max
    if 0 < facts.maxmemory < wanted:
        return Finding(WARN, "redis settings", f"maxmemory {facts.maxmemory:,} is below hot.log_bytes_max {wanted:,}: raise it")
    return Finding(OK, "redis settings", f"{found}, appendfsync {facts.append_fsync}")


def _durability(facts: ServerFacts, settings: Settings) -> Finding:
    """What an append can be made to wait for here, and whether that is what is asked for."""
    always = facts.append_fsync == "always"
    can_fsync = facts.append_only and (always or (facts.waits_for_disk and facts.append_fsync != "no"))
    can = ["memory"]
    if can_fsync:
        can.append("fsync (appendfsync always)" if always else "fsync (WAITAOF: up to a second, until the file is synced next)")
    if facts.replicas:
        can.append(f"{facts.replicas} replicas")
    wanted, replicas = settings.ingest.durability, max(settings.hot.replicas_min, int(settings.ingest.durability == "replicated"))
    found = f"an append may wait for {', '.join(can)}; ingest.durability is {wanted}"
    if wanted == "fsync" and not can_fsync:
        return Finding(FAIL, "durability", f"{found}: set appendfsync always, or use Redis 7.2 or Valkey with appendonly yes")
    if replicas > facts.replicas:
        return Finding(FAIL, "durability", f"{found}, and {replicas} replicas must have each block: connect them")
    return Finding(OK, "durability", found)


def _disk(facts: ServerFacts) -> Finding:
    if not facts.write_ok:
        return Finding(FAIL, "redis disk", "Redis cannot write its file, and refuses appends: see its log and the free space")
    if not facts.disk_ok:
        return Finding(WARN, "redis disk", "an fsync is pending or a rewrite failed, and settle waits: see Redis' log")
    return Finding(OK, "redis disk", "the last write and rewrite of its file went well")


def _clock(ahead_s: float) -> Finding:
    found = f"Redis is {abs(ahead_s):,.1f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine"
    if abs(ahead_s) <= CLOCK_GOOD_S:
        return Finding(OK, "clock", "Redis and this machine agree")
    if ahead_s < -CLOCK_MAX_S:
        return Finding(FAIL, "clock", f"{found}: events from here are refused as too far in the future; set both by NTP")
    return Finding(WARN, "clock", f"{found}: set both by NTP")


def _ledger(settings: Settings) -> Finding:
    folder = settings.namespace_dir
    if settings.ledger_url is None and not (folder / "ledger.db").exists():
        return Finding(OK, "ledger", f"namespace {settings.namespace} is not there yet: the first append makes it")
    ledger = _opened_ledger(settings)
    try:
        identity = ledger.identity()
        if identity is None:
            return Finding(OK, "ledger", f"{mask_url(_ledger_url(settings))} is empty: the first append fills it")
        view = ledger.view()
    finally:
        ledger.close()
    found = f"format {view.format}, {len(view.segments):,} segments, epoch {view.epoch}"
    lost = sum(loss.events for loss in view.losses)
    if lost:
        return Finding(WARN, "ledger", f"{found}; {lost:,} acknowledged events are declared lost: see `thermocline status`")
    return Finding(OK, "ledger", found)


def _ledger_url(settings: Settings) -> str:
    return settings.ledger_url or f"sqlite:///{(settings.namespace_dir / 'ledger.db').resolve()}"


def _opened_ledger(settings: Settings) -> SqlLedger:
    return SqlLedger(_ledger_url(settings), folder=settings.namespace_dir)


def _cold(settings: Settings) -> Iterator[Finding]:
    """The abilities of the cold tier, when there is one: cold_url is set, or something is archived."""
    try:
        if settings.cold_url is None and not _is_archived(settings):
            return
        cold = open_cold(settings)
    except (ThermoclineError, OSError) as exc:
        yield Finding(FAIL, "cold tier", str(exc))
        return
    yield from _store(cold, "cold", "cold tier")


def _mirror(settings: Settings) -> Iterator[Finding]:
    """The abilities of the mirror, when there is one."""
    if settings.warm.mirror is None:
        return
    try:
        store = open_store(settings.warm.mirror, settings, setting="warm.mirror")
    except (ThermoclineError, OSError) as exc:
        yield Finding(FAIL, "mirror", str(exc))
        return
    yield from _store(store, "mirror", "mirror")


def _store(store: Cold, kind: str, subject: str) -> Iterator[Finding]:
    """What an object store can do."""
    try:
        found = store.probe()
    except (ThermoclineError, OSError) as exc:
        yield Finding(FAIL, subject, str(exc))
        return
    finally:
        store.close()
    yield Finding(OK, subject, store.url)
    for one in found:
        bad = WARN if one.name in COLD_DESIRABLE else FAIL
        yield Finding(OK if one.ok else bad, f"{kind} {one.name}", one.detail)


def _is_archived(settings: Settings) -> bool:
    if settings.ledger_url is None and not (settings.namespace_dir / "ledger.db").exists():
        return False
    ledger = _opened_ledger(settings)
    try:
        return ledger.identity() is not None and bool(ledger.batches())
    finally:
        ledger.close()
