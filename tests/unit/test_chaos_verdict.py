"""The judge of the chaos runs sees every kind of wrong history."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from tests.chaos.check import Verdict, compare
from thermocline.tiers.block import ERA_SEQ_STEP

GOOD = [("0:1", "a", 1), ("0:2", "a", 2), ("0:3", "b", 1), ("0:4", "a", 3)]


def judged(folder: Path, receipts: list[tuple[str, str, int]], rows: list[tuple[str, str, int]], *, done: bool = True) -> Verdict:
    lines = [{"content": content, "conversation": conversation, "seq": seq} for content, conversation, seq in receipts]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, *([{"done": True, "made": 4}] if done else [])])
    (folder / "producer-0.ndjson").write_text(text)
    verdict = Verdict(queries=1)
    names = ("content", "conversation_id", "seq")
    compare(verdict, folder, pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))))
    return verdict


def test_a_history_in_which_everything_is_where_its_receipt_says_has_no_problem(tmp_path: Path) -> None:
    verdict = judged(tmp_path, GOOD, GOOD)
    assert verdict.problems(gaps_allowed=False) == []
    assert (verdict.acknowledged, verdict.stored) == (4, 4)


def test_what_was_stored_without_an_answer_is_no_problem(tmp_path: Path) -> None:
    assert judged(tmp_path, GOOD[:3], GOOD).problems(gaps_allowed=False) == []


@pytest.mark.parametrize(
    ("receipts", "rows", "said"),
    [
        (GOOD, GOOD[:3], "lost is 1"),
        (GOOD, [*GOOD, ("0:4", "a", 4)], "doubled is 1"),
        (GOOD, [*GOOD[:3], ("0:4", "a", 4)], "misplaced is 1"),
        (GOOD, [*GOOD[:3], ("0:4", "c", 1)], "misplaced is 1"),
        ([*GOOD, ("0:5", "a", 3)], [*GOOD, ("0:5", "a", 4)], "reused is 1"),
        (GOOD[:3], [*GOOD[:3], ("0:4", "a", 4)], "gaps is 1"),
        (GOOD[:3], [*GOOD[:3], ("0:4", "a", 3 + ERA_SEQ_STEP)], "steps is 1"),
        (GOOD[:1], [GOOD[0], ("0:9", "a", 2), ("0:8", "a", 3)], "disordered is 1"),
    ],
)
def test_a_wrong_history_is_seen(
    tmp_path: Path, receipts: list[tuple[str, str, int]], rows: list[tuple[str, str, int]], said: str
) -> None:
    assert said in judged(tmp_path, receipts, rows).problems(gaps_allowed=False)


def test_a_loss_that_was_declared_is_a_problem_only_where_nothing_may_be_lost(tmp_path: Path) -> None:
    verdict = judged(tmp_path, GOOD, GOOD[:3])
    assert "lost is not declared_lost" in verdict.problems(gaps_allowed=True)
    verdict.declared_lost = 1
    assert verdict.problems(gaps_allowed=True) == []
    assert verdict.problems(gaps_allowed=False) == ["lost is 1"]
    verdict.declared_lost = 3  # two were lost before they were acknowledged
    assert verdict.problems(gaps_allowed=True, unacknowledged_max=2) == []
    assert "lost is not declared_lost" in verdict.problems(gaps_allowed=True, unacknowledged_max=1)
    verdict.declared_lost = 0
    assert "lost is not declared_lost" in verdict.problems(gaps_allowed=True, unacknowledged_max=2)


def test_a_producer_that_did_not_end_in_order_is_named(tmp_path: Path) -> None:
    assert judged(tmp_path, GOOD, GOOD, done=False).problems(gaps_allowed=False) == ["producer-0 did not end in order"]
