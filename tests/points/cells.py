"""One fault at one point of one move in a store that is set back first, and everything that must be true afterwards."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

import msgspec

from thermocline.archiver.lease import Lease, Lock
from thermocline.errors import LeaseHeld, ThermoclineError, TierUnavailable
from thermocline.store import Store

from .catalogue import points
from .child import EACH, Order, Report, Turn
from .history import verify_problems
from .moves import do, pass_of
from .world import World, as_json, iceberg_problems, left_over, opened, reader, wait_for_graces

ROOT = Path(__file__).resolve().parents[2]
ANSWER_S = 120
WITHOUT_LEDGER = ("recover", "restore")
"""Moves before whose end there may be nothing to read."""
AFTER_A_FAULT = ("give up", "give up done")
"""Points that any batch may reach when it was broken off; the catalogue lists them for archive."""
UNLOCKED = ("rehydrate", "restore")


class Cell(NamedTuple):
    """A fault."""

    move: str
    point: str
    kind: str

    def __repr__(self) -> str:
        return f"{self.move}, {self.point}, {self.kind}"


class Harness:
    """The world and the process that forks children. A context manager.

    is_small_disk  whether the world's work folder is a file system that may be filled
    """

    def __init__(self, world: World, *, is_small_disk: bool, log: Path) -> None:
        self._world = world
        self._is_small_disk = is_small_disk
        self._log = log
        self._stderr: IO[bytes] = log.open("ab")
        command = [sys.executable, "-m", "tests.points.child"]
        self._forks = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, bufsize=0
        )
        self._unread = b""

    def run(self, cells: Sequence[Cell], *, thorough: bool) -> list[str]:
        """What is wrong after faults of one move, each while the one before it is not mended yet; [] when nothing is.

        thorough  look for what is left over also where no process died
        """
        logged = self._log.stat().st_size
        try:
            problems = self._run(cells, thorough=thorough)
        except (ThermoclineError, TimeoutError, AssertionError) as exc:
            problems = [f"{cells}: {type(exc).__name__}: {exc}"]
        with self._log.open("rb") as log:
            log.seek(logged)
            said = log.read().decode(errors="replace")
        return problems + ([f"{cells}: the processes said: {said[-2000:]}"] if "Traceback" in said else [])

    def _run(self, cells: Sequence[Cell], *, thorough: bool) -> list[str]:
        world = self._world
        [move] = {cell.move for cell in cells}
        world.restore(move)
        problems: list[str] = []
        with _reading(world, move) as store:
            for cell in cells:
                problems += [f"{cell}: {problem}" for problem in self._fault(cell, store)]
            if cells[-1].kind != "exception":  # after one the same process went on to the end
                do(move, world)
        purge = thorough or any(cell.kind == "kill" for cell in cells)
        return problems + [f"{cells}: {problem}" for problem in self._after(purge=purge)]

    def _fault(self, cell: Cell, store: Store | None) -> list[str]:
        status, report = self._order(cell, store)
        problems = _ended(cell, status, report)
        if store is not None:
            problems += _read(self._world, store, cell.move)
        self._world.filler.unlink(missing_ok=True)
        return problems

    def _after(self, *, purge: bool) -> list[str]:
        """The check at the end: nothing missing, doubled, changed; with `purge` every byte is read, and nothing is left over."""
        world = self._world
        with reader(world.settings) as store, Lease(world.folder, store.tiers.ledger) as lease:
            problems = world.history.problems(store) + verify_problems(store, deep=purge)
            problems += [f"a batch is still begun: {one}" for one in store.tiers.ledger.intents()]
            if not purge:
                return problems
            problems += iceberg_problems(store)
            for move in ("purge", "clean", "purge"):  # orphans lie in trash/ for a grace
                pass_of(move, store.tiers, lease.epoch)()
                wait_for_graces(time.monotonic())
            return problems + left_over(store, world.settings) + world.history.problems(store)

    def _order(self, cell: Cell, store: Store | None = None) -> tuple[int, Report | None]:
        """(exit status, what the child said) of a child that does as told."""
        world = self._world
        order = Order(
            move=cell.move,
            point=cell.point,
            kind=cell.kind,
            settings=as_json(world.settings),
            work=str(world.work),
            is_small_disk=self._is_small_disk,
        )
        assert self._forks.stdin is not None
        self._forks.stdin.write(msgspec.json.encode(order) + b"\n")
        report: Report | None = None
        while True:
            line = self._line()
            if b'"reached"' in line:
                report = msgspec.json.decode(line, type=Report)
                continue
            turn = msgspec.json.decode(line, type=Turn)
            if turn.state == "ended":
                return turn.status, report
            if turn.state == "stopped":
                try:
                    _while_stopped(world, store, cell.move)
                finally:
                    os.kill(turn.pid, signal.SIGCONT)

    def _line(self) -> bytes:
        out = self._forks.stdout
        assert out is not None
        deadline_s = time.monotonic() + ANSWER_S
        while b"\n" not in self._unread:
            ready, _, _ = select.select([out], [], [], max(0, deadline_s - time.monotonic()))
            piece = out.read(65_536) if ready else b""
            if not piece:
                raise TimeoutError(f"the process with the fault says nothing; the log ends with {self._log.read_text()[-2000:]}")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def __enter__(self) -> Harness:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        assert self._forks.stdin is not None
        assert self._forks.stdout is not None
        self._forks.stdin.close()
        try:
            self._forks.wait(ANSWER_S if kind is None else 1)
        except subprocess.TimeoutExpired:
            self._forks.kill()
            self._forks.wait()
        self._forks.stdout.close()
        self._stderr.close()


@contextmanager
def _reading(world: World, move: str) -> Iterator[Store | None]:
    """A reader that is there before the fault; None where there is no store yet."""
    if move == "restore":
        yield None
        return
    with reader(world.settings) as store:
        store.sql("SELECT count(*) FROM events").fetchall()
        yield store


def _ended(cell: Cell, status: int, report: Report | None) -> list[str]:
    """Where the process with the fault did not end as it should."""
    if cell.kind == "kill":
        return [] if status == -signal.SIGKILL else [f"it was not killed, but ended with {status} and {report}"]
    if report is None:
        return [f"it ended with {status} and said nothing"]
    if cell.point == EACH:
        return [report.error] if report.error else _unlisted(cell, report.reached)
    problems = [] if cell.point in report.reached else [f"the point was not reached, but {report.reached}"]
    problems += _unlisted(cell, report.reached)
    if report.error and (not report.is_ours or cell.kind in ("exception", "stop")):
        problems.append(f"it failed with {report.error}")
    return problems


def _read(world: World, store: Store, move: str) -> list[str]:
    """What a reader finds wrong. Where there may be no ledger it may say so."""
    try:
        return world.history.problems(store) + verify_problems(store, deep=False)
    except TierUnavailable as exc:
        return [] if move in WITHOUT_LEDGER else [f"it cannot be read: {exc}"]


def _while_stopped(world: World, store: Store | None, move: str) -> None:
    """Others go on until all graces are over: a worker that would take over is refused, events are appended and read."""
    began_s = time.monotonic()
    if move not in UNLOCKED:
        try:
            Lock(world.folder).release()
        except LeaseHeld:
            pass
        else:
            raise AssertionError("another process could take over")
    if store is not None and move not in WITHOUT_LEDGER:
        with opened(world.settings) as tiers:
            world.append(tiers, 10, days_ago=1)
        problems = world.history.problems(store)
        assert not problems, problems
    wait_for_graces(began_s)


def _unlisted(cell: Cell, reached: Sequence[str]) -> list[str]:
    """Where a move reached other points than the catalogue lists. All it must reach that fails at the last one alone."""
    missing, more = set(points(cell.move)) - set(reached), set(reached) - set(points(cell.move)) - set(AFTER_A_FAULT)
    problems = [f"{sorted(more)} were reached, and the catalogue does not list them"] if more else []
    is_whole = cell.kind == "exception" and cell.point == points(cell.move)[-1]
    return problems + ([f"{sorted(missing)} were not reached"] if is_whole and missing else [])
