"""The Iceberg tables of the cold tier on a local folder: what other engines read, and that every batch is there exactly once."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import StaticTable
from pyiceberg.transforms import DayTransform
from pyiceberg.types import DecimalType, TimestamptzType, UUIDType

from tests.rest_catalog import RestCatalogServer
from tests.s3_servers import Bucket
from tests.waiting import wait_until
from thermocline import config
from thermocline.errors import ConfigError, TierCorrupt, TierUnavailable
from thermocline.tiers.avro_frame import is_whole
from thermocline.tiers.cold import StoredObject
from thermocline.tiers.cold_folder import FolderCold
from thermocline.tiers.cold_opening import open_cold
from thermocline.tiers.cold_schema import KINDS, SCHEMAS
from thermocline.tiers.iceberg import IcebergTables
from thermocline.tiers.iceberg_errors import translated
from thermocline.tiers.iceberg_io import ColdFileIO, Handed

FIRST_DAY = datetime(2026, 11, 1, tzinfo=UTC)
ROWS = 5
METADATA = "iceberg/events/metadata"
LOAD_TABLE = "thermocline.tiers.iceberg_catalog._FrugalCatalog.load_table"


class FaultyCold(FolderCold):
    """A folder that fails at one of the changes made through it, before or after it is done."""

    fails_at: int | None = None
    after = False
    changes = 0

    def put(self, key: str, content: bytes, *, replace: bool = False) -> None:
        now = self.fails_at == self.changes
        self.changes += 1
        if now and not self.after:
            raise TierUnavailable("the store is away")
        super().put(key, content, replace=replace)
        if now:
            raise TierUnavailable("the reply was lost")


class Site:
    """A namespace with its store; `tables()` opens it as a new process would."""

    def __init__(self, folder: Path, **cold: Any) -> None:
        self.settings = config.load({"data_dir": folder, "namespace": "agents", "cold": cold}, environ={})
        self.cold = FaultyCold(folder / "cold")
        self.catalog = folder / "agents" / "catalog.db"
        self._opened: list[IcebergTables] = []

    def tables(self) -> IcebergTables:
        self._opened.append(IcebergTables(self.cold, self.settings))
        return self._opened[-1]

    def put(self, key: str, *, day: int = 0, rows: int = ROWS) -> str:
        """Store a Parquet file of the kind its key begins with, of one day."""
        self.cold.put(key, parquet_of(key.partition("/")[0], day, rows))
        return key

    def paths(self, keys: set[str]) -> list[str]:
        return [str(self.cold.path(key)) for key in sorted(keys)]

    def names(self, prefix: str = f"{METADATA}/") -> list[str]:
        return [one.key.removeprefix(prefix) for one in self.cold.objects(prefix)]

    def latest(self, kind: str = "events") -> str:
        return self.cold.url_of(f"iceberg/{kind}/metadata/latest.metadata.json")

    def close(self) -> None:
        for tables in self._opened:
            tables.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


@pytest.fixture
def tables(site: Site) -> IcebergTables:
    tables = site.tables()
    tables.ensure()
    return tables


def parquet_of(kind: str, day: int, rows: int) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(rows_of(kind, day, rows), sink, compression="zstd", write_page_checksum=True)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def rows_of(kind: str, day: int, rows: int) -> pa.Table:
    columns = [pa.array([_value(field, day, row) for row in range(rows)], type=field.type) for field in SCHEMAS[kind]]
    return pa.table(columns, schema=SCHEMAS[kind])


def _value(field: pa.Field, day: int, row: int) -> Any:
    if isinstance(field.type, pa.UuidType):
        return UUID(int=(day << 64) + row).bytes
    if pa.types.is_timestamp(field.type):
        return FIRST_DAY + timedelta(days=day, seconds=row)
    if pa.types.is_decimal(field.type):
        return Decimal(10**37 + row)
    if pa.types.is_string(field.type):
        return None if field.nullable and row == 0 else f"{field.name} {row}"
    return row if pa.types.is_integer(field.type) else row / 4


def rows_in(url: str) -> int:
    return StaticTable.from_metadata(url).scan().to_arrow().num_rows


def header_bytes(avro: bytes) -> int:
    """Where the marker that also ends the file is for the first time, and with it the header."""
    return avro.index(avro[-16:]) + 16


def now_us() -> int:
    return time.time_ns() // 1000


def test_opening_the_tables_does_not_import_pyiceberg() -> None:
    code = "import sys, thermocline.store, thermocline.tiers.iceberg; sys.exit('pyiceberg' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_has_the_columns_of_its_files_under_their_ids(site: Site, tables: IcebergTables, kind: str) -> None:
    table = StaticTable.from_metadata(tables.metadata_url(kind))
    ids = {field.name: int(field.metadata[b"PARQUET:field_id"]) for field in SCHEMAS[kind]}
    required = {field.name for field in SCHEMAS[kind] if not field.nullable}
    assert {field.name: field.field_id for field in table.schema().fields} == ids
    assert {field.name for field in table.schema().fields if field.required} == required
    assert table.location() == f"{site.cold.url}/iceberg/{kind}"
    assert table.format_version == 2


def test_the_types_are_icebergs_own(tables: IcebergTables) -> None:
    events = StaticTable.from_metadata(tables.metadata_url("events")).schema()
    hourly = StaticTable.from_metadata(tables.metadata_url("rollup_hourly")).schema()
    assert events.find_type("event_id") == UUIDType()
    assert events.find_type("timestamp") == TimestamptzType()
    assert hourly.find_type("input_tokens") == DecimalType(38, 0)


def test_events_are_split_by_day_and_rollups_are_not(tables: IcebergTables) -> None:
    specs = {kind: StaticTable.from_metadata(tables.metadata_url(kind)).spec() for kind in KINDS}
    [by] = specs["events"].fields
    assert (by.name, by.source_id, by.transform) == ("timestamp_day", 5, DayTransform())
    assert all(specs[kind].is_unpartitioned() for kind in KINDS if kind != "events")


def test_making_the_tables_again_changes_nothing(site: Site, tables: IcebergTables) -> None:
    before = {kind: tables.metadata_url(kind) for kind in KINDS}
    names = site.names("")
    tables.ensure()
    site.tables().ensure()
    assert {kind: tables.metadata_url(kind) for kind in KINDS} == before
    assert site.names("") == names


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_in_the_table_with_its_files(site: Site, tables: IcebergTables, kind: str) -> None:
    keys = [site.put(f"{kind}/b1-{part}.parquet", day=part) for part in (1, 2)]
    snapshot_id = tables.commit(kind, "b1", keys)
    assert tables.keys(kind) == set(keys)
    assert tables.batches(kind) == {"b1"}
    table = StaticTable.from_metadata(tables.metadata_url(kind))
    current = table.current_snapshot()
    assert current is not None and str(current.snapshot_id) == snapshot_id
    found = table.scan().to_arrow()
    assert found.num_rows == 2 * ROWS
    expected = pa.concat_tables([rows_of(kind, day, ROWS) for day in (1, 2)]).cast(found.schema)
    assert sorted(map(str, found.to_pylist())) == sorted(map(str, expected.to_pylist()))


def test_a_scan_of_one_day_reads_the_files_of_that_day(site: Site, tables: IcebergTables) -> None:
    tables.commit("events", "b1", [site.put(f"events/b1-{day}.parquet", day=day) for day in range(4)])
    instant = (FIRST_DAY + timedelta(days=2)).isoformat()
    until = (FIRST_DAY + timedelta(days=3)).isoformat()
    scan = StaticTable.from_metadata(site.latest()).scan(f"timestamp >= '{instant}' and timestamp < '{until}'")
    assert [task.file.file_path for task in scan.plan_files()] == [site.cold.url_of("events/b1-2.parquet")]
    assert scan.to_arrow().num_rows == ROWS


def test_manifests_hold_no_text_of_conversations(site: Site, tables: IcebergTables) -> None:
    tables.commit("events", "b1", [site.put("events/b1-1.parquet")])
    table = StaticTable.from_metadata(site.latest())
    [task] = table.scan().plan_files()
    hidden = {table.schema().find_field(name).field_id for name in ("content", "metadata")}
    assert task.file.lower_bounds.keys() & hidden == set()
    assert task.file.lower_bounds.keys() >= {1, 2, 5}


def test_a_second_commit_of_a_batch_changes_nothing(site: Site, tables: IcebergTables) -> None:
    keys = [site.put("events/b1-1.parquet")]
    first = tables.commit("events", "b1", keys)
    version = tables.metadata_url("events")
    assert tables.commit("events", "b1", keys) == first
    assert site.tables().commit("events", "b1", keys) == first
    assert tables.metadata_url("events") == version
    assert rows_in(site.latest()) == ROWS


def test_a_file_is_not_added_by_two_batches(site: Site, tables: IcebergTables) -> None:
    key = site.put("events/b1-1.parquet")
    tables.commit("events", "b1", [key])
    with pytest.raises(TierCorrupt, match=r"nothing of batch b2 was committed.*b1-1\.parquet'\] is in the table already"):
        tables.commit("events", "b2", [key])
    assert tables.batches("events") == {"b1"}


@pytest.mark.parametrize("kind", ["events", "rollup_hourly"])
def test_compaction_is_one_snapshot_that_leaves_the_right_rows(site: Site, tables: IcebergTables, kind: str) -> None:
    small = [site.put(f"{kind}/b1-{part}.parquet", rows=1) for part in range(3)]
    other = site.put(f"{kind}/b1-9.parquet", day=5)
    tables.commit(kind, "b1", [*small, other])
    large = site.put(f"{kind}/c1-1.parquet", rows=3)
    tables.commit(kind, "c1", [large], small)
    assert tables.keys(kind) == {large, other}
    table = StaticTable.from_metadata(site.latest(kind))
    assert table.scan().to_arrow().num_rows == 3 + ROWS
    current = table.current_snapshot()
    assert current is not None and current.summary is not None
    assert [current.summary[name] for name in ("added-data-files", "deleted-data-files", "total-records")] == ["1", "3", "8"]
    assert len(table.snapshots()) == 2


def test_files_can_leave_without_new_ones(site: Site, tables: IcebergTables) -> None:
    keys = [site.put(f"rollup_task/b1-{part}.parquet") for part in range(2)]
    tables.commit("rollup_task", "b1", keys)
    tables.commit("rollup_task", "c1", [], keys)
    assert tables.keys("rollup_task") == set()
    assert rows_in(site.latest("rollup_task")) == 0


def test_what_is_not_there_cannot_be_replaced(site: Site, tables: IcebergTables) -> None:
    with pytest.raises(TierCorrupt, match=r"nothing of batch c1 was committed.*that it replaces is not there"):
        tables.commit("events", "c1", [site.put("events/c1-1.parquet")], ["events/b1-1.parquet"])
    assert tables.keys("events") == set()


def test_a_file_that_is_missing_or_of_two_days_or_of_other_columns_is_refused(site: Site, tables: IcebergTables) -> None:
    site.cold.put("events/tasks.parquet", site.cold.get(site.put("rollup_task/b1-1.parquet")))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables([rows_of("events", day, 1) for day in (1, 2)]), sink)
    site.cold.put("events/two-days.parquet", sink.getvalue().to_pybytes())
    site.cold.put("events/text.parquet", b"no Parquet at all")
    for number, name in enumerate(["tasks", "two-days", "text", "missing"]):
        with pytest.raises(TierCorrupt, match=f"nothing of batch b{number} was committed"):
            tables.commit("events", f"b{number}", [f"events/{name}.parquet"])
    assert tables.batches("events") == set()


def test_a_commit_whose_reply_is_lost_is_found(site: Site, tables: IcebergTables, monkeypatch: pytest.MonkeyPatch) -> None:
    original = SqlCatalog.commit_table

    def lose(self: SqlCatalog, *args: Any) -> Any:
        original(self, *args)
        monkeypatch.setattr(SqlCatalog, "commit_table", original)
        raise ConnectionResetError("the reply was lost")

    monkeypatch.setattr(SqlCatalog, "commit_table", lose)
    keys = [site.put("events/b1-1.parquet")]
    snapshot_id = tables.commit("events", "b1", keys)
    assert tables.commit("events", "b1", keys) == snapshot_id
    assert rows_in(site.latest()) == rows_in(tables.metadata_url("events")) == ROWS


def test_a_commit_that_did_not_arrive_says_so_and_can_be_repeated(
    site: Site, tables: IcebergTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: SqlCatalog, *args: Any) -> Any:
        raise ConnectionRefusedError("no catalog")

    keys = [site.put("events/b1-1.parquet")]
    with monkeypatch.context() as patch:
        patch.setattr(SqlCatalog, "commit_table", refuse)
        with pytest.raises(TierUnavailable, match=r"nothing of batch b1 was committed.*no catalog"):
            tables.commit("events", "b1", keys)
    assert tables.batches("events") == set()
    tables.commit("events", "b1", keys)
    assert rows_in(site.latest()) == ROWS


def test_a_bug_in_a_commit_is_not_passed_off_as_a_failure_and_commits_nothing(
    site: Site, tables: IcebergTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(self: SqlCatalog, *args: Any) -> Any:
        raise AttributeError("a bug")

    keys = [site.put("events/b1-1.parquet")]
    with monkeypatch.context() as patch:
        patch.setattr(SqlCatalog, "commit_table", stumble)
        with pytest.raises(AttributeError, match=r"^a bug$"):
            tables.commit("events", "b1", keys)
        patch.setattr(LOAD_TABLE, stumble)
        with pytest.raises(AttributeError, match=r"^a bug$"):
            tables.batches("events")
    assert tables.batches("events") == set()
    tables.commit("events", "b1", keys)
    assert rows_in(site.latest()) == ROWS


@pytest.mark.parametrize("call", ["create_table", "register_table"])
def test_of_two_that_make_a_table_known_at_once_both_have_the_same(
    site: Site, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    original = getattr(SqlCatalog, call)
    key = site.put("events/b1-1.parquet")
    if call == "register_table":
        first = site.tables()
        first.ensure()
        first.commit("events", "b1", [key])
        first.close()
        site.catalog.unlink()
    other, ours = site.tables(), site.tables()

    def overtake(self: SqlCatalog, *args: Any, **how: Any) -> Any:
        monkeypatch.setattr(SqlCatalog, call, original)
        other.ensure()
        return original(self, *args, **how)

    monkeypatch.setattr(SqlCatalog, call, overtake)
    ours.ensure()
    assert {kind: ours.metadata_url(kind) for kind in KINDS} == {kind: other.metadata_url(kind) for kind in KINDS}
    ours.commit("events", "b1", [key])
    assert other.keys("events") == {key}
    assert rows_in(site.latest()) == ROWS


def test_a_commit_of_which_nothing_is_known_says_so_and_is_found_later(
    site: Site, tables: IcebergTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SqlCatalog.commit_table

    def lose(self: SqlCatalog, *args: Any) -> Any:
        original(self, *args)
        patch.setattr(LOAD_TABLE, lambda *_: refuse())
        raise TimeoutError("no reply")

    def refuse() -> None:
        raise ConnectionRefusedError("no catalog")

    keys = [site.put("events/b1-1.parquet")]
    with monkeypatch.context() as patch:
        patch.setattr(SqlCatalog, "commit_table", lose)
        with pytest.raises(TierUnavailable, match=r"b1 may or may not be committed.*no reply.*cannot be asked.*no catalog"):
            tables.commit("events", "b1", keys)
    tables.commit("events", "b1", keys)
    assert rows_in(site.latest()) == ROWS
    assert len(StaticTable.from_metadata(site.latest()).snapshots()) == 1


def test_a_commit_that_another_overtakes_changes_nothing_and_can_be_repeated(
    site: Site, tables: IcebergTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SqlCatalog.commit_table
    other = site.tables()
    theirs = site.put("events/b2-1.parquet", day=2)

    def overtake(self: SqlCatalog, *args: Any) -> Any:
        monkeypatch.setattr(SqlCatalog, "commit_table", original)
        other.commit("events", "b2", [theirs])
        return original(self, *args)

    monkeypatch.setattr(SqlCatalog, "commit_table", overtake)
    ours = [site.put("events/b1-1.parquet")]
    with pytest.raises(TierUnavailable, match="nothing of batch b1 was committed"):
        tables.commit("events", "b1", ours)
    tables.commit("events", "b1", ours)
    assert tables.keys("events") == {*ours, theirs}
    assert rows_in(site.latest()) == 2 * ROWS


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("removes", [False, True], ids=["append", "compaction"])
def test_a_store_that_fails_at_any_write_leaves_the_batch_once(tmp_path: Path, after: bool, removes: bool) -> None:
    step = 0
    while True:
        site = Site(tmp_path / str(step))
        tables = site.tables()
        tables.ensure()
        old = [site.put("events/b1-1.parquet"), site.put("events/b1-2.parquet", day=2)]
        tables.commit("events", "b1", old)
        new, gone = site.put("events/b2-1.parquet", day=3), old[:1] if removes else []
        site.cold.changes, site.cold.fails_at, site.cold.after = 0, step, after
        failed = False
        try:
            tables.commit("events", "b2", [new], gone)
        except TierUnavailable:
            failed = True
        site.cold.fails_at = None
        tables.commit("events", "b2", [new], gone)
        wanted = {*old, new} - set(gone)
        assert tables.keys("events") == wanted
        assert rows_in(site.latest()) == rows_in(tables.metadata_url("events")) == ROWS * len(wanted)
        assert len(StaticTable.from_metadata(site.latest()).snapshots()) == 2
        site.close()
        if site.cold.changes <= step or not (failed or after):
            break
        step += 1
    assert step >= 5, "manifest, manifest list, metadata and both pointers"


def test_a_pointer_that_was_not_written_is_written_by_the_next_call(site: Site, tables: IcebergTables) -> None:
    keys = [site.put("events/b1-1.parquet")]
    site.cold.changes, site.cold.fails_at = 0, 3
    with pytest.raises(TierUnavailable, match=r"b1 is committed .*, but .* do not see it yet.*the store is away"):
        tables.commit("events", "b1", keys)
    assert tables.keys("events") == set(keys)
    assert rows_in(site.latest()) == 0
    site.tables().ensure()
    assert rows_in(site.latest()) == ROWS


def test_the_pointer_and_the_hint_give_the_current_version(site: Site, tables: IcebergTables) -> None:
    for number in range(3):
        tables.commit("events", f"b{number}", [site.put(f"events/b{number}-1.parquet", day=number)])
        current = site.cold.get(site.cold.key_of(tables.metadata_url("events")))
        assert site.cold.get(f"{METADATA}/latest.metadata.json") == current
    by_hint = StaticTable.from_metadata(f"{site.cold.url}/iceberg/events")
    assert by_hint.metadata_location == tables.metadata_url("events")
    assert by_hint.scan().to_arrow().num_rows == 3 * ROWS


def test_other_engines_read_the_same_rows(site: Site, tables: IcebergTables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")  # its own planner is another package
    tables.commit("events", "b1", [site.put(f"events/b1-{day}.parquet", day=day) for day in range(3)])
    wanted = sorted((UUID(int=(day << 64) + row).bytes, f"content {row}") for day in range(3) for row in range(ROWS))

    static = StaticTable.from_metadata(site.latest())
    arrow = static.scan(selected_fields=("event_id", "content")).to_arrow()
    assert sorted(zip(arrow["event_id"].cast(pa.binary(16)).to_pylist(), arrow["content"].to_pylist(), strict=True)) == wanted

    frame = static.scan().to_pandas()
    assert sorted(frame["content"]) == sorted(content for _, content in wanted)
    assert str(frame["timestamp"].dtype).endswith("UTC]")

    for source in (static, site.latest()):
        lazy = pl.scan_iceberg(source).filter(pl.col("seq") < 2).select("event_id", "content")
        assert sorted(lazy.collect().rows()) == [row for row in wanted if row[1] in ("content 0", "content 1")]

    with duckdb.connect() as con:
        rows = con.read_parquet(site.paths(tables.keys("events"))).select("event_id::VARCHAR, content").fetchall()
    assert sorted((UUID(text).bytes, content) for text, content in rows) == wanted


def test_a_plain_catalog_of_another_engine_reads_the_table(site: Site, tables: IcebergTables) -> None:
    tables.commit("events", "b1", [site.put("events/b1-1.parquet")])
    with SqlCatalog("thermocline", uri=f"sqlite:///{site.catalog}") as catalog:
        table = catalog.load_table(("agents", "events"))
        assert "py-io-impl" not in table.properties
        assert table.scan().to_arrow().num_rows == ROWS


def test_versions_of_the_metadata_stay_bounded(tmp_path: Path) -> None:
    site = Site(tmp_path, metadata_versions_max=5)
    tables = site.tables()
    tables.ensure()
    for number in range(30):
        tables.commit("events", f"b{number}", [site.put(f"events/b{number}-1.parquet", day=number % 3)])
    versions = [name for name in site.names() if name.endswith(".metadata.json") and not name.startswith("latest")]
    assert len(versions) == 1 + 5
    assert rows_in(site.latest()) == 30 * ROWS
    manifests = StaticTable.from_metadata(site.latest()).inspect.manifests().num_rows
    assert manifests <= 16, "they are merged"
    site.close()


@pytest.mark.parametrize("error", [TierUnavailable("the store is away"), ConfigError("access denied")], ids=str)
def test_an_old_version_that_cannot_be_removed_now_is_left_to_the_janitor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(self: FaultyCold, keys: Any) -> None:
        raise error

    site = Site(tmp_path, metadata_versions_max=1)
    tables = site.tables()
    tables.ensure()
    with monkeypatch.context() as patch:
        patch.setattr(FaultyCold, "delete", refuse)
        for number in range(3):
            tables.commit("events", f"b{number}", [site.put(f"events/b{number}-1.parquet", day=number)])
    assert rows_in(site.latest()) == 3 * ROWS
    left = tables.unreferenced("events")
    assert len(left) == 2
    assert all(one.key.endswith(".metadata.json") for one in left)
    site.close()


def test_another_bound_of_the_versions_reaches_the_tables_that_are_there(tmp_path: Path) -> None:
    for versions_max in (7, 3):
        site = Site(tmp_path, metadata_versions_max=versions_max)
        site.tables().ensure()
        properties = StaticTable.from_metadata(site.latest()).properties
        assert properties["write.metadata.previous-versions-max"] == str(versions_max)
        site.close()


def the_next_millisecond_us() -> int:
    """µs since the epoch, later than every snapshot made until now: Iceberg dates them in ms."""
    before_ms = now_us() // 1000
    wait_until(lambda: now_us() // 1000 > before_ms, 5, "the clock goes on")
    return now_us()


def test_snapshots_expire_when_old_and_in_the_ledger_and_not_current(site: Site, tables: IcebergTables) -> None:
    names = [f"b{number}" for number in range(5)]
    keys = {name: site.put(f"events/{name}-1.parquet", day=number) for number, name in enumerate(names)}
    for name in names[:3]:
        tables.commit("events", name, [keys[name]])
    between_us = the_next_millisecond_us()
    the_next_millisecond_us()
    for name in names[3:]:
        tables.commit("events", name, [keys[name]])
    assert tables.expire("events", before_us=between_us, batches={"b0", "b2", "b3"}) == 2
    assert tables.batches("events") == {"b1", "b3", "b4"}
    assert tables.expire("events", before_us=now_us() + 10**6, batches=set(names)) == 2
    assert tables.batches("events") == {"b4"}
    assert tables.expire("events", before_us=now_us() + 10**6, batches=set(names)) == 0
    assert tables.keys("events") == set(keys.values())
    assert rows_in(site.latest()) == 5 * ROWS


def test_a_snapshot_that_a_tag_holds_stays(site: Site, tables: IcebergTables) -> None:
    first = tables.commit("events", "b1", [site.put("events/b1-1.parquet")])
    tables.commit("events", "b2", [site.put("events/b2-1.parquet", day=2)])
    with SqlCatalog("thermocline", uri=f"sqlite:///{site.catalog}") as catalog:
        catalog.load_table(("agents", "events")).manage_snapshots().create_tag(int(first), "audit").commit()
    assert tables.expire("events", before_us=now_us() + 10**6, batches={"b1", "b2"}) == 0


def test_what_expired_snapshots_leave_is_unreferenced_and_can_be_deleted(site: Site, tables: IcebergTables) -> None:
    small = [site.put(f"events/b{number}-1.parquet") for number in range(3)]
    for number, key in enumerate(small):
        tables.commit("events", f"b{number}", [key])
    large = site.put("events/c-1.parquet", rows=3 * ROWS)
    tables.commit("events", "c", [large], small)
    assert tables.unreferenced("events") == []
    assert tables.removable([*small, large]) == set()

    tables.expire("events", before_us=now_us() + 10**6, batches={"b0", "b1", "b2", "c"})
    assert tables.removable([*small, large]) == set(small)
    assert tables.removable(["rollup_task/b1-1.parquet", "batches/b1.json", large]) == {
        "rollup_task/b1-1.parquet",
        "batches/b1.json",
    }
    litter = tables.unreferenced("events")
    assert {one.key.partition("snap-")[1] for one in litter} == {"snap-", ""}, "manifest lists and manifests"
    assert all(one.key.endswith(".avro") and one.modified_us <= now_us() for one in litter)
    site.cold.delete([*(one.key for one in litter), *small])
    assert tables.unreferenced("events") == []
    assert rows_in(site.latest()) == rows_in(tables.metadata_url("events")) == 3 * ROWS
    tables.commit("events", "d", [site.put("events/d-1.parquet", day=4)])
    assert rows_in(site.latest()) == 4 * ROWS


def test_what_a_failed_commit_leaves_is_unreferenced(site: Site, tables: IcebergTables) -> None:
    keys = [site.put("events/b1-1.parquet")]
    site.cold.changes, site.cold.fails_at = 0, 2
    with pytest.raises(TierUnavailable):
        tables.commit("events", "b1", keys)
    litter = tables.unreferenced("events")
    assert len(litter) == 2
    tables.commit("events", "b1", keys)
    assert tables.unreferenced("events") == litter


def test_a_commit_while_unreferenced_looks_is_no_litter(
    site: Site, tables: IcebergTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = FolderCold.objects
    key = site.put("events/b1-1.parquet")

    def commit_meanwhile(self: FolderCold, prefix: str = "") -> Iterator[StoredObject]:
        yield from listed(self, prefix)
        tables.commit("events", "b1", [key])

    monkeypatch.setattr(FaultyCold, "objects", commit_meanwhile, raising=False)
    assert tables.unreferenced("events") == []


def test_files_that_another_engine_wrote_into_the_table_are_not_litter(site: Site, tables: IcebergTables) -> None:
    foreign = "iceberg/events/data/timestamp_day=2026-11-01/part-0.parquet"
    site.cold.put(foreign, site.cold.get(site.put("events/x-1.parquet")))
    assert [one.key for one in tables.unreferenced("events")] == [foreign]
    with SqlCatalog("thermocline", uri=f"sqlite:///{site.catalog}") as catalog:
        catalog.load_table(("agents", "events")).add_files([site.cold.url_of(foreign)])
    assert tables.unreferenced("events") == []
    assert tables.batches("events") == set()
    tables.commit("events", "b1", [site.put("events/b1-1.parquet", day=2)])
    assert rows_in(site.latest()) == 2 * ROWS


def test_a_lost_catalog_is_made_again_from_the_pointers(site: Site, tables: IcebergTables) -> None:
    keys = {site.put(f"events/b{number}-1.parquet", day=number) for number in range(3)}
    for number, key in enumerate(sorted(keys)):
        tables.commit("events", f"b{number}", [key])
    site.catalog.unlink()
    fresh = site.tables()
    with pytest.raises(TierUnavailable, match="does not know the table"):
        fresh.keys("events")
    fresh.ensure()
    assert fresh.keys("events") == keys
    assert fresh.batches("events") == {"b0", "b1", "b2"}
    assert fresh.metadata_url("events").rpartition("/")[2].startswith("00003-")
    fresh.commit("events", "b1", sorted(keys)[1:2])
    more = site.put("events/b3-1.parquet", day=3)
    fresh.commit("events", "b3", [more])
    assert rows_in(site.latest()) == 4 * ROWS


def test_the_process_that_was_there_when_the_catalog_was_lost_follows(site: Site, tables: IcebergTables) -> None:
    tables.commit("events", "b1", [site.put("events/b1-1.parquet")])
    site.catalog.unlink()
    tables.ensure()
    tables.commit("events", "b2", [site.put("events/b2-1.parquet", day=2)])
    assert site.tables().batches("events") == {"b1", "b2"}


def test_a_pointer_that_cannot_be_read_stops_instead_of_starting_anew(site: Site, tables: IcebergTables) -> None:
    tables.commit("events", "b1", [site.put("events/b1-1.parquet")])
    site.catalog.unlink()
    for content in (b"{", b"{}", b'{"location": "x", "metadata-log": [{"metadata-file": "other"}]}'):
        site.cold.put(f"{METADATA}/latest.metadata.json", content, replace=True)
        with pytest.raises(TierCorrupt, match=r"latest\.metadata\.json is no Iceberg metadata"):
            site.tables().ensure()


def test_a_table_of_another_place_is_not_taken_for_ours(site: Site, tables: IcebergTables, tmp_path: Path) -> None:
    moved = IcebergTables(FolderCold(tmp_path / "elsewhere"), site.settings)
    with pytest.raises(TierCorrupt, match=r"/cold/iceberg/events/.* does not lie in .*/elsewhere: was cold_url .* changed"):
        moved.ensure()
    moved.close()


def test_files_that_were_moved_are_not_registered(site: Site, tables: IcebergTables, tmp_path: Path) -> None:
    tables.commit("events", "b1", [site.put("events/b1-1.parquet")])
    shutil.copytree(tmp_path / "cold", tmp_path / "elsewhere")
    site.catalog.unlink()
    moved = IcebergTables(FolderCold(tmp_path / "elsewhere"), site.settings)
    for _ in range(2):
        with pytest.raises(TierCorrupt, match=r"is of a table at file://.*/cold/iceberg/events: .* cannot be moved"):
            moved.ensure()
    moved.close()


def test_metadata_that_is_cut_short_is_corrupt_and_what_it_names_is_never_litter(site: Site, tables: IcebergTables) -> None:
    keys = [[site.put(f"events/b{number}-{part}.parquet", day=part) for part in range(8)] for number in range(2)]
    for number, files in enumerate(keys):
        tables.commit("events", f"b{number}", files)
    names = [name for name in site.names() if name.endswith(".avro")]
    assert [name.startswith("snap-") for name in names].count(True) == len(names) / 2 == 2
    for name in names:
        path = site.cold.path(f"{METADATA}/{name}")
        whole = path.read_bytes()
        assert is_whole(whole)
        ends = [found.end() for found in re.finditer(re.escape(whole[-16:]), whole)]
        assert [size for size in range(len(whole) + 1) if is_whole(whole[:size])] == ends
        for size in (0, 10, *ends[:-1], len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            tables.close()  # and what it has read before is forgotten
            with pytest.raises(TierCorrupt):
                tables.removable(["events/b3-1.parquet", *keys[0], *keys[1]])
            if name.startswith("snap-"):
                with pytest.raises(TierCorrupt):
                    tables.unreferenced("events")
            else:
                assert tables.unreferenced("events") == []
        path.write_bytes(whole)
    version = site.cold.path(site.cold.key_of(tables.metadata_url("events")))
    version.write_bytes(version.read_bytes()[:200])
    tables.close()
    reads = (tables.keys, tables.batches, tables.unreferenced, lambda _: tables.removable(keys[0]))
    for read in reads:
        with pytest.raises(TierCorrupt, match="cannot be read"):
            read("events")


def test_a_manifest_with_a_wrong_byte_in_its_frame_is_corrupt(site: Site, tables: IcebergTables) -> None:
    tables.commit("events", "b1", [site.put("events/b1-1.parquet")])
    for name in (name for name in site.names() if name.endswith(".avro")):
        path = site.cold.path(f"{METADATA}/{name}")
        whole = path.read_bytes()
        for place in (0, header_bytes(whole) - 1, header_bytes(whole) + 1, len(whole) - 1):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            tables.close()
            with pytest.raises(TierCorrupt, match="damaged or cut short"):
                tables.keys("events")
        path.write_bytes(whole)
    assert len(tables.keys("events")) == 1


def test_what_never_changes_is_read_once_and_what_another_commits_is_seen(
    site: Site, tables: IcebergTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [site.put(f"events/b{number}-1.parquet") for number in range(3)]
    for number, key in enumerate(small):
        tables.commit("events", f"b{number}", [key])
    tables.commit("events", "c1", [site.put("events/c1-1.parquet")], small[:2])
    gets: list[str] = []
    get = FaultyCold.get

    def counted(self: FaultyCold, key: str, **part: Any) -> bytes:
        gets.append(key)
        return get(self, key, **part)

    def asked(asks: IcebergTables) -> tuple[object, ...]:
        gets.clear()
        return asks.keys("events"), asks.batches("events"), asks.removable(["events/x-1.parquet"]), asks.unreferenced("events")

    monkeypatch.setattr(FaultyCold, "get", counted)
    found = asked(fresh := site.tables())
    assert len(gets) == len(set(gets)) == len([name for name in site.names() if name.endswith(".avro")]) + 1
    assert (asked(fresh), gets) == (found, [])
    assert (asked(tables), gets[-1].endswith(".avro")) == (found, True)
    assert (asked(tables), gets) == (found, [])

    site.tables().commit("events", "b9", [site.put("events/b9-1.parquet", day=3)])
    assert asked(fresh) == asked(site.tables()) != found
    assert asked(fresh) == asked(tables)
    assert fresh.batches("events") == {"b0", "b1", "b2", "c1", "b9"}
    monkeypatch.undo()
    site.catalog.unlink()
    fresh.ensure()
    assert fresh.keys("events") == tables.keys("events") == {small[2], "events/c1-1.parquet", "events/b9-1.parquet"}


def test_a_catalog_that_is_no_database_is_corrupt(site: Site, tables: IcebergTables) -> None:
    tables.close()
    site.catalog.write_bytes(b"not a database at all" * 1000)
    with pytest.raises(TierCorrupt, match=r"the catalog is damaged .*move it aside"):
        site.tables().ensure()


@pytest.mark.parametrize("url", ["nonsense", "nosuchdb://host/db", "oracle://host/db"])
def test_a_catalog_url_that_cannot_be_right_is_a_config_error(tmp_path: Path, url: str) -> None:
    site = Site(tmp_path, catalog_url=url)
    with pytest.raises(ConfigError, match=r"cold\.catalog_url"):
        site.tables().ensure()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "sqlite:////nowhere/at/all/catalog.db"])
def test_a_catalog_that_is_away_is_unavailable(tmp_path: Path, url: str) -> None:
    site = Site(tmp_path, catalog_url=url)
    with pytest.raises(TierUnavailable):
        site.tables().ensure()
    with pytest.raises(TierUnavailable):
        site.tables().keys("events")


def test_any_sql_database_can_be_the_catalog(tmp_path: Path) -> None:
    site = Site(tmp_path, catalog_url=f"sqlite:///{tmp_path}/shared.db", catalog_properties={"echo": "false"})
    tables = site.tables()
    tables.ensure()
    tables.commit("events", "b1", [site.put("events/b1-1.parquet")])
    assert not site.catalog.exists()
    assert site.tables().batches("events") == {"b1"}
    site.close()


def test_tables_on_s3_are_what_other_engines_read(tmp_path: Path, s3_bucket: Bucket) -> None:
    settings = config.load({"data_dir": tmp_path, "cold_url": f"{s3_bucket.url}/deep/er", "namespace": "agents"}, environ={})
    cold = open_cold(settings)
    tables = IcebergTables(cold, settings)
    tables.ensure()
    keys = [f"events/b{number}-1.parquet" for number in range(3)]
    for day, key in enumerate(keys):
        cold.put(key, parquet_of("events", day, ROWS))
    tables.commit("events", "b0", keys[:1])
    tables.commit("events", "b1", keys[1:], keys[:1])
    assert tables.expire("events", before_us=now_us() + 10**6, batches={"b0", "b1"}) == 1
    assert tables.removable(keys) == {keys[0]}
    cold.delete([keys[0], *(one.key for one in tables.unreferenced("events"))])
    (tmp_path / "agents" / "catalog.db").unlink()
    tables.ensure()
    assert tables.keys("events") == set(keys[1:])

    access = {"s3.endpoint": s3_bucket.endpoint_url, "s3.region": "us-east-1"}
    for location in (f"{cold.url}/iceberg/events", f"{cold.url}/iceberg/events/metadata/latest.metadata.json"):
        static = StaticTable.from_metadata(location, access)
        assert static.scan().to_arrow().num_rows == 2 * ROWS
    tables.close()
    cold.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RestCatalogServer]:
    with RestCatalogServer(tmp_path) as server:
        yield server


def test_a_rest_server_can_be_the_catalog(tmp_path: Path, server: RestCatalogServer) -> None:
    server.token = "let-me-in"
    site = Site(tmp_path, catalog_url=server.url, catalog_properties={"token": "let-me-in"})
    tables = site.tables()
    tables.ensure()
    tables.ensure()
    key = site.put("events/b1-1.parquet")
    tables.commit("events", "b1", [key])
    tables.commit("events", "c1", [site.put("events/c1-1.parquet")], [key])
    assert site.tables().batches("events") == {"b1", "c1"}
    assert rows_in(site.latest()) == ROWS
    assert tables.expire("events", before_us=now_us() + 10**6, batches={"b1"}) == 1
    server.catalog.drop_table(("agents", "events"))
    tables.ensure()
    assert tables.batches("events") == {"c1"}
    site.close()


def test_a_commit_whose_reply_the_server_loses_is_found(tmp_path: Path, server: RestCatalogServer) -> None:
    site = Site(tmp_path, catalog_url=server.url)
    tables = site.tables()
    tables.ensure()
    server.loses_replies = True
    tables.commit("events", "b1", [site.put("events/b1-1.parquet")])
    assert rows_in(site.latest()) == ROWS
    assert len(StaticTable.from_metadata(site.latest()).snapshots()) == 1
    site.close()


@pytest.mark.parametrize("error", [RecursionError("too deep"), AttributeError("x"), AssertionError("y")])
def test_what_can_only_be_a_bug_is_not_translated(error: Exception) -> None:
    with pytest.raises(type(error)), translated("events"):
        raise error


def test_a_server_that_cannot_do_what_is_needed_is_told_so(tmp_path: Path, server: RestCatalogServer) -> None:
    server.endpoints = ["GET /v1/{prefix}/namespaces"]
    site = Site(tmp_path, catalog_url=server.url)
    with pytest.raises(ConfigError, match=r"catalog_url: .*Server does not support endpoint.*upgrade pyiceberg or the catalog"):
        site.tables().ensure()
    site.close()


def test_a_server_that_does_not_answer_is_unavailable_in_time(tmp_path: Path, server: RestCatalogServer) -> None:
    site = Site(tmp_path, catalog_url=server.url, timeout_s=2)
    tables = site.tables()
    tables.ensure()
    server.hangs.set()
    with pytest.raises(TierUnavailable, match="timed out"):
        tables.batches("events")
    with pytest.raises(TierUnavailable, match="timed out"):
        site.tables().batches("events")
    site.close()


def test_a_server_that_refuses_us_is_a_config_error(tmp_path: Path, server: RestCatalogServer) -> None:
    server.token = "let-me-in"
    site = Site(tmp_path, catalog_url=server.url, catalog_properties={"token": "guess"})
    with pytest.raises(ConfigError, match=r"cold\.catalog_properties: .*who are you"):
        site.tables().ensure()


def test_a_server_that_puts_the_table_elsewhere_is_not_followed(tmp_path: Path, server: RestCatalogServer) -> None:
    server.catalog.create_namespace("agents")
    server.catalog.create_table(("agents", "events"), SCHEMAS["events"], f"file://{tmp_path}/elsewhere")
    site = Site(tmp_path, catalog_url=server.url)
    with pytest.raises(ConfigError, match=r"cold\.catalog_url: .* lies at .*/elsewhere, not at .*/cold/iceberg/events"):
        site.tables().ensure()
    site.close()


def test_a_table_of_other_columns_is_not_taken_for_ours(tmp_path: Path, server: RestCatalogServer) -> None:
    site = Site(tmp_path, catalog_url=server.url)
    place = f"{site.cold.url}/iceberg/events"
    server.catalog.create_namespace("agents")
    server.catalog.create_table(("agents", "events"), SCHEMAS["rollup_task"], place)
    with pytest.raises(TierCorrupt, match=r"columns event_id, .* do not have the ids and types of our files"):
        site.tables().ensure()
    site.close()


def test_a_table_that_wants_to_be_read_by_other_code_is_refused(site: Site, tables: IcebergTables) -> None:
    with (
        SqlCatalog("thermocline", uri=f"sqlite:///{site.catalog}") as catalog,
        catalog.load_table("agents.events").transaction() as change,
    ):
        change.set_properties({"py-io-impl": "pyiceberg.io.pyarrow.PyArrowFileIO"})
    with pytest.raises(ConfigError, match="sets py-io-impl: remove that property"):
        tables.keys("events")


def test_the_pointer_names_its_version_in_plain_json(site: Site, tables: IcebergTables) -> None:
    tables.commit("events", "b1", [site.put("events/b1-1.parquet")])
    latest = msgspec.json.decode(site.cold.get(f"{METADATA}/latest.metadata.json"))
    assert [snapshot["summary"]["thermocline.batch-id"] for snapshot in latest["snapshots"]] == ["b1"]
    hint = site.cold.get(f"{METADATA}/version-hint.text").decode()
    assert tables.metadata_url("events").endswith(f"/{hint}.metadata.json")


@pytest.fixture
def handed(site: Site) -> Handed:
    return Handed(site.cold)


def test_what_pyiceberg_writes_becomes_an_object_once_when_it_is_whole(site: Site, handed: Handed) -> None:
    files = ColdFileIO(handed.properties)
    key = f"{METADATA}/0.metadata.json"
    output = files.new_output(site.cold.url_of(key))
    assert not output.exists()
    with pytest.raises(RuntimeError, match="half way"), output.create() as stream:
        stream.write(b"01")
        raise RuntimeError("half way")
    assert not output.exists()
    with output.create() as stream:
        stream.write(b"0123456789")
        assert not output.exists()
    stream.close()
    assert (output.exists(), len(output), site.cold.changes) == (True, 10, 1)
    again = files.new_output(output.location)
    assert len(again) == len(again.to_input_file()) == 10
    with pytest.raises(TierCorrupt, match="holds other bytes"), again.create() as stream:
        stream.write(b"other")
    assert site.cold.get(key) == b"0123456789"


def test_what_pyiceberg_reads_are_the_bytes_of_the_object(site: Site, handed: Handed) -> None:
    files = ColdFileIO(handed.properties)
    site.cold.put("a.metadata.json", b"0123456789")
    source = files.new_input(site.cold.url_of("a.metadata.json"))
    assert (source.exists(), len(source)) == (True, 10)
    with source.open() as stream:
        assert stream.readable() and stream.seekable()
        assert (stream.read(3), stream.seek(-2, 2), stream.read(5), stream.read(5), stream.tell()) == (b"012", 8, b"89", b"", 10)
        assert (stream.seek(-4, 1), stream.read(), stream.read(), stream.read(1)) == (6, b"6789", b"", b"")
    gone = files.new_input(site.cold.url_of("b.metadata.json"))
    assert not gone.exists()
    with pytest.raises(FileNotFoundError, match=r"b\.metadata\.json is not there"):
        len(gone)
    with pytest.raises(TierCorrupt, match="is not there any more"):
        gone.open().read()


def test_pyiceberg_removes_old_versions_of_the_metadata_and_nothing_else(site: Site, handed: Handed) -> None:
    files = ColdFileIO(handed.properties)
    names = ["old.metadata.json", "manifest.avro", "data.parquet", "other.metadata.json"]
    for name in names:
        site.cold.put(name, b"x")
    for name in names[:3]:
        files.delete(site.cold.url_of(name))
    files.delete(files.new_input(site.cold.url_of(names[3])))
    assert [one.key for one in site.cold.objects()] == ["data.parquet", "manifest.avro"]
