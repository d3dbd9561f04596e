"""`python -m bench`, or `bench/run`: measure tables, resume, report."""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from . import machine
from .awake import awake
from .case import Bench, Case, Table
from .peers import PEERS
from .peers.peer import LEFT_OUT, NOT_INSTALLED
from .report import printed, write, write_quick
from .results import Result, Results, Row, identity_of
from .servers import redis_version
from .tables import TABLES

FAILED = "failed"
"""How the value of a row begins whose case raised."""
UNITS = {"k": 1_000, "M": 1_000_000}


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1 when a case failed, 2 when what was asked for does not exist."""
    parser = _parser()
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that servers and folders end with it
    for peer in PEERS:
        peer.left_out = options.peers is not None and peer.name not in options.peers
    machine.kept_awake = options.awake
    results = Results(options.results)
    names = {table.name for table in TABLES}
    asked = set(options.tables) - {"all"} if "all" not in options.tables else names
    if not options.tables:
        if not options.quick:
            parser.print_help()
            return 2
        asked = names
    if asked == {"report"}:
        if options.quick:
            write_quick(results.quick(), options.docs)
        else:
            write(results.all(), options.docs)
        return 0
    if asked - names:
        parser.error(f"no table {', '.join(sorted(asked - names))}; there are {', '.join(sorted(names))}")
    found, failures = _measure([table for table in TABLES if table.name in asked], results, options)
    print(printed(found))
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench/run",
        description="Measure Thermocline beside what one would pick instead.",
        epilog=f"tables: {', '.join(table.name for table in TABLES)}, all; or `report`, which writes the docs and plots. "
        "What was measured by the same code on this machine is not measured again, so a run that was cut short goes on.",
    )
    parser.add_argument("tables", nargs="*", help="tables to measure, all, or report (of the quick run with --quick)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="every row at 1M events, within five minutes on two cores; rates of what comes in are of a part of them",
    )
    parser.add_argument("--events", type=_sizes, help="sizes instead of each table's own: 1M,10M,100M")
    parser.add_argument(
        "--awake",
        action="store_true",
        help="keep each core awake by a process of idle priority: for virtual machines, whose cores may take long to wake",
    )
    parser.add_argument("--again", action="store_true", help="measure again what was measured already")
    parser.add_argument("--peers", type=_peers, help=f"measure these only: {', '.join(peer.name for peer in PEERS)}")
    parser.add_argument("--results", type=Path, default=Path("bench-results"), help="folder of the results (bench-results)")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder that `report` writes to (docs)")
    parser.add_argument(
        "--scratch", type=Path, help="folder for what is measured; the full run needs 80 GB (the system's temporary one)"
    )
    parser.add_argument(
        "--loaded", type=Path, help="keep what the tables of reads load in this folder, and use what is there instead of loading"
    )
    return parser


def _sizes(text: str) -> list[int]:
    try:
        return [int(float(one.rstrip("kM")) * UNITS.get(one[-1], 1)) for one in text.split(",")]
    except (ValueError, IndexError) as exc:
        raise argparse.ArgumentTypeError("sizes are numbers, k or M behind them: 500k,1M") from exc


def _peers(text: str) -> set[str]:
    names = {peer.name for peer in PEERS}
    if not set(text.split(",")) <= names:
        raise argparse.ArgumentTypeError(f"peers are {', '.join(sorted(names))}")
    return set(text.split(","))


def chosen_cases(tables: Sequence[Table], *, quick: bool, events: Sequence[int] | None) -> list[tuple[Table, Case]]:
    """What to measure, the smallest sizes first, so that cases of one size share what they load."""
    found = []
    for table in tables:
        sizes = events or ((table.quick_events,) if quick else table.sizes)
        found += [(table, case) for size in dict.fromkeys(sizes) for case in table.cases(size, quick)]
    return sorted(found, key=lambda one: (one[1].events, one[1].group))


def _measure(tables: Sequence[Table], results: Results, options: argparse.Namespace) -> tuple[list[Result], int]:
    found: list[Result] = []
    failures = 0
    identity_once = cache(identity_of)
    with (
        tempfile.TemporaryDirectory(prefix="thermocline-bench-", dir=options.scratch, ignore_cleanup_errors=True) as name,
        awake() if options.awake else nullcontext(),
    ):
        bench = Bench(Path(name), quick=options.quick, loaded=options.loaded)
        try:
            for table, case in chosen_cases(tables, quick=options.quick, events=options.events):
                identity = identity_once(table.name, product=case.product)
                known = results.find(table.name, case.key, case.events, quick=options.quick, identity=identity)
                if known is not None and not options.again:
                    found.append(known)
                    continue
                result = _run(bench, table, case, identity)
                failures += any(row.value.startswith(FAILED) for row in result.rows)
                if not any(row.value == LEFT_OUT for row in result.rows):
                    results.put(result)
                found.append(result)
                for row in result.rows:
                    print(f"{table.name}: {row.what}: {row.value}", file=sys.stderr, flush=True)
        finally:
            bench.close()
            gc.unfreeze()
    return found, failures


def _run(bench: Bench, table: Table, case: Case, identity: str) -> Result:
    """What was measured; what failed has a row that says why."""
    begin = time.perf_counter()
    try:
        bench.begin(case.events, case.group)
        gc.collect()
        gc.freeze()  # what is there already is not looked through again before each thing that is timed
        rows = tuple(case.run(bench))
    except Exception as exc:
        traceback.print_exc()
        problem = " ".join(str(exc).split())[:300]
        rows = (Row(what=case.key, events=case.events, value=f"{FAILED}: {type(exc).__name__}: {problem}"),)
    return Result(
        table=table.name,
        case=case.key,
        events=case.events,
        quick=bench.quick,
        identity=identity,
        commit=machine.commit(),
        machine=machine.described(),
        measured_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        versions=_versions(),
        taken_s=round(time.perf_counter() - begin, 1),
        whole=not any(row.value.startswith((FAILED, NOT_INSTALLED)) for row in rows),
        rows=rows,
    )


@cache
def _versions() -> dict[str, str]:
    """Of everything that takes part."""
    peers = {peer.title: version for peer in PEERS if not peer.missing() and (version := peer.version())}
    return {**machine.packages(), "redis-server": redis_version(), **peers}


if __name__ == "__main__":
    sys.exit(main())
