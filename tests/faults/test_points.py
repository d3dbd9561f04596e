"""Faults before and after every step of every move, the choice of them that every change is tested with; and what tries them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.archiving import append, settings_for
from tests.points.catalogue import KINDS, STEPS, points
from tests.points.choice import all_chains, short_chains
from tests.points.history import DAY_US, HOURLY, ROWS, SUMMARY, History, Row
from tests.servers import RedisServer
from thermocline.archiver.worker import Worker
from thermocline.tiers.opening import open_tiers

ROOT = Path(__file__).parents[2]


@pytest.mark.lengthy
def test_a_fault_at_any_step_of_any_move_loses_doubles_changes_and_leaves_nothing() -> None:
    command = [sys.executable, "-m", "tests.points", "--choice", "short"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["problems"] == []
    assert done.returncode == 0
    assert set(report["by_kind"]) == set(KINDS)


def test_every_change_tries_an_exception_at_every_point_and_every_kind_at_every_move() -> None:
    cells = [cell for chain in short_chains(list(STEPS)) for cell in chain]
    assert {(cell.move, cell.kind) for cell in cells} == {(move, kind) for move in STEPS for kind in KINDS}
    assert {cell.move for cell in cells if cell.point == "each"} == set(STEPS)
    everything = all_chains(list(STEPS), KINDS)
    assert len(everything) == sum(len(points(move)) for move in STEPS) * len(KINDS)


def test_the_worker_tells_of_every_step_by_its_move(tmp_path: Path, server: RedisServer) -> None:
    told: list[str] = []
    with open_tiers(settings_for(tmp_path, server, hot={"durable_lag_s": 0})) as tiers:
        append(tiers, 10)
        Worker(tiers, reach=told.append).once()
    assert [step for step in told if step.startswith("settle: ")] == [f"settle: {point}" for point in points("settle")]
    assert {step.partition(": ")[0] for step in told} == {"settle", "trim", "purge"}
    assert {step.partition(": ")[2] for step in told if step.startswith("purge")} <= set(points("purge"))


class Answer(NamedTuple):
    rows: list[Row]

    def fetchall(self) -> list[Row]:
        return self.rows


class Told:
    """Answers like a store over these rows would; statistics are those of the history, unless they are given."""

    def __init__(self, history: History, rows: list[Row], **statistics: list[Row]) -> None:
        self.tiers = self
        self.ledger = self
        self.totals = ()
        self._answers = {ROWS: rows, HOURLY: history._hourly(), SUMMARY: history._summary(), **statistics}

    def view(self) -> Told:
        return self

    def sql(self, query: str) -> Answer:
        return Answer(self._answers[query])


def test_the_check_sees_what_is_missing_doubled_changed_or_counted_wrong() -> None:
    history = History()
    history.events(20, first_us=100 * DAY_US, days=2)
    rows = sorted(history.rows)
    changed = [(*rows[0][:3], "another", *rows[0][4:]), *rows[1:]]
    right: Any = Told(history, rows)
    assert history.problems(right) == []
    for wrong in (rows[1:], [rows[0], *rows], changed, [rows[1], rows[0], *rows[2:]]):
        told: Any = Told(history, wrong)
        assert [problem.partition(":")[0] for problem in history.problems(told)] == ["events"]
    for query, name in ((HOURLY, "hourly_stats"), (SUMMARY, "conversation_summary")):
        miscounted: Any = Told(history, rows)
        miscounted._answers[query] = miscounted._answers[query][1:]
        assert [problem.partition(":")[0] for problem in history.problems(miscounted)] == [name]
