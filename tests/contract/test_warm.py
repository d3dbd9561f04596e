"""The warm tier keeps what it was given: real segments, written, merged, damaged and read back."""

from __future__ import annotations

import itertools
import os
import random
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow as pa
import pytest

from tests.block_tables import SHARDS, T0_US, block, event, table
from thermocline.config import WarmSettings
from thermocline.errors import TierCorrupt, TierUnavailable
from thermocline.event import COLUMNS
from thermocline.tiers import segment_file, warm_duckdb
from thermocline.tiers.block import Position, shard_of
from thermocline.tiers.checksum import hash_sum
from thermocline.tiers.duck import Connection, connect
from thermocline.tiers.ledger import Segment, ShardState
from thermocline.tiers.segment_file import attached
from thermocline.tiers.warm import Settled
from thermocline.tiers.warm_duckdb import DuckWarm

DAY_US = 86_400_000_000
DAY0_US = T0_US // DAY_US * DAY_US
SETTINGS = WarmSettings(day_rows_min=300, segment_rows_max=1000, rollup_rows_min=50)
ODD_TEXTS = [
    ("", None),
    ("plain", "{}"),
    ("ü\u0000\n\r\u2028\\n\\\\ '\" \U0001f9ca", '{"a": 1.00, "b":"\\u0000\\ud83d\\ude00\\\\", "c":[1.0e2,-0]}'),
    ('{"looks":"like json"}', '  {"z":9007199254740993,"a":null}'),
]

NewWarm = Callable[..., DuckWarm]


@pytest.fixture
def new_warm(tmp_path: Path) -> Iterator[NewWarm]:
    """Makes the warm tier of the test's folder, with settings of its own."""
    made: list[DuckWarm] = []

    def make(**changes: Any) -> DuckWarm:
        (tmp_path / "segments").mkdir(exist_ok=True)
        settings = SETTINGS.model_copy(update=changes)
        made.append(DuckWarm(tmp_path / "segments", settings, shards=SHARDS))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def warm(new_warm: NewWarm) -> DuckWarm:
    return new_warm()


@pytest.fixture
def con() -> Iterator[Connection]:
    made = connect(memory_bytes=256 << 20, threads=1)
    yield made
    made.close()


def blocks_of(counts: Sequence[int], *, at_us: Callable[[int], int] | None = None, first: int = 1, **fields: Any) -> pa.Table:
    """Blocks of 1 to 20 events: conversation c<i> has counts[i]. Event n of all lies at `at_us(n)`, else n ms after T0."""
    made, number, total = [], first, 0
    for index, count in enumerate(counts):
        for start in range(0, count, 20):
            lines = []
            for _ in range(min(20, count - start)):
                content, metadata = ODD_TEXTS[total % len(ODD_TEXTS)]
                stamp = at_us(total) if at_us else T0_US + 1000 * total
                lines.append(
                    event(content=content, task_id=f"t{total % 3}", **({"metadata": metadata} if metadata else {}), **fields)
                )
                lines[-1]["timestamp"] = stamp
                total += 1
            made.append(block(lines, number=number, conversation_id=f"c{index:03d}", seq_first=1 + start))
            number += 1
    return table(made)


def settled(warm: DuckWarm, blocks: pa.Table, before: Sequence[ShardState] = ()) -> Segment:
    done = warm.write_settled(blocks, before, move_id="move", created_us=5)
    assert done.rejected == ()
    assert done.segment is not None
    return done.segment


PLAIN = {"TIMESTAMPTZ": "epoch_us({0}) AS {0}", "UUID": "{0}::VARCHAR AS {0}", "JSON": "{0}::VARCHAR AS {0}"}


def rows_in(con: Connection, warm: DuckWarm, segments: Sequence[Segment]) -> list[dict[str, Any]]:
    """The rows of segments, as they lie in the files: times as µs, metadata and ids as text."""
    columns = ", ".join(PLAIN.get(column.sql_type, "{0}").format(column.name) for column in COLUMNS)
    found: list[dict[str, Any]] = []
    for one in segments:
        with attached(con, Path(warm.path(one.segment_id))) as alias:
            found += con.sql(f"SELECT {columns} FROM {alias}.events ORDER BY rowid").to_arrow_table().to_pylist()
    return found


def in_order(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["conversation_id"], row["timestamp"], row["seq"], row["event_id"]))


