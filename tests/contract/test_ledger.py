"""What every ledger does. SQLite always; PostgreSQL too when THERMOCLINE_TEST_POSTGRES_URL names an empty database."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from tests.segments import FILE_BYTES, advanced, cold_file, covering, merged_from, new_id, segment, settle, write_files
from thermocline.errors import ConfigError, LeaseHeld, TierCorrupt, TierUnavailable
from thermocline.event import FORMAT
from thermocline.tiers import ledger_engine, ledger_schema
from thermocline.tiers.block import ORIGIN, Position
from thermocline.tiers.ledger import Loss, Segment, ShardState, View
from thermocline.tiers.ledger_rows import file_row
from thermocline.tiers.ledger_sql import SqlLedger

SHARDS = 4
POSTGRES_URL = os.environ.get("THERMOCLINE_TEST_POSTGRES_URL")
OpenLedger = Callable[[], SqlLedger]


@pytest.fixture(params=["sqlite", "postgresql"] if POSTGRES_URL else ["sqlite"])
def open_ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenLedger]:
    """Opens one more ledger object on the same, at first not created, database."""
    url = POSTGRES_URL if request.param == "postgresql" else f"sqlite:///{tmp_path}/space/ledger.db"
    assert url is not None
    if request.param == "postgresql":
        engine = sa.create_engine(url)
        ledger_schema.metadata.drop_all(engine)
        engine.dispose()
    opened: list[SqlLedger] = []

    def open_one() -> SqlLedger:
        opened.append(SqlLedger(url, folder=tmp_path / "space"))
        return opened[-1]

    yield open_one
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(open_ledger: OpenLedger) -> SqlLedger:
    made = open_ledger()
    made.create(incarnation="inc1", shards=SHARDS, buckets=8192, now_us=7)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "space"


def test_a_ledger_that_was_not_created_has_no_identity_and_no_view(open_ledger: OpenLedger, folder: Path) -> None:
    ledger = open_ledger()
    assert ledger.identity() is None
    with pytest.raises(TierUnavailable, match="append once"):
        ledger.view()
    assert not folder.exists() or not list(folder.iterdir())


def test_a_new_ledger_has_its_identity_and_shards_that_hold_nothing(ledger: SqlLedger) -> None:
    identity = ledger.identity()
    assert identity == {
        "format": FORMAT,
        "namespace": "space",
        "incarnation": "inc1",
        "shards": "4",
        "buckets": "8192",
        "created_us": "7",
    }
    view = ledger.view()
    assert view.shards == tuple(ShardState(shard=shard) for shard in range(SHARDS))
    assert [total.shard for total in view.totals] == list(range(SHARDS))
    assert (view.format, view.incarnation, view.epoch) == (FORMAT, "inc1", 0)
    assert (view.segments, view.files, view.losses) == ((), (), ())
    assert ledger.owner() is None


def test_creating_again_changes_nothing(ledger: SqlLedger, open_ledger: OpenLedger) -> None:
    before = ledger.view()
    open_ledger().create(incarnation="inc2", shards=9, buckets=1, now_us=8)
    assert ledger.view() == before


def test_a_newer_epoch_shuts_out_the_older_worker(ledger: SqlLedger, folder: Path) -> None:
    old = ledger.take_epoch("host 1 yesterday", 1)
    new = ledger.take_epoch("host 2 today", 2)
    assert new == old + 1
    assert ledger.owner() == "host 2 today"
    kept = settle(ledger, folder, new, 5)
    for move in (
        lambda: ledger.settled(old, None, [], now_us=3),
        lambda: ledger.merged(old, [kept.segment_id], [], now_us=3),
        lambda: ledger.purged(old, []),
    ):
        with pytest.raises(LeaseHeld, match="host 2 today"):
            move()


def test_only_the_last_epochs_are_remembered(ledger: SqlLedger) -> None:
    last = [ledger.take_epoch("me", 1) for _ in range(105)][-1]
    assert ledger.view().epoch == last == 105


def test_a_settle_lists_the_segment_and_moves_the_shards_in_one_step(ledger: SqlLedger, folder: Path) -> None:
    epoch = ledger.take_epoch("me", 1)
    made = settle(ledger, folder, epoch, 5, 3)
    view = ledger.view()
    assert view.segments == (made,)
    assert [(state.events, state.bytes, state.observed_events) for state in view.shards[:2]] == [(5, 500, 5), (3, 300, 3)]
    assert view.shards[0].observed_position == view.shards[0].position == Position(5, 0)
    assert view.shards[2:] == (ShardState(shard=2), ShardState(shard=3))


def test_what_the_view_gives_back_is_what_was_settled_to_the_last_field(
    ledger: SqlLedger, open_ledger: OpenLedger, folder: Path
) -> None:
    epoch = ledger.take_epoch("me", 1)
    view = ledger.view()
    after = [advanced(state, 4, rejected=1) for state in view.shards]
    made = msgspec.structs.replace(
        segment(covering(view.shards, after), day="2026-11-13", event_types=None),
        conversation_min="",
        conversation_max="zoë\u2028\U0001f9ca'",
        timestamp_min_us=-5,
    )
    write_files(folder, [made])
    ledger.settled(epoch, made, after, now_us=9)
    for reader in (ledger, open_ledger()):
        assert reader.view().segments == (made,)


def test_a_settle_whose_lines_were_all_rejected_moves_the_shard_without_a_segment(ledger: SqlLedger) -> None:
    epoch = ledger.take_epoch("me", 1)
    new = advanced(ledger.view().shards[1], 2, rejected=2)
    ledger.settled(epoch, None, [new], now_us=1)
    view = ledger.view()
    assert view.segments == ()
    assert (view.shards[1].events, view.shards[1].rejected) == (2, 2)


def test_the_same_settle_again_is_a_no_op_so_an_unknown_outcome_may_be_retried(ledger: SqlLedger, folder: Path) -> None:
    epoch = ledger.take_epoch("me", 1)
    before = ledger.view().shards[:1]
    after = [advanced(before[0], 5)]
    made = segment(covering(before, after))
    write_files(folder, [made])
    ledger.settled(epoch, made, after, now_us=1)
    view = ledger.view()
    ledger.settled(epoch, made, after, now_us=2)
    assert ledger.view() == view

    rejected = [advanced(view.shards[0], 1, rejected=1)]
    ledger.settled(epoch, None, rejected, now_us=3)
    view = ledger.view()
    ledger.settled(epoch, None, rejected, now_us=4)
    assert ledger.view() == view


def test_another_segment_for_the_same_events_is_an_overlap(ledger: SqlLedger, folder: Path) -> None:
    epoch = ledger.take_epoch("me", 1)
    before = ledger.view().shards[:1]
    after = [advanced(before[0], 5)]
    settle(ledger, folder, epoch, 5)
    twin = segment(covering(before, after))
    write_files(folder, [twin])
    view = ledger.view()
    with pytest.raises(TierCorrupt, match="overlap"):
        ledger.settled(epoch, twin, after, now_us=1)
    assert ledger.view() == view


BROKEN_SETTLES: dict[str, tuple[Callable[[Segment, ShardState], tuple[Segment | None, ShardState]], str]] = {
    "a segment that starts after the settled position": (
        lambda made, new: (with_range(made, after=Position(1, 0)), new),
        "a gap or an overlap",
    ),
    "a segment that ends elsewhere than the new position": (
        lambda made, new: (with_range(made, upto=Position(99, 0)), new),
        "a gap or an overlap",
    ),
    "fewer events than came in": (lambda made, new: (with_range(made, events=4), new), "5 events came in"),
    "rows that are not its ranges' events": (lambda made, new: (msgspec.structs.replace(made, rows=9), new), "do not add up"),
    "a range of a shard whose state is not given": (
        lambda made, new: (msgspec.structs.replace(made, ranges=(*made.ranges, shifted(made))), new),
        "whose new state was not given",
    ),
    "no segment though lines were usable": (lambda made, new: (None, new), "the segment holds 0"),
    "a position that does not move": (
        lambda made, new: (with_range(made, upto=ORIGIN), msgspec.structs.replace(new, position=ORIGIN)),
        "overlap",
    ),
}


def with_range(made: Segment, **changes: object) -> Segment:
    return msgspec.structs.replace(made, ranges=(msgspec.structs.replace(made.ranges[0], **changes),))


def shifted(made: Segment):  # type: ignore[no-untyped-def]
    return msgspec.structs.replace(made.ranges[0], shard=3)


@pytest.mark.parametrize("case", BROKEN_SETTLES)
def test_a_settle_that_does_not_add_up_is_refused_and_changes_nothing(case: str, ledger: SqlLedger, folder: Path) -> None:
    damage, complaint = BROKEN_SETTLES[case]
    epoch = ledger.take_epoch("me", 1)
    before = ledger.view().shards[:1]
    made, new = damage(segment(covering(before, [advanced(before[0], 5)])), advanced(before[0], 5))
    write_files(folder, [made] if made else [])
    view = ledger.view()
    with pytest.raises(TierCorrupt, match=complaint):
        ledger.settled(epoch, made, [new], now_us=1)
    assert ledger.view() == view


@pytest.mark.parametrize("size", [None, FILE_BYTES - 1])
def test_a_segment_whose_file_is_missing_or_short_is_not_listed(size: int | None, ledger: SqlLedger, folder: Path) -> None:
    epoch = ledger.take_epoch("me", 1)
    before = ledger.view().shards[:1]
    after = [advanced(before[0], 5)]
    made = segment(covering(before, after))
    if size is not None:
        write_files(folder, [msgspec.structs.replace(made, file_bytes=size)])
    with pytest.raises(TierCorrupt, match="is missing" if size is None else "has 63 bytes, 64 were written"):
        ledger.settled(epoch, made, after, now_us=1)
    assert ledger.view().segments == ()


def test_a_shard_confirmed_while_it_settled_is_read_again(ledger: SqlLedger) -> None:
    epoch = ledger.take_epoch("me", 1)
    new = advanced(ledger.view().shards[0], 1, rejected=1)
    ledger.confirmed(incarnation="inc1", eras={0: 1}, losses=[], now_us=2)
    with pytest.raises(TierUnavailable, match="confirmed anew"):
        ledger.settled(epoch, None, [new], now_us=3)


def test_a_merge_replaces_its_inputs_and_puts_them_into_the_trash(ledger: SqlLedger, folder: Path) -> None:
    epoch = ledger.take_epoch("me", 1)
    inputs = [settle(ledger, folder, epoch, 5, 1), settle(ledger, folder, epoch, 2)]
    kept = settle(ledger, folder, epoch, 1)
    outputs = merged_from(inputs, level=1, shares=[{0: 3, 1: 1}, {0: 4}])
    write_files(folder, outputs)
    states = ledger.view().shards
    ledger.merged(epoch, [part.segment_id for part in inputs], outputs, now_us=77)
    view = ledger.view()
    assert set(view.segments) == {kept, *outputs}
    assert view.shards == states
    trash = ledger.trash()
    assert {row.path for row in trash} == {f"segments/{part.segment_id}.duckdb" for part in inputs}
    assert {(row.left_us, row.move_id) for row in trash} == {(77, outputs[0].move_id)}
    ledger.purged(epoch, [trash[0].path])
    assert ledger.trash() == trash[1:]


def test_the_same_merge_again_is_a_no_op(ledger: SqlLedger, folder: Path) -> None:
    epoch = ledger.take_epoch("me", 1)
    inputs = [settle(ledger, folder, epoch, 5), settle(ledger, folder, epoch, 2)]
    outputs = merged_from(inputs, level=1, shares=[{0: 7}])
    write_files(folder, outputs)
    ids = [part.segment_id for part in inputs]
    ledger.merged(epoch, ids, outputs, now_us=1)
    view, trash = ledger.view(), ledger.trash()
    ledger.merged(epoch, ids, outputs, now_us=2)
    assert (ledger.view(), ledger.trash()) == (view, trash)


@pytest.mark.parametrize(
    ("shares", "damage", "complaint"),
    [
        ([{0: 6}], {}, "7 events in, 6 out"),
        ([{0: 5, 1: 2}], {}, "by shard"),
        ([{0: 7}], {"part": 2}, "do not name the whole move"),
        ([{0: 7}], {"inputs": ("other",)}, "do not name the whole move"),
    ],
)
def test_a_merge_that_does_not_add_up_is_refused_and_changes_nothing(
    shares: list[dict[int, int]], damage: dict[str, object], complaint: str, ledger: SqlLedger, folder: Path
) -> None:
    epoch = ledger.take_epoch("me", 1)
    inputs = [settle(ledger, folder, epoch, 5, 0 + 1), settle(ledger, folder, epoch, 2, 1)]
    full = [{**share, 1: share.get(1, 0) + 2} if number == 0 else share for number, share in enumerate(shares)]
    outputs = [msgspec.structs.replace(part, **damage) for part in merged_from(inputs, level=1, shares=full)]
    write_files(folder, outputs)
    view = ledger.view()
    with pytest.raises(TierCorrupt, match=complaint.replace("7 events in, 6 out", "9 events in, 8 out")):
        ledger.merged(epoch, [part.segment_id for part in inputs], outputs, now_us=1)
    assert ledger.view() == view
    assert ledger.trash() == []


def test_a_merge_of_a_segment_that_is_not_live_is_refused(ledger: SqlLedger, folder: Path) -> None:
    epoch = ledger.take_epoch("me", 1)
    inputs = [settle(ledger, folder, epoch, 5), settle(ledger, folder, epoch, 2)]
    ids = [part.segment_id for part in inputs]
    outputs = merged_from(inputs, level=1, shares=[{0: 7}])
    write_files(folder, outputs)
    for wrong in ([*ids, "gone"], [ids[0], *ids], []):
        with pytest.raises(TierCorrupt, match="must be live"):
            ledger.merged(epoch, wrong, outputs, now_us=1)
    assert set(ledger.view().segments) == set(inputs)


def test_what_was_observed_never_goes_back(ledger: SqlLedger, folder: Path) -> None:
    ledger.observed({0: (10, Position(10, 0)), 1: (4, Position(4, 0))}, now_us=1)
    ledger.observed({0: (9, Position(9, 0)), 1: (6, Position(6, 1))}, now_us=2)
    states = ledger.view().shards
    assert (states[0].observed_events, states[0].observed_position) == (10, Position(10, 0))
    assert (states[1].observed_events, states[1].observed_position) == (6, Position(6, 1))
    settle(ledger, folder, ledger.take_epoch("me", 1), 3)
    assert ledger.view().shards[0].observed_events == 10


def test_what_was_seen_before_a_shard_was_confirmed_anew_is_not_recorded(ledger: SqlLedger) -> None:
    ledger.confirmed(incarnation="inc1", eras={0: 1}, losses=[], now_us=1)
    ledger.observed({0: (10, Position(10, 0)), 1: (4, Position(4, 0))}, eras={0: 0, 1: 0}, now_us=2)
    assert [state.observed_events for state in ledger.view().shards] == [0, 4, 0, 0]


def test_confirming_sets_eras_declares_losses_and_lets_observed_start_from_settled(ledger: SqlLedger, folder: Path) -> None:
    settle(ledger, folder, ledger.take_epoch("me", 1), 5)
    ledger.observed({0: (9, Position(9, 0)), 2: (3, Position(3, 0))}, now_us=1)
    loss = Loss(shard=0, era=1, observed=4, reported=0, at_us=50, reason="Redis was wiped")
    ledger.confirmed(incarnation="inc2", eras={0: 1, 1: 1}, losses=[loss], now_us=50)
    view = ledger.view()
    assert view.incarnation == "inc2"
    identity = ledger.identity()
    assert identity is not None
    assert identity["previous"] == "inc1"
    assert [state.era for state in view.shards] == [1, 1, 0, 0]
    assert [state.observed_events for state in view.shards] == [5, 0, 0, 0]
    assert view.shards[0].observed_position == view.shards[0].position
    assert view.losses == (loss,)


def test_confirming_again_never_lowers_an_era_or_a_loss(ledger: SqlLedger) -> None:
    loss = Loss(shard=0, era=2, observed=4, reported=1, at_us=50, reason="first")
    ledger.confirmed(incarnation="inc1", eras={0: 2}, losses=[loss], now_us=50)
    again = msgspec.structs.replace(loss, observed=1, reason="second")
    ledger.confirmed(incarnation="inc1", eras={0: 1}, losses=[again], now_us=60)
    view = ledger.view()
    assert view.shards[0].era == 2
    assert view.losses == (loss,)
    identity = ledger.identity()
    assert identity is not None
    assert "previous" not in identity


def test_reports_of_producers_raise_a_loss_and_never_lower_it(ledger: SqlLedger) -> None:
    loss = Loss(shard=0, era=1, observed=4, reported=0, at_us=50, reason="cut")
    ledger.confirmed(incarnation="inc1", eras={0: 1}, losses=[loss], now_us=50)
    ledger.losses_reported({(0, 1): 6})
    ledger.losses_reported({(0, 1): 5, (3, 1): 2})
    losses = {(loss.shard, loss.era): loss for loss in ledger.view().losses}
    assert losses[0, 1] == msgspec.structs.replace(loss, reported=6)
    assert losses[0, 1].events == 6
    assert losses[3, 1].events == 2


def test_a_rebuilt_ledger_equals_what_the_segments_say(ledger: SqlLedger, tmp_path: Path, folder: Path) -> None:
    epoch = ledger.take_epoch("me", 1)
    made = settle(ledger, folder, epoch, 5, 2)
    view = ledger.view()
    other = SqlLedger(f"sqlite:///{tmp_path}/other.db", folder=folder)
    states = [ShardState(shard=shard) for shard in range(SHARDS)]
    other.rebuild(incarnation="inc1", shards=view.shards, segments=[made], buckets=8192, now_us=9)
    assert msgspec.structs.replace(other.view(), epoch=epoch) == view
    with pytest.raises(TierCorrupt, match="move it aside"):
        other.rebuild(incarnation="inc1", shards=states, segments=[], buckets=8192, now_us=9)
    other.close()


def test_two_ledger_objects_see_each_others_moves(ledger: SqlLedger, open_ledger: OpenLedger, folder: Path) -> None:
    reader = open_ledger()
    epoch = ledger.take_epoch("me", 1)
    inputs = [settle(ledger, folder, epoch, 5), settle(ledger, folder, epoch, 2)]
    assert reader.view() == ledger.view()
    outputs = merged_from(inputs, level=1, shares=[{0: 7}])
    write_files(folder, outputs)
    ledger.merged(epoch, [part.segment_id for part in inputs], outputs, now_us=1)
    assert reader.view() == ledger.view()
    assert reader.view().segments == tuple(outputs)


def test_a_view_is_read_again_only_when_somebody_has_committed(sqlite_ledger: SqlLedger, folder: Path) -> None:
    statements: list[str] = []

    def note(_con: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    another = SqlLedger(f"sqlite:///{folder}/ledger.db", folder=folder)
    epoch = another.take_epoch("me", 1)
    first = sqlite_ledger.view()
    sa.event.listen(sqlite_ledger._engine._engine, "before_cursor_execute", note)
    assert sqlite_ledger.view() is first and not statements
    settle(another, folder, epoch, 5)
    another.close()
    assert [state.events for state in sqlite_ledger.view().shards] == [5, 0, 0, 0] and statements
    settle(sqlite_ledger, folder, epoch, 5, 3)
    assert [state.events for state in sqlite_ledger.view().shards] == [10, 3, 0, 0]


def test_a_view_is_read_again_after_the_file_was_replaced(sqlite_ledger: SqlLedger, tmp_path: Path, folder: Path) -> None:
    before = sqlite_ledger.view()
    assert sqlite_ledger.view() is before
    other = SqlLedger(f"sqlite:///{tmp_path}/other/space/ledger.db", folder=folder)
    other.create(incarnation="inc2", shards=SHARDS, buckets=8192, now_us=8)
    other.close()
    for old in folder.glob("ledger.db*"):
        old.unlink()
    (tmp_path / "other" / "space" / "ledger.db").rename(folder / "ledger.db")
    assert sqlite_ledger.view().incarnation == "inc2"


def test_a_view_is_one_snapshot_while_another_process_moves(ledger: SqlLedger, open_ledger: OpenLedger, folder: Path) -> None:
    """Every view's segments hold exactly the events its shards have settled, though they change all the time."""
    epoch = ledger.take_epoch("me", 1)
    done = threading.Event()
    views: list[View] = []
    reader = open_ledger()

    def read() -> None:
        while not done.is_set():
            views.append(reader.view())

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(60):
        settle(ledger, folder, epoch, 3, 1)
    done.set()
    thread.join()
    assert views
    for view in views:
        assert sum(part.rows for part in view.segments) == sum(state.events for state in view.shards)
    assert len({len(view.segments) for view in views}) > 3


