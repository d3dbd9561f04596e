"""Restored continuously under load, what comes back is what was appended, and never older than a few seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.restored import run


@pytest.mark.parametrize("seconds", [8, pytest.param(300, marks=pytest.mark.long)])
def test_what_is_restored_under_load_is_the_beginning_of_every_conversation(tmp_path: Path, seconds: float) -> None:
    found = run(tmp_path, events=20_000, seconds=seconds)
    assert found.problems == []
    assert found.restores >= 2
    assert found.events_under_load > 0
    assert found.point_s[1] < 60