def test_a_settle_makes_one_segment_of_exactly_the_events(warm: DuckWarm, con: Connection) -> None:
    segment = settled(warm, blocks_of([45, 7], agent_id="a", duration_ms=0.1, cost_usd=-2.5e-7, input_tokens=-3))
    rows = rows_in(con, warm, [segment])
    places = [("c000", n) for n in range(1, 46)] + [("c001", n) for n in range(1, 8)]
    assert [(row["conversation_id"], row["seq"]) for row in rows] == places
    assert [row["timestamp"] for row in rows] == [T0_US + 1000 * n for n in range(52)]
    assert [(row["content"], row["metadata"]) for row in rows] == [ODD_TEXTS[n % len(ODD_TEXTS)] for n in range(52)]
    assert segment == msgspec.structs.replace(
        segment,
        level=0,
        day=None,
        move_id="move",
        part=1,
        parts=1,
        inputs=(),
        rows=52,
        content_bytes=sum(len(row["content"].encode()) for row in rows),
        timestamp_min_us=T0_US,
        timestamp_max_us=T0_US + 51_000,
        conversation_min="c000",
        conversation_max="c001",
        event_types=("output.chunk",),
        has_rollups=True,
        checksum=segment.checksum,
        created_us=5,
        file_bytes=Path(warm.path(segment.segment_id)).stat().st_size,
    )


def test_a_checksum_is_the_sum_of_the_hashes_of_the_rows(warm: DuckWarm, con: Connection) -> None:
    segment = settled(warm, blocks_of([45, 7], agent_id="a", duration_ms=0.1, cost_usd=-2.5e-7, input_tokens=-3))
    with attached(con, Path(warm.path(segment.segment_id))) as alias:
        hashes = con.execute(f"SELECT hash({', '.join(column.name for column in COLUMNS)}) FROM {alias}.events").fetchall()
    kind, _, total = segment.checksum.partition(":")
    assert int(total) == sum(value for (value,) in hashes)
    assert int(kind, 16) > 0


def test_checksums_of_another_version_of_duckdb_are_not_compared(warm: DuckWarm) -> None:
    inputs = [settled(warm, blocks_of([400])), settled(warm, blocks_of([20]))]
    older = msgspec.structs.replace(inputs[0], checksum="c0ffee:17")
    [output] = warm.write_merged([older, inputs[1]], level=1, move_id="m", created_us=1)
    assert output.rows == 420
    [told] = warm.check(older, deep=True)  # that the ledger and the file differ, not that the rows do
    assert "the ledger says 'c0ffee:17'" in told


def test_a_segment_says_of_itself_what_the_ledger_is_told(warm: DuckWarm) -> None:
    segment = settled(warm, blocks_of([3]))
    assert not segment.has_rollups
    assert warm.read_info(segment.segment_id) == segment
    assert warm.stored() == [segment.segment_id]
    assert warm.bytes_used() == segment.file_bytes
    assert warm.check(segment, deep=True) == []


def test_rows_are_sorted_by_conversation_time_and_seq(warm: DuckWarm, con: Connection) -> None:
    rng = random.Random(1)
    stamps = [T0_US + rng.randrange(50) for _ in range(400)]
    rows = rows_in(con, warm, [settled(warm, blocks_of([100] * 4, at_us=lambda n: stamps[n]))])
    assert rows == in_order(rows)


def test_rows_out_of_order_are_found_by_a_deep_check(warm: DuckWarm) -> None:
    segment = settled(warm, blocks_of([40, 40, 40]))
    assert warm.check(segment, deep=True) == []
    with duckdb.connect(warm.path(segment.segment_id)) as con:
        con.execute("CREATE TABLE turned AS FROM events ORDER BY conversation_id DESC")
        con.execute("DROP TABLE events")
        con.execute("ALTER TABLE turned RENAME TO events")
    segment = msgspec.structs.replace(segment, file_bytes=Path(warm.path(segment.segment_id)).stat().st_size)
    [problem] = warm.check(segment, deep=True)
    assert problem.endswith("its rows are not sorted by conversation")


def test_the_ranges_say_what_was_covered_of_every_shard(warm: DuckWarm) -> None:
    blocks = blocks_of([30, 30, 30, 30, 30, 30], first=100)
    before = [ShardState(shard=n, position=Position(n, 1), events=10, bytes=20, rejected=n) for n in range(SHARDS)]
    odd = shard_of("c000", SHARDS)
    rows = blocks.to_pylist()
    [index] = [n for n, row in enumerate(rows) if row["conversation_id"] == "c000" and row["seq_first"] == 21]
    rows[index] = {**rows[index], "fault": "checksum y differs"}
    done = warm.write_settled(table(rows), before, move_id="m", created_us=1)
    assert done.segment is not None
    assert [one.events for one in done.rejected] == [10]
    for one in done.segment.ranges:
        mine = [row for row in rows if row["shard"] == one.shard]
        assert one.after == Position(one.shard, 1)
        assert one.upto == Position(mine[-1]["position_ms"], 0)
        assert (one.events_upto, one.bytes_upto) == (mine[-1]["events_total"], mine[-1]["bytes_total"])
        assert one.events == sum(row["events"] for row in mine) - (10 if one.shard == odd else 0)
        assert one.rejected_upto == one.shard + (10 if one.shard == odd else 0)
    assert sum(one.events for one in done.segment.ranges) == done.segment.rows == 170


