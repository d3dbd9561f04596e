"""Mirror and restore on real tiers: the drills. What is lost is made again, and verify proves it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.archiving import Crash, append, rows, settle_all
from tests.conftest import StartServer
from tests.flips import flip, merged
from tests.servers import RedisServer
from tests.tidying import Archive, breaking_at
from thermocline.archiver import mirror
from thermocline.archiver.care import scrub_now
from thermocline.archiver.lease import Lock
from thermocline.archiver.mirror import Mirrorer
from thermocline.archiver.recover import recover
from thermocline.archiver.restore import restore
from thermocline.archiver.settle import Settler
from thermocline.archiver.trim import Trimmer
from thermocline.archiver.verify import verify
from thermocline.archiver.worker import Worker
from thermocline.config import load
from thermocline.errors import ConfigError, TierCorrupt
from thermocline.store import connect
from thermocline.tiers.cold_folder import FolderCold
from thermocline.tiers.mirror import Mirror
from thermocline.tiers.segment_sum import sum_path


@pytest.fixture
def store(tmp_path: Path, server: RedisServer) -> Iterator[Archive]:
    with Archive(tmp_path, server, warm={"mirror": f"file://{tmp_path}/mirror", "purge_grace_s": 0}) as made:
        yield made


def settle(store: Archive, count: int = 100, *, start: int = 0) -> None:
    append(store.tiers, count, start=start)
    settle_all(Settler(store.tiers, store.epoch))


def mirror_all(store: Archive) -> Mirrorer:
    mirrorer = Mirrorer(store.tiers)
    while mirrorer.step():
        pass
    return mirrorer


def lose_disk(store: Archive) -> None:
    """The whole data directory is gone."""
    store.close()
    shutil.rmtree(store.settings.data_dir)


def wipe(server: RedisServer) -> None:
    server.stop()
    server.cut_aof(1 << 30)
    server.start()


def mirror_of(store: Archive) -> Mirror:
    return Mirror(FolderCold(Path(str(store.settings.warm.mirror).removeprefix("file://")) / store.settings.namespace))


def objects(store: Archive, folder: str) -> list[Path]:
    base = Path(str(store.settings.warm.mirror).removeprefix("file://")) / store.settings.namespace / "mirror" / folder
    return sorted(path for path in base.iterdir())


def restored(store: Archive, **how: Any) -> Any:
    found = restore(store.settings, str(store.settings.warm.mirror), **how)
    store.open()
    return found


def test_nothing_is_copied_twice_and_a_snapshot_is_made_only_when_something_changed(store: Archive) -> None:
    settle(store)
    mirrorer = mirror_all(store)
    assert len(objects(store, "segments")) == len(objects(store, "snapshots")) == 1
    assert mirrorer.step() is False
    assert len(objects(store, "snapshots")) == 1
    settle(store, start=100)
    assert mirrorer.waiting()["mirror_waiting"] == 1
    while mirrorer.step():
        pass
    assert mirrorer.waiting()["mirror_waiting"] == 0
    assert mirrorer.waiting()["mirror_lag_s"] == 0
    assert [len(objects(store, folder)) for folder in ("segments", "snapshots", "ledger")] == [2, 2, 2]


def test_drill_a_whole_disk_is_lost_and_redis_lives(store: Archive) -> None:
    store.archive_rounds(2)
    settle(store)
    mirror_all(store)
    append(store.tiers, 50, start=100)
    wanted = store.contents()
    before = store.view()
    lose_disk(store)
    found = restored(store)
    assert (found.segments, found.missing, found.skipped, found.recovered) == (1, (), (), False)
    assert store.view() == before
    assert [one.equals(other) for one, other in zip(store.contents(), wanted, strict=True)] == [True, True, True]
    assert store.store.verify(deep=True).problems == ()
    settle_all(Settler(store.tiers, store.epoch))
    assert rows(store.tiers) == list(range(150))
    store.archive_round()
    store.check()


def test_drill_disk_and_redis_are_lost_and_what_is_declared_is_what_had_not_settled(store: Archive, server: RedisServer) -> None:
    settle(store)
    append(store.tiers, 30, start=100)
    settler = Settler(store.tiers, store.epoch)
    settler.step()  # sees them, and tells the ledger
    mirror_all(store)
    lose_disk(store)
    wipe(server)
    restored(store)
    assert sum(loss.events for loss in store.tiers.ledger.view().losses) == 30
    assert rows(store.tiers) == list(range(100))
    assert store.store.verify(deep=True).problems == ()
    settle(store, 20, start=500)
    assert rows(store.tiers) == [*range(100), *range(500, 520)]
    assert store.store.verify(deep=True).problems == ()


def test_drill_redis_is_lost_and_what_is_declared_is_what_had_not_settled(store: Archive, server: RedisServer) -> None:
    settle(store)
    append(store.tiers, 30, start=100)
    Settler(store.tiers, store.epoch).step()
    wipe(server)
    store.tiers.reconfirm()
    assert sum(loss.events for loss in store.tiers.ledger.view().losses) == 30
    assert store.store.verify(deep=True).problems == ()


def test_drill_what_redis_dropped_and_the_mirror_did_not_have_yet_is_counted_and_named(store: Archive) -> None:
    settle(store)
    mirror_all(store)
    settle(store, 60, start=100)
    store.trim()
    lose_disk(store)
    found = restored(store)
    assert sum(one.events for one in found.skipped) == 60
    assert rows(store.tiers) == list(range(100))
    verification = store.store.verify(deep=True)
    assert verification.problems == ()
    assert sum(shard.rejected for shard in verification.shards) == 60
    [path] = (store.settings.namespace_dir / "rejected").iterdir()
    assert "lost with the disk" in path.read_text()
    settle(store, 20, start=200)
    assert store.store.verify(deep=True).problems == ()


def test_drill_one_segment_is_lost_and_comes_from_the_mirror(store: Archive) -> None:
    settle(store)
    settle(store, start=100)
    mirror_all(store)
    store.trim()
    gone, damaged = (Path(store.tiers.warm.path(one.segment_id)) for one in store.tiers.ledger.view().segments)
    contents = gone.read_bytes(), damaged.read_bytes()
    gone.unlink()
    flip(damaged, random.Random(7))
    report, _ = scrub_now(store.tiers)
    assert len(report.damages) == 2
    assert all("from the mirror, byte for byte" in one.mended for one in report.damages)
    assert (gone.read_bytes(), damaged.read_bytes()) == contents
    assert (store.settings.namespace_dir / "trash" / "quarantine" / damaged.name).exists()
    assert store.store.verify(deep=True).problems == ()
    assert rows(store.tiers) == list(range(200))


def test_drill_the_ledger_is_lost_and_made_again_from_the_segments(store: Archive) -> None:
    store.archive_rounds(1)
    settle(store)
    before = store.view()
    store.close()
    for path in store.settings.namespace_dir.glob("ledger.db*"):
        path.unlink()
    recover(store.settings)
    store.open()
    assert (store.view().segments, store.view().files) == (before.segments, before.files)
    assert store.store.verify(deep=True).problems == ()
    assert scrub_now(store.tiers)[0].damages == ()


def test_drill_the_catalog_is_lost_and_the_next_batch_makes_it_again(store: Archive) -> None:
    store.archive_rounds(2)
    store.close()
    for path in store.settings.namespace_dir.glob("catalog.db*"):
        path.unlink()
    store.open()
    store.archive_round()
    store.check()


def test_an_archive_that_went_on_after_the_snapshot_is_followed(store: Archive) -> None:
    settle(store)
    mirror_all(store)
    store.archive_rounds(1)
    append(store.tiers, 10, start=100)
    wanted = store.contents()
    lose_disk(store)
    found = restored(store)
    assert found.recovered
    assert [one.equals(other) for one, other in zip(store.contents(), wanted, strict=True)] == [True, True, True]
    store.check()


def test_a_snapshot_of_which_something_is_missing_is_passed_over_for_an_older_one(store: Archive) -> None:
    settle(store)
    settle(store, start=100)
    mirror_all(store)
    merged(store, 2)
    mirror_all(store)
    [segment] = store.tiers.ledger.view().segments
    lose_disk(store)
    path = next(path for path in objects(store, "segments") if path.stem == segment.segment_id)
    flip(path, random.Random(2))
    found = restored(store)
    assert segment.segment_id in found.passed_over[0]
    assert rows(store.tiers) == list(range(200))
    assert store.store.verify(deep=True).problems == ()


def test_a_snapshot_that_is_made_while_the_mirror_is_listed_is_not_taken_for_damaged(
    store: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by restoring for five minutes under load."""
    settle(store)
    mirror_all(store)
    folders = ("segments", "ledger", "snapshots")
    before = {path for folder in folders for path in objects(store, folder)}
    settle(store, start=100)
    mirror_all(store)
    made = [path for folder in folders for path in objects(store, folder) if path not in before]
    assert len(made) == 3
    lose_disk(store)
    for path in made:
        path.rename(tmp_path / path.name)
    listed = Mirror.segments

    def segments(mirror: Mirror) -> dict[str, int]:
        found = listed(mirror)
        for path in made:
            if not path.exists():
                (tmp_path / path.name).rename(path)
        return found

    monkeypatch.setattr(Mirror, "segments", segments)
    found = restored(store)
    assert found.passed_over == found.missing == ()
    assert made[0].exists()
    settle_all(Settler(store.tiers, store.epoch))
    assert rows(store.tiers) == list(range(200))


