"""What was measured as text: for the terminal, and as docs/benchmarks.md with its plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from .case import Table
from .markdown import markdown
from .measure import shown_count
from .peers import PEERS
from .plots import MISSING, draw
from .results import Result, Row, identity_of
from .tables import TABLES

NOTES = Path(__file__).parent / "notes.md"
"""What is kept by hand and stands at the end of the report."""


def printed(results: Sequence[Result]) -> str:
    """Every row, table by table."""
    parts = [f"## {table.title}\n\n{markdown(rows)}" for table in TABLES if (rows := rows_of(table, results))]
    taken_s = sum(one.taken_s for one in results)
    return "\n\n".join([*parts, f"{sum(len(one.rows) for one in results)} rows, measured in {taken_s:.0f} s"])


def rows_of(table: Table, results: Sequence[Result]) -> list[Row]:
    """The rows of a table in the order of its cases, small sizes first, and those that follow from several of its results."""
    mine = [one for one in results if one.table == table.name]
    sizes = {one.events or 1_000_000 for one in mine}
    places = {case.key: place for size in sizes for place, case in enumerate(table.cases(size, False))}
    mine.sort(key=lambda one: (one.events, places.get(one.case, len(places))))
    return [row for one in mine for row in one.rows] + table.derived(mine)


def write(results: Sequence[Result], docs: Path) -> None:
    """Write <docs>/benchmarks.md, and into <docs>/benchmarks/ the plots and all results for machines."""
    if not results:
        raise SystemExit("nothing was measured yet: bench/run --quick, or bench/run all")
    plots = draw(results, docs / "benchmarks")
    (docs / "benchmarks").mkdir(parents=True, exist_ok=True)
    (docs / "benchmarks" / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    (docs / "benchmarks.md").write_text(document(results, plots))


def write_quick(results: Sequence[Result], docs: Path) -> None:
    """Write <docs>/benchmarks-quick.md: what the quick run printed, and of what."""
    if not results:
        raise SystemExit("nothing was measured yet: bench/run --quick")
    head = [
        "# Benchmarks: the quick run",
        "",
        "`bench/run --quick`, then `bench/run report --quick`. Every row at 1 M events or a part of them, by fewer calls than in",
        "[the full run](benchmarks.md), which has larger sizes, plots, how each peer was set up, and why targets are missed.",
        "",
        *_facts(results),
    ]
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "benchmarks-quick.md").write_text("\n".join(head) + f"\n\n{printed(results)}\n")


def document(results: Sequence[Result], plots: dict[str, str]) -> str:
    """The whole page: tables that were not measured are named, and what missed its target stands beside what met it."""
    parts = [_head(results, plots), _missed(results)]
    for table in TABLES:
        rows = rows_of(table, results)
        part = f"## {table.title}\n\n`bench/run {table.name}`. {table.about}\n\n"
        part += markdown(rows) if rows else "There is no result here."
        part += _lacking(table, results)
        if table.name in plots:
            part += f"\n\n![{table.title}](benchmarks/{plots[table.name]})"
        parts.append(part)
    parts.append(_peers(results))
    parts.append(NOTES.read_text().strip())
    return "\n\n".join(part for part in parts if part) + "\n"


def _lacking(table: Table, results: Sequence[Result]) -> str:
    """What of the full run has no result, when some of it has."""
    there = {(one.case, one.events) for one in results if one.table == table.name and not one.quick}
    cases = [case for size in table.sizes for case in table.cases(size, False)]
    lacking = [
        case.key + f" at {shown_count(case.events)}" * bool(case.events) for case in cases if (case.key, case.events) not in there
    ]
    return f"\n\nNot measured: {', '.join(dict.fromkeys(lacking))}." if there and lacking else ""


def _head(results: Sequence[Result], plots: dict[str, str]) -> str:
    quick = sorted({one.table for one in results if one.quick})
    lines = [
        "# Benchmarks",
        "",
        "Ratios decide: what is compared was measured in one run, taking turns. Absolute figures are of this machine and day.",
        "",
        *_facts(results),
        "* Commands: `bench/run all`, which goes on where it was cut short, then `bench/run report`. `bench/run --quick` prints",
        "  every row at 1 M events within five minutes on two cores. Peers come with `pip install -e .[bench]` and",
        "  `apt install postgresql nats-server redis-server`.",
        "* The same for machines: [benchmarks/results.json](benchmarks/results.json)",
    ]
    if quick:
        lines.append(f"* Measured by the quick run only, so on fewer or by fewer calls: {', '.join(quick)}.")
    if not plots:
        lines.append(f"* No plots: {MISSING}")
    return "\n".join([*lines, "", WORKLOAD])


def _facts(results: Sequence[Result]) -> list[str]:
    """Where, when and with what it was measured, how many targets are met, and how much of it is out of date."""
    dates = sorted({one.measured_at[:10] for one in results})
    commits = ", ".join(sorted({one.commit for one in results}))
    judged = [row for table in TABLES for row in rows_of(table, results) if row.met is not None]
    lines = [
        f"* Machine: {'; '.join(sorted({one.machine for one in results}))}",
        f"* Measured: {' to '.join(dict.fromkeys((dates[0], dates[-1])))}, commit {commits}",
        f"* Versions: {_versions(results)}",
        f"* Targets: {sum(bool(row.met) for row in judged)} of {len(judged)} rows that have one meet it.",
    ]
    old = sum(
        one.identity not in (identity_of(one.table, product=True), identity_of(one.table, product=False)) for one in results
    )
    if old:
        lines.append(
            f"* {old} of {len(results)} results are of older code or another machine: `bench/run all` measures them again."
        )
    return lines


WORKLOAD = """\
The workload (`bench/workload.py`, `bench/shape.py`) is synthetic, seeded, and shaped like 200 recorded conversations of an agent
with tools: their event types, the lengths of their texts and metadata, 7 to 90 events each. A fifth of the events belong to hot
conversations of 5,000 events that go on all week; the others are idle after some minutes. About half of all bytes of text are
unique, the rest come from 20 system prompts and 500 other texts of each type. An event is about 690 bytes as JSON."""


def _missed(results: Sequence[Result]) -> str:
    rows = [(table, row) for table in TABLES for row in rows_of(table, results) if row.met is False]
    if not rows:
        return ""
    lines = [f"* {table.title}: {row.what}: {row.value}; target {row.target}" for table, row in rows]
    return "\n".join(["## Targets that were missed", "", *lines])


def _versions(results: Sequence[Result]) -> str:
    found: dict[str, set[str]] = {}
    for one in results:
        for name, version in one.versions.items():
            found.setdefault(name, set()).add(version)
    return ", ".join(f"{name} {' and '.join(sorted(versions))}" for name, versions in sorted(found.items()))


def _peers(results: Sequence[Result]) -> str:
    lines = ["## How each peer was set up", "", "| peer | version | configuration | measured up to |", "|---|---|---|---|"]
    for peer in PEERS:
        versions = sorted({one.versions[peer.title] for one in results if peer.title in one.versions})
        lines.append(f"| {peer.title} | {', '.join(versions)} | {peer.configuration} | {peer.events_max // 1_000_000} M events |")
    return "\n".join(lines)
