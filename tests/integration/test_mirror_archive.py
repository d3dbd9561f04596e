"""An archive in the data directory is mirrored and restored with the rest, on real tiers."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.archiving import Crash, append
from tests.flips import flip
from tests.servers import RedisServer
from tests.shelf import Shelf
from tests.tidying import Archive, breaking_at
from thermocline.archiver import archive_pass
from thermocline.archiver.mirror import CLEAN_EVERY_S, Mirrorer
from thermocline.archiver.restore import restore
from thermocline.archiver.worker import Worker
from thermocline.config import load
from thermocline.errors import ConfigError, TierUnavailable

DAY_US = 86_400_000_000


@pytest.fixture
def store(shelf: Shelf) -> Iterator[Archive]:
    warm = {"mirror": f"file://{shelf.place}/mirror", "purge_grace_s": 0, "mirror_grace_s": 0}
    with shelf.fresh(cold_url="", warm=warm) as made:
        yield made


def mirror_all(store: Archive, **how: Any) -> Mirrorer:
    mirrorer = Mirrorer(store.tiers, **how)
    while mirrorer.step():
        pass
    return mirrorer


def mirror_url(store: Archive) -> str:
    return str(store.settings.warm.mirror)


def copies(store: Archive) -> Path:
    return Path(mirror_url(store).removeprefix("file://")) / store.settings.namespace / "mirror" / "archive"


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lose_disk(store: Archive) -> None:
    store.close()
    shutil.rmtree(store.settings.data_dir)


def test_drill_a_disk_is_lost_with_the_archive_on_it(store: Archive) -> None:
    store.archive_rounds(2)
    mirror_all(store)
    wanted, before = store.contents(), store.view()
    lose_disk(store)
    found = restore(store.settings, mirror_url(store))
    store.open()
    assert (found.missing, found.recovered) == ((), False)
    assert store.view() == before
    assert [one.equals(other) for one, other in zip(store.contents(), wanted, strict=True)] == [True, True, True]
    assert store.store.verify(deep=True).problems == ()
    store.archive_round()
    store.check()
    assert store.compact() is not None
    store.check()


def test_the_mirror_follows_what_is_archived_compacted_and_purged(store: Archive) -> None:
    store.archive_rounds(3)
    now_s = [0.0]
    mirrorer = mirror_all(store, monotonic=lambda: now_s[0])
    archive = store.settings.namespace_dir / "cold"
    assert files_below(copies(store)) == files_below(archive)
    assert store.compact() is not None
    for _ in range(2):
        store.clean(days=40)
    while mirrorer.step():
        pass
    assert set(files_below(copies(store))) > set(files_below(archive))
    now_s[0] += CLEAN_EVERY_S
    assert mirrorer.step() is False  # nothing to copy, so it cleans
    assert files_below(copies(store)) == files_below(archive)


def test_a_crash_while_the_archive_is_copied_leaves_the_rest_to_the_next(store: Archive) -> None:
    store.archive_round()
    copied = 0

    def reach(step: str) -> None:
        nonlocal copied
        copied += step == "upload object done"
        if copied == 4:
            raise Crash

    with pytest.raises(Crash):
        mirror_all(store, reach=reach)
    assert 0 < len(files_below(copies(store))) < len(files_below(store.settings.namespace_dir / "cold"))
    mirror_all(store)
    wanted = store.contents()
    lose_disk(store)
    assert restore(store.settings, mirror_url(store)).missing == ()
    store.open()
    assert [one.equals(other) for one, other in zip(store.contents(), wanted, strict=True)] == [True, True, True]


def test_a_batch_published_after_the_last_snapshot_is_known_when_its_files_were_copied(store: Archive) -> None:
    store.archive_round()
    mirror_all(store)
    store.archive_round()
    with pytest.raises(Crash):
        mirror_all(store, reach=breaking_at("upload snapshot"))
    wanted = store.contents()
    lose_disk(store)
    found = restore(store.settings, mirror_url(store))
    store.open()
    assert found.recovered
    assert [one.equals(other) for one, other in zip(store.contents(), wanted, strict=True)] == [True, True, True]
    assert store.store.verify(deep=True).problems == ()


def test_a_damaged_copy_of_an_archived_file_is_named(store: Archive) -> None:
    store.archive_round()
    mirror_all(store)
    [copy] = [path for path in copies(store).rglob("*.parquet") if "rollup_hourly" in str(path)]
    flip(copy, random.Random(1))
    lose_disk(store)
    [missing] = restore(store.settings, mirror_url(store)).missing
    assert copy.name in missing
    assert "is not what was written" in missing


def test_an_archive_that_would_be_elsewhere_is_refused_with_where_it_was(store: Archive, tmp_path: Path) -> None:
    store.archive_round()
    mirror_all(store)
    wanted = len(store.contents()[0])
    lose_disk(store)
    moved = load({**store.settings.model_dump(), "data_dir": tmp_path / "elsewhere"}, environ={})
    with pytest.raises(ConfigError, match=r"the archive was in file://.*set data_dir to where it was"):
        restore(moved, mirror_url(store))
    assert not moved.namespace_dir.exists()
    restore(moved, mirror_url(store), partial_=True)
    store.settings = moved
    store.open()
    assert len(store.contents()[0]) == wanted


def test_drill_a_disk_is_lost_when_what_settled_last_was_archived_in_part(tmp_path: Path, server: RedisServer) -> None:
    """Before the worker has mirrored what became of it. The archive is elsewhere, and knows of events that only segments had."""
    warm = {"mirror": f"file://{tmp_path}/mirror", "window_days": 7}
    with Archive(tmp_path, server, warm=warm, cold_url=f"file://{tmp_path}/bucket") as store:
        append(store.tiers, 30)
        append(store.tiers, 30, timestamp=time.time_ns() // 1000 - 12 * DAY_US)
        copied = []

        def reach(step: str) -> None:
            if step == "mirror: copy ledger":
                copied.append(step)
            if len(copied) == 2:
                raise Crash(step)

        with pytest.raises(Crash):
            Worker(store.tiers, reach=reach).once()
        assert (len(store.files("events")), len(store.view().segments)) == (1, 1)
        wanted = store.contents()
        lose_disk(store)
        found = restore(store.settings, mirror_url(store))
        assert (found.missing, found.recovered, found.skipped) == ((), True, ())
        store.open()
        assert [one.equals(other) for one, other in zip(store.contents(), wanted, strict=True)] == [True, True, True]
        assert store.store.verify(deep=True).problems == ()


def test_what_the_mirror_lacks_is_not_archived(tmp_path: Path, server: RedisServer) -> None:
    """Not by the worker, whose mirror is away, and not by the command."""
    warm = {"mirror": f"file://{tmp_path}/mirror", "window_days": 7}
    with Archive(tmp_path, server, warm=warm, cold_url=f"file://{tmp_path}/bucket") as store:
        append(store.tiers, 30, timestamp=time.time_ns() // 1000 - 12 * DAY_US)
        (tmp_path / "mirror").write_text("no folder")
        report = Worker(store.tiers).once()
        assert "warm.mirror" in str(report.problem)
        assert store.files("events") == []
        with pytest.raises(TierUnavailable, match=r"warm\.mirror"):
            archive_pass.archive(store.tiers, time.time_ns() // 1000 - 7 * DAY_US)
        assert store.files("events") == []
        (tmp_path / "mirror").unlink()
        assert archive_pass.archive(store.tiers, time.time_ns() // 1000 - 7 * DAY_US).events == 30