def test_bad_lines_skipped_lines_and_faulty_blocks_leave_the_rest(warm: DuckWarm, con: Connection) -> None:
    blocks = [
        block([event(content="a"), b"garbage", event(content="b")], number=1),
        block([event(content="again"), event(content="c")], number=2, seq_first=4, skip=[0]),
        block([event()], number=3, seq_first=5, fault="checksum x differs", payload="AA=="),
        block([event(content="d")], number=4, seq_first=6),
    ]
    done = warm.write_settled(table(blocks), [], move_id="m", created_us=1)
    assert done.segment is not None
    assert [(one.position, one.ordinal) for one in done.rejected] == [("1-0", 1), ("3-0", -1)]
    rows = rows_in(con, warm, [done.segment])
    assert sorted((row["seq"], row["content"]) for row in rows) == [(1, "a"), (3, "b"), (4, "c"), (6, "d")]
    assert warm.check(done.segment, deep=True) == []
    assert (done.segment.ranges[0].events, done.segment.ranges[0].rejected_upto) == (4, 2)


def test_a_bad_line_among_plain_blocks_leaves_the_rest(warm: DuckWarm) -> None:
    blocks = [block([event(), b'{"event_type":"a","timestamp":1}'], number=1), block([event()], number=2, seq_first=3)]
    done = warm.write_settled(table(blocks), [], move_id="m", created_us=1)
    assert done.segment is not None
    assert (done.segment.rows, len(done.rejected), warm.stored()) == (2, 1, [done.segment.segment_id])


def test_a_settle_without_a_good_event_makes_no_segment(warm: DuckWarm, tmp_path: Path) -> None:
    done = warm.write_settled(table([block([b"x", b"y"])]), [], move_id="m", created_us=1)
    assert done.segment is None
    assert [one.ordinal for one in done.rejected] == [0, 1]
    assert warm.write_settled(table([]), [], move_id="m", created_us=1) == Settled(segment=None, rejected=())
    assert list((tmp_path / "segments").iterdir()) == []


def test_many_event_types_are_not_listed(warm: DuckWarm) -> None:
    def of_types(count: int) -> pa.Table:
        return table([block([event(event_type=f"a.b{n}") for n in range(count)])])

    listed, unlisted = settled(warm, of_types(64)), settled(warm, of_types(65))
    assert listed.event_types == tuple(sorted(f"a.b{n}" for n in range(64)))
    assert unlisted.event_types is None
    assert warm.read_info(unlisted.segment_id) == unlisted


def plain_rollups(con: Connection, warm: DuckWarm, segment: Segment) -> None:
    """Assert that the rollups of a segment equal plain SQL over its events."""
    with attached(con, Path(warm.path(segment.segment_id))) as alias:
        for kept, plain in (
            (
                "SELECT sum(events), sum(content_bytes) FROM {}.rollup_hourly",
                "SELECT count(*), sum(strlen(content)) FROM {}.events",
            ),
            (
                "SELECT * FROM {}.rollup_conversation ORDER BY 1",
                "SELECT conversation_id, min(timestamp), max(timestamp), count(*), 0, 0, max(seq) FROM {}.events"
                " GROUP BY conversation_id ORDER BY conversation_id",
            ),
            (
                "SELECT * FROM {}.rollup_task ORDER BY ALL",
                "SELECT DISTINCT conversation_id, task_id FROM {}.events WHERE task_id IS NOT NULL ORDER BY ALL",
            ),
        ):
            assert con.execute(kept.format(alias)).fetchall() == con.execute(plain.format(alias)).fetchall()


def spread(days: Sequence[int]) -> Callable[[int], int]:
    """Event n lies on day days[n]."""
    return lambda n: DAY0_US + days[n] * DAY_US + n