def test_a_segment_that_no_snapshot_can_do_without_is_named_and_left_out_only_when_asked(store: Archive) -> None:
    settle(store)
    settle(store, start=100)
    mirror_all(store)
    lost = store.tiers.ledger.view().segments[0].segment_id
    lose_disk(store)
    next(path for path in objects(store, "segments") if path.stem == lost).unlink()
    with pytest.raises(TierCorrupt, match=rf"1 of 2 segments are missing: segment {lost}.*--partial"):
        restore(store.settings, str(store.settings.warm.mirror))
    found = restored(store, partial_=True)
    assert lost in found.missing[0]
    assert any(lost in problem for problem in store.store.verify().problems)


def test_a_damaged_ledger_in_the_mirror_is_passed_over(store: Archive) -> None:
    settle(store)
    mirrorer = mirror_all(store)
    settle(store, 10, start=100)
    while mirrorer.step():
        pass
    lose_disk(store)
    flip(objects(store, "ledger")[-1], random.Random(1))
    found = restored(store)
    assert len(found.passed_over) == 1
    assert rows(store.tiers) == list(range(100))
    settle_all(Settler(store.tiers, store.epoch))  # Redis still has what came after
    assert rows(store.tiers) == list(range(110))
    assert store.store.verify(deep=True).problems == ()


