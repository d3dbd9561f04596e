"""Purge, verify, recover and the lease on real tiers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import msgspec
import pytest
import sqlalchemy as sa

from tests.archiving import SHARDS, Crash, append, corrupt_block, rows, settings_for, settle_all
from tests.servers import RedisServer
from thermocline.archiver.lease import Lease, Lock
from thermocline.archiver.merge import Merger
from thermocline.archiver.purge import Purged, Purger, _files
from thermocline.archiver.recover import Recovery, recover
from thermocline.archiver.settle import Settler
from thermocline.archiver.trim import Trimmer
from thermocline.archiver.verify import verify
from thermocline.errors import ConfigError, LeaseHeld, TierCorrupt, TierUnavailable
from thermocline.tiers import ledger_schema
from thermocline.tiers.ledger import Loss, View
from thermocline.tiers.opening import Tiers, open_tiers

GRACE_US = 900 * 1_000_000


@pytest.fixture
def tiers(tmp_path: Path, server: RedisServer) -> Iterator[Tiers]:
    with open_tiers(settings_for(tmp_path, server)) as opened:
        yield opened


@pytest.fixture
def epoch(tiers: Tiers) -> Iterator[int]:
    with Lease(tiers.settings.namespace_dir, tiers.ledger) as lease:
        yield lease.epoch


def now_us() -> int:
    return time.time_ns() // 1000


def settle_times(tiers: Tiers, epoch: int, times: int, *, start: int = 0) -> None:
    settler = Settler(tiers, epoch)
    for number in range(times):
        append(tiers, 50, start=start + 50 * number)
        settle_all(settler)


def names(folder: Path) -> list[str]:
    """What is in a folder, but for the sums of segments, of which each must have its segment beside it."""
    files = {path.name for path in folder.iterdir()}
    sums = {name for name in files if name.endswith(".sum")}
    assert {name.replace(".sum", ".duckdb") for name in sums} <= files
    return sorted(files - sums)


# Purge


def test_purge_removes_what_left_the_ledger_a_grace_ago_and_nothing_before(tiers: Tiers, epoch: int) -> None:
    settle_times(tiers, epoch, 2)
    Merger(tiers, epoch).step(force=True)
    [live] = tiers.ledger.view().segments
    purger = Purger(tiers, epoch)
    assert purger.step() == Purged()
    assert len(names(tiers.settings.namespace_dir / "segments")) == 3
    purged = purger.step(now_us=now_us() + GRACE_US)
    assert (purged.files, purged.orphans) == (2, 0)
    assert purged.bytes > 2000
    assert names(tiers.settings.namespace_dir / "segments") == [f"{live.segment_id}.duckdb"]
    assert tiers.ledger.trash() == []
    assert purger.step(now_us=now_us() + GRACE_US) == Purged()
    assert verify(tiers, deep=True).problems == ()


def test_a_purge_that_crashed_between_files_and_ledger_is_finished_by_the_next(
    tiers: Tiers, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle_times(tiers, epoch, 2)
    Merger(tiers, epoch).step(force=True)
    with monkeypatch.context() as patch:
        patch.setattr(tiers.ledger, "purged", lambda *_: (_ for _ in ()).throw(Crash()))
        with pytest.raises(Crash):
            Purger(tiers, epoch).step(now_us=now_us() + GRACE_US)
    assert len(tiers.ledger.trash()) == 2
    assert Purger(tiers, epoch).step(now_us=now_us() + GRACE_US).files == 0
    assert tiers.ledger.trash() == []


def test_what_a_crash_left_goes_to_trash_after_the_grace_and_is_removed_after_another(tiers: Tiers, epoch: int) -> None:
    settle_times(tiers, epoch, 1)
    folder = tiers.settings.namespace_dir
    for name in ("0123.tmp", "4567.duckdb"):
        (folder / "segments" / name).write_bytes(b"left by a crash")
    (folder / "segments" / "a folder").mkdir()
    purger = Purger(tiers, epoch)
    assert purger.step().orphans == 0
    assert purger.step(now_us=now_us() + GRACE_US).orphans == 2
    assert names(folder / "trash") == ["0123.tmp", "4567.duckdb"]
    assert purger.step(now_us=now_us() + GRACE_US + 1_000_000).removed == 0
    assert purger.step(now_us=now_us() + 2 * GRACE_US + 1_000_000).removed == 2
    assert names(folder / "trash") == []
    assert rows(tiers) == list(range(50))


def test_a_draft_that_a_killed_worker_left_beside_the_ledger_is_removed_after_the_grace(tiers: Tiers, epoch: int) -> None:
    folder = tiers.settings.namespace_dir
    before = {path.name for path in folder.iterdir()}
    for name in ("worker.json.4711.tmp", f"{'0' * 32}.tmp"):
        (folder / name).write_bytes(b"half of what was to be sa")
    purger = Purger(tiers, epoch)
    purger.step(now_us=now_us() + GRACE_US - 60_000_000)
    assert len({path.name for path in folder.iterdir()} - before) == 2
    purger.step(now_us=now_us() + GRACE_US)
    assert {path.name for path in folder.iterdir()} == before


def test_segments_older_than_the_ledger_are_never_purged(tiers: Tiers, epoch: int) -> None:
    """A ledger made anew beside them knows nothing; `recover` is what they need."""
    path = tiers.settings.namespace_dir / "segments" / f"{'0' * 32}.duckdb"
    path.write_bytes(b"of a lost ledger")
    os.utime(path, (1, 1))
    purged = Purger(tiers, epoch).step(now_us=now_us() + 10 * GRACE_US)
    assert (purged.unclaimed, purged.orphans) == (1, 0)
    assert path.exists()


def test_a_file_both_live_and_in_the_trash_is_not_removed(tiers: Tiers, epoch: int) -> None:
    settle_times(tiers, epoch, 1)
    [live] = tiers.ledger.view().segments
    with tiers.ledger._engine.write() as con:
        con.execute(sa.insert(ledger_schema.trash), {"path": f"segments/{live.segment_id}.duckdb", "left_us": 1, "move_id": "m"})
    with pytest.raises(TierCorrupt, match="both live and in the trash"):
        Purger(tiers, epoch).step(now_us=now_us() + GRACE_US)
    assert rows(tiers) == list(range(50))


def test_a_folder_that_does_not_let_go_is_unavailable(tiers: Tiers, epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (tiers.settings.namespace_dir / "segments" / "0123.tmp").write_bytes(b"x")

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted", "segments/0123.tmp")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(TierUnavailable, match=r"segments/0123.tmp: Operation not permitted"):
        Purger(tiers, epoch).step(now_us=now_us() + GRACE_US)


def test_a_namespace_without_folders_has_nothing_to_purge(tiers: Tiers, epoch: int) -> None:
    for name in ("segments", "trash"):
        (tiers.settings.namespace_dir / name).rmdir()
    assert Purger(tiers, epoch).step(now_us=now_us() + GRACE_US) == Purged()


def test_a_file_that_goes_while_its_folder_is_read_is_passed_over(tiers: Tiers) -> None:
    folder = tiers.settings.namespace_dir / "trash"
    for name in ("a", "b", "c"):
        (folder / name).touch()
    found = _files(folder)
    assert next(found)[0] == folder / "a"
    (folder / "b").unlink()
    assert [path for path, _ in found] == [folder / "c"]


# Verify


def test_verify_counts_every_event_in_one_place(tiers: Tiers, epoch: int) -> None:
    append(tiers, 100)
    settle_all(Settler(tiers, epoch))
    append(tiers, 30, start=100)
    found = verify(tiers, deep=True)
    assert found.ok
    assert len(found.shards) == SHARDS
    assert sum(one.appended for one in found.shards) == 130
    assert sum(one.warm for one in found.shards) == 100
    assert sum(one.hot for one in found.shards) == 30
    assert all(one.difference == 0 for one in found.shards)
    assert (found.segments, found.rows, found.losses) == (1, 100, ())


def test_verify_tells_declared_losses_and_counts_them_as_appended(tiers: Tiers, epoch: int) -> None:
    append(tiers, 10)
    losses = [
        Loss(shard=1, era=1, observed=4, reported=6, at_us=1, reason="cut"),
        Loss(shard=2, era=1, observed=0, reported=0, at_us=1, reason="cut"),
    ]
    inc = tiers.hot.cut()[0].incarnation
    tiers.ledger.confirmed(incarnation=inc, eras={}, losses=losses, now_us=1)
    found = verify(tiers)
    assert found.ok
    assert found.losses == (losses[0],)
    assert sum(one.lost for one in found.shards) == 6
    assert sum(one.appended for one in found.shards) == 16


def changed(tiers: Tiers, **values: int) -> None:
    """Falsify the state of the shard that has most events."""
    [shard] = [one.shard for one in sorted(tiers.ledger.view().shards, key=lambda one: one.events)[-1:]]
    with tiers.ledger._engine.write() as con:
        con.execute(sa.update(ledger_schema.shards).where(ledger_schema.shards.c.shard == shard).values(**values))


def test_a_sum_that_is_short_is_a_gap_and_one_that_is_over_an_overlap(tiers: Tiers, epoch: int) -> None:
    append(tiers, 100, conversations=1)
    settle_all(Settler(tiers, epoch))
    append(tiers, 20, conversations=1, start=100)
    changed(tiers, events=105)
    [gap] = verify(tiers).problems
    assert "gap: 5 of 120 events are nowhere" in gap
    changed(tiers, events=95)
    [overlap] = verify(tiers).problems
    assert "overlap: 5 more events than the 120 appended" in overlap


def test_a_redis_behind_the_ledger_is_told(tiers: Tiers, epoch: int) -> None:
    append(tiers, 100, conversations=1)
    settle_all(Settler(tiers, epoch))
    changed(tiers, events=110)
    problems = " ".join(verify(tiers).problems)
    assert "Redis came back older" in problems
    assert "holds 10 events less than have settled" in problems


def test_a_missing_a_short_and_a_damaged_file_are_named(tiers: Tiers, epoch: int) -> None:
    settle_times(tiers, epoch, 3)
    missing, damaged, _ = tiers.ledger.view().segments
    Path(tiers.warm.path(missing.segment_id)).unlink()
    Path(tiers.warm.path(damaged.segment_id)).write_bytes(b"x" * 5000)
    problems = verify(tiers, deep=True).problems
    assert len(problems) == 2
    assert missing.segment_id in problems[0]
    assert "missing" in problems[0]
    assert damaged.segment_id in problems[1]


def test_events_stored_twice_are_named_though_the_sums_close(tiers: Tiers, epoch: int) -> None:
    """A gap in one place hides an overlap in another: only reading the rows tells."""
    settle_times(tiers, epoch, 2)
    one, two = tiers.ledger.view().segments
    path = Path(tiers.warm.path(two.segment_id))
    with duckdb.connect(str(path)) as con:
        con.execute(f"ATTACH '{tiers.warm.path(one.segment_id)}' AS other (READ_ONLY)")
        con.execute("DELETE FROM events")
        con.execute("INSERT INTO events SELECT * FROM other.events")
    problems = verify(tiers, deep=True).problems
    assert any("checksum" in problem for problem in problems)
    doubled = [problem for problem in problems if problem.startswith("overlap: event 1 of conversation 'c0'")]
    assert len(doubled) == 1
    assert one.segment_id in doubled[0]
    assert two.segment_id in doubled[0]
    assert len([problem for problem in problems if problem.startswith("overlap: event")]) == 20


def test_a_segment_whose_ranges_do_not_add_up_is_named(tiers: Tiers, epoch: int) -> None:
    settle_times(tiers, epoch, 1)
    with tiers.ledger._engine.write() as con:
        con.execute(sa.update(ledger_schema.segments).values(rows=49))
    tiers.ledger._segments = {}
    problems = verify(tiers).problems
    assert any("49 rows, but its shards add up to 50" in problem for problem in problems)


def test_without_redis_the_rest_is_verified_and_redis_is_the_problem(tiers: Tiers, epoch: int, server: RedisServer) -> None:
    settle_times(tiers, epoch, 1)
    server.kill()
    found = verify(tiers, deep=True)
    assert len(found.problems) == 1
    assert found.problems[0].startswith("hot is not counted: ")
    assert sum(one.warm for one in found.shards) == sum(one.appended for one in found.shards) == 50


def test_verify_of_another_incarnation_says_so(tiers: Tiers, epoch: int) -> None:
    tiers.ledger.confirmed(incarnation="other", eras={}, losses=[], now_us=1)
    [problem] = verify(tiers).problems
    assert "the ledger knows other" in problem


def test_a_segment_merged_away_while_verify_reads_is_not_missed(
    tiers: Tiers, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle_times(tiers, epoch, 2)
    real = tiers.ledger.view
    views: list[View] = []

    def view() -> View:
        views.append(real())
        if len(views) == 1:  # right after verify took its view
            Merger(tiers, epoch).step(force=True)
            Purger(tiers, epoch).step(now_us=now_us() + GRACE_US)
        return views[-1] if len(views) > 1 else views[0]

    monkeypatch.setattr(tiers.ledger, "view", view)
    assert verify(tiers).problems == ()
    views.clear()


def test_the_unsettled_blocks_are_read_again_when_trim_overtakes_verify(
    tiers: Tiers, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(tiers, 50, conversations=1)
    real = tiers.hot.page
    overtaken: list[bool] = []

    def page(*args: object, **kwargs: object) -> object:
        if not overtaken:
            overtaken.append(True)
            with monkeypatch.context() as patch:
                patch.setattr(tiers.hot, "page", real)
                settle_all(Settler(tiers, epoch))
                now_s = iter([0.0, 0.0, 9000.0, 9000.0, 9000.0])
                trimmer = Trimmer(tiers, monotonic=lambda: next(now_s))
                trimmer.step()
                assert trimmer.step() == 1
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(tiers.hot, "page", page)
    assert verify(tiers, deep=True).problems == ()
    assert overtaken


def test_blocks_that_redis_dropped_before_they_settled_are_a_hole_and_not_waited_for(tiers: Tiers, epoch: int) -> None:
    append(tiers, 50, conversations=1)
    [used] = [cut for cut in tiers.hot.cut() if cut.events_total]
    tiers.hot.trim(used.shard, used.last, settled_events=0, settled_bytes=0, others_bytes=0)
    problems = verify(tiers, deep=True).problems
    assert any(f"hole in shard {used.shard} after 0-0, where N is 0: the log holds nothing" in one for one in problems)


def test_a_redis_that_goes_away_while_verify_reads_its_blocks_is_a_problem_not_an_error(
    tiers: Tiers, epoch: int, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(tiers, 50)

    def gone(*_: object, **__: object) -> None:
        raise TierUnavailable("Redis went away")

    monkeypatch.setattr(tiers.hot, "page", gone)
    assert verify(tiers, deep=True).problems == ("the unsettled blocks were not read: Redis went away",)


def test_files_that_keep_moving_while_duplicates_are_looked_for_are_told(
    tiers: Tiers, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise TierUnavailable("the file is gone")

    monkeypatch.setattr("thermocline.archiver.verify.duplicates", gone)
    assert verify(tiers, deep=True).problems == ("events stored twice were not looked for: the file is gone",)


# Recover


def lose_ledger(tiers: Tiers) -> View:
    """Close the store and delete its ledger; the last view."""
    view = tiers.ledger.view()
    tiers.close()
    for path in tiers.settings.namespace_dir.glob("ledger.db*"):
        path.unlink()
    return view


def comparable(view: View) -> View:
    """What recovery brings back: all but the epoch; observed starts from settled."""
    shards = [msgspec.structs.replace(one, observed_events=one.events, observed_position=one.position) for one in view.shards]
    return msgspec.structs.replace(view, epoch=0, shards=tuple(shards))


def recovered(tiers: Tiers, *, force: bool = False) -> Recovery:
    return recover(tiers.settings, force=force)


def working(tiers: Tiers) -> Lease:
    return Lease(tiers.settings.namespace_dir, tiers.ledger)


@pytest.mark.parametrize("redis_survives", [True, False])
def test_a_recovered_store_has_every_event_it_had(tiers: Tiers, server: RedisServer, redis_survives: bool) -> None:
    with working(tiers) as lease:
        settle_times(tiers, lease.epoch, 3)
        Merger(tiers, lease.epoch).step(force=True)
        settle_times(tiers, lease.epoch, 2, start=150)
        append(tiers, 20, start=250)
    before = comparable(lose_ledger(tiers))
    if not redis_survives:
        server.stop()
        server.cut_aof(1 << 30)
        server.start()
    found = recovered(tiers)
    assert (found.segments, found.rows, len(found.dropped), found.ledger_aside) == (3, 250, 3, None)
    assert found.shards == before.shards
    assert (found.incarnation == before.incarnation) is redis_survives
    with open_tiers(tiers.settings) as opened, working(opened) as lease:
        if redis_survives:
            assert opened.ledger.view() == msgspec.structs.replace(before, epoch=lease.epoch)
            settle_all(Settler(opened, lease.epoch))
        append(opened, 10, start=300)
        settle_all(Settler(opened, lease.epoch))
        hot = [*range(250, 270)] if redis_survives else []
        assert rows(opened) == [*range(250), *hot, *range(300, 310)]
        assert verify(opened, deep=True).problems == ()
        assert Purger(opened, lease.epoch).step(now_us=now_us() + 2 * GRACE_US).removed == 3


def test_a_ledger_in_use_is_not_replaced_unless_forced_and_then_kept_aside(tiers: Tiers) -> None:
    with working(tiers) as lease:
        settle_times(tiers, lease.epoch, 2)
        with pytest.raises(LeaseHeld):
            recovered(tiers, force=True)
    with pytest.raises(ConfigError, match="there is a ledger, with 2 segments"):
        recovered(tiers)
    before = comparable(tiers.ledger.view())
    found = recovered(tiers, force=True)
    assert found.ledger_aside is not None
    aside = sa.create_engine(f"sqlite:///{found.ledger_aside}")
    with aside.connect() as con:
        assert con.execute(sa.select(sa.func.count()).select_from(ledger_schema.segments)).scalar() == 2
    aside.dispose()
    assert comparable(tiers.ledger.view()) == before


@pytest.mark.parametrize("damage", [b"nonsense" * 1000, b""])
def test_a_damaged_ledger_is_moved_aside_and_made_again(tiers: Tiers, damage: bytes) -> None:
    with working(tiers) as lease:
        settle_times(tiers, lease.epoch, 2)
    lose_ledger(tiers)
    (tiers.settings.namespace_dir / "ledger.db").write_bytes(damage)
    found = recovered(tiers)
    assert found.rows == 100
    assert found.ledger_aside is not None
    assert Path(found.ledger_aside).read_bytes().startswith(damage)
    with open_tiers(tiers.settings) as opened:
        assert verify(opened, deep=True).problems == ()


def test_a_ledger_that_knows_of_nothing_is_made_again_without_force(tiers: Tiers) -> None:
    before = comparable(tiers.ledger.view())
    found = recovered(tiers)
    assert (found.rows, found.segments) == (0, 0)
    assert found.ledger_aside is not None
    assert Path(found.ledger_aside).exists()
    assert comparable(tiers.ledger.view()) == before
    append(tiers, 10)
    assert verify(tiers, deep=True).problems == ()


def test_a_ledger_of_another_format_is_not_replaced_unless_forced(tiers: Tiers) -> None:
    with tiers.ledger._engine.write() as con:
        con.execute(sa.update(ledger_schema.identity).where(ledger_schema.identity.c.key == "format").values(value="9"))
    with pytest.raises(ConfigError, match=r"format '9'.*--force"):
        recovered(tiers)
    assert recovered(tiers, force=True).rows == 0


def test_recovery_refuses_when_a_segment_is_missing_and_changes_nothing(tiers: Tiers) -> None:
    with working(tiers) as lease:
        settle_times(tiers, lease.epoch, 3)
    view = lose_ledger(tiers)
    Path(tiers.warm.path(view.segments[1].segment_id)).rename(tiers.settings.data_dir / "kept")
    with pytest.raises(TierCorrupt, match="gap in shard"):
        recovered(tiers)
    assert not (tiers.settings.namespace_dir / "ledger.db").exists()
    (tiers.settings.data_dir / "kept").rename(tiers.warm.path(view.segments[1].segment_id))
    assert recovered(tiers).rows == 150


def test_recovery_names_a_file_it_cannot_read(tiers: Tiers) -> None:
    with working(tiers) as lease:
        settle_times(tiers, lease.epoch, 1)
    view = lose_ledger(tiers)
    (tiers.settings.namespace_dir / "segments" / f"{'f' * 32}.duckdb").write_bytes(b"x" * 5000)
    found = recovered(tiers)
    assert len(found.unreadable) == 1
    assert "f" * 32 in found.unreadable[0]
    lose_ledger(tiers)
    Path(tiers.warm.path(view.segments[0].segment_id)).write_bytes(b"x" * 5000)
    (tiers.settings.namespace_dir / "segments" / "extra.duckdb").write_bytes(b"")
    found = recovered(tiers)
    assert found.rows == 0
    assert len(found.unreadable) == 3


def test_blocks_that_were_rejected_whole_and_trimmed_are_counted_from_the_rejected_lines(tiers: Tiers) -> None:
    """No segment tells of them: a settle of which nothing was usable writes none."""
    with working(tiers) as lease:
        settler = Settler(tiers, lease.epoch)
        append(tiers, 5, conversations=1)
        settle_all(settler)
        append(tiers, 4, conversations=1)
        corrupt_block(tiers, 1)
        settle_all(settler)
        append(tiers, 3, conversations=1, start=10)
        now_s = [0.0]
        trimmer = Trimmer(tiers, monotonic=lambda: now_s[0])
        trimmer.step()
        now_s[0] = 9000.0
        assert trimmer.step() == 2
    before = comparable(lose_ledger(tiers))
    found = recovered(tiers)
    assert found.shards == before.shards
    assert sum(one.rejected for one in found.shards) == 4
    with open_tiers(tiers.settings) as opened, working(opened) as lease:
        settle_all(Settler(opened, lease.epoch))
        assert rows(opened) == [0, 1, 2, 3, 4, 10, 11, 12]
        assert verify(opened, deep=True).problems == ()


def test_events_that_redis_dropped_and_no_segment_has_stop_the_recovery(tiers: Tiers) -> None:
    with working(tiers) as lease:
        append(tiers, 5, conversations=1)
        settle_all(Settler(tiers, lease.epoch))
        now_s = [0.0]
        trimmer = Trimmer(tiers, monotonic=lambda: now_s[0])
        trimmer.step()
        now_s[0] = 9000.0
        trimmer.step()
    view = lose_ledger(tiers)
    Path(tiers.warm.path(view.segments[0].segment_id)).unlink()
    with pytest.raises(TierCorrupt, match=r"Redis has dropped its events up to 5 as settled, but .* hold only 0"):
        recovered(tiers)


def test_recovery_with_other_numbers_of_shards_or_buckets_is_refused(tiers: Tiers, tmp_path: Path, server: RedisServer) -> None:
    with working(tiers) as lease:
        settle_times(tiers, lease.epoch, 1)
    lose_ledger(tiers)
    with pytest.raises(ConfigError, match=r"set hot.buckets = 64"):
        recover(settings_for(tmp_path, server, hot={"buckets": 32}))
    server.stop()
    server.cut_aof(1 << 30)
    server.start()
    with pytest.raises(ConfigError, match=r"hot.shards is 1, but there are segments of shard"):
        recover(settings_for(tmp_path, server, hot={"shards": 1}))


def test_a_store_of_which_redis_lost_one_shard_is_recovered_and_confirmed(tiers: Tiers) -> None:
    with working(tiers) as lease:
        settle_times(tiers, lease.epoch, 1)
    tiers.hot.link.call("DEL", tiers.hot.keys.meta(1), tiers.hot.keys.log(1))
    view = lose_ledger(tiers)
    assert recovered(tiers).incarnation == view.incarnation
    with open_tiers(tiers.settings) as opened, working(opened) as lease:
        append(opened, 10, start=50)
        settle_all(Settler(opened, lease.epoch))
        assert rows(opened) == list(range(60))
        assert verify(opened, deep=True).problems == ()


def test_recovery_needs_redis_and_a_namespace(tiers: Tiers, tmp_path: Path, server: RedisServer) -> None:
    with working(tiers) as lease:
        settle_times(tiers, lease.epoch, 1)
    lose_ledger(tiers)
    with pytest.raises(ConfigError, match="no namespace 'nowhere' here"):
        recover(settings_for(tmp_path, server, namespace="nowhere"))
    server.kill()
    with pytest.raises(TierUnavailable):
        recovered(tiers)
    assert not (tiers.settings.namespace_dir / "ledger.db").exists()


# Lease


def test_the_second_worker_is_told_who_has_the_namespace(tiers: Tiers) -> None:
    with working(tiers) as first:
        with pytest.raises(LeaseHeld) as caught:
            working(tiers)
        assert caught.value.owner == first.owner
        assert f"worker {os.getpid()} on " in str(caught.value)
    second = working(tiers)
    assert second.epoch == first.epoch + 1
    second.release()
    second.release()


def test_the_lock_ends_with_the_process_that_held_it(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from thermocline.archiver.lease import Lock;"
        "lock = Lock(pathlib.Path(sys.argv[1])); print(1, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(LeaseHeld, match=f"worker {holder.pid} on "):
            Lock(tmp_path)
        holder.kill()
        holder.wait()
    Lock(tmp_path).release()


def test_a_lock_whose_holder_has_not_said_its_name_yet_is_held_all_the_same(tmp_path: Path) -> None:
    with Lock(tmp_path):
        os.truncate(tmp_path / "LOCK", 0)
        with pytest.raises(LeaseHeld, match="the holder of"):
            Lock(tmp_path)


def test_a_folder_that_cannot_be_locked_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TierUnavailable, match="data_dir must be a folder, and no part of the path a file"):
        Lock(tmp_path / "file" / "space")


def test_a_ledger_that_gives_no_epoch_leaves_no_lock(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tiers.ledger, "take_epoch", lambda *_: (_ for _ in ()).throw(TierUnavailable("full")))
        with pytest.raises(TierUnavailable):
            working(tiers)
    working(tiers).release()