def test_a_merge_gives_large_days_their_own_segment_and_keeps_the_rest_together(warm: DuckWarm, con: Connection) -> None:
    days = [0] * 400 + [1] * 299 + [-3] * 300 + [5] * 7
    random.Random(2).shuffle(days)
    whole = blocks_of([103, 500, 403], at_us=spread(days))
    half = whole.num_rows // 2
    inputs = [settled(warm, whole.slice(0, half)), settled(warm, whole.slice(half))]
    outputs = warm.write_merged(inputs, level=1, move_id="merge", created_us=9)
    assert [(one.day, one.rows, one.part, one.parts) for one in outputs] == [
        ("2025-10-06", 300, 1, 3),
        ("2025-10-09", 400, 2, 3),
        (None, 306, 3, 3),
    ]
    assert in_order(rows_in(con, warm, outputs)) == in_order(rows_in(con, warm, inputs))
    assert sum(hash_sum(one.checksum) for one in outputs) == sum(hash_sum(one.checksum) for one in inputs)
    for one in outputs:
        assert (one.level, one.move_id, one.created_us, one.has_rollups) == (1, "merge", 9, True)
        assert one.inputs == tuple(source.segment_id for source in inputs)
        assert warm.read_info(one.segment_id) == one
        assert warm.check(one, deep=True) == []
        plain_rollups(con, warm, one)
        assert rows_in(con, warm, [one]) == in_order(rows_in(con, warm, [one]))


def test_a_merge_covers_the_hull_of_its_inputs_and_counts_each_shard_once(warm: DuckWarm) -> None:
    whole = blocks_of([300, 300, 300, 300], at_us=spread([0] * 600 + [1] * 600))
    before: dict[int, ShardState] = {}
    inputs = []
    for start in range(0, whole.num_rows, 10):
        piece = whole.slice(start, 10)
        segment = settled(warm, piece, list(before.values()))
        for one in segment.ranges:
            before[one.shard] = ShardState(shard=one.shard, position=one.upto, events=one.events_upto, bytes=one.bytes_upto)
        inputs.append(segment)
    outputs = warm.write_merged(inputs, level=1, move_id="m", created_us=1)
    assert len(outputs) == 2
    shards = sorted({row["shard"] for row in whole.select(["shard"]).to_pylist()})
    for output in outputs:
        assert [one.shard for one in output.ranges] == shards
        for one in output.ranges:
            assert (one.after, one.upto) == (Position(0, 0), before[one.shard].position)
            assert (one.events_upto, one.bytes_upto) == (before[one.shard].events, before[one.shard].bytes)
    for shard in shards:
        kept = sum(one.events for output in outputs for one in output.ranges if one.shard == shard)
        assert kept == before[shard].events
    again = warm.write_merged(outputs, level=2, move_id="n", created_us=1)
    assert sum(one.rows for one in again) == 1200


def test_what_is_too_large_is_split_by_conversation(warm: DuckWarm, con: Connection) -> None:
    counts = [120] * 20 + [1500] + [80] * 5
    inputs = [settled(warm, blocks_of(counts, at_us=lambda n: DAY0_US + n))]
    outputs = warm.write_merged(inputs, level=2, move_id="m", created_us=1)
    assert [one.day for one in outputs] == ["2025-10-09"] * len(outputs)
    assert [one.part for one in outputs] == list(range(1, len(outputs) + 1))
    assert all(one.rows <= 1000 for one in outputs if one.conversation_min != one.conversation_max)
    assert [one.rows for one in outputs if one.conversation_min == one.conversation_max] == [1500]
    edges = [edge for one in outputs for edge in (one.conversation_min, one.conversation_max)]
    assert edges == sorted(edges)
    assert all(left.conversation_max < right.conversation_min for left, right in itertools.pairwise(outputs))
    assert in_order(rows_in(con, warm, outputs)) == in_order(rows_in(con, warm, inputs))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("days", [["2025-10-09"], ["2025-10-09", "2025-10-10"]])
def test_a_merge_in_many_steps_keeps_order_and_rows(new_warm: NewWarm, con: Connection, days: list[str], threads: int) -> None:
    warm = new_warm(settle_batch_events=500, segment_rows_max=100_000, day_rows_min=2000, threads=threads)
    rng = random.Random(8)
    stamps = [DAY0_US + rng.randrange(len(days)) * DAY_US + rng.randrange(40) for _ in range(6000)]
    blocks = blocks_of([10, 3000, 990, 1000, 1000], at_us=lambda n: stamps[n])
    inputs = [settled(warm, blocks.slice(first, 60)) for first in range(0, blocks.num_rows, 60)]
    outputs = warm.write_merged(inputs, level=1, move_id="m", created_us=1)
    assert [one.day for one in outputs] == days
    assert in_order(rows_in(con, warm, outputs)) == in_order(rows_in(con, warm, inputs))
    for one in outputs:
        assert rows_in(con, warm, [one]) == in_order(rows_in(con, warm, [one]))
        assert warm.check(one, deep=True) == []


