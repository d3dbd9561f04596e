"""DuckDB reading Parquet objects without an extension: the right rows, few requests, one at a time for every byte."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from thermocline.config import Settings
from thermocline.errors import TierCorrupt, TierUnavailable
from thermocline.tiers.cold import Cold
from thermocline.tiers.cold_folder import FolderCold
from thermocline.tiers.cold_opening import open_cold
from thermocline.tiers.cold_reading import ColdFiles
from thermocline.tiers.duck import connect

ROWS, GROUP_ROWS, CONVERSATIONS = 30_000, 10_000, 300
KEYS = [f"events/day=2026-11-{day}/0190-1.parquet" for day in (11, 12, 13)]
MIB = 1 << 20


def write_day(path: Path, seed: int) -> None:
    """Sorted by conversation; half of the bytes are content that does not compress. About 3 MB."""
    draw = np.random.default_rng(seed)
    table = pa.table(
        {
            "event_id": pa.array([draw.bytes(16) for _ in range(ROWS)], pa.binary(16)),
            "conversation_id": [f"chat-{number:04}" for number in np.sort(draw.integers(0, CONVERSATIONS, ROWS))],
            "seq": np.arange(ROWS),
            "event_type": draw.choice(["message.user", "tool.call", "error"], ROWS).tolist(),
            "timestamp": pa.array(np.arange(ROWS) * 1000, pa.timestamp("us", "UTC")),
            "duration_ms": draw.random(ROWS),
            "content": [draw.bytes(50).hex() for _ in range(ROWS)],
        }
    )
    with pq.ParquetWriter(path, table.schema, compression="zstd", write_page_checksum=True) as writer:
        for at in range(0, ROWS, GROUP_ROWS):
            writer.write_table(table.slice(at, GROUP_ROWS), row_group_size=GROUP_ROWS)


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("days")
    paths = [folder / f"{number}.parquet" for number in range(len(KEYS))]
    for number, path in enumerate(paths):
        write_day(path, number)
    return paths


@pytest.fixture(params=["folder", "moto", pytest.param("swift", marks=pytest.mark.long)])
def cold(request: pytest.FixtureRequest, tmp_path: Path, days: list[Path]) -> Iterator[Cold]:
    url = None if request.param == "folder" else request.getfixturevalue(f"{request.param}_bucket").url
    cold = open_cold(Settings(data_dir=tmp_path, cold_url=url))
    for key, path in zip(KEYS, days, strict=True):
        cold.put_file(key, path)
    yield cold
    cold.close()


def sizes(days: list[Path]) -> dict[str, int]:
    return {key: path.stat().st_size for key, path in zip(KEYS, days, strict=True)}


def opened(files: ColdFiles, *, threads: int = 2) -> duckdb.DuckDBPyConnection:
    con = connect(memory_bytes=256 * MIB, threads=threads)
    con.register_filesystem(files)
    return con


def relation(places: list[str]) -> str:
    return "read_parquet([" + ", ".join(f"'{place}'" for place in places) + "])"


COLD = relation([f"cold://{key}" for key in KEYS])
COLUMNS = "conversation_id, seq, event_type, timestamp::VARCHAR, duration_ms"
ONE_CHAT = f"SELECT {COLUMNS} FROM {{}} WHERE conversation_id = 'chat-0123' ORDER BY ALL"
EVERYTHING = (
    "SELECT count(*), sum(seq), sum(duration_ms), md5(string_agg(content, '' ORDER BY conversation_id, seq, content)) FROM {}"
)


def test_one_conversation_of_three_files_takes_a_dozen_requests_and_none_the_second_time(cold: Cold, days: list[Path]) -> None:
    files = ColdFiles(cold)
    files.know(sizes(days))
    con = opened(files)
    rows = con.sql(ONE_CHAT.format(COLD)).fetchall()
    assert rows == connect(memory_bytes=MIB << 8, threads=2).sql(ONE_CHAT.format(relation(list(map(str, days))))).fetchall()
    assert len(rows) > 150
    reads = files.reads
    assert reads.requests <= 4 * len(KEYS)
    assert reads.bytes < sum(sizes(days).values())
    assert con.sql(ONE_CHAT.format(COLD)).fetchall() == rows
    assert files.reads == reads


def test_everything_is_read_right_by_many_threads(cold: Cold, days: list[Path]) -> None:
    files = ColdFiles(cold)
    files.know(sizes(days))
    rows = opened(files, threads=4).sql(EVERYTHING.format(COLD)).fetchall()
    local = connect(memory_bytes=MIB << 8, threads=2).sql(EVERYTHING.format(relation(list(map(str, days))))).fetchall()
    assert rows[0][:2] == local[0][:2]
    assert rows[0][3] == local[0][3]
    assert files.reads.bytes == sum(sizes(days).values())


def test_a_wildcard_and_unknown_sizes_cost_no_request_per_file(cold: Cold) -> None:
    files = ColdFiles(cold)
    con = opened(files)
    assert con.sql("SELECT count(*) FROM read_parquet('cold://events/**/*.parquet')").fetchall() == [(3 * ROWS,)]
    assert files.reads.requests == 2 + len(KEYS)  # DuckDB asks for the names twice
    assert con.sql("SELECT count(*) FROM read_parquet('cold://events/day=2026-11-1[23]/*.parquet')").fetchall() == [(2 * ROWS,)]


def test_an_object_that_is_not_there_is_an_error_with_its_name(tmp_path: Path) -> None:
    files = ColdFiles(FolderCold(tmp_path))
    with pytest.raises(duckdb.Error, match=r"cold://events/gone\.parquet"):
        opened(files).sql("SELECT * FROM read_parquet('cold://events/gone.parquet')")


def test_what_the_store_raised_can_be_had_after_duckdb_made_text_of_it(tmp_path: Path, days: list[Path]) -> None:
    class Gone(FolderCold):
        def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
            raise TierUnavailable("the bucket is away: do this")

    files = ColdFiles(Gone(tmp_path))
    files.know(sizes(days))
    with pytest.raises(duckdb.Error, match="the bucket is away: do this") as raised:
        opened(files).sql(EVERYTHING.format(COLD)).fetchall()
    for _ in range(2):  # two queries may fail over one request
        failure = files.failure_in(str(raised.value))
        assert isinstance(failure, TierUnavailable)
        assert str(failure) == "the bucket is away: do this"
    assert files.failure_in("Binder Error: there is no such column") is None


def test_a_file_that_is_shorter_than_known_is_corrupt(tmp_path: Path) -> None:
    cold = FolderCold(tmp_path)
    cold.put("a", b"0123456789")
    files = ColdFiles(cold)
    files.know({"a": 11})
    with pytest.raises(TierCorrupt, match="ends after 10 of 11 bytes"):
        files.open("cold://a").read()


class Counting(FolderCold):
    """Notes what is read; waits before it answers until it is let go."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.gets: list[tuple[int, int | None]] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        self.gets.append((offset, length))
        assert self.go_on.wait(30)
        return super().get(key, offset=offset, length=length)