def test_restore_refuses_what_is_there_what_is_not_a_mirror_and_other_settings(store: Archive, tmp_path: Path) -> None:
    settle(store)
    mirror_all(store)
    url = str(store.settings.warm.mirror)
    with pytest.raises(ConfigError, match="is not empty"):
        restore(store.settings, url)
    lose_disk(store)
    with pytest.raises(ConfigError, match="there is no snapshot"):
        restore(store.settings, f"file://{tmp_path}/nowhere")
    with pytest.raises(ConfigError, match="--from: give it as"):
        restore(store.settings, "here")
    with pytest.raises(ConfigError, match=r"warm.mirror must start with"):
        load({"warm": {"mirror": "here"}}, environ={})
    other = store.settings.model_copy(update={"hot": store.settings.hot.model_copy(update={"shards": 2})})
    with pytest.raises(ConfigError, match=r"set hot.shards = 4"):
        restore(other, url)
    assert restore(store.settings, f"{tmp_path}/mirror").rows == 100
    store.open()
    assert rows(store.tiers) == list(range(100))


def test_a_damaged_segment_is_not_copied_and_does_not_keep_the_others_from_it(store: Archive) -> None:
    settle(store)
    settle(store, start=100)
    damaged, sound = store.tiers.ledger.view().segments
    flip(Path(store.tiers.warm.path(damaged.segment_id)), random.Random(5))
    mirrorer = mirror_all(store)
    assert mirrorer.damaged == {damaged.segment_id}
    assert [path.stem for path in objects(store, "segments")] == [sound.segment_id]
    [key] = mirror_of(store).snapshots()
    assert mirror_of(store).snapshot(key).lacking == (damaged.segment_id,)


