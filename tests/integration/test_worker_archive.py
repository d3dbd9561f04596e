"""The worker's jobs on the archive: in the background among its other jobs, and when the cold tier cannot be used."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.archiving import append, settings_for
from tests.servers import RedisServer
from tests.waiting import wait_until
from thermocline.archiver.janitor import Cleaned
from thermocline.archiver.verify import verify
from thermocline.archiver.worker import Worker
from thermocline.tiers.opening import Tiers, open_tiers

EAGER = {"settle_after_s": 0, "settle_after_events": 1, "settle_latest_s": 0}
FAST = {"settle_every_s": 0.05, "archive_every_s": 0.05}


def said(tiers: Tiers) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tiers.settings.namespace_dir / "worker.json").read_text())
    return found


def settled(tiers: Tiers) -> int:
    return sum(state.events for state in tiers.ledger.view().shards)


def archived(tiers: Tiers) -> int:
    return sum(total.kept + total.sampled_out for total in tiers.ledger.view().totals)


def test_a_worker_archives_compacts_and_cleans_in_the_background_and_settles_in_between(
    tmp_path: Path, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    sections = {"warm": EAGER, "worker": FAST, "cold": {"compact_files_min": 2, "purge_grace_s": 0}}
    old = {"timestamp": datetime.now(UTC) - timedelta(days=12), "event_type": "error"}
    with open_tiers(settings_for(tmp_path, server, **sections)) as tiers, caplog.at_level("INFO", logger="thermocline.worker"):
        worker = Worker(tiers)
        worker.start()
        for number in range(2):
            append(tiers, 20, start=20 * number, **old)
            wait_until(lambda number=number: archived(tiers) == 20 * (number + 1), 30, "the events are in the archive")
        wait_until(lambda: len([file for file in tiers.ledger.view().files if file.kind == "events"]) == 1, 30, "it is one file")
        left = tmp_path / "data" / "default" / "cold" / "batches" / f"{'0' * 32}.json"
        left.write_text("left by a crash")
        wait_until(lambda: not left.exists(), 30, "what a crash left is gone")
        append(tiers, 5, start=40)
        wait_until(lambda: settled(tiers) == 45, 20, "settling goes on")
        wait_until(lambda: "removed 1 objects" in caplog.text, 20, "it is told")
        assert worker.stop(30)
        assert worker.problem is None
        assert {"archived_us", "archived_events"} <= said(tiers).keys()
        assert verify(tiers, deep=True).problems == ()
    for words in ("archived 20 events, 20 of them kept", "files of the archive became"):
        assert words in caplog.text


def test_an_archive_that_another_ledger_made_is_red_until_it_is_put_right(
    tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Cleaned(unclaimed=3)]
    monkeypatch.setattr("thermocline.archiver.tidy.Tidier.clean", lambda self: found[0])
    with open_tiers(settings_for(tmp_path, server, worker=FAST)) as tiers:
        worker = Worker(tiers)
        worker.start()
        words = "another ledger archived 3 objects: run `thermocline recover`"
        wait_until(lambda: words in str(worker.problem), 20, "health is red")
        found[0] = Cleaned()
        wait_until(lambda: worker.problem is None, 20, "health is green")
        assert worker.stop(30)


def test_once_says_that_the_archive_could_not_be_tidied_and_has_settled_all_the_same(tmp_path: Path, server: RedisServer) -> None:
    with open_tiers(settings_for(tmp_path, server)) as tiers:
        append(tiers, 20, timestamp=datetime.now(UTC) - timedelta(days=12))
        assert Worker(tiers).once().archived_events == 20
    cold = tmp_path / "data" / "default" / "cold"
    cold.rename(tmp_path / "moved")
    cold.write_text("a file in its place")
    with open_tiers(settings_for(tmp_path, server)) as tiers:
        append(tiers, 5, start=20)
        report = Worker(tiers).once()
        assert report.settled_events == 5
        assert "the archive was not tidied: " in str(report.problem)
        cold.unlink()
        (tmp_path / "moved").rename(cold)
        assert Worker(tiers).once().problem is None
