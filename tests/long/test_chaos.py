"""The full chaos runs: 50 kills of the worker, 5 of Redis, 10 stops, 3 readers, 10,000 queries.

docs/reliability.md has the figures.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.chaos.run import run_chaos

pytestmark = pytest.mark.long


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_every_acknowledged_event_survives_a_full_run_of_kills(redis_binary: Path, tmp_path: Path, fsync: str) -> None:
    report = run_chaos(
        tmp_path,
        redis=str(redis_binary),
        fsync=fsync,
        seed=1,
        worker_kills=50,
        redis_kills=5,
        stops=10,
        producers=2,
        readers=3,
        queries_min=10_000,
        say=lambda text: print(text, file=sys.stderr),  # noqa: T201
    )
    assert report.problems == []
