"""The worker's memory while it settles far more than one batch."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from thermocline.config import load
from thermocline.event import Event
from thermocline.ingest.encode import blocks_of
from thermocline.ingest.line import line_of
from thermocline.ingest.validate import fields_of
from thermocline.tiers.opening import open_tiers

EVENTS = 2_000_000
BLOCK_LINES = 500
ROUND_BLOCKS = 16
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
    now_us = time.time_ns() // 1000
    words = [f"word {number} " * 5 for number in range(BLOCK_LINES)]
    events = [Event(conversation_id="any", event_type="output.chunk", content=text) for text in words]
    lines = [line_of(fields_of(event), now_us) for event in events]
    with open_tiers(settings) as tiers:
        session = tiers.hot.session()
        numbers: dict[int, int] = {}
        for start in range(0, EVENTS // BLOCK_LINES, ROUND_BLOCKS):
            requests = []
            for chat in range(start, start + ROUND_BLOCKS):
                [block] = blocks_of(f"chat-{chat}", lines, shards=settings.hot.shards, events_max=BLOCK_LINES, bytes_max=1 << 20)
                numbers[block.shard] = numbers.get(block.shard, 0) + 1
                requests.append((block, numbers[block.shard], None))
            assert {reply.code for reply in session.send("p", requests, deadline_s=5)} == {"OK"}
        session.close()
        done = subprocess.run([sys.executable, "-c", WORKER, str(data_dir)], capture_output=True, text=True, check=True)
        assert int(done.stdout) < 1 << 20  # KiB
        assert sum(state.events for state in tiers.ledger.view().shards) == EVENTS
        assert sum(segment.rows for segment in tiers.ledger.view().segments) == EVENTS
