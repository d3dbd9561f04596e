"""The archive as its users see it: statistics that stay, rows that are what they were, files that any engine reads."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.arrow import ArrowFSWrapper
from pyiceberg.table import StaticTable

from tests.archived import aged_events, append_and_work, archive, compare, statistics
from tests.cold_stores import SWIFT_IN_LONG
from thermocline.archiver import archive_source
from thermocline.archiver.archive_source import ArchiveSource
from thermocline.config import Settings
from thermocline.errors import IncompleteAnswer
from thermocline.ingest.append import Client
from thermocline.store import Store, connect
from thermocline.tiers.cold_schema import KINDS

DAY_US = 86_400_000_000


@pytest.fixture
def archived(cold_settings: Settings) -> Iterator[Store]:
    """A store with real conversations, two fifths of them archived."""
    append_and_work(cold_settings, aged_events())
    assert archive(cold_settings).archived_events
    with connect(cold_settings) as store:
        yield store


def test_archiving_changes_no_statistics_keeps_what_must_be_kept_and_every_byte(cold_settings: Settings) -> None:
    found = compare(cold_settings, aged_events())
    assert found.problems == []
    assert 0 < found.kept < found.archived < found.events


def test_any_engine_reads_the_archive(archived: Store) -> None:
    """Each on its own: none of them is given anything of ours but URLs."""
    query = "SELECT event_id, seq, content, metadata, sample_rate FROM events WHERE timestamp < ? ORDER BY event_id"
    files = [file for file in archived.tiers.ledger.view().files if file.kind == "events"]
    border = time.time_ns() // 1000 // DAY_US * DAY_US - 7 * DAY_US
    ours = archived.sql(query, [pd.Timestamp(border, unit="us", tz="UTC")]).pl()
    assert len(ours) == sum(file.rows for file in files) > 0
    urls = [file.url for file in files]
    tables = archived.tiers.iceberg
    latest = tables.metadata_url("events")
    for name, frame in readings(urls, latest, archived.tiers.cold.is_local):
        plain = frame.with_columns(pl.col("event_id").map_elements(as_text, return_dtype=pl.String)).sort("event_id")
        assert plain.select(ours.columns).equals(ours), name
    for kind in KINDS:
        static = StaticTable.from_metadata(tables.metadata_url(kind), properties=iceberg_properties())
        rows = sum(file.rows for file in archived.tiers.ledger.view().files if file.kind == kind)
        assert static.scan().to_arrow().num_rows == rows, kind


def readings(urls: list[str], metadata_url: str, local: bool) -> Iterator[tuple[str, pl.DataFrame]]:
    """(engine, all archived events as it reads them)."""
    columns = "event_id::VARCHAR AS event_id, seq, content, metadata, sample_rate"
    places = [url.removeprefix("file://") for url in urls]
    with duckdb.connect(config={"autoload_known_extensions": False}) as con:
        if not local:
            con.register_filesystem(ArrowFSWrapper(s3()))
        yield "DuckDB", con.sql(f"SELECT {columns} FROM read_parquet({places}, hive_partitioning = false)").pl()
    yield "Polars", pl.scan_parquet(places, storage_options=polars_options(local), hive_partitioning=False).collect()
    static = StaticTable.from_metadata(metadata_url, properties=iceberg_properties())
    yield "pyiceberg", from_arrow(static.scan().to_arrow())
    yield "Polars over Iceberg", pl.scan_iceberg(static, reader_override="pyiceberg").collect()
    system = None if local else s3()
    keys = places if local else [url.removeprefix("s3://") for url in urls]
    frames = [pd.read_parquet(key, filesystem=system, dtype_backend="pyarrow") for key in keys]
    yield "pandas", from_arrow(pyarrow.Table.from_pandas(pd.concat(frames), preserve_index=False))


def from_arrow(table: Any) -> pl.DataFrame:
    found = pl.from_arrow(table)
    assert isinstance(found, pl.DataFrame)
    return found


def as_text(value: Any) -> str:
    """A UUID, whichever way an engine shows it."""
    text = value.hex() if isinstance(value, bytes) else str(value)
    plain = text.replace("-", "")
    return f"{plain[:8]}-{plain[8:12]}-{plain[12:16]}-{plain[16:20]}-{plain[20:]}"


def s3() -> pyarrow.fs.S3FileSystem:
    return pyarrow.fs.S3FileSystem(
        access_key=os.environ["AWS_ACCESS_KEY_ID"],
        secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        endpoint_override=os.environ["AWS_ENDPOINT_URL"],
        region="us-east-1",
    )


def iceberg_properties() -> dict[str, str]:
    if "AWS_ENDPOINT_URL" not in os.environ:
        return {}
    return {
        "s3.endpoint": os.environ["AWS_ENDPOINT_URL"],
        "s3.access-key-id": os.environ["AWS_ACCESS_KEY_ID"],
        "s3.secret-access-key": os.environ["AWS_SECRET_ACCESS_KEY"],
        "s3.region": "us-east-1",
    }


def polars_options(local: bool) -> dict[str, str] | None:
    if local:
        return None
    return {
        "aws_endpoint_url": os.environ["AWS_ENDPOINT_URL"],
        "aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
        "aws_region": "us-east-1",
        "aws_allow_http": "true",
    }


@pytest.mark.parametrize("cold_url", ["folder"], indirect=True)
def test_a_sample_is_never_passed_off_as_complete(archived: Store) -> None:
    result = archived.sql("SELECT count(*) FROM events")
    assert not result.coverage.exact
    with pytest.raises(IncompleteAnswer, match="are a sample: weigh each by 1 / sample_rate"):
        archived.sql("SELECT count(*) FROM events", require="complete")
    exact = archived.sql("SELECT sum(event_count) FROM hourly_stats", require="complete")
    assert exact.coverage.exact


@pytest.mark.parametrize("cold_url", ["folder"], indirect=True)
def test_a_receipt_counts_the_rows_that_stand_for_others(archived: Store) -> None:
    result = archived.sql("SELECT count(*) FILTER (sample_rate < 1), count(*) FROM events")
    [(sampled, rows)] = result.fetchall()
    assert 0 < sampled < result.coverage.cold_rows <= rows
    assert result.coverage.sampled_rows == sampled


@pytest.mark.parametrize("cold_url", SWIFT_IN_LONG, indirect=True)
def test_a_late_event_of_an_archived_day_follows_its_conversation(archived: Store, cold_settings: Settings) -> None:
    """Many late ones, so that those kept show the rate that was decided before."""
    old = aged_events()[0]
    rates = "SELECT DISTINCT sample_rate FROM events WHERE conversation_id = ? AND event_type = 'message.user' AND timestamp < ?"
    border = pd.Timestamp(time.time_ns() // 1000 // DAY_US * DAY_US - 7 * DAY_US, unit="us", tz="UTC")
    conversation_id = str(old["conversation_id"])
    [(decided,)] = archived.sql(rates, [conversation_id, border]).fetchall() or [(None,)]
    totals = "SELECT total_events FROM conversation_summary WHERE conversation_id = ?"
    [(before,)] = archived.sql(totals, [conversation_id]).fetchall()
    event = {"conversation_id": conversation_id, "event_type": "message.user"}
    with Client(cold_settings, tiers=archived.tiers) as client:
        client.append_many([{**event, "timestamp": old["timestamp"] + n} for n in range(200)])
    with_late = statistics(archived)
    assert archive(cold_settings).archived_events == 200
    assert statistics(archived) == with_late
    assert archived.sql(totals, [conversation_id]).fetchall() == [(before + 200,)]
    found = {rate for (rate,) in archived.sql(rates, [conversation_id, border]).fetchall()}
    assert len(found) == 1
    assert decided is None or found == {decided}
    assert archived.verify(deep=True).problems == ()


@pytest.mark.parametrize("cold_url", SWIFT_IN_LONG, indirect=True)
def test_the_same_days_from_a_copy_are_the_same_bytes(cold_settings: Settings, tmp_path: Path) -> None:
    append_and_work(cold_settings, aged_events())
    shutil.copytree(cold_settings.data_dir, tmp_path / "copy")
    elsewhere = None if cold_settings.cold_url is None else f"{cold_settings.cold_url}/copy"
    copy = cold_settings.model_copy(update={"data_dir": tmp_path / "copy", "cold_url": elsewhere})
    contents = []
    for one in (cold_settings, copy):
        archive(one)
        with connect(one) as store:
            cold = store.tiers.cold
            contents.append(sorted((file.kind, file.day, cold.get(file.key)) for file in store.tiers.ledger.view().files))
    assert contents[0] == contents[1]
    assert len(contents[0]) > 6


def test_rollups_added_up_a_few_conversations_at_a_time_are_the_same_bytes(
    cold_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_and_work(cold_settings, aged_events())
    shutil.copytree(cold_settings.data_dir, tmp_path / "copy")
    elsewhere = None if cold_settings.cold_url is None else f"{cold_settings.cold_url}/copy"
    copy = cold_settings.model_copy(update={"data_dir": tmp_path / "copy", "cold_url": elsewhere})
    parts, kinds, contents = ArchiveSource.parts, Counter[str](), []
    monkeypatch.setattr(ArchiveSource, "parts", lambda *given: (kinds.update([part.kind]) or part for part in parts(*given)))
    for one, at_once in ((cold_settings, archive_source.GROUPS_AT_ONCE), (copy, 20)):
        monkeypatch.setattr(archive_source, "GROUPS_AT_ONCE", at_once)
        kinds.clear()
        archive(one)
        assert (kinds["rollup_hourly"] > 5) == (kinds["rollup_conversation"] > 1) == (at_once == 20)
        with connect(one) as store:
            cold = store.tiers.cold
            contents.append(sorted((file.kind, file.day, cold.get(file.key)) for file in store.tiers.ledger.view().files))
    assert contents[0] == contents[1]


def test_verify_finds_a_changed_byte_and_a_missing_object(archived: Store) -> None:
    cold = archived.tiers.cold
    [file, other] = [one for one in archived.tiers.ledger.view().files if one.kind == "events"][:2]
    content = bytearray(cold.get(file.key))
    content[len(content) // 2] ^= 1
    cold.put(file.key, bytes(content), replace=True)
    assert archived.verify().ok
    [problem] = archived.verify(deep=True).problems
    assert file.key in problem
    cold.delete([other.key])
    [missing] = archived.verify().problems
    assert f"{other.key}: the object is missing" in missing


@pytest.mark.parametrize("cold_url", ["folder"], indirect=True)
def test_archived_files_have_checksums_on_every_page_and_field_ids(archived: Store, tmp_path: Path) -> None:
    for file in archived.tiers.ledger.view().files:
        path = tmp_path / f"{file.file_id}.parquet"
        archived.tiers.cold.fetch(file.key, path)
        schema = pq.read_schema(path)
        ids = [int(field.metadata[b"PARQUET:field_id"]) for field in schema]
        assert ids == list(range(1, len(schema) + 1))
        facts = pq.read_metadata(path).metadata
        assert {key.decode() for key in facts} == {f"thermocline.{name}" for name in ("format", "kind", "ranges", "checksum")}
