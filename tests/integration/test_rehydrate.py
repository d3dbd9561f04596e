"""Local copies of archived events: of a day, of a conversation, for a while; and what `status` says of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.archiving import settings_for
from tests.conftest import StartServer
from thermocline.archiver.archive_pass import archive
from thermocline.archiver.rehydrate import Rehydrated, kept_copies, rehydrate
from thermocline.archiver.worker import Worker
from thermocline.config import Settings
from thermocline.ingest.append import Client
from thermocline.query import status as status_module
from thermocline.query.status import status
from thermocline.store import Store
from thermocline.tiers import cold_opening
from thermocline.tiers.cold_folder import FolderCold
from thermocline.tiers.opening import Tiers, open_tiers

DAY_US = 86_400_000_000
NOW_US = time.time_ns() // 1000
FIRST_US = (NOW_US // DAY_US - 20) * DAY_US
"""Ten days begin here; on day n, conversation `c<n>` and `all` have events."""
UNTIL_US = NOW_US + DAY_US


class FarCold(FolderCold):
    """A folder that is used as if it were far away; `gets` counts what is read of it."""

    is_local = False
    gets = 0
    away = False

    def path(self, key: str) -> Path:
        return super().path(key)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        self.gets += key.startswith("events/")
        assert not self.away, f"{key} is read from far away"
        return super().get(key, offset=offset, length=length)


def day(number: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime((FIRST_US + number * DAY_US) / 1e6))


@pytest.fixture
def settings(tmp_path: Path, redis_server: StartServer) -> Settings:
    keep: dict[str, Any] = {"sampling": {"rules": [{"name": "all", "keep": True}]}}
    return settings_for(tmp_path, redis_server(options={"appendfsync": "always"}), warm={"window_days": 60}, **keep)


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FarCold:
    cold = FarCold(tmp_path / "far")
    monkeypatch.setattr(cold_opening, "open_cold", lambda _: cold)
    return cold


@pytest.fixture
def tiers(settings: Settings) -> Iterator[Tiers]:
    with open_tiers(settings) as opened:
        yield opened


def archived(tiers: Tiers) -> Tiers:
    """Ten days, archived five and five."""
    with Client(tiers.settings, tiers=tiers) as client:
        client.append_many(
            [
                {"conversation_id": name, "event_type": "t", "timestamp": FIRST_US + number * DAY_US + hour * 3_600_000_000}
                for number in range(10)
                for name in (f"c{number}", "all")
                for hour in range(3)
            ]
        )
    Worker(tiers).once()
    for before in (5, 10):
        archive(tiers, FIRST_US + before * DAY_US)
    return tiers


def keys(tiers: Tiers) -> list[str]:
    return [one.key for one in kept_copies(tiers, now_us=NOW_US)]


def events(tiers: Tiers, where: str) -> int:
    with Store(tiers) as store:
        store.close = lambda: None  # type: ignore[method-assign]  # the tiers are the fixture's
        [(count,)] = store.sql(f"SELECT count(*) FROM events WHERE {where}").fetchall()
    return int(count)


def test_the_files_of_a_day_are_copied_and_then_read_here(far: FarCold, tiers: Tiers) -> None:
    archived(tiers)
    found = rehydrate(tiers, day(3), until_us=UNTIL_US)
    assert (found.files, found.is_local) == (1, False)
    [copy] = kept_copies(tiers, now_us=NOW_US)
    assert (copy.day, copy.rows, copy.bytes, copy.until_us) == (day(3), 6, found.bytes, UNTIL_US)
    far.away = True
    assert events(tiers, f"timestamp >= '{day(3)}' AND timestamp < '{day(4)}'") == 6


def test_the_files_of_a_conversation_are_those_its_rollups_tell(far: FarCold, tiers: Tiers) -> None:
    archived(tiers)
    assert rehydrate(tiers, "c7", until_us=UNTIL_US).files == 1
    assert [key.split("/")[1] for key in keys(tiers)] == [f"day={day(7)}"]
    assert rehydrate(tiers, "all", until_us=UNTIL_US).files == 10
    assert len(keys(tiers)) == 10
    far.away = True
    assert events(tiers, "conversation_id = 'all'") == 30


def test_a_store_that_is_open_goes_on_answering_when_the_time_of_a_copy_is_over(far: FarCold, tiers: Tiers) -> None:
    archived(tiers)
    rehydrate(tiers, day(3), until_us=UNTIL_US)
    with Store(tiers) as store:
        store.close = lambda: None  # type: ignore[method-assign]  # the tiers are the fixture's
        count = "SELECT count(*) FROM events"
        before = store.sql(count).fetchall()
        live = [file.key for file in tiers.ledger.view().files]
        assert tiers.copies.let_go(now_us=UNTIL_US, live=live) == 1
        assert store.sql(count).fetchall() == before


def test_what_is_not_archived_has_no_copies(far: FarCold, tiers: Tiers) -> None:
    archived(tiers)
    nothing = Rehydrated(files=0, bytes=0, is_local=False)
    for what in ("nobody", "c55", day(15), "2026-13-45", ""):
        assert rehydrate(tiers, what, until_us=UNTIL_US) == nothing
    assert keys(tiers) == []


def test_a_copy_stays_for_the_longer_of_two_times_and_is_not_listed_after_it(far: FarCold, tiers: Tiers) -> None:
    archived(tiers)
    rehydrate(tiers, "c2", until_us=UNTIL_US + 5)
    rehydrate(tiers, day(2), until_us=UNTIL_US)
    assert [one.until_us for one in kept_copies(tiers, now_us=NOW_US)] == [UNTIL_US + 5]
    assert kept_copies(tiers, now_us=UNTIL_US + 5) == []


def test_a_folder_is_local_already(tiers: Tiers) -> None:
    archived(tiers)
    found = rehydrate(tiers, day(3), until_us=UNTIL_US)
    assert (found.files, found.is_local) == (1, True)
    assert found.bytes > 0
    assert keys(tiers) == []


def test_status_shows_the_copies_and_the_days_that_wait(far: FarCold, tiers: Tiers) -> None:
    archived(tiers)
    assert status(tiers).kept is None
    size = rehydrate(tiers, "all", until_us=UNTIL_US).bytes
    kept = status(tiers).kept
    assert kept is not None
    assert (kept.files, kept.bytes, kept.until_us) == (10, size, UNTIL_US)


def test_days_older_than_the_window_are_spoken_of_and_after_some_hours_they_are_a_reason(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(tiers.settings, tiers=tiers) as client:
        client.append("c", "t", timestamp=FIRST_US)
    Worker(tiers).once()
    assert status(tiers).overdue is None
    shorter = tiers.settings.model_copy(update={"warm": tiers.settings.warm.model_copy(update={"window_days": 7})})
    with open_tiers(shorter) as opened:
        found = status(opened)
    assert found.overdue is not None
    assert (found.overdue.oldest_day, found.overdue.segments) == (day(0), 1)
    assert found.health == "green"
    monkeypatch.setattr(status_module, "ARCHIVE_TAKES_S", 0)
    hasty = shorter.model_copy(update={"worker": shorter.worker.model_copy(update={"archive_every_s": 1e-6})})
    with open_tiers(hasty) as opened:
        found = status(opened)
    assert found.health == "yellow"
    assert f"events of {day(0)} on have waited" in found.reasons[0]
    assert "start `thermocline worker`" in found.reasons[0]
