"""Appends through a line that drops, delays, resets and half-opens: none lost, none doubled, none beyond its deadline."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import StartServer
from tests.faulty_appends import run_appends
from tests.faulty_line import MIXES

APPENDS = {"drop 50 %": 600, "late": 600}
APPENDS_USUAL = 1500
APPENDS_LONG = 100_000


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("long", [False, pytest.param(True, marks=pytest.mark.long)], ids=["short", "long"])
def test_every_append_through_faults_ends_as_it_says(mix: str, long: bool, redis_server: StartServer, tmp_path: Path) -> None:
    server = redis_server(options={"appendfsync": "always"})
    appends = APPENDS_LONG if long else APPENDS.get(mix, APPENDS_USUAL)
    verdict = run_appends(tmp_path, server, mix, appends=appends, seed=7)
    assert verdict.problems == []
    assert verdict.stored + verdict.not_stored == appends
    assert verdict.in_warm > 0
    assert sum(verdict.faults.values()) > appends / 500
