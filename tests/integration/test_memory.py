"""The worker's memory while it settles far more than one batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.filled import Filler
from thermocline.config import load
from thermocline.tiers.opening import open_tiers

WORKER = """
import resource, sys
from thermocline.archiver.worker import Worker
from thermocline.config import load
from thermocline.tiers.opening import open_tiers
with open_tiers(load({"data_dir": sys.argv[1]}, environ={})) as tiers:
    Worker(tiers).once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("events", [400_000, pytest.param(2_000_000, marks=pytest.mark.long)])
def test_a_worker_stays_below_one_gib_while_it_settles_many_batches(data_dir: Path, events: int) -> None:
    settings = load({"data_dir": data_dir}, environ={})
    with open_tiers(settings) as tiers:
        filler = Filler(tiers)
        filler.append(events)
        filler.close()
        done = subprocess.run([sys.executable, "-c", WORKER, str(data_dir)], capture_output=True, text=True, check=True)
        assert int(done.stdout) < 1 << 20  # KiB
        assert sum(state.events for state in tiers.ledger.view().shards) == events
        assert sum(segment.rows for segment in tiers.ledger.view().segments) == events
