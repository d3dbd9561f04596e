"""How many requests one conversation's history, and a pass of the janitor, cost when the archive is on S3."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.archived import append_and_work, archive
from tests.s3_front import Front
from tests.s3_servers import Bucket
from tests.servers import RedisServer
from tests.tidying import Archive
from tests.waiting import wait_until
from thermocline.config import Settings
from thermocline.errors import QueryRefused, TierUnavailable
from thermocline.store import connect
from thermocline.tiers.cold_schema import KINDS

DAY_US = 86_400_000_000


def one_a_day(days: int) -> list[dict[str, Any]]:
    """Events of so many days that ended a month ago, each day its own file; conversation `rare` is in two of them."""
    newest_us = time.time_ns() // 1000 - 30 * DAY_US
    events = [
        {"conversation_id": f"c{day % 50}", "event_type": "error", "content": str(day), "timestamp": newest_us - day * DAY_US}
        for day in range(days)
    ]
    rare = [{**events[day], "conversation_id": "rare"} for day in (days // 3, days // 2)]
    return events + rare


def requests_for_one_conversation(settings: Settings, days: int) -> tuple[int, int]:
    """(event files in the archive, requests that reading one conversation took once its index was there)."""
    append_and_work(settings, one_a_day(days))
    archive(settings)
    with connect(settings) as store:
        store.sql("SELECT count(*) FROM conversation_summary").fetchall()  # the rollups are the index: copied once
        found = store.sql("SELECT * FROM events WHERE conversation_id = 'rare' ORDER BY seq")
        assert len(found.fetchall()) == 2
        assert found.coverage.files_read == 2
        remote = store._runner._archived._remote
        return sum(file.kind == "events" for file in store.tiers.ledger.view().files), remote.reads.requests


@pytest.mark.parametrize("cold_url", ["moto"], indirect=True)
def test_queries_that_fail_side_by_side_all_say_that_the_archive_is_away(
    cold_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request fails for all that wait for it. Found by eight clients that read while the object store went away."""
    append_and_work(cold_settings, one_a_day(3))
    archive(cold_settings)
    asking: set[int] = set()
    with connect(cold_settings) as store, ThreadPoolExecutor(8) as pool, monkeypatch.context() as patch:
        store.sql("SELECT count(*) FROM conversation_summary").fetchall()
        remote = store._runner._archived._remote
        blocks = remote._blocks

        def ask(*given: Any) -> list[bytes]:
            asking.add(threading.get_ident())
            return blocks(*given)

        def away(*_: object, **__: object) -> bytes:
            wait_until(lambda: len(asking) == 8, 60, "all ask for what one of them requests")
            raise TierUnavailable("the bucket is away: do this")

        patch.setattr(remote, "_blocks", ask)
        patch.setattr(store.tiers.cold, "get", away)
        asked = [pool.submit(store.sql, "SELECT content FROM events") for _ in range(8)]
        failures = [one.exception(60) for one in asked]
        assert {(type(one), str(one)) for one in failures} == {(TierUnavailable, "the bucket is away: do this")}
        patch.undo()
        with pytest.raises(QueryRefused, match="nothing_like_it"):
            store.sql("SELECT nothing_like_it FROM events")
        assert len(store.sql("SELECT content FROM events").fetchall()) == 5


@pytest.mark.parametrize("cold_url", ["moto", pytest.param("swift", marks=pytest.mark.long)], indirect=True)
def test_one_conversation_among_many_files_takes_few_requests(cold_settings: Settings) -> None:
    files, requests = requests_for_one_conversation(cold_settings, 60)
    assert files == 60
    assert requests <= 10, requests


@pytest.mark.long
@pytest.mark.parametrize("cold_url", ["swift"], indirect=True)
def test_one_conversation_among_a_thousand_files_takes_ten_requests_at_most(cold_settings: Settings) -> None:
    files, requests = requests_for_one_conversation(cold_settings, 1000)
    assert files == 1000
    assert requests <= 10, requests


def test_a_pass_of_the_janitor_that_finds_nothing_reads_no_more_than_the_pointers(
    tmp_path: Path, server: RedisServer, moto_bucket: Bucket
) -> None:
    with (
        Front(moto_bucket.endpoint_url, lambda kind, number: None) as front,
        Archive(tmp_path, server, cold_url=moto_bucket.url, cold={"endpoint_url": front.url}) as archive,
    ):
        archive.archive_rounds()
        assert archive.compact() is not None
        assert archive.clean(days=40).snapshots > 0
        assert archive.clean(days=40).removed == 0
        front.arm(lambda kind, number: None)
        assert archive.clean(days=40).removed == 0
        assert front.count == {"LIST": 4, "GET": len(KINDS), "UPLOADS": 1}
