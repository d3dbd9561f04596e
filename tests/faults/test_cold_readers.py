"""A short run of readers against everything that moves archived data; tests/cold_readers.py has the long one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cold_readers import RESTLESS, run
from thermocline.config import load


@pytest.mark.parametrize("cold_url", ["folder", pytest.param("swift", marks=pytest.mark.long)], indirect=True)
def test_readers_see_every_event_once_while_it_is_archived_compacted_and_purged(
    cold_overrides: dict[str, Any], tmp_path: Path
) -> None:
    overrides = {**cold_overrides, **RESTLESS}
    verdict = run(load(overrides, environ={}), overrides, tmp_path, queries=150)
    assert verdict.anomalies == []
    assert verdict.queries >= 150
    assert min(verdict.archived_events, verdict.rounds) > 0