def test_a_ledger_without_a_column_is_read_and_gets_it_from_the_next_worker(ledger: SqlLedger, open_ledger: OpenLedger) -> None:
    made = cold_file("b", 1, 3)
    counted = msgspec.structs.replace(made, file_id="b-2", sampled_rows=2)
    with ledger._engine.write() as con:
        con.execute(sa.text("ALTER TABLE cold_files DROP COLUMN sampled_rows"))
        row = {name: value for name, value in file_row(made).items() if name != "sampled_rows"}
        con.execute(sa.insert(ledger_schema.cold_files), row)
    assert open_ledger().view().files == (made,)
    for number in (1, 2):
        ledger.take_epoch("me", number)
    with ledger._engine.write() as con:
        con.execute(sa.insert(ledger_schema.cold_files), file_row(counted))
    assert ledger.view().files == open_ledger().view().files == (made, counted)


def test_cold_files_are_in_the_view(ledger: SqlLedger, open_ledger: OpenLedger) -> None:
    file = cold_file("b", 1, 3)
    other = msgspec.structs.replace(file, file_id="b-2", event_types=None, sampled_rows=2)
    with ledger._engine.write() as con:
        con.execute(sa.insert(ledger_schema.cold_files), [file_row(file), file_row(other)])
    assert ledger.view().files == open_ledger().view().files == (file, other)


