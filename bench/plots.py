"""Plots of what was measured, as SVG by matplotlib. Without it there are none, and the report says so."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .peers import PEERS
from .results import Result

MISSING = "matplotlib is not installed: pip install matplotlib"
OWN = "Thermocline"
TITLES = {peer.name: peer.title for peer in PEERS} | {"own": OWN}
Bars = dict[str, float]
Lines = dict[str, dict[float, float]]


def draw(results: Sequence[Result], folder: Path) -> dict[str, str]:
    """Table → name of its plot in `folder`; of a table that was not measured there is none."""
    if importlib.util.find_spec("matplotlib") is None:
        return {}
    made = {}
    for table, plot in PLOTS.items():
        mine = [one for one in results if one.table == table]
        if mine and plot(mine, folder, f"{table}.svg"):
            made[table] = f"{table}.svg"
    return made


def _append(results: Sequence[Result], folder: Path, name: str) -> bool:
    bars: Bars = {}
    for one in results:
        figures = one.rows[0].figures
        if "p50_s" not in figures:
            continue
        where = {"unix": "unix socket", "tcp": "TCP"}.get(one.case)
        bars[f"{OWN}, {where}" if where else TITLES[one.case]] = figures["p50_s"] * 1e6
        if where:
            bars[f"bare XADD, {where}"] = figures["bare_p50_s"] * 1e6
    return _bars(folder / name, bars, "µs, p50 of one acknowledged append", log=True)


def _producer(results: Sequence[Result], folder: Path, name: str) -> bool:
    bars: Bars = {}
    for one in results:
        figures = one.rows[0].figures
        if one.case == "mixed" and figures:
            names = {"producer": "Producer.append()", "lists": "append_many", "bare": "redis-py, hiredis", "python": "redis-py"}
            bars |= {shown: figures[f"{key}_events_per_s"] for key, shown in names.items()}
        elif one.case in TITLES and figures:
            bars[TITLES[one.case]] = figures["producer_events_per_s"]
    return _bars(folder / name, bars, "events/s from one process")


def _moves(own: str) -> Callable[[Sequence[Result], Path, str], bool]:
    def plot(results: Sequence[Result], folder: Path, name: str) -> bool:
        bars: Bars = {}
        for row in (row for one in results for row in one.rows):
            if own in row.figures:
                bars[row.what.split(", rollups")[0]] = row.figures[own]
                bars["DuckDB alone" + f" ({row.what.split(',')[1].strip()})" * (own[:7] == "archive")] = row.figures[
                    "bare_events_per_s"
                ]
            elif "naive_events_per_s" in row.figures:
                bars["naive pipeline"] = row.figures["naive_events_per_s"]
        return _bars(folder / name, bars, "events/s")

    return plot


def _sized(figure: str, label: str) -> Callable[[Sequence[Result], Path, str], bool]:
    """Lines over the number of events, one for each store."""

    def plot(results: Sequence[Result], folder: Path, name: str) -> bool:
        lines: Lines = {}
        for one in results:
            for row in one.rows:
                if figure in row.figures:
                    lines.setdefault(TITLES.get(one.case, one.case), {})[one.events] = row.figures[figure] * 1e3
        return _lines(folder / name, lines, "events in the store", f"ms, p50 of {label}")

    return plot


def _aggregate(results: Sequence[Result], folder: Path, name: str) -> bool:
    lines: Lines = {}
    for one in results:
        for row in one.rows:
            if one.case in TITLES and "own_p50_s" in row.figures:
                lines.setdefault(TITLES[one.case], {})[one.events] = row.figures[f"{one.case}_p50_s"] * 1e3
                lines.setdefault(OWN, {})[one.events] = row.figures["own_p50_s"] * 1e3
    return _lines(folder / name, lines, "events in the store", "ms, p50 of an aggregate over six hours")


def _growth(results: Sequence[Result], folder: Path, name: str) -> bool:
    lines: Lines = {}
    for row in (row for one in results for row in one.rows):
        for key, value in row.figures.items():
            if key.endswith("_us_per_event"):
                lines.setdefault(key.removesuffix("_us_per_event"), {})[row.events] = value
    return _lines(folder / name, lines, "events in the store", "µs per event", log_y=False)


def _stress(results: Sequence[Result], folder: Path, name: str) -> bool:
    lines: Lines = {}
    rows = [row for one in results for row in one.rows if "agents" in row.figures]
    for row in sorted(rows, key=lambda row: row.figures["concurrent"]):
        shown = f"{row.figures['concurrent']:.0f} at a time"
        lines.setdefault(shown, {})[row.figures["agents"]] = row.figures["events_per_s"]
    return _lines(folder / name, lines, "agents", "events/s, acknowledged one by one", log_y=False)


def _shards(results: Sequence[Result], folder: Path, name: str) -> bool:
    rows = [row for one in sorted(results, key=lambda one: one.case) for row in one.rows if "events_per_s" in row.figures]
    return _bars(
        folder / name, {row.what.split(",")[0]: row.figures["events_per_s"] for row in rows}, "events/s of all producers"
    )


def _bars(path: Path, bars: Bars, label: str, *, log: bool = False) -> bool:
    """Horizontal bars, ours in colour."""
    if not bars:
        return False
    figure, axes = _axes(1.2 + 0.35 * len(bars))
    names = list(bars)[::-1]
    ours = ("Thermocline", "Producer.append", "append_many", "settle", "merge", "archive")
    colours = ["#1f6f8b" if name.startswith(ours) else "#b0b7bd" for name in names]
    drawn = axes.barh(names, [bars[name] for name in names], color=colours)
    axes.bar_label(drawn, fmt="{:,.0f}", padding=3)
    axes.set_xlabel(label)
    axes.margins(x=0.18)
    if log:
        axes.set_xscale("log")
    return _save(figure, path)


def _lines(path: Path, lines: Lines, x_label: str, y_label: str, *, log_y: bool = True) -> bool:
    if not lines:
        return False
    figure, axes = _axes(3.6)
    for name, points in lines.items():
        places = sorted(points)
        thick = 2.4 if name == OWN else 1.4
        axes.plot(places, [points[place] for place in places], marker="o", label=name, linewidth=thick)
    axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend(frameon=False)
    axes.set_ylim(bottom=None if log_y else 0)
    return _save(figure, path)


def _axes(height: float) -> tuple[Any, Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 9})
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    return True


PLOTS: dict[str, Callable[[Sequence[Result], Path, str], bool]] = {
    "append": _append,
    "producer": _producer,
    "settle": _moves("settle_events_per_s"),
    "merge": _moves("merge_events_per_s"),
    "archive": _moves("archive_events_per_s"),
    "history": _sized("usual_p50_s", "a usual conversation's history"),
    "statistics": _sized("by_hour_p50_s", "statistics by hour"),
    "aggregate": _aggregate,
    "growth": _growth,
    "stress": _stress,
    "shards": _shards,
}
