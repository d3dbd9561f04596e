"""The Parquet files of a batch: what is in them is what went in, or there are none."""

from __future__ import annotations

import errno
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.waiting import wait_until
from thermocline.errors import TierCorrupt
from thermocline.tiers import batch_files, parquet_file
from thermocline.tiers.batch_files import BatchFiles, Part, prefetched, sha256_of
from thermocline.tiers.cold_schema import SCHEMAS
from thermocline.tiers.duck import Connection, connect
from thermocline.tiers.parquet_file import (
    GROUP_ROWS,
    PIECE_ROWS,
    ParquetFile,
    facts_of,
    page_problem,
    row_hashes,
    sums_read_back,
)

KIND, DAY = "rollup_task", "2026-11-13"
MIB = 1 << 20


@pytest.fixture
def con() -> Iterator[Connection]:
    made = connect(memory_bytes=256 * MIB, threads=2)
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "staging"
    folder.mkdir()
    return folder


def batch(con: Connection, folder: Path, *, bytes_max: int = MIB) -> BatchFiles:
    return BatchFiles(con, folder, batch_id="b", cold_url="file:///cold", ranges="[]", created_us=1, bytes_max=bytes_max)


def tasks(first: int, last: int, task: str = "'t'") -> str:
    """SELECT of a row for each number, each of a conversation of its own."""
    return f"SELECT printf('c%07d', i) AS conversation_id, {task} AS task_id FROM range({first}, {last}) AS numbers(i)"


def parts(*selects: str) -> list[Part]:
    return [Part(KIND, select, DAY) for select in selects]


def conversations(paths: list[Path]) -> list[str]:
    return pa.concat_tables([pq.read_table(path) for path in paths])["conversation_id"].to_pylist()


def test_a_file_ends_with_the_row_group_that_passes_the_limit(con: Connection, folder: Path) -> None:
    files = batch(con, folder, bytes_max=1)
    files.write(parts(tasks(0, 2 * GROUP_ROWS)))
    paths = [one.path for one in files.staged]
    assert [pq.read_metadata(path).num_rows for path in paths] == [GROUP_ROWS] * 2
    assert [pq.read_metadata(path).num_row_groups for path in paths] == [1, 1]
    assert conversations(paths) == [f"c{number:07}" for number in range(2 * GROUP_ROWS)]
    assert [one.key for one in files.staged] == [f"{KIND}/day={DAY}/b-0000{number}.parquet" for number in (1, 2)]
    assert [one.file.conversation_max for one in files.staged] == [f"c{GROUP_ROWS - 1:07}", f"c{2 * GROUP_ROWS - 1:07}"]


def test_a_file_below_the_limit_has_row_groups_of_one_size_whatever_pieces_come(con: Connection, folder: Path) -> None:
    files = batch(con, folder, bytes_max=1 << 30)
    files.write(parts(tasks(0, 50_000), tasks(50_000, 50_001), tasks(50_001, GROUP_ROWS + 10)))
    [one] = files.staged
    found = pq.read_metadata(one.path)
    assert [found.row_group(number).num_rows for number in range(found.num_row_groups)] == [GROUP_ROWS, 10]
    assert conversations([one.path]) == [f"c{number:07}" for number in range(GROUP_ROWS + 10)]
    assert (one.file.rows, one.file.checksum) == (GROUP_ROWS + 10, sha256_of(one.path))


def test_no_rows_are_no_file(con: Connection, folder: Path) -> None:
    files = batch(con, folder)
    files.write(parts(tasks(0, 0)))
    assert files.staged == []
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("before", [0, 10], ids=["first", "second"])
def test_a_query_that_fails_leaves_no_file_however_much_was_written(con: Connection, folder: Path, before: int) -> None:
    files = batch(con, folder)
    broken = tasks(10, 20, "CASE WHEN i = 15 THEN error('broken off') ELSE 't' END")
    with pytest.raises(duckdb.Error, match="broken off"):
        files.write(parts(tasks(0, before), broken))
    assert files.staged == []
    assert list(folder.iterdir()) == []
    files.write(parts(tasks(0, 3)))
    assert [one.file.rows for one in files.staged] == [3]


