"""The processes in which faults happen: one imports everything, and forks one for each order it is given on stdin.

It says on stdout what comes of it, a JSON object a line: Report by the child, Turn whenever the child stops or ends.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from thermocline.config import load
from thermocline.errors import ThermoclineError

from . import faults
from .moves import mover
from .world import FILLER

PASSES_MAX = 100
EACH = "each"
"""Instead of a point: raise at every one."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One fault."""

    move: str
    point: str
    """Empty: none."""
    kind: str
    settings: dict[str, Any]
    work: str
    is_small_disk: bool = True
    """Whether `work` is a file system that may be filled; else writes are refused as if it were full."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a child that came to its end has to say."""

    reached: list[str]
    passes: int
    error: str = ""
    """What ended the last pass; empty when nothing did."""
    is_ours: bool = True


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a child."""

    pid: int
    state: str
    """begun, stopped or ended."""
    status: int = 0


def serve() -> None:
    logging.getLogger("pyiceberg").setLevel(logging.ERROR)
    _import_all()
    assert threading.active_count() == 1, "a fork would lose the other threads"  # those of allocators know how to be forked
    while line := sys.stdin.readline():
        order = msgspec.json.decode(line, type=Order)
        pid = os.fork()
        if pid == 0:
            _run(order)
        _follow(pid)


def _follow(pid: int) -> None:
    say(Turn(pid=pid, state="begun"))
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            say(Turn(pid=pid, state="ended", status=os.waitstatus_to_exitcode(status)))
            return
        say(Turn(pid=pid, state="stopped"))


def say(what: Report | Turn) -> None:
    os.write(1, msgspec.json.encode(what) + b"\n")


def _run(order: Order) -> None:
    """Be the child; never returns."""
    code = 1
    try:
        say(_report(order))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _report(order: Order) -> Report:
    settings = load(order.settings, environ={})
    reach = faults.Each() if order.point == EACH else faults.Once(order.point, _act(order))
    passes = 0
    try:
        with mover(order.move, settings, reach) as act:
            while True:
                passes += 1
                try:
                    act()
                    return Report(reached=reach.reached, passes=passes)
                except faults.Injected:
                    if passes == PASSES_MAX:
                        raise
    except Exception as exc:
        told = f"{type(exc).__name__}: {exc}"
        return Report(reached=reach.reached, passes=passes, error=told, is_ours=isinstance(exc, ThermoclineError))


def _act(order: Order) -> Callable[[], None]:
    filler = Path(order.work) / FILLER
    fill = faults.filling(filler) if order.is_small_disk else faults.refusing(errno.ENOSPC)
    return {
        "exception": faults.raising,
        "kill": faults.killed,
        "stop": faults.stopped,
        "full": fill,
        "eio": faults.refusing(),
    }[order.kind]


def _import_all() -> None:
    """What moves import when they run, so that no child has to."""
    import importlib

    for name in ("cold_opening", "iceberg_catalog", "iceberg_io", "iceberg_table", "parquet_file", "batch_files"):
        importlib.import_module(f"thermocline.tiers.{name}")


if __name__ == "__main__":
    serve()
