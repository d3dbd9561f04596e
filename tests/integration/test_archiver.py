"""Settle, trim and merge on real tiers: a real Redis, real DuckDB files, a real ledger. Fakes only fail on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.archiving import SHARDS, Crash, append, corrupt_block, rows, settings_for, settle_all
from tests.conftest import StartServer
from tests.servers import RedisServer
from tests.waiting import wait_until
from thermocline.archiver.lease import Lease
from thermocline.archiver.merge import Merger
from thermocline.archiver.settle import SIGHTINGS_MAX, Settler
from thermocline.archiver.trim import Trimmer
from thermocline.archiver.verify import verify
from thermocline.errors import LeaseHeld, TierCorrupt, TierUnavailable
from thermocline.tiers.block import Position
from thermocline.tiers.opening import Tiers, open_tiers


@pytest.fixture
def tiers(tmp_path: Path, server: RedisServer) -> Iterator[Tiers]:
    with open_tiers(settings_for(tmp_path, server)) as opened:
        yield opened


@pytest.fixture
def epoch(tiers: Tiers) -> Iterator[int]:
    lease = Lease(tiers.settings.namespace_dir, tiers.ledger)
    yield lease.epoch
    lease.release()


def test_settle_moves_every_event_into_a_segment_once(tiers: Tiers, epoch: int) -> None:
    append(tiers, 1000)
    report = Settler(tiers, epoch).step(force=True)
    assert (report.events, report.rejected, report.waiting_events) == (1000, 0, 1000)
    assert report.segment is not None
    assert report.segment.level == 0
    assert rows(tiers) == list(range(1000))
    assert verify(tiers, deep=True).problems == ()
    again = Settler(tiers, epoch).step(force=True)
    assert (again.events, again.waiting_events) == (0, 0)


def test_settle_is_not_due_below_the_thresholds(tiers: Tiers, epoch: int) -> None:
    append(tiers, 10)
    report = Settler(tiers, epoch).step()
    assert (report.events, report.waiting_events) == (0, 10)
    assert tiers.ledger.view().segments == ()


def test_settle_is_due_when_events_have_waited_long_enough(tiers: Tiers, epoch: int) -> None:
    now_s = 50.0
    settler = Settler(tiers, epoch, monotonic=lambda: now_s)
    append(tiers, 10)
    assert settler.step().oldest_wait_s == 0
    now_s += 899
    append(tiers, 10, start=10)
    assert settler.step().oldest_wait_s == 899
    now_s += 1
    report = settler.step()
    assert (report.events, report.oldest_wait_s) == (20, 900)
    append(tiers, 1, start=20)
    assert settler.step().oldest_wait_s == 0


def test_a_settle_is_bounded_and_goes_on_where_it_stopped(tmp_path: Path, server: RedisServer) -> None:
    settings = settings_for(tmp_path, server, warm={"settle_batch_events": 500}, hot={"page_bytes_max": 64 << 10})
    with open_tiers(settings) as tiers, Lease(settings.namespace_dir, tiers.ledger) as lease:
        append(tiers, 2600, conversations=40)
        settler = Settler(tiers, lease.epoch)
        taken = []
        while (report := settler.step(force=True)).events:
            taken.append(report.events)
        assert sum(taken) == 2600
        assert max(taken) <= 500
        assert rows(tiers) == list(range(2600))


def test_what_the_worker_saw_is_recorded_at_most_once_a_second(tiers: Tiers, epoch: int) -> None:
    now_s = 10.0
    settler = Settler(tiers, epoch, monotonic=lambda: now_s)
    append(tiers, 5, conversations=1)
    settler.step()
    assert sum(state.observed_events for state in tiers.ledger.view().shards) == 5
    append(tiers, 5, conversations=1)
    settler.step()
    assert sum(state.observed_events for state in tiers.ledger.view().shards) == 5
    now_s += 1
    settler.step()
    assert sum(state.observed_events for state in tiers.ledger.view().shards) == 10


def test_losses_that_producers_report_reach_the_ledger(tiers: Tiers, epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 10.0
    settler = Settler(tiers, epoch, monotonic=lambda: now_s)
    reported = {(0, 1, "p"): 3, (0, 1, "q"): 4, (2, 1, "p"): 1}
    monkeypatch.setattr(tiers.hot, "reported_losses", lambda: reported)
    settler.step()
    assert {(loss.shard, loss.era): loss.reported for loss in tiers.ledger.view().losses} == {(0, 1): 7, (2, 1): 1}
    reported[0, 1, "q"] = 5
    settler.step()
    assert tiers.ledger.view().losses[0].reported == 7
    now_s += 10
    settler.step()
    assert tiers.ledger.view().losses[0].reported == 8


def test_under_everysec_settle_waits_until_redis_has_its_events_on_disk(tmp_path: Path, redis_server: StartServer) -> None:
    server = redis_server(options={"appendfsync": "everysec"})
    settings = settings_for(tmp_path, server)
    with open_tiers(settings) as tiers, Lease(settings.namespace_dir, tiers.ledger) as lease:
        append(tiers, 100)
        settler = Settler(tiers, lease.epoch)
        assert settler.step(force=True).events == 0
        wait_until(lambda: settler.step(force=True).events == 100, 20, "the events are on disk and settle")
        server.kill()
        server.start()
        tiers.reconfirm()
        check = verify(tiers)
        assert check.problems == ()
        assert sum(one.warm for one in check.shards) == 100


STEPS = ["before the segment", "after the segment", "after the rejected lines", "after the transaction"]


def crash_at(step: str, tiers: Tiers, settler: Settler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next settle end at `step`."""
    place: tuple[Any, str, bool] = {
        "before the segment": (tiers.warm, "write_settled", False),
        "after the segment": (tiers.warm, "write_settled", True),
        "after the rejected lines": (settler._rejected, "append", True),
        "after the transaction": (tiers.ledger, "settled", True),
    }[step]
    crash_in(*place, monkeypatch)


