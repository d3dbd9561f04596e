"""Short chaos runs: one on every change, in the long ring on every redis-server there is. tests/long has the full ones, which
also limit the time of a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import Report, run_chaos
from tests.servers import redis_binaries


def short_run(folder: Path, redis: Path, fsync: str) -> Report:
    return run_chaos(
        folder,
        redis=str(redis),
        fsync=fsync,
        seed=7,
        worker_kills=25,
        redis_kills=3,
        stops=2,
        producers=1,
        readers=1,
        queries_min=100,
        say=lambda text: None,
        restart_s_max=60,
        wait_s_max=0.2,
        events_rate=500,
        queries_rate=20,
    )


BINARIES = redis_binaries()
IN_LONG = [(binary, fsync) for binary in BINARIES for fsync in ("always", "everysec")][1:]


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("redis_binary", "fsync"),
    [(BINARIES[0], "always"), *(pytest.param(*one, marks=pytest.mark.long) for one in IN_LONG)],
    ids=str,
)
def test_every_acknowledged_event_survives_a_short_run_of_kills(redis_binary: Path, tmp_path: Path, fsync: str) -> None:
    report = short_run(tmp_path, redis_binary, fsync)
    assert report.problems == []
    assert report.verdict.acknowledged > 100 and report.verdict.queries >= 100