def test_an_unknown_format_stops_reader_and_writer_and_is_named(ledger: SqlLedger) -> None:
    with ledger._engine.write() as con:
        con.execute(sa.update(ledger_schema.identity).where(ledger_schema.identity.c.key == "format").values(value="7"))
    for act in (ledger.view, lambda: ledger.take_epoch("me", 1), lambda: ledger.settled(0, None, [], now_us=1)):
        with pytest.raises(TierCorrupt, match=f"format '7', this version knows {FORMAT}"):
            act()


def test_the_ledger_of_another_namespace_is_refused(ledger: SqlLedger, tmp_path: Path) -> None:
    url = str(ledger._engine._engine.url.render_as_string(hide_password=False))
    other = SqlLedger(url, folder=tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="namespace 'space', not 'elsewhere'"):
        other.view()
    other.close()


def test_sixty_segments_of_sixteen_shards_are_viewed_in_milliseconds(tmp_path: Path) -> None:
    """0.7 ms alone on one core; the bound leaves room for a busy machine and for coverage."""
    ledger = SqlLedger(f"sqlite:///{tmp_path}/space/ledger.db", folder=tmp_path / "space")
    ledger.create(incarnation="inc1", shards=16, buckets=8192, now_us=7)
    epoch = ledger.take_epoch("me", 1)
    for _ in range(60):
        settle(ledger, tmp_path / "space", epoch, *([1] * 16))
    ledger.view()
    best_s = min(timed(ledger.view) for _ in range(50))
    ledger.close()
    assert best_s < 0.004