def crash_in(part: Any, name: str, after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = getattr(part, name)

    def dying(*args: Any, **kwargs: Any) -> None:
        if after:
            real(*args, **kwargs)
        raise Crash

    monkeypatch.setattr(part, name, dying)


@pytest.mark.parametrize("step", STEPS)
def test_a_settle_that_crashes_at_any_step_settles_everything_once_when_it_runs_again(
    step: str, tiers: Tiers, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(tiers, 300)
    settle_all(Settler(tiers, epoch))
    append(tiers, 500, start=300)
    with monkeypatch.context() as patch:
        settler = Settler(tiers, epoch)
        crash_at(step, tiers, settler, patch)
        with pytest.raises(Crash):
            settler.step(force=True)
    before = verify(tiers, deep=True)
    assert before.problems == ()
    assert sum(one.appended for one in before.shards) == 800
    append(tiers, 200, start=800)
    settle_all(Settler(tiers, epoch))
    assert rows(tiers) == list(range(1000))
    assert verify(tiers, deep=True).problems == ()


def test_a_commit_of_unknown_outcome_is_settled_once_either_way(
    tiers: Tiers, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settler = Settler(tiers, epoch)
    real = tiers.ledger.settled
    for number, happened in enumerate([True, False, True]):
        append(tiers, 100, start=100 * number)

        def lost(*args: Any, happened: bool = happened, **kwargs: Any) -> None:
            if happened:
                real(*args, **kwargs)
            raise TierUnavailable("the reply was lost")

        monkeypatch.setattr(tiers.ledger, "settled", lost)
        with pytest.raises(TierUnavailable):
            settler.step(force=True)
        monkeypatch.setattr(tiers.ledger, "settled", real)
        while settler.step(force=True).events:
            pass
    assert rows(tiers) == list(range(300))


def test_a_full_warm_tier_stops_settling_and_says_so(tmp_path: Path, server: RedisServer) -> None:
    settings = settings_for(tmp_path, server, warm={"bytes_max": 1})
    with open_tiers(settings) as tiers, Lease(settings.namespace_dir, tiers.ledger) as lease:
        append(tiers, 10)
        first = Settler(tiers, lease.epoch).step(force=True)
        assert (first.events, first.full) == (10, None)
        append(tiers, 10, start=10)
        second = Settler(tiers, lease.epoch).step(force=True)
        assert second.events == 0
        assert second.full is not None
        assert "warm.bytes_max is 1" in second.full
        assert verify(tiers).problems == ()


def test_a_worker_that_lost_its_epoch_settles_and_merges_nothing(tiers: Tiers, epoch: int) -> None:
    append(tiers, 100)
    old = Settler(tiers, epoch)
    tiers.ledger.take_epoch("somebody else", 1)
    with pytest.raises(LeaseHeld, match="somebody else"):
        old.step(force=True)
    assert tiers.ledger.view().segments == ()


def test_a_redis_of_another_incarnation_or_era_is_not_settled(tiers: Tiers, epoch: int) -> None:
    append(tiers, 10)
    tiers.ledger.confirmed(incarnation="other", eras={}, losses=[], now_us=1)
    with pytest.raises(TierUnavailable, match="to be confirmed"):
        Settler(tiers, epoch).step(force=True)
    tiers.ledger.confirmed(incarnation=tiers.hot.cut()[0].incarnation, eras={2: 1}, losses=[], now_us=1)
    with pytest.raises(TierUnavailable, match="shard 2 is in era 0 in Redis, 1 in the ledger"):
        Settler(tiers, epoch).step(force=True)


def test_a_redis_that_came_back_older_than_what_has_settled_is_not_settled_until_confirmed(
    tiers: Tiers, epoch: int, server: RedisServer
) -> None:
    append(tiers, 200)
    settle_all(Settler(tiers, epoch))
    append(tiers, 50, start=200)
    server.kill()
    server.cut_aof(1 << 30)
    server.start()
    with pytest.raises(TierUnavailable):
        Settler(tiers, epoch).step(force=True)
    tiers.reconfirm()
    append(tiers, 20, start=500)
    settle_all(Settler(tiers, epoch))
    assert rows(tiers) == [*range(200), *range(500, 520)]
    assert verify(tiers, deep=True).problems == ()


def test_a_log_trimmed_beyond_the_ledger_stops_settling(tiers: Tiers, epoch: int) -> None:
    append(tiers, 10, conversations=1)
    [used] = [cut for cut in tiers.hot.cut() if cut.events_total]
    tiers.hot.trim(used.shard, used.last, settled_events=10, settled_bytes=used.bytes_total, others_bytes=0)
    with pytest.raises(TierCorrupt, match="the ledger is older than Redis"):
        Settler(tiers, epoch).step(force=True)


def test_a_hole_in_a_log_stops_settling_and_names_the_shard(tiers: Tiers, epoch: int) -> None:
    for number in range(3):
        append(tiers, 1, conversations=1, start=number)
    [used] = [cut for cut in tiers.hot.cut() if cut.events_total]
    page = tiers.hot.page(used.shard, Position(0, 0), used.last, bytes_max=1 << 20).to_pylist()
    tiers.hot.link.call("XDEL", tiers.hot.keys.log(used.shard), f"{page[1]['position_ms']}-{page[1]['position_seq']}")
    with pytest.raises(TierCorrupt, match=f"hole in shard {used.shard} after"):
        Settler(tiers, epoch).step(force=True)
    assert any("hole" in problem for problem in verify(tiers, deep=True).problems)


def test_a_damaged_block_is_rejected_whole_kept_with_its_reason_and_blocks_nothing(tiers: Tiers, epoch: int) -> None:
    for number in range(3):
        append(tiers, 5, conversations=1, start=5 * number)
    events = corrupt_block(tiers, 1)
    deep = verify(tiers, deep=True).problems
    assert len(deep) == 1
    assert "is damaged (payload checksum x does not match)" in deep[0]
    report = settle_all(Settler(tiers, epoch))
    assert (report.events, report.rejected) == (15, events)
    assert rows(tiers) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    [path] = (tiers.settings.namespace_dir / "rejected").glob("*.ndjson")
    [line] = [json.loads(one) for one in path.read_text().splitlines()]
    assert (line["ordinal"], line["events"]) == (-1, 5)
    check = verify(tiers, deep=True)
    assert check.problems == ()
    assert sum(one.rejected for one in check.shards) == 5


@pytest.mark.parametrize("step", STEPS)
def test_rejected_lines_are_written_once_whenever_settle_crashes(
    step: str, tiers: Tiers, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(tiers, 5, conversations=1)
    corrupt_block(tiers, 0)
    with monkeypatch.context() as patch:
        settler = Settler(tiers, epoch)
        crash_at(step, tiers, settler, patch)
        with pytest.raises(Crash):
            settler.step(force=True)
    settler = Settler(tiers, epoch)
    while settler.step(force=True).events:
        pass
    [path] = (tiers.settings.namespace_dir / "rejected").glob("*.ndjson")
    assert len(path.read_text().splitlines()) == 1
    assert tiers.ledger.view().segments == ()
    assert verify(tiers, deep=True).problems == ()


def test_trim_tells_every_shard_what_is_settled_and_drops_it_after_the_cache_window(tiers: Tiers, epoch: int) -> None:
    now_s = 0.0
    trimmer = Trimmer(tiers, monotonic=lambda: now_s)
    append(tiers, 100)
    settle_all(Settler(tiers, epoch))
    append(tiers, 3, conversations=1, start=100)
    assert trimmer.step() == 0
    view, metas = tiers.ledger.view(), tiers.hot.metas()
    waiting = [cut.bytes_total - state.bytes for cut, state in zip(tiers.hot.cut(), view.shards, strict=True)]
    for meta, state in zip(metas, view.shards, strict=True):
        assert (int(meta["sN"]), int(meta["sB"])) == (state.events, state.bytes)
        assert int(meta["oB"]) == sum(waiting) - waiting[state.shard]
    now_s = 3600.0
    assert trimmer.step() == 7
    assert [cut.trimmed for cut in tiers.hot.cut()] == [state.position for state in view.shards]
    assert sum(cut.entries for cut in tiers.hot.cut()) == 1
    assert trimmer.step() == 0
    assert verify(tiers, deep=True).problems == ()
    settle_all(Settler(tiers, epoch))
    assert rows(tiers) == list(range(103))


def test_an_idle_trimmer_tells_nothing_until_redis_may_have_forgotten(
    tiers: Tiers, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(tiers, 10)
    settle_all(Settler(tiers, epoch))
    trimmer = Trimmer(tiers)
    told: list[int] = []
    real = tiers.hot.trim
    monkeypatch.setattr(tiers.hot, "trim", lambda shard, upto, **more: told.append(shard) or real(shard, upto, **more))
    trimmer.step()
    assert told == list(range(SHARDS))
    trimmer.step()
    assert told == list(range(SHARDS))
    trimmer.forget()
    trimmer.step()
    assert told == 2 * list(range(SHARDS))


def test_settled_blocks_give_way_when_the_logs_are_over_their_budget(tmp_path: Path, server: RedisServer) -> None:
    settings = settings_for(
        tmp_path, server, hot={"log_bytes_max": 2 << 20, "unsettled_bytes_max": 2 << 20}, warm={"settle_bytes": 1 << 20}
    )
    now_s = 0.0
    with open_tiers(settings) as tiers, Lease(settings.namespace_dir, tiers.ledger) as lease:
        settler, trimmer = Settler(tiers, lease.epoch), Trimmer(tiers, monotonic=lambda: now_s)
        for number in range(6):
            append(tiers, 10, conversations=1, start=10 * number, metadata={"pad": "x" * 60_000})
            settle_all(settler)
            trimmer.step()
            now_s += 6
        trimmer.step()
        kept = sum(cut.bytes_total - cut.trimmed_bytes for cut in tiers.hot.cut())
        assert 1 << 20 < kept <= 2 << 20
        assert not trimmer.over_budget()
        assert rows(tiers) == list(range(60))


def test_a_merge_replaces_small_segments_by_one_with_the_same_events(tiers: Tiers, epoch: int) -> None:
    settler, merger = Settler(tiers, epoch), Merger(tiers, epoch)
    for number in range(11):
        assert merger.step() is None
        append(tiers, 20, start=20 * number)
        settle_all(settler)
    before = tiers.ledger.view()
    merged = merger.step()
    assert merged is not None
    assert (merged.inputs, merged.outputs, merged.rows, merged.level) == (11, 1, 220, 1)
    view = tiers.ledger.view()
    [one] = view.segments
    assert one.has_rollups
    assert view.shards == before.shards
    assert rows(tiers) == list(range(220))
    assert len(tiers.ledger.trash()) == 11
    assert verify(tiers, deep=True).problems == ()
    assert merger.step() is None


def test_a_forced_merge_takes_two(tiers: Tiers, epoch: int) -> None:
    settler, merger = Settler(tiers, epoch), Merger(tiers, epoch)
    for number in range(2):
        append(tiers, 20, start=20 * number)
        settle_all(settler)
        assert (merger.step(force=True) is not None) is (number == 1)
    assert merger.step(force=True) is None


@pytest.mark.parametrize(
    ("name", "after"), [("write_merged", False), ("write_merged", True), ("merged", False), ("merged", True)]
)
def test_a_merge_that_crashes_at_any_step_keeps_every_event_once(
    name: str, after: bool, tiers: Tiers, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settler = Settler(tiers, epoch)
    for number in range(3):
        append(tiers, 50, start=50 * number)
        settle_all(settler)
    with monkeypatch.context() as patch:
        crash_in(tiers.warm if name == "write_merged" else tiers.ledger, name, after, patch)
        with pytest.raises(Crash):
            Merger(tiers, epoch).step(force=True)
    assert rows(tiers) == list(range(150))
    assert verify(tiers, deep=True).problems == ()
    while Merger(tiers, epoch).step(force=True):
        pass
    assert len(tiers.ledger.view().segments) == 1
    assert rows(tiers) == list(range(150))
    assert verify(tiers, deep=True).problems == ()


def test_a_damaged_segment_is_set_aside_and_the_others_go_on_merging(tiers: Tiers, epoch: int) -> None:
    settler, merger = Settler(tiers, epoch), Merger(tiers, epoch)
    for number in range(2):
        append(tiers, 20, start=20 * number)
        settle_all(settler)
    victim = tiers.ledger.view().segments[0]
    path = Path(tiers.warm.path(victim.segment_id))
    data = bytearray(path.read_bytes())
    data[: len(data) // 2] = b"\0" * (len(data) // 2)
    path.write_bytes(data)
    with pytest.raises(TierCorrupt):
        merger.step(force=True)
    for number in range(2, 4):
        append(tiers, 20, start=20 * number)
        settle_all(settler)
    merged = merger.step(force=True)
    assert merged is not None
    assert (merged.inputs, merged.rows) == (2, 40)
    problems = verify(tiers).problems
    assert len(problems) == 1
    assert victim.segment_id in problems[0]


def test_the_oldest_wait_is_remembered_however_long_settling_is_held_up(tiers: Tiers, epoch: int) -> None:
    now_s = [0.0]
    settler = Settler(tiers, epoch, monotonic=lambda: now_s[0])
    view, cut = tiers.ledger.view(), tiers.hot.cut()
    for number in range(1, 3000):
        now_s[0] += 1
        grown = (msgspec.structs.replace(cut[0], events_total=number), *cut[1:])
        assert settler._oldest_wait_s(view, grown) == now_s[0] - 1
        assert len(settler._sightings) <= SIGHTINGS_MAX
    caught_up = (msgspec.structs.replace(view.shards[0], events=2990), *view.shards[1:])
    assert settler._oldest_wait_s(msgspec.structs.replace(view, shards=caught_up), grown) == 8