def test_what_has_too_many_bytes_is_split_as_well(new_warm: NewWarm) -> None:
    warm = new_warm(segment_bytes_max=1 << 20)
    lines = [event(n, content=random.Random(n).randbytes(5_000).hex()) for n in range(300)]
    blocks = [block(lines[first : first + 10], number=first + 1, conversation_id=f"c{first:03d}") for first in range(0, 300, 10)]
    outputs = warm.write_merged([settled(warm, table(blocks))], level=1, move_id="m", created_us=1)
    assert len(outputs) >= 3
    assert all(one.content_bytes <= 1 << 20 for one in outputs)


def test_a_merge_of_more_than_its_memory_works_and_leaves_nothing(new_warm: NewWarm, tmp_path: Path) -> None:
    lines = [event(n * 7919 % 10_000, content=random.Random(n).randbytes(1_500).hex()) for n in range(10_000)]
    blocks = [
        block(lines[first : first + 100], number=first + 1, conversation_id=f"c{first % 7}", seq_first=1 + first)
        for first in range(0, 10_000, 100)
    ]
    inputs = [settled(new_warm(), table(blocks))] * 3
    few = new_warm(memory_bytes_max=64 << 20, segment_rows_max=1_000_000)
    [output] = few.write_merged(inputs, level=1, move_id="m", created_us=1)
    assert (output.rows, output.content_bytes) == (30_000, 90_000_000)
    few.close()
    assert [path.name for path in tmp_path.iterdir()] == ["segments"]


def test_a_merge_of_large_events_makes_segments_that_can_be_read(new_warm: NewWarm, con: Connection) -> None:
    """DuckDB holds a vector of 2,048 rows at once: of these in one segment, as many bytes as there are. Half are of one
    conversation, which alone is too much."""
    counts = dict.fromkeys(("c0", "c1", "c2", "c3", "c4"), 0)
    blocks = [block([event(content="short")] * 100, number=1, conversation_id="a", seq_first=1)]
    for number in range(2, 122):
        name = f"c{max(0, number % 8 - 3)}"
        counts[name] += 1
        lines = [event(content=chr(64 + number % 60) * 900_000)]
        blocks.append(block(lines, number=number, conversation_id=name, seq_first=counts[name]))
    inputs = [settled(new_warm(), table(blocks[first : first + 20])) for first in range(0, 121, 20)]
    few = new_warm(memory_bytes_max=96 << 20, segment_rows_max=1_000_000, segment_bytes_max=1 << 30)
    outputs = few.write_merged(inputs, level=1, move_id="m", created_us=1)
    assert [one.part for one in outputs] == list(range(1, len(outputs) + 1))
    assert max(one.content_bytes for one in outputs) <= 24 << 20
    assert all(few.check(one, deep=True) == [] for one in outputs)
    assert in_order(rows_in(con, few, outputs)) == in_order(rows_in(con, few, inputs))
    assert [one.conversation_min for one in outputs] == sorted(one.conversation_min for one in outputs)
    assert sum(one.conversation_min == one.conversation_max == "c0" for one in outputs) >= 3


def test_what_a_merge_sorts_at_once_is_whole_row_groups(new_warm: NewWarm, con: Connection) -> None:
    """What is left of one would wait in memory, as it is, until the file is closed."""
    inputs = [settled(new_warm(), blocks_of([5_000])), settled(new_warm(), blocks_of([0, 5_000], first=1_001))]
    few = new_warm(settle_batch_events=5_000, segment_rows_max=1_000_000)
    [output] = few.write_merged(inputs, level=1, move_id="m", created_us=1)
    with attached(con, Path(few.path(output.segment_id))) as alias:
        groups = con.execute(
            f"SELECT sum(count)::BIGINT FROM pragma_storage_info('{alias}.events') WHERE column_name = 'seq' "
            "AND segment_type = 'BIGINT' GROUP BY row_group_id ORDER BY row_group_id"
        ).fetchall()
    assert groups == [(4_096,), (4_096,), (1_808,)]


@pytest.mark.parametrize(
    ("busy", "stored"), [({}, "ZSTD"), ({"settle_events": 80}, "Uncompressed"), ({"settle_bytes": 1}, "Uncompressed")]
)
def test_only_a_settle_of_a_busy_store_leaves_texts_as_they_are(
    new_warm: NewWarm, con: Connection, busy: dict[str, int], stored: str
) -> None:
    warm = new_warm(**busy)
    settle = settled(warm, blocks_of([80]))
    [merged] = warm.write_merged([settle], level=1, move_id="m", created_us=1)
    for segment, expected in ((settle, stored), (merged, "ZSTD")):
        with attached(con, Path(warm.path(segment.segment_id))) as alias:
            found = con.execute(
                f"SELECT DISTINCT compression FROM pragma_storage_info('{alias}.events') WHERE column_name = 'content' "
                "AND segment_type = 'VARCHAR'"
            ).fetchall()
        assert found == [(expected,)]


