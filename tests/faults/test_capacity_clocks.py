"""Clocks that are years off: a producer's and the worker's (tests/long/test_clock.py has Redis'). Nothing goes by age then."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.archiving import append, settle_all
from tests.servers import RedisServer
from tests.tidying import DAY_US, FILES_MIN, Archive
from thermocline.archiver.expire import Expirer
from thermocline.archiver.purge import Purger
from thermocline.archiver.settle import Settler
from thermocline.archiver.worker import Worker
from thermocline.errors import InvalidEvent, TierUnavailable
from thermocline.ingest.append import Client

YEAR_US = 365 * DAY_US
KEEP_ALL = {"rules": [{"name": "all", "keep": True}]}


def set_clock(monkeypatch: pytest.MonkeyPatch, years: int) -> None:
    """This process believes that it is so many years later."""
    monkeypatch.undo()
    now_ns, now_s = time.time_ns, time.time
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + years * YEAR_US * 1000)
    monkeypatch.setattr(time, "time", lambda: now_s() + years * YEAR_US / 1e6)


@pytest.mark.parametrize("years", [20, pytest.param(-20, marks=pytest.mark.long)])
def test_a_workers_clock_that_is_years_off_archives_and_expires_nothing_says_so_and_is_over_when_it_is_set(
    tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch, years: int
) -> None:
    """With the rules as they are by default, which drop most of what is archived early, and a retention."""
    with Archive(tmp_path, server, cold={"retention_days": 30}, warm={"purge_grace_s": 60}) as archive:
        archive.archive_rounds(FILES_MIN - 1)
        append(archive.tiers, 300)
        settle_all(Settler(archive.tiers, archive.epoch))
        before = archive.contents()
        set_clock(monkeypatch, years)
        append(archive.tiers, 300, start=300, timestamp=archive.now_us)
        report = Worker(archive.tiers).once()
        assert report.settled_events == 300
        assert (report.archived_events, report.expired_events) == (0, 0)
        if years > 0:
            assert f"clock says {time.gmtime(time.time()).tm_year}" in str(report.problem)
            assert "set the wrong one (NTP)" in str(report.problem)
            with pytest.raises(TierUnavailable, match="nothing is archived or expires"):
                Expirer(archive.tiers, archive.tiers.ledger.take_epoch("test", 0)).step()
        found = archive.contents()
        assert found[0].num_rows == before[0].num_rows + 300
        monkeypatch.undo()
        assert Worker(archive.tiers).once().problem is None
        assert archive.contents() == found
        epoch = archive.tiers.ledger.take_epoch("test", 0)
        Purger(archive.tiers, epoch).step(now_us=time.time_ns() // 1000 + 120_000_000)
        assert [row.path for row in archive.tiers.ledger.trash() if "://" not in row.path] == []
        assert archive.contents() == found
        assert archive.store.verify(deep=True).problems == ()


def test_a_producers_clock_that_is_years_off_is_refused_ahead_and_taken_back_in_bounded_files(
    tmp_path: Path, server: RedisServer
) -> None:
    with Archive(tmp_path, server, sampling=KEEP_ALL) as archive:
        with Client(archive.settings, tiers=archive.tiers) as client:
            with pytest.raises(InvalidEvent, match=r"timestamp: .*Redis' clock"):
                client.append("c", "t", "ahead", timestamp=archive.now_us + 10 * YEAR_US)
            with pytest.raises(InvalidEvent, match="timestamp: "):
                client.append("c", "t", "before 2000", timestamp=archive.now_us - 40 * YEAR_US)
            client.append_many(
                {"conversation_id": f"c{number % 7}", "event_type": "t", "timestamp": archive.now_us - number * 200 * DAY_US}
                for number in range(40)
            )
        settle_all(Settler(archive.tiers, archive.epoch))
        assert len(archive.view().segments) == 1
        found = archive.contents()
        assert Worker(archive.tiers).once().archived_events >= 39
        assert archive.contents() == found
        assert len(archive.files("events")) < 46
        archive.tiers.ledger.take_epoch("test", 0)
        assert archive.store.verify(deep=True).problems == ()