def test_a_segment_that_is_missing_does_not_keep_the_others_from_the_mirror(store: Archive) -> None:
    settle(store)
    settle(store, start=100)
    gone, sound = store.tiers.ledger.view().segments
    Path(store.tiers.warm.path(gone.segment_id)).unlink()
    mirrorer = mirror_all(store)
    assert mirrorer.damaged == {gone.segment_id}
    assert [path.stem for path in objects(store, "segments")] == [sound.segment_id]


def test_what_was_merged_away_and_purged_while_a_snapshot_was_made_makes_it_begin_anew(store: Archive) -> None:
    settle(store)
    settle(store, start=100)
    mirrorer = Mirrorer(store.tiers)
    assert mirrorer.step()
    old = store.tiers.ledger.view().segments
    merged(store, 2)
    for segment in old:
        Path(store.tiers.warm.path(segment.segment_id)).unlink()
        sum_path(Path(store.tiers.warm.path(segment.segment_id))).unlink()
    while mirrorer.step():
        pass
    assert mirrorer.damaged == frozenset()
    mirror = mirror_of(store)
    [key] = mirror.snapshots()
    assert [one.name for one in mirror.snapshot(key).segments] == [one.segment_id for one in store.tiers.ledger.view().segments]
    lose_disk(store)
    restored(store)
    assert rows(store.tiers) == list(range(200))


@pytest.mark.parametrize("step", ["copy ledger", "upload object", "upload object done", "upload snapshot"])
def test_a_crash_at_any_step_leaves_the_snapshot_before_and_the_next_worker_goes_on(store: Archive, step: str) -> None:
    settle(store)
    mirror_all(store)
    settle(store, start=100)
    dying = Mirrorer(store.tiers, reach=breaking_at(step))
    with pytest.raises(Crash):
        while dying.step():
            pass
    assert len(objects(store, "snapshots")) == 1
    mirror_all(store)
    lose_disk(store)
    restored(store)
    assert rows(store.tiers) == list(range(200))
    assert store.store.verify(deep=True).problems == ()


def test_cleaning_keeps_the_newest_snapshots_and_all_they_need(store: Archive) -> None:
    mirrorer = Mirrorer(store.tiers)
    for number in range(4):
        settle(store, start=100 * number)
        while mirrorer.step():
            pass
    merged(store, 3)
    while mirrorer.step():
        pass
    assert [len(objects(store, name)) for name in ("snapshots", "ledger", "segments")] == [5, 5, 5]
    mirror = mirror_of(store)
    assert mirror.clean(keep=2, before_us=0) == 3
    assert [len(objects(store, name)) for name in ("snapshots", "ledger", "segments")] == [2, 5, 5]
    assert mirror.clean(keep=1, before_us=1 << 62) == 1 + 4 + 3
    assert [len(objects(store, name)) for name in ("snapshots", "ledger", "segments")] == [1, 1, 2]
    lose_disk(store)
    restored(store)
    assert rows(store.tiers) == list(range(400))


def test_a_mirror_of_a_store_that_never_rests_is_cleaned_too(
    tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "CLEAN_AFTER_SNAPSHOTS", 3)
    warm = {"mirror": f"file://{tmp_path}/mirror", "mirror_snapshots": 2, "mirror_grace_s": 0, "purge_grace_s": 0}
    most: dict[str, int] = {}
    with Archive(tmp_path, server, warm=warm) as store:
        mirrorer = Mirrorer(store.tiers)
        for number in range(12):
            settle(store, 5, start=5 * number)
            merged(store, 2)
            before_us = mirrorer.mirrored_us
            while mirrorer.mirrored_us == before_us:
                assert mirrorer.step() or mirrorer.mirrored_us > before_us, "there was something to do"
            for folder in ("snapshots", "ledger", "segments"):
                most[folder] = max(most.get(folder, 0), len(objects(store, folder)))
        assert most == {"snapshots": 4, "ledger": 4, "segments": 4}
        lose_disk(store)
        restored(store)
        assert rows(store.tiers) == list(range(60))


def test_a_worker_mirrors_and_says_how_far_it_is(store: Archive) -> None:
    append(store.tiers, 100)
    report = Worker(store.tiers).once()
    assert report.problem is None
    said = json.loads((store.settings.namespace_dir / "worker.json").read_text())
    assert (said["mirror_waiting"], said["mirror_lag_s"]) == (0, 0)
    assert len(objects(store, "snapshots")) >= 1
    lose_disk(store)
    restored(store)
    assert rows(store.tiers) == list(range(100))


