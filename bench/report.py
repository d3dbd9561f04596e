"""What was measured as text: Markdown for the terminal and for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from .case import Table
from .measure import shown_count
from .peers import PEERS
from .plots import draw
from .results import Result, Row
from .tables import TABLES

MARKS = {True: "met", False: "**missed**", None: ""}


def printed(results: Sequence[Result]) -> str:
    """Every row, table by table."""
    parts = []
    for table in TABLES:
        rows = rows_of(table, results)
        if rows:
            parts.append(f"## {table.title}\n\n{markdown(rows)}")
    taken_s = sum(one.taken_s for one in results)
    return "\n\n".join([*parts, f"{sum(len(one.rows) for one in results)} rows, measured in {taken_s:.0f} s"])


def rows_of(table: Table, results: Sequence[Result]) -> list[Row]:
    """The rows of a table, small sizes first, and those that follow from several of its results."""
    mine = sorted((one for one in results if one.table == table.name), key=lambda one: one.events)
    return [row for one in mine for row in one.rows] + table.derived(mine)


def markdown(rows: Iterable[Row]) -> str:
    """A Markdown table."""
    lines = ["| what | events | figure | against | target | |", "|---|---|---|---|---|---|"]
    for row in rows:
        value = f"{row.value} ({row.note})" if row.note else row.value
        cells = (row.what, shown_count(row.events) if row.events else "", value, row.against, row.target, MARKS[row.met])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def write(results: Sequence[Result], docs: Path) -> None:
    """Write <docs>/benchmarks.md and the plots in <docs>/benchmarks/."""
    if not results:
        raise SystemExit("nothing was measured yet: bench/run --quick, or bench/run all")
    docs.mkdir(parents=True, exist_ok=True)
    plots = draw(results, docs / "benchmarks")
    (docs / "benchmarks.md").write_text(_document(results, plots))


def _document(results: Sequence[Result], plots: dict[str, str]) -> str:
    parts = [_head(results)]
    for table in TABLES:
        rows = rows_of(table, results)
        part = f"## {table.title}\n\n`bench/run {table.name}`. {table.about}\n\n"
        part += markdown(rows) if rows else "Not measured yet."
        if table.name in plots:
            part += f"\n\n![{table.title}](benchmarks/{plots[table.name]})"
        parts.append(part)
    parts.append(_peers(results))
    kept = Path(__file__).parent / "report_sizes.md"
    parts.append(kept.read_text().strip())
    return "\n\n".join(parts) + "\n"


def _head(results: Sequence[Result]) -> str:
    machines = sorted({one.machine for one in results})
    dates = sorted({one.measured_at[:10] for one in results})
    commits = sorted({one.commit for one in results})
    quick = sorted({one.table for one in results if one.quick})
    rows = [row for one in results for row in one.rows if row.met is not None]
    missed = sum(not row.met for row in rows)
    lines = [
        "# Benchmarks",
        "",
        "Ratios decide: what is compared was measured in one run, taking turns. Absolute figures are of this machine and day.",
        "",
        f"* Machine: {'; '.join(machines)}",
        f"* Measured: {dates[0]}{f' to {dates[-1]}' if len(dates) > 1 else ''}, commit {', '.join(commits)}",
        f"* Versions: {_versions(results)}",
        "* Commands: `bench/run all`, then `bench/run report`; `bench/run --quick` prints every row in five minutes. Peers "
        "come with `pip install -e .[bench]` and `apt install postgresql nats-server redis-server`.",
        f"* Targets: {len(rows) - missed} of {len(rows)} rows that have one meet it; the others are marked.",
    ]
    if quick:
        lines.append(f"* Measured by the quick run only, so small: {', '.join(quick)}")
    return "\n".join([*lines, "", _workload()])


def _versions(results: Sequence[Result]) -> str:
    found: dict[str, set[str]] = {}
    for one in results:
        for name, version in one.versions.items():
            found.setdefault(name, set()).add(version)
    return ", ".join(f"{name} {' and '.join(sorted(versions))}" for name, versions in found.items())


def _workload() -> str:
    return (
        "The workload (`bench/workload.py`, `bench/shape.py`) is synthetic, seeded, and has the shape of 200 recorded "
        "conversations of an agent with tools: their event types, the lengths of their texts and metadata, 7 to 90 events "
        "each. A fifth of the events belong to hot conversations of 5,000 events that go on for the whole week; the others "
        "are idle after some minutes. About half of all bytes of text are unique, the rest are one of 20 system prompts or "
        "500 other texts. About 680 bytes an event as JSON."
    )


def _peers(results: Sequence[Result]) -> str:
    lines = ["## How each peer was set up", "", "| peer | configuration |", "|---|---|"]
    lines += [f"| {peer.title} | {peer.configuration} |" for peer in PEERS]
    return "\n".join(lines)