def timed(act: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    act()
    return time.perf_counter() - started_s


def create_and_observe(path: str, number: int) -> None:
    """In a process of its own: create the ledger with everyone else, then write to it."""
    ledger = SqlLedger(f"sqlite:///{path}/ledger.db", folder=Path(path))
    ledger.create(incarnation=f"inc{number}", shards=SHARDS, buckets=1, now_us=number)
    for count in range(1, 21):
        ledger.observed({number: (count, Position(count, 0))}, now_us=count)
    ledger.close()


def test_processes_that_create_and_write_at_once_neither_fail_nor_disagree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=create_and_observe, args=(str(tmp_path), number)) for number in range(SHARDS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * SHARDS
    ledger = SqlLedger(f"sqlite:///{tmp_path}/ledger.db", folder=tmp_path)
    assert [state.observed_events for state in ledger.view().shards] == [20] * SHARDS
    ledger.close()


@pytest.fixture
def sqlite_ledger(tmp_path: Path) -> Iterator[SqlLedger]:
    made = SqlLedger(f"sqlite:///{tmp_path}/space/ledger.db", folder=tmp_path / "space")
    made.create(incarnation="inc1", shards=SHARDS, buckets=8192, now_us=7)
    yield made
    made.close()


def test_sqlite_keeps_every_commit_on_disk_in_a_write_ahead_log(sqlite_ledger: SqlLedger) -> None:
    with sqlite_ledger._engine.read() as con:
        pragmas = {
            name: con.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "busy_timeout", "journal_size_limit")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 30_000, "journal_size_limit": 4 << 20}


