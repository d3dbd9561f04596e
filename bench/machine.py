"""What a figure was measured on: the machine, and the version of every part."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sqlite3
import subprocess
from functools import cache
from pathlib import Path

PACKAGES = ("redis", "hiredis", "duckdb", "pyarrow", "polars", "pyiceberg", "chdb", "psycopg", "nats-py")

kept_awake = False
"""Whether cores are (awake.py); set before anything is measured."""


def described() -> str:
    """Processor, cores, memory and system in one line."""
    cores = f"{os.cpu_count()} cores{' kept awake' if kept_awake else ''}"
    return f"{_processor()}, {cores}, {_memory_gib():.0f} GiB, {_system()}, Python {platform.python_version()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform()


@cache
def commit() -> str:
    """The commit that is checked out, with + when files differ from it; "unknown" outside a repository."""
    folder = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


@cache
def packages() -> dict[str, str]:
    """Versions of the packages that take part and are there."""
    found = {"sqlite": sqlite3.sqlite_version}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