@pytest.fixture
def counting(tmp_path: Path) -> Counting:
    cold = Counting(tmp_path)
    cold.put("a", os.urandom(10_000))
    return cold


def test_any_range_is_right_whatever_was_read_before(counting: Counting) -> None:
    content = counting.get("a")
    files = ColdFiles(counting, block_bytes=1000, tail_bytes=300, cache_bytes_max=2500)
    draw = np.random.default_rng(1)
    file = files.open("a")
    for _ in range(500):
        at, count = int(draw.integers(0, 10_100)), int(draw.integers(0, 4000))
        file.seek(at)
        assert file.read(count) == content[at : at + count]
        assert files.reads.cached_bytes <= 2500
    file.seek(-10, 2)
    assert (file.read(), file.read(), file.tell()) == (content[-10:], b"", 10_000)


def test_neighbouring_blocks_come_with_one_request_and_the_end_with_its_own(counting: Counting) -> None:
    files = ColdFiles(counting, block_bytes=1000, tail_bytes=300)
    files.know({"a": 10_000})
    file = files.open("a")
    file.seek(-8, 2)
    file.read()
    assert counting.gets == [(9700, 300)]
    file.seek(2500)
    file.read(10)
    file.seek(500)
    file.read(4000)
    assert counting.gets[1:] == [(2000, 1000), (0, 2000), (3000, 2000)]
    file.seek(0)
    file.read()
    assert counting.gets[4:] == [(5000, 4700)]
    file.seek(0)
    file.read()
    assert len(counting.gets) == 5
    assert (files.reads.requests, files.reads.bytes) == (5, 10_000)


