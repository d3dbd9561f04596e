"""Every fault of an S3 server or of the way to it, at every kind of request: `python -m tests.s3_matrix [--store moto|swift]`.

A cell is a fault, a kind of request and when it strikes: at the first such request of what is done, at the second, at all.
What is done, through a front that does the fault: read the archive, copy a day of it (rehydrate), append and settle and read what
is young, and the jobs of the worker, which archive a batch, compact, and delete what a crash and older batches left. While the
fault lasts every call of the store must end within its deadline, young events must be read and written, an answer over the
archive must be right or an error of ours, health must be red where nothing can work, and no object may change. After it, the
worker's next passes must bring everything to where it would have been: see `Life.check`.

Cells follow one another in one store, whose life they are; several lives go on side by side. With --shared (as in the tests of
every change) a fault that strikes once does so at all kinds of requests in one round, and one that lasts does at some kinds after
another before the worker may recover; else every cell has a round and a recovery of its own.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

import msgspec

from tests.reporting import reported
from tests.s3_cells import NEVER_MADE, NEVER_MET, TIMES, Cell, Trial, chosen, trials
from tests.s3_life import Life, Outcome
from tests.s3_servers import SERVERS, S3Server, aws_keys
from tests.servers import RedisServer, redis_binaries

MARGIN_S: Final = 5.0
"""How much longer than its deadline a call may take: for a machine that is busy."""


class Report(msgspec.Struct, kw_only=True):
    store: str
    seed: int
    shared: bool
    cells: int = 0
    not_met: list[str] = []
    never_met: int = len(NEVER_MET) * len(TIMES)
    """Cells whose fault cannot occur."""
    faults: int = 0
    requests: dict[str, int] = {}
    batches: int = 0
    events: int = 0
    calls: int = 0
    """Of the object store."""
    margin_s: float = MARGIN_S
    longest_past_deadline_s: float = 0.0
    """The most that a call took beyond its deadline."""
    failed_reads: int = 0
    seconds: float = 0.0
    problems: list[str] = []


Begin = Callable[[int], Life]
"""Makes a life: the argument tells it from others."""


def run(
    begin: Begin,
    cells: Sequence[Cell],
    report: Report,
    *,
    lives: int = 3,
    tries_never_met: bool = True,
    tell: Callable[[str], None] = lambda _: None,
) -> Report:
    """Go through the cells, so many lives side by side; a life in which something went wrong is followed by another.

    tries_never_met  whether the first one tries what cannot occur, too
    """
    waiting: SimpleQueue[Trial] = SimpleQueue()
    for trial in trials(cells, shared=report.shared):
        waiting.put(trial)
    begun_s = time.monotonic()
    lock, numbers = threading.Lock(), iter(range(10_000))
    outcomes: dict[Cell, Outcome] = {}

    def live() -> None:
        try:
            live_on()
        except Exception as exc:
            report.problems.append(f"a life could not begin or end: {type(exc).__name__}: {exc}")
            raise

    def live_on() -> None:
        with suppress(Empty):
            while True:
                trial = waiting.get_nowait()
                with lock:
                    number = next(numbers)
                with begin(number) as life:
                    if number == 0 and tries_never_met:
                        life.try_never_met()
                    while life.run(trial) and not life.problems:
                        tell(f"{time.monotonic() - begun_s:.0f} s: {waiting.qsize()} wait after {trial[0][0]}")
                        try:
                            trial = waiting.get_nowait()
                        except Empty:
                            break
                    if not life.problems:
                        life.end()
                for problem in life.problems:
                    tell(problem)
                with lock:
                    _add(report, life)
                    outcomes.update(life.outcomes)

    threads = [threading.Thread(target=live) for _ in range(lives)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report.seconds = round(time.monotonic() - begun_s, 1)
    judge(report, cells, outcomes)
    return report


def judge(report: Report, cells: Sequence[Cell], outcomes: Mapping[Cell, Outcome]) -> None:
    """Add up what became of the cells, and find what is wrong with all of them together."""
    report.cells = len(outcomes)
    report.not_met = [str(cell) for cell in cells if cell not in outcomes or not outcomes[cell].met]
    report.faults = sum(outcome.met for outcome in outcomes.values())
    report.failed_reads = sum(said.startswith("read: ") for outcome in outcomes.values() for said in outcome.said)
    if report.not_met:
        report.problems.append(f"{len(report.not_met)} cells whose fault never occurred")
    if made := {kind: report.requests[kind] for kind in NEVER_MADE if kind in report.requests}:
        report.problems.append(f"requests that are never made: {made}")
    if report.longest_past_deadline_s > report.margin_s:
        report.problems.append(f"a call took {report.longest_past_deadline_s:.1f} s more than its deadline")


def _add(report: Report, life: Life) -> None:
    for kind, count in life.requests.items():
        report.requests[kind] = report.requests.get(kind, 0) + count
    report.events += len(life.events)
    report.batches += life.batches
    report.calls += len(life.calls)
    report.longest_past_deadline_s = round(max([report.longest_past_deadline_s, *life.calls]), 2)
    report.problems += life.problems


def tell(line: str) -> None:
    sys.stderr.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.s3_matrix", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--store", choices=("moto", "swift"), default="moto")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help='cells whose name has this text: "first PUT: hang", "always", ": 503"')
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--lives", type=int, default=3)
    options = parser.parse_args()
    logging.getLogger("pyiceberg").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="thermocline-s3-matrix-") as name, ExitStack() as running:
        folder = Path(name)
        os.environ.update(aws_keys())
        (folder / options.store).mkdir()
        server = running.enter_context(SERVERS[options.store](folder / options.store))
        redis = RedisServer(redis_binaries()[-1], folder / "redis", options={"appendfsync": "always"})
        running.callback(redis.stop)
        redis.start()
        report = Report(store=options.store, seed=options.seed, shared=options.shared)
        found = run(lives_in(folder, redis.url, server, report), chosen(options.only), report, lives=options.lives, tell=tell)
    sys.exit(reported(found))


def lives_in(folder: Path, redis_url: str, server: S3Server, report: Report) -> Begin:
    """moto's server does not look at sums of what arrives, so its front does; Swift takes longer for everything."""
    is_moto = report.store == "moto"
    return lambda number: Life(
        folder / "data",
        redis_url,
        server.new_bucket(),
        seed=report.seed * 1000 + number,
        checks=is_moto,
        patience=1 if is_moto else 3,
    )


if __name__ == "__main__":
    main()
