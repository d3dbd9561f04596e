"""The namespaces of a data directory: list them, make one, drop one."""

from __future__ import annotations

import shutil
from typing import NamedTuple

from thermocline.archiver.lease import Lock
from thermocline.config import Settings
from thermocline.errors import ConfigError
from thermocline.tiers import embedded
from thermocline.tiers.hot_redis import RedisHot
from thermocline.tiers.opening import open_link, open_tiers

DROPPED = ".dropped"
"""Suffix of a folder whose deletion has begun; the dot keeps it from being a namespace."""


class Dropped(NamedTuple):
    """What a drop removed."""

    keys: int
    bytes: int


def names(settings: Settings) -> list[str]:
    """The namespaces that have a folder in the data directory, sorted; [] when there is no data directory."""
    try:
        folders = sorted(settings.data_dir.iterdir())
    except FileNotFoundError:
        return []
    return [folder.name for folder in folders if (folder / "segments").is_dir() and "." not in folder.name]


def create(settings: Settings) -> bool:
    """Make the namespace of `settings`; False when it was there. Errors are those of open_tiers."""
    there = settings.namespace in names(settings)
    open_tiers(settings).close()
    return not there


def drop(settings: Settings) -> Dropped:
    """Delete the namespace of `settings`: its keys in Redis, its ledger, its files. Works on a damaged one too.

    LeaseHeld: a worker is at it. ConfigError: there is none of that name, or its ledger is not in the data directory.
    Dies half-way: call it again. The keys go first, so that what is left never claims events that are not there.
    """
    folder = settings.namespace_dir
    if settings.namespace not in names(settings) and not (folder / "ledger.db").exists():
        raise ConfigError(f"there is no namespace {settings.namespace!r} in {settings.data_dir}: `thermocline namespaces list`")
    if settings.ledger_url is not None:
        raise ConfigError("ledger_url is set, and drop removes only a ledger in the data directory: drop that database yourself")
    with Lock(folder, role="thermocline namespaces drop"):
        keys = _drop_keys(settings)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        doomed = folder.with_name(f"{folder.name}{DROPPED}")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
    shutil.rmtree(doomed)
    return Dropped(keys, size)


def _drop_keys(settings: Settings) -> int:
    endpoint = embedded.ensure(settings.data_dir, settings.hot) if settings.redis_url is None else None
    try:
        link = open_link(settings, endpoint)
        try:
            return RedisHot(link, settings.namespace, settings.hot).drop()
        finally:
            link.close()
    finally:
        if endpoint is not None:
            endpoint.close()