def test_a_checkpoint_empties_the_write_ahead_log(sqlite_ledger: SqlLedger, folder: Path) -> None:
    log = folder / "ledger.db-wal"
    sqlite_ledger.observed({0: (1, Position(1, 0))}, now_us=1)
    assert log.stat().st_size > 0
    assert sqlite_ledger.checkpoint() == 0
    assert sqlite_ledger.view().shards[0].observed_events == 1


def test_a_checkpoint_that_a_reader_holds_up_says_how_much_is_left(
    sqlite_ledger: SqlLedger, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_engine, "CHECKPOINT_TIMEOUT_S", 0)
    reader = sqlite3.connect(folder / "ledger.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM shards").fetchone()
    sqlite_ledger.observed({0: (1, Position(1, 0))}, now_us=1)
    assert sqlite_ledger.checkpoint() > 0
    reader.execute("ROLLBACK")
    reader.close()
    assert sqlite_ledger.checkpoint() == 0


def test_a_locked_ledger_says_so(sqlite_ledger: SqlLedger, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_engine, "BUSY_TIMEOUT_S", 0)
    impatient = SqlLedger(f"sqlite:///{folder}/ledger.db", folder=folder)
    other = sqlite3.connect(folder / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(TierUnavailable, match=r"ledger\.db: locked by another process"):
        impatient.observed({0: (1, Position(1, 0))}, now_us=1)
    assert impatient.view().shards[0].observed_events == 0
    other.execute("ROLLBACK")
    other.close()
    impatient.observed({0: (1, Position(1, 0))}, now_us=1)
    assert impatient.view().shards[0].observed_events == 1
    impatient.close()


def test_a_file_that_is_no_ledger_is_named_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database at all" * 100)
    ledger = SqlLedger(f"sqlite:///{tmp_path}/ledger.db", folder=tmp_path)
    with pytest.raises(TierCorrupt, match=r"ledger\.db: not a database .*thermocline recover"):
        ledger.view()
    assert (tmp_path / "ledger.db").read_bytes().startswith(b"not a database")
    ledger.close()


def test_an_empty_file_is_a_ledger_not_created_yet(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").touch()
    ledger = SqlLedger(f"sqlite:///{tmp_path}/ledger.db", folder=tmp_path)
    assert ledger.identity() is None
    with pytest.raises(TierUnavailable, match="no tables yet"):
        ledger.view()
    with ledger._engine.write() as con:
        ledger_schema.metadata.create_all(con)
    assert ledger.identity() is None
    with pytest.raises(TierUnavailable, match="not created yet"):
        ledger.view()
    ledger.close()


def test_a_ledger_in_a_folder_that_cannot_be_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ledger = SqlLedger(f"sqlite:///{tmp_path}/file/ledger.db", folder=tmp_path)
    with pytest.raises(TierUnavailable, match="must be writable"):
        ledger.create(incarnation="i", shards=1, buckets=1, now_us=1)
    (tmp_path / "ledger.db").mkdir()
    ledger = SqlLedger(f"sqlite:///{tmp_path}/ledger.db", folder=tmp_path)
    with pytest.raises(TierUnavailable, match="cannot be opened"):
        ledger.view()
    ledger.close()


def test_a_full_disk_is_unavailable_and_loses_nothing(sqlite_ledger: SqlLedger, folder: Path) -> None:
    before = sqlite_ledger.view()
    with pytest.raises(TierUnavailable, match="the disk is full"), sqlite_ledger._engine.write() as con:
        pages = con.exec_driver_sql("PRAGMA page_count").scalar()
        con.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        for _ in range(1000):
            values = {"path": new_id() * 1000, "left_us": 1, "move_id": "m"}
            con.execute(sa.insert(ledger_schema.trash), values)
    sqlite_ledger.close()
    assert sqlite_ledger.view() == before
    assert sqlite_ledger.trash() == []


def test_a_ledger_moved_aside_is_not_read_any_longer(sqlite_ledger: SqlLedger, folder: Path) -> None:
    sqlite_ledger.view()
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        if (folder / name).exists():
            (folder / name).rename(folder / f"{name}.old")
    with pytest.raises(TierUnavailable, match="no ledger here"):
        sqlite_ledger.view()
    new = SqlLedger(f"sqlite:///{folder}/ledger.db", folder=folder)
    new.create(incarnation="inc2", shards=SHARDS, buckets=1, now_us=1)
    assert sqlite_ledger.view().incarnation == "inc2"
    new.close()


def test_a_row_that_is_there_already_is_corrupt_not_ignored(sqlite_ledger: SqlLedger) -> None:
    with pytest.raises(TierCorrupt, match="does not take"), sqlite_ledger._engine.write() as con:
        con.execute(sa.insert(ledger_schema.identity), {"key": "format", "value": "2"})


@pytest.mark.parametrize(
    "url", ["nonsense", "sqlite://", "nodialect://u:secret@h/d", "postgresql+nodriver://u:secret@h/d?password=secret"]
)
def test_a_url_that_cannot_be_used_is_a_config_error_without_its_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ledger_url") as caught:
        SqlLedger(url, folder=tmp_path)
    assert "secret" not in str(caught.value)


def test_no_free_connection_is_unavailable(sqlite_ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise sa.exc.TimeoutError("QueuePool limit")

    monkeypatch.setattr(sqlite_ledger._engine._reads, "begin", exhausted)
    with pytest.raises(TierUnavailable, match="every connection of this process is in use"):
        sqlite_ledger.view()
