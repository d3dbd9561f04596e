"""The worker's memory while it settles far more than one batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from thermocline.ingest.append import Client

from thermocline.config import load
from thermocline.tiers.opening import open_tiers

EVENTS = 2_000_000
BATCH = 50_000
WORKER = """
import resource, sys
from thermocline.archiver.worker import Worker
from thermocline.config import load
from thermocline.tiers.opening import open_tiers
with open_tiers(load({"data_dir": sys.argv[1]}, environ={})) as tiers:
    Worker(tiers).once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_worker_stays_below_one_gib_while_it_settles_two_million_events(data_dir: Path) -> None:
    settings = load({"data_dir": data_dir}, environ={})
    with open_tiers(settings):
        with Client(settings) as client:
            for start in range(0, EVENTS, BATCH):
                client.append_many(
                    {"conversation_id": f"chat-{number // 500}", "event_type": "output.chunk", "content": f"word {number} " * 5}
                    for number in range(start, start + BATCH)
                )
        done = subprocess.run([sys.executable, "-c", WORKER, str(data_dir)], capture_output=True, text=True, check=True)
        assert int(done.stdout) < 1 << 20  # KiB
    with open_tiers(settings) as tiers:
        assert sum(state.events for state in tiers.ledger.view().shards) == EVENTS