def test_a_mirror_that_is_away_is_the_reports_problem_and_nothing_else_stops(store: Archive, tmp_path: Path) -> None:
    (tmp_path / "mirror").write_text("")
    append(store.tiers, 100)
    report = Worker(store.tiers).once()
    assert report.settled_events == 100
    assert "not everything was mirrored" in str(report.problem)
    (tmp_path / "mirror").unlink()
    assert Worker(store.tiers).once().problem is None
    assert len(objects(store, "segments")) >= 1


def test_a_namespace_whose_embedded_redis_is_left_goes_on_with_it(data_dir: Path, tmp_path: Path) -> None:
    hot = {"shards": 4, "buckets": 64, "durable_lag_s": 0, "cache_window_s": 0, "log_grace_s": 0}
    settings = load({"data_dir": str(data_dir), "hot": hot, "warm": {"mirror": f"file://{tmp_path}/mirror"}}, environ={})
    with connect(settings) as store:
        append(store.tiers, 100)
        assert Worker(store.tiers).once().problem is None
        append(store.tiers, 50, start=100)
        with Lock(settings.namespace_dir):
            epoch = store.tiers.ledger.take_epoch("test", 1)
        settle_all(Settler(store.tiers, epoch))
        assert Trimmer(store.tiers).step() > 0
        append(store.tiers, 30, start=150)
    shutil.rmtree(settings.namespace_dir)
    found = restore(settings, str(settings.warm.mirror))
    assert sum(one.events for one in found.skipped) == 50
    with connect(settings) as store:
        assert Worker(store.tiers).once().settled_events == 30
        assert rows(store.tiers) == [*range(100), *range(150, 180)]
        assert verify(store.tiers, deep=True).problems == ()


def test_the_redis_of_another_store_is_left_alone_and_refused_when_opened(store: Archive, redis_server: StartServer) -> None:
    settle(store)
    mirror_all(store)
    other = redis_server()
    with connect(
        store.settings.model_copy(update={"redis_url": other.url, "data_dir": store.settings.data_dir / "other"})
    ) as one:
        append(one.tiers, 10)
    lose_disk(store)
    settings = store.settings.model_copy(update={"redis_url": other.url})
    assert restore(settings, str(settings.warm.mirror)).skipped == ()
    with pytest.raises(ConfigError, match="belongs to another store"):
        connect(settings)
    store.open()
    assert rows(store.tiers) == list(range(100))


def test_a_mirror_in_a_bucket_is_restored_from(
    tmp_path: Path, redis_server: StartServer, cold_url: str | None, cold_settings: Any
) -> None:
    url = cold_url or f"file://{tmp_path}/mirror"
    warm = cold_settings.warm.model_copy(update={"mirror": url})
    settings = cold_settings.model_copy(update={"warm": warm, "cold_url": url})
    with connect(settings) as store:
        append(store.tiers, 200)
        assert Worker(store.tiers).once().problem is None
    shutil.rmtree(settings.data_dir)
    assert restore(settings, url).missing == ()
    with connect(settings) as store:
        assert rows(store.tiers) == list(range(200))
        assert verify(store.tiers, deep=True).problems == ()


def test_a_new_store_does_not_take_the_place_of_a_lost_one_in_its_mirror(store: Archive, server: RedisServer) -> None:
    settle(store)
    mirror_all(store)
    before = objects(store, "snapshots")
    lose_disk(store)
    wipe(server)
    store.open()  # as a supervisor would start the worker again
    settle(store, 20)
    worked = Worker(store.tiers).once()
    assert "has another store, of 100 events, and is left as it is" in str(worked.problem)
    assert "`thermocline restore`" in str(worked.problem)
    assert objects(store, "snapshots") == before
    lose_disk(store)
    wipe(server)
    restored(store)
    assert rows(store.tiers) == list(range(100))
    mirror_all(store)
    assert len(objects(store, "snapshots")) == 2


def test_a_store_whose_redis_was_wiped_goes_on_in_its_mirror(store: Archive, server: RedisServer) -> None:
    settle(store)
    mirror_all(store)
    wipe(server)
    store.close()
    store.open()
    settle(store, 20, start=100)
    mirror_all(store)
    assert len(objects(store, "snapshots")) == 2