def test_what_reads_back_otherwise_than_it_went_in_is_not_staged(
    con: Connection, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a disk may do it: the file is a sound one with as many rows, but with others."""
    close = ParquetFile.close

    def close_and_change(self: ParquetFile, facts: dict[str, str]) -> parquet_file.Written:
        written = close(self, facts)
        names = {"conversation_id": ["c0000000", "c0000009"], "task_id": ["t", "t"]}
        pq.write_table(pa.table(names, SCHEMAS[KIND]), self.path)
        return written

    files = batch(con, folder)
    with monkeypatch.context() as patch:
        patch.setattr(ParquetFile, "close", close_and_change)
        with pytest.raises(TierCorrupt, match=r"read back 2 rows that are not the 2 written; nothing was archived"):
            files.write(parts(tasks(0, 2)))
    assert files.staged == []
    assert list(folder.iterdir()) == []


def test_a_damaged_file_is_told_by_every_look_at_it(con: Connection, folder: Path) -> None:
    files = batch(con, folder)
    files.write(parts(tasks(0, 1000, "md5(i::VARCHAR)")))
    path = files.staged[0].path
    sound = path.read_bytes()
    assert page_problem(path) == ""
    assert facts_of(path)["thermocline.kind"] == KIND
    assert sums_read_back(path)[0] == 1000
    for content, words in ((sound[: len(sound) // 2], "Parquet magic bytes"), (b"", "size is 0 bytes")):
        path.write_bytes(content)
        assert words in page_problem(path)
        with pytest.raises(TierCorrupt, match=f"cannot be read back .*{words}.*nothing was archived"):
            sums_read_back(path)
        with pytest.raises(TierCorrupt, match=f"cannot be read .*{words}.*restore it from a copy"):
            facts_of(path)
    path.write_bytes(sound[:300] + bytes([sound[300] ^ 1]) + sound[301:])
    assert "CRC" in page_problem(path) or "checksum" in page_problem(path)


def test_a_file_given_up_is_gone(folder: Path) -> None:
    file = ParquetFile(folder / "x.parquet", SCHEMAS[KIND])
    file.add(pa.table({"conversation_id": ["c"], "task_id": ["t"]}, SCHEMAS[KIND]))
    file.abandon()
    assert list(folder.iterdir()) == []


def threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name == "thermocline-rows"]


def one(item: int) -> int:
    return 1


def test_items_come_in_order_and_are_made_only_a_little_ahead() -> None:
    made: list[int] = []
    items = prefetched((made.append(number) or number for number in range(50)), size=one, size_max=2)  # type: ignore[func-returns-value]
    for number in range(50):
        assert next(items) == number
        assert len(made) <= number + 5
    assert list(items) == []
    assert threads() == []


def test_what_waits_is_bounded_by_its_size_however_large_an_item_is() -> None:
    made: list[int] = []
    sizes = [1, 3, 4, 2, 100, 1, 1]
    items = prefetched((made.append(size) or size for size in sizes), size=int, size_max=8)  # type: ignore[func-returns-value]
    assert next(items) == 1
    wait_until(lambda: len(made) == 5, 10, "3, 4 and 2 wait, and 100 has no place")
    assert next(items) == 3
    wait_until(lambda: len(made) == 6, 10, "4 and 2 left 100 a place")
    assert [next(items), next(items)] == [4, 2]
    assert len(made) == 6  # beside 100 nothing has a place
    assert list(items) == [100, 1, 1]
    assert threads() == []


def test_whoever_takes_no_more_items_ends_their_making() -> None:
    made: list[int] = []
    items = prefetched((made.append(number) or number for number in itertools.count()), size=one, size_max=1)  # type: ignore[func-returns-value]
    assert [next(items), next(items)] == [0, 1]
    wait_until(lambda: len(made) == 4, 10, "one item waits, and the one after it has no place")
    items.close()  # type: ignore[attr-defined]
    assert threads() == []
    assert len(made) == 4


def test_an_error_in_the_making_comes_after_the_items_before_it() -> None:
    def make() -> Iterator[int]:
        yield 1
        raise TierCorrupt("no more")

    items = prefetched(make(), size=one, size_max=2)
    assert next(items) == 1
    with pytest.raises(TierCorrupt, match="no more"):
        next(items)
    assert threads() == []


class Uncaught(BaseException):
    """As KeyboardInterrupt is."""


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), pa.ArrowInvalid("no"), Uncaught("ended")])
@pytest.mark.parametrize("where", ["encoding", "sums"])
def test_what_fails_in_encoding_or_in_the_sums_leaves_no_file_and_no_thread(
    con: Connection, folder: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    """After a first row group, so that there is a file."""
    written: list[int] = []

    def write_group(self: ParquetFile) -> None:
        written.append(GROUP_ROWS)
        if where == "encoding" and len(written) == 2:
            raise error
        write(self)

    def hashes(rows: pa.Table) -> int:
        if where == "sums" and rows["conversation_id"][-1].as_py() >= f"c{GROUP_ROWS:07}":
            raise error
        return row_hashes(rows)

    write = ParquetFile._write_group
    files = batch(con, folder, bytes_max=1 << 30)
    with monkeypatch.context() as patch:
        patch.setattr(ParquetFile, "_write_group", write_group)
        patch.setattr(batch_files, "row_hashes", hashes)
        with pytest.raises(type(error)) as raised:
            files.write(parts(tasks(0, 3 * GROUP_ROWS)))
    assert raised.value is error
    assert written == [GROUP_ROWS] * (2 if where == "encoding" else 1)
    assert files.staged == []
    assert list(folder.iterdir()) == []
    assert threads() == []
    files.write(parts(tasks(0, 3)))
    assert [one.file.rows for one in files.staged] == [3]


@pytest.mark.parametrize(("waiting_bytes", "ahead"), [(1 << 30, 8), (1, 2)], ids=["with room", "without"])
def test_the_next_rows_are_summed_while_a_row_group_is_encoded_as_far_as_there_is_room(
    con: Connection, folder: Path, monkeypatch: pytest.MonkeyPatch, waiting_bytes: int, ahead: int
) -> None:
    """Without room one piece waits and one is in hand."""
    group = GROUP_ROWS // PIECE_ROWS
    summed: list[int] = []
    begun: list[ParquetFile] = []

    def write_group(self: ParquetFile) -> None:
        begun.append(self)
        if len(begun) == 1:
            wait_until(lambda: len(summed) == group + ahead, 10, "what has room is summed")
        write(self)

    write = ParquetFile._write_group
    monkeypatch.setattr(ParquetFile, "_write_group", write_group)
    monkeypatch.setattr(batch_files, "WAITING_BYTES", waiting_bytes)
    monkeypatch.setattr(batch_files, "row_hashes", lambda rows: summed.append(rows.num_rows) or row_hashes(rows))  # type: ignore[func-returns-value]
    files = batch(con, folder, bytes_max=1 << 30)
    files.write(parts(tasks(0, (group + 8) * PIECE_ROWS)))
    assert [one.file.rows for one in files.staged] == [sum(summed)]


@pytest.mark.parametrize("pieces", [(50_000,), (16_384, 16_384, 17_232), (1, 20_000, 29_999), (9_999, 40_001)])
def test_a_file_has_the_same_bytes_however_its_rows_arrive(folder: Path, pieces: tuple[int, ...]) -> None:
    schema = SCHEMAS[KIND]
    names = pa.array([f"c{number % 977:03}" for number in range(50_000)])
    rows = pa.table({"conversation_id": names, "task_id": names}, schema)
    found = []
    for name, sizes in (("whole", [50_000]), ("pieces", pieces)):
        file, start = ParquetFile(folder / name, schema), 0
        for size in sizes:
            file.add(rows.slice(start, size))
            start += size
        file.close({})
        found.append((folder / name).read_bytes())
    assert found[0] == found[1]