def test_a_file_of_one_block_comes_with_one_request(counting: Counting) -> None:
    files = ColdFiles(counting, block_bytes=10_000, tail_bytes=300)
    file = files.open("a")
    file.seek(-8, 2)
    file.read()
    file.seek(0)
    file.read()
    assert counting.gets == [(0, 10_000)]


def test_threads_that_want_the_same_bytes_wait_for_one_request(counting: Counting) -> None:
    content = counting.get("a")
    counting.gets.clear()
    counting.go_on.clear()
    files = ColdFiles(counting, block_bytes=1000, tail_bytes=300)
    file = files.open("a")
    with ThreadPoolExecutor(8) as pool:
        reads = [pool.submit(files.read_range, "a", 1000, 3000) for _ in range(8)]
        counting.go_on.set()
        assert [read.result(30) for read in reads] == [content[1000:3000]] * 8
    assert counting.gets == [(1000, 2000)]
    assert file.size == 10_000


def test_threads_share_a_handle_without_sharing_its_place(counting: Counting) -> None:
    content = counting.get("a")
    file = ColdFiles(counting, block_bytes=1000, tail_bytes=300).open("a")

    def read(at: int) -> bool:
        file.seek(at)
        return file.read(100) == content[at : at + 100]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, [number * 37 % 9000 for number in range(2000)]))


def test_a_failed_read_is_tried_again_by_the_next(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ColdFiles(counting, block_bytes=1000, tail_bytes=300)

    def fail(*_: object, **__: object) -> bytes:
        raise TierUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(counting, "get", fail)
        with pytest.raises(TierUnavailable):
            files.open("a").read()
    assert files.open("a").read() == counting.get("a")


def test_of_a_read_that_fails_half_way_the_first_half_is_not_fetched_again(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = counting.get("a")
    files = ColdFiles(counting, block_bytes=1000, tail_bytes=300)
    assert files.read_range("a", 2000, 3000) == content[2000:3000]
    get = counting.get

    def fail(key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        if offset:
            raise TierUnavailable("away")
        return get(key, offset=offset, length=length)

    with monkeypatch.context() as patch:
        patch.setattr(counting, "get", fail)
        with pytest.raises(TierUnavailable, match="away"):
            files.read_range("a", 0, 5000)
    counting.gets.clear()
    assert files.read_range("a", 0, 5000) == content[:5000]
    assert counting.gets == [(3000, 2000)]


def test_a_cold_file_is_a_file_to_other_readers_than_duckdb(counting: Counting, days: list[Path]) -> None:
    content = counting.get("a")
    files = ColdFiles(counting, block_bytes=1000, tail_bytes=300)
    with io.BufferedReader(files.open("a"), 64) as buffered:
        assert (buffered.read(10), buffered.seek(-5, io.SEEK_CUR), buffered.read(5)) == (content[:10], 5, content[5:10])
        assert buffered.read() == content[10:]
        assert buffered.read() == b""
    counting.put_file(KEYS[0], days[0])
    assert pq.read_table(files.open(KEYS[0]), columns=["seq"]).equals(pq.read_table(days[0], columns=["seq"]))


def test_cold_files_are_only_read(counting: Counting) -> None:
    files = ColdFiles(counting)
    with pytest.raises(PermissionError, match="only read"):
        files.open("a", "wb")
    with pytest.raises(duckdb.Error, match="only read"):
        opened(files).execute("COPY (SELECT 1) TO 'cold://b.parquet'")
    assert not counting.path("b").exists()
