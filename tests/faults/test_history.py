"""A short history on every change: eight clients, every kind of fault, and a proof for each conversation. docs/reliability.md has
the long ones."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.history.plan import KINDS, make_plan
from tests.servers import redis_binaries


@pytest.mark.lengthy
def test_every_conversation_is_linearizable_under_faults(tmp_path: Path) -> None:
    """In a process of its own, which may mount a small disk where this one may not."""
    command = [sys.executable, "-m", "tests.history", "--minutes", "0.25", "--seed", "1", "--folder", str(tmp_path / "run")]
    done = subprocess.run([*command, "--redis", str(redis_binaries()[0])], capture_output=True, text=True, timeout=600)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["problems"] == [], done.stderr
    assert done.returncode == 0
    assert report["events"] > 0
    assert {*report["faults"], *report["left_out"]} == {*KINDS}


def test_a_plan_is_the_same_for_a_seed_and_has_every_kind_before_any_comes_again() -> None:
    plan = make_plan(3, until_s=600, gap_s=(0.3, 2.5))
    assert plan == make_plan(3, until_s=600, gap_s=(0.3, 2.5)) != make_plan(4, until_s=600, gap_s=(0.3, 2.5))
    assert {fault.kind for fault in plan[: len(KINDS)]} == {*KINDS}
    assert all(one.at_s <= two.at_s for one, two in pairwise(plan))
    for kind in KINDS:
        own = [fault for fault in plan if fault.kind == kind]
        assert all(one.until_s < two.at_s for one, two in pairwise(own))
