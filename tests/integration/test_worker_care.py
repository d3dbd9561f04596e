"""The worker that runs: it reads everything again, mends what is damaged, mirrors, and says so."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.archiving import append, rows, settings_for
from tests.flips import flip
from tests.servers import RedisServer
from tests.waiting import wait_until
from thermocline.archiver.worker import Worker
from thermocline.cli.reports import status_lines
from thermocline.query.status import status
from thermocline.tiers.opening import Tiers, open_tiers
from thermocline.tiers.scrub_state import FILE_NAME, read_state

EAGER = {"settle_after_s": 0, "settle_after_events": 1, "settle_latest_s": 0}
FAST = {"settle_every_s": 0.05, "merge_every_s": 0.05, "scrub_every_s": 0.1, "scrub_days": 0.000001, "mirror_every_s": 0.1}


@pytest.fixture
def tiers(tmp_path: Path, server: RedisServer) -> Iterator[Tiers]:
    warm = {**EAGER, "mirror": f"file://{tmp_path}/mirror"}
    with open_tiers(settings_for(tmp_path, server, warm=warm, worker=FAST)) as opened:
        yield opened


@pytest.fixture
def worker(tiers: Tiers) -> Iterator[Worker]:
    made = Worker(tiers)
    yield made
    assert made.stop(30)


def said(tiers: Tiers) -> dict[str, Any]:
    path = tiers.settings.namespace_dir / "worker.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def only_segment(tiers: Tiers) -> Path:
    [segment] = tiers.ledger.view().segments
    return Path(tiers.warm.path(segment.segment_id))


def settled_and_mirrored(tiers: Tiers) -> bool:
    return said(tiers).get("mirror_waiting") == 0 and len(tiers.ledger.view().segments) == 1


def test_a_damaged_segment_is_found_and_mended_from_the_mirror_while_the_worker_runs(tiers: Tiers, worker: Worker) -> None:
    append(tiers, 100)
    worker.start()
    wait_until(lambda: settled_and_mirrored(tiers), 20, "it is mirrored")
    path = only_segment(tiers)
    content = path.read_bytes()
    flip(path, random.Random(1))
    wait_until(lambda: path.read_bytes() == content, 20, "it is mended")
    wait_until(lambda: said(tiers).get("damaged") == 0, 20, "the worker says so")
    assert (tiers.settings.namespace_dir / "trash" / "quarantine" / path.name).exists()
    assert rows(tiers) == list(range(100))
    assert worker.problem is None
    lines = list(status_lines(status(tiers)))
    assert any(line.startswith("Last scrubbed ") and "1 file" in line and "in quarantine" in line for line in lines)
    assert any(line.startswith("Mirror: as of ") and "all segments are in it" in line for line in lines)


def test_health_is_red_while_something_cannot_be_mended_and_green_when_it_is_restored_by_hand(
    tmp_path: Path, server: RedisServer
) -> None:
    with open_tiers(
        settings_for(tmp_path, server, warm=EAGER, worker=FAST, hot={"cache_window_s": 0, "log_grace_s": 0})
    ) as tiers:
        append(tiers, 100)
        assert Worker(tiers).once().settled_events == 100
        worker = Worker(tiers)
        worker.start()
        wait_until(lambda: not any(cut.entries for cut in tiers.hot.cut()), 20, "the log is trimmed")
        path = only_segment(tiers)
        content = path.read_bytes()
        path.write_bytes(content[:20_000] + bytes(len(content) - 20_000))
        wait_until(lambda: "thermocline scrub" in str(worker.problem), 20, "health is red")
        found = status(tiers)
        assert found.health == "red"
        assert found.scrub is not None
        assert (found.scrub.damaged, path.exists()) == (1, True)
        assert "1 stored objects are damaged" in " ".join(found.reasons)
        [damage] = read_state(tiers.settings.namespace_dir).damaged
        assert damage.events == 100
        path.write_bytes(content)
        wait_until(lambda: worker.problem is None, 20, "health is green again")
        assert worker.stop(30)


def test_what_is_scrubbed_is_remembered_over_restarts(tiers: Tiers, worker: Worker) -> None:
    append(tiers, 100)
    Worker(tiers).once()
    worker.start()
    wait_until((tiers.settings.namespace_dir / FILE_NAME).exists, 20, "a pass was made")
    wait_until(lambda: bool(read_state(tiers.settings.namespace_dir).read), 20, "something was read")
    assert worker.stop(30)
    state = read_state(tiers.settings.namespace_dir)
    assert 0 < state.oldest_us <= state.passed_us
