"""Workers that are told to end while they have everything to do. `python -m tests.terminated` does it a hundred times, and
measures."""

from __future__ import annotations

from pathlib import Path

from tests.terminated import run


def test_workers_told_to_end_at_random_moments_lose_nothing_and_the_next_goes_on(tmp_path: Path) -> None:
    found = run(tmp_path, times=3, seed=11, lives_s_max=0.7, exit_s_max=60)
    assert found.problems == []
    assert found.codes.get("0", 0) >= 3
    assert found.events > 0