def test_a_settle_beyond_its_memory_says_which_setting_to_raise(new_warm: NewWarm, tmp_path: Path) -> None:
    big = [block([event(content=chr(64 + n) * 900_000)], number=n, seq_first=n) for n in range(1, 60)]
    with pytest.raises(TierUnavailable, match=r"segments.*raise warm\.memory_bytes_max"):
        new_warm(memory_bytes_max=64 << 20).write_settled(table(big), [], move_id="m", created_us=1)
    assert list((tmp_path / "segments").iterdir()) == []
    assert settled(new_warm(), table(big)).content_bytes == 59 * 900_000


def test_what_a_killed_worker_spilled_is_removed_by_the_next(warm: DuckWarm, tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f"spill-{dead.pid}-1").mkdir()
    (tmp_path / f"spill-{dead.pid}-1" / "duckdb_temp_storage_DEFAULT-0.tmp").write_bytes(b"x")
    alive = tmp_path / f"spill-{os.getpid()}-999"
    alive.mkdir()
    settled(warm, blocks_of([3]))
    assert sorted(path.name for path in tmp_path.glob("spill-*")) == [alive.name]


def test_what_the_worker_of_another_user_spills_is_left_alone(
    warm: DuckWarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    (tmp_path / "spill-4000000-1").mkdir()
    (tmp_path / "spill-of-no-process").mkdir()
    monkeypatch.setattr(os, "kill", denied)
    settled(warm, blocks_of([3]))
    assert sorted(path.name for path in tmp_path.glob("spill-*")) == ["spill-4000000-1", "spill-of-no-process"]


def test_a_merge_that_does_not_add_up_leaves_its_inputs_and_nothing_else(warm: DuckWarm) -> None:
    inputs = [settled(warm, blocks_of([400])), settled(warm, blocks_of([20]))]
    for odd in (
        msgspec.structs.replace(inputs[0], checksum=inputs[0].checksum + "0"),
        msgspec.structs.replace(inputs[0], rows=401),
    ):
        with pytest.raises(TierCorrupt, match=inputs[0].segment_id):
            warm.write_merged([odd, inputs[1]], level=1, move_id="m", created_us=1)
        assert warm.stored() == sorted(one.segment_id for one in inputs)


@pytest.mark.parametrize("days", [[0], [0, 1, 2, 3, 4]])
def test_a_merge_that_loses_a_row_on_the_way_is_not_kept(
    warm: DuckWarm, monkeypatch: pytest.MonkeyPatch, days: list[int]
) -> None:
    inputs = [settled(warm, blocks_of([400 * len(days), 20], at_us=lambda n: DAY0_US + days[n // 400 % len(days)] * DAY_US + n))]
    insert = segment_file._insert
    monkeypatch.setattr(segment_file, "_insert", lambda *args: insert(*args).replace("ORDER BY", "WHERE seq <> 50 ORDER BY"))
    with pytest.raises(TierCorrupt, match="read back"):
        warm.write_merged(inputs, level=1, move_id="m", created_us=1)
    assert warm.stored() == [inputs[0].segment_id]


@pytest.mark.parametrize("count", [1, 5])
def test_a_merge_opens_an_input_twice_however_much_it_writes(warm: DuckWarm, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    inputs = [settled(warm, blocks_of([400 * count], at_us=lambda n: DAY0_US + n // 400 * DAY_US + n)) for _ in range(3)]
    opened: list[Path] = []

    @contextmanager
    def noted(con: Connection, path: Path, **options: Any) -> Iterator[str]:
        opened.append(path)
        with attached(con, path, **options) as alias:
            yield alias

    monkeypatch.setattr(warm_duckdb, "attached", noted)
    assert len(warm.write_merged(inputs, level=1, move_id="m", created_us=1)) == count
    assert opened == [Path(warm.path(one.segment_id)) for one in inputs] * 2


def test_a_merge_that_misses_an_input_says_which(warm: DuckWarm) -> None:
    inputs = [settled(warm, blocks_of([400])), settled(warm, blocks_of([20]))]
    Path(warm.path(inputs[1].segment_id)).unlink()
    with pytest.raises(TierUnavailable, match=inputs[1].segment_id):
        warm.write_merged(inputs, level=1, move_id="m", created_us=1)
    assert warm.stored() == [inputs[0].segment_id]


def test_last_seqs_are_the_highest_over_all_segments(warm: DuckWarm) -> None:
    many = settled(warm, blocks_of([70, 5]))
    few = settled(
        warm, table([block([event()], conversation_id="c001", seq_first=9), block([event()], conversation_id="x", seq_first=4)])
    )
    assert (many.has_rollups, few.has_rollups) == (True, False)
    found = pa.Table.from_batches(list(warm.last_seqs([many, few]))).to_pylist()
    assert {row["conversation_id"]: row["seq"] for row in found} == {"c000": 70, "c001": 9, "x": 4}
    assert list(warm.last_seqs([])) == []


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes meanwhile: what a full disk looks like."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 8 << 10, 40 << 10, 60 << 10])
def test_a_full_disk_stops_a_settle_and_leaves_nothing(warm: DuckWarm, tmp_path: Path, size: int) -> None:
    blocks = blocks_of([400] * 3)
    with file_size_limit(size), pytest.raises(TierUnavailable, match=r"segments.*free disk space"):
        warm.write_settled(blocks, [], move_id="m", created_us=1)
    assert list((tmp_path / "segments").iterdir()) == []
    assert settled(warm, blocks).rows == 1200


def test_a_full_disk_stops_a_merge_and_leaves_the_inputs(warm: DuckWarm, tmp_path: Path) -> None:
    inputs = [settled(warm, blocks_of([400] * 3)), settled(warm, blocks_of([400] * 3, at_us=lambda n: DAY0_US + 3 * DAY_US + n))]
    kept = sorted((tmp_path / "segments").iterdir())
    with file_size_limit(40 << 10), pytest.raises(TierUnavailable, match="free disk space"):
        warm.write_merged(inputs, level=1, move_id="m", created_us=1)
    assert sorted((tmp_path / "segments").iterdir()) == kept
    assert sum(one.rows for one in warm.write_merged(inputs, level=1, move_id="m", created_us=1)) == 2400


@pytest.mark.parametrize(
    ("step", "error"), [("fsync", OSError(28, "No space left on device")), ("rename", OSError(13, "Permission denied"))]
)
def test_a_disk_that_fails_at_the_last_step_leaves_nothing(
    warm: DuckWarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: OSError
) -> None:
    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os if step == "fsync" else Path, step, fail)
        with pytest.raises(TierUnavailable, match=r"segments.*(free disk space|let this user)") as caught:
            warm.write_settled(blocks_of([3]), [], move_id="m", created_us=1)
    assert caught.value.__cause__ is error
    assert list((tmp_path / "segments").iterdir()) == []


def test_a_folder_that_is_not_there_is_named(new_warm: NewWarm, tmp_path: Path) -> None:
    warm = new_warm()
    (tmp_path / "segments").rmdir()
    with pytest.raises(TierUnavailable, match=str(tmp_path / "segments")):
        warm.write_settled(blocks_of([3]), [], move_id="m", created_us=1)


def test_a_segment_that_reads_back_differently_is_not_kept(
    warm: DuckWarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = segment_file.measured

    def other(*args: Any, **kwargs: Any) -> Any:
        facts, beside = measured(*args, **kwargs)
        return msgspec.structs.replace(facts, checksum=facts.checksum + "0"), beside

    monkeypatch.setattr(segment_file, "measured", other)
    with pytest.raises(TierCorrupt, match="read back"):
        warm.write_settled(blocks_of([3]), [], move_id="m", created_us=1)
    assert list((tmp_path / "segments").iterdir()) == []


KILLED_AT_FSYNC = """
import os, pathlib, sys
from tests.contract.test_warm import SETTINGS, blocks_of
from tests.block_tables import SHARDS
from thermocline.tiers.warm_duckdb import DuckWarm
os.fsync = lambda _: os._exit(9)
DuckWarm(pathlib.Path(sys.argv[1]), SETTINGS, shards=SHARDS).write_settled(blocks_of([30]), [], move_id="m", created_us=1)
"""


def test_a_death_before_the_rename_leaves_no_segment(warm: DuckWarm, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    died = subprocess.run([sys.executable, "-c", KILLED_AT_FSYNC, str(tmp_path / "segments")], cwd=root, check=False)
    assert died.returncode == 9
    [left] = [path for path in (tmp_path / "segments").iterdir() if path.suffix != ".sum"]
    assert left.suffix == ".tmp"
    assert warm.stored() == []
    assert warm.bytes_used() == left.stat().st_size


def edited(con: Connection, path: Path, statement: str) -> None:
    """Change a segment's file, as nothing in the product ever does."""
    con.execute(f"ATTACH '{path}' AS edited")
    con.execute(statement)
    con.execute("DETACH edited")


def test_a_format_of_the_future_is_refused_by_name(warm: DuckWarm, con: Connection) -> None:
    segment = settled(warm, blocks_of([3]))
    edited(con, Path(warm.path(segment.segment_id)), "UPDATE edited.segment_info SET format = '2'")
    with pytest.raises(TierCorrupt, match=r"format is '2'.*upgrade Thermocline"):
        warm.read_info(segment.segment_id)
    assert "upgrade Thermocline" in warm.check(segment, deep=False)[0]


def test_what_is_no_segment_cannot_be_read(warm: DuckWarm, con: Connection, tmp_path: Path) -> None:
    folder = tmp_path / "segments"
    (folder / "empty.duckdb").write_bytes(b"")
    (folder / "garbage.duckdb").write_bytes(b"no database" * 5000)
    (folder / "folder.duckdb").mkdir()
    con.execute(f"ATTACH '{folder / 'other.duckdb'}' AS other")
    con.execute("CREATE TABLE other.t AS SELECT 1 AS i")
    con.execute("DETACH other")
    for name in ("empty", "garbage", "other", "folder"):
        with pytest.raises(TierCorrupt, match=f"{name}.duckdb"):
            warm.read_info(name)
    with pytest.raises(TierUnavailable, match=r"missing.duckdb.*take a fresh view"):
        warm.read_info("missing")


def test_check_tells_what_is_wrong_with_a_file(warm: DuckWarm, con: Connection) -> None:
    segment = settled(warm, blocks_of([80]))
    path = Path(warm.path(segment.segment_id))
    assert warm.check(msgspec.structs.replace(segment, rows=81), deep=False) == [
        f"segment {path}: rows is 80, the ledger says 81",
    ]
    assert warm.check(msgspec.structs.replace(segment, file_bytes=1), deep=False)[0].startswith(f"segment {path}: file_bytes is ")
    edited(con, path, "UPDATE edited.events SET content = content || 'x' WHERE seq = 3")
    [shallow] = warm.check(msgspec.structs.replace(segment, file_bytes=path.stat().st_size), deep=False) or [""]
    assert shallow == ""
    told = "\n".join(warm.check(msgspec.structs.replace(segment, file_bytes=path.stat().st_size), deep=True))
    assert "checksum" in told
    assert "rollup_hourly is not what its events add up to" in told
    edited(con, path, "DELETE FROM edited.events WHERE seq = 3")
    assert "it holds 79 rows, not 80" in "\n".join(warm.check(segment, deep=False))
    path.unlink()
    assert warm.check(segment, deep=False) == [f"segment {path}: the file is missing"]


def test_no_flipped_byte_and_no_cut_goes_unseen(warm: DuckWarm) -> None:
    segment = settled(warm, blocks_of([80]))
    path = Path(warm.path(segment.segment_id))
    whole = path.read_bytes()
    seen = 0
    for place in range(0, len(whole), 4999):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        problems = warm.check(segment, deep=True)
        seen += bool(problems)
        assert problems or warm.check(segment, deep=True) == []
    assert seen > 0
    path.write_bytes(whole[: len(whole) // 2])
    assert warm.check(segment, deep=True) != []
    path.write_bytes(whole)
    assert warm.check(segment, deep=True) == []


def test_settles_merges_and_checks_run_side_by_side(warm: DuckWarm) -> None:
    inputs = [settled(warm, blocks_of([400])), settled(warm, blocks_of([400]))]
    failed: list[BaseException] = []
    merged: list[Segment] = []

    def run(task: Callable[[], Any]) -> None:
        try:
            for _ in range(4):
                task()
        except BaseException as exc:
            failed.append(exc)

    tasks: list[Callable[[], Any]] = [
        lambda: settled(warm, blocks_of([60] * 3)),
        lambda: merged.extend(warm.write_merged(inputs, level=1, move_id="m", created_us=1)),
        lambda: [warm.check(one, deep=True) for one in inputs],
        lambda: [warm.read_info(one.segment_id) for one in inputs],
        lambda: list(warm.last_seqs(inputs)),
    ]
    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert sum(one.rows for one in merged) == 4 * 800
    assert len(warm.stored()) == 2 + 4 + len(merged)


def test_a_reader_keeps_an_attached_segment_that_is_unlinked(warm: DuckWarm, con: Connection) -> None:
    segment = settled(warm, blocks_of([80]))
    path = Path(warm.path(segment.segment_id))
    with attached(con, path) as alias:
        path.unlink()
        assert con.execute(f"SELECT count(*) FROM {alias}.events").fetchall() == [(80,)]


def test_large_segments_use_large_blocks(new_warm: NewWarm, con: Connection) -> None:
    sizes = []
    for small_max in (0, 64 << 20):
        segment = settled(new_warm(small_block_bytes_max=small_max), blocks_of([80]))
        with attached(con, Path(new_warm().path(segment.segment_id))) as alias:
            sizes += con.execute(f"SELECT block_size FROM pragma_database_size() WHERE database_name = '{alias}'").fetchall()
    assert sizes == [(262144,), (16384,)]
