"""Rollups of the user's outlive what takes the events: retention, a ledger made again, a disk restored from its mirror."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.archiving import Crash, append, settle_all
from tests.servers import RedisServer
from tests.tidying import Archive, breaking_at
from thermocline.archiver.expire import Expirer
from thermocline.archiver.mirror import Mirrorer
from thermocline.archiver.recover import recover
from thermocline.archiver.restore import restore
from thermocline.archiver.settle import Settler
from thermocline.config import load
from thermocline.errors import IncompleteAnswer

PARTS = {
    "sql": "SELECT hour, event_type AS kind, task_id, metadata->>'$.number' AS number, count(*) AS n,"
    " sum(input_tokens) AS tokens, count_if(cost_usd > 1) AS dear, min(timestamp) AS first, max(content) AS last"
    " FROM events WHERE seq % 4 > 0 GROUP BY ALL",
    "merge": {"n": "sum", "tokens": "sum", "dear": "sum", "first": "min", "last": "max"},
}
COSTS = {"sql": "SELECT hour, sum(cost_usd) AS usd, count(*) AS n FROM events GROUP BY ALL", "merge": {"usd": "sum", "n": "sum"}}
ROLLUPS = {"parts": PARTS, "costs": COSTS}
STATISTICS = (
    "SELECT * FROM rollup_parts ORDER BY ALL",
    "SELECT hour, round(usd, 6) AS usd, n FROM rollup_costs ORDER BY ALL",
    "SELECT * FROM hourly_stats ORDER BY ALL",
    "SELECT * FROM conversation_summary ORDER BY ALL",
)
BY_EVENTS = PARTS["sql"].replace("hour,", "date_trunc('hour', timestamp) AS hour,", 1).removesuffix("GROUP BY ALL")


def statistics(archive: Archive) -> list[Any]:
    """The rollups and ours, of which every answer says that it is complete."""
    return [archive.store.sql(query, require="complete").fetchall() for query in STATISTICS]


def lived(archive: Archive) -> list[Any]:
    """Archive two rounds of two days, settle more, leave some in Redis; what the statistics are then.

    The rollup is what its SELECT gave of the events before any of them was sampled out.
    """
    batches = [archive.archive_round() for _ in range(2)]
    assert all(batch.events_kept < batch.events_in for batch in batches)
    append(archive.tiers, 30, input_tokens=3, cost_usd=2.0)
    settle_all(Settler(archive.tiers, archive.epoch))
    append(archive.tiers, 20, start=30, input_tokens=4)
    found = statistics(archive)
    assert sum(row[2] for row in found[1]) == 2 * 60 + 30 + 20
    return found


def test_archived_rollups_are_those_of_all_events_before_sampling(tmp_path: Path, server: RedisServer) -> None:
    with Archive(tmp_path, server, rollups=ROLLUPS, sampling={"rules": [{"name": "all", "keep": True}]}) as whole:
        whole.archive_rounds(2)
        by_hand = whole.store.sql(f"{BY_EVENTS} GROUP BY ALL ORDER BY ALL").fetchall()
        assert whole.store.sql(STATISTICS[0], require="complete").fetchall() == by_hand != []


def test_what_expires_stays_in_rollups_to_the_event(tmp_path: Path, server: RedisServer) -> None:
    with Archive(tmp_path, server, rollups=ROLLUPS, cold={"retention_days": 11}) as archive:
        before = lived(archive)
        days = {file.day for file in archive.files("events")}
        assert archive.expire() is not None
        assert len({file.day for file in archive.files("events")}) == len(days) - 1
        assert statistics(archive) == before
        later_us = time.time_ns() // 1000 + 2 * 86_400_000_000
        assert Expirer(archive.tiers, archive.epoch).step(now_us=later_us) is not None
        assert archive.files("events") == []
        assert statistics(archive) == before
        archive.check()
        for _ in range(2):
            archive.archive_round()
        before = statistics(archive)
        assert archive.compact() is not None
        archive.clean(days=40)
        assert len(archive.files("rollup_user")) == 1
        assert statistics(archive) == before
        archive.check()


def test_a_definition_from_after_the_expiry_says_what_it_lacks(tmp_path: Path, server: RedisServer) -> None:
    with Archive(tmp_path, server, cold={"retention_days": 11}) as archive:
        archive.archive_round()
        assert archive.expire() is not None
        archive.close()
        archive.settings = archive.settings.model_copy(update={"rollups": load({"rollups": ROLLUPS}, environ={}).rollups})
        archive.open()
        archive.archive_round()
        assert archive.store.sql("SELECT sum(n) FROM rollup_costs").fetchall() == [(60,)]
        with pytest.raises(IncompleteAnswer, match="rollup_costs lacks 60 of 120 archived events"):
            archive.store.sql("SELECT sum(n) FROM rollup_costs", require="complete")


@pytest.mark.parametrize("trimmed", [False, True])
def test_a_ledger_made_again_has_the_rollups_of_what_was_sampled_out_and_expired(
    tmp_path: Path, server: RedisServer, trimmed: bool
) -> None:
    with Archive(tmp_path, server, rollups=ROLLUPS, cold={"retention_days": 11}) as archive:
        before = lived(archive)
        assert archive.expire() is not None
        if trimmed:
            archive.trim()
        archive.close()
        for path in archive.settings.namespace_dir.glob("ledger.db*"):
            path.unlink()
        assert recover(archive.settings).batches == 3
        archive.open()
        assert statistics(archive) == before
        archive.check()
        archive.archive_round()
        assert sum(row[2] for row in statistics(archive)[1]) == sum(row[2] for row in before[1]) + 60


@pytest.mark.parametrize("ahead", [False, True])
def test_a_disk_restored_from_its_mirror_has_them(tmp_path: Path, server: RedisServer, ahead: bool) -> None:
    """Also when the archive went on after the last snapshot, so that the ledger is made again."""
    warm = {"mirror": f"file://{tmp_path}/mirror", "purge_grace_s": 0, "mirror_grace_s": 0}
    with Archive(tmp_path, server, rollups=ROLLUPS, cold={"retention_days": 11}, cold_url="", warm=warm) as archive:
        before = lived(archive)
        assert archive.expire() is not None
        mirror_all(archive)
        if ahead:
            archive.archive_round()
            with pytest.raises(Crash):
                mirror_all(archive, reach=breaking_at("upload snapshot"))
            before = statistics(archive)
        archive.close()
        shutil.rmtree(archive.settings.data_dir)
        found = restore(archive.settings, str(archive.settings.warm.mirror))
        assert (found.missing, found.recovered) == ((), ahead)
        archive.open()
        assert statistics(archive) == before
        assert archive.store.verify(deep=True).problems == ()
        archive.archive_round()
        assert sum(row[2] for row in statistics(archive)[1]) == sum(row[2] for row in before[1]) + 60
        archive.check()


def mirror_all(archive: Archive, **how: Any) -> None:
    mirrorer = Mirrorer(archive.tiers, **how)
    while mirrorer.step():
        pass
