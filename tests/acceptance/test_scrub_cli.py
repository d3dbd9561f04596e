"""`scrub` and `restore` as their users have them."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.test_cli import failed, succeeded, thermocline
from tests.flips import flip
from thermocline.sample_import import events_of, load_runs, ndjson
from thermocline.tiers import embedded


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A working directory whose store is settled and mirrored, and whose archive is beside it."""
    (tmp_path / "thermocline.toml").write_text(
        f'cold_url = "file://{tmp_path}/archive"\n[warm]\nmirror = "file://{tmp_path}/mirror"\n[hot]\ndurable_lag_s = 0\n'
    )
    events = events_of(load_runs(), end_us=time.time_ns() // 1000 - 1)
    (tmp_path / "events.ndjson").write_bytes(b"".join(line + b"\n" for line in ndjson(events)))
    succeeded(tmp_path, "append", "events.ndjson")
    succeeded(tmp_path, "worker", "--once")
    yield tmp_path
    embedded.stop(tmp_path / "thermocline-data")


def test_scrub_says_that_nothing_is_damaged_then_what_is_and_how_it_was_mended(place: Path) -> None:
    assert "nothing is damaged" in succeeded(place, "scrub")
    live = json.loads((place / "thermocline-data" / "default" / "scrub.json").read_text())["read"]
    segment_id = next(item for item in live if item.startswith("segment ")).removeprefix("segment ")
    path = place / "thermocline-data" / "default" / "segments" / f"{segment_id}.duckdb"
    flip(path, random.Random(1))
    said = succeeded(place, "scrub")
    assert "nothing is damaged, 1 mended" in said
    assert str(path) in said
    assert "from the mirror, byte for byte" in said
    assert json.loads(succeeded(place, "scrub", "-o", "json"))["ok"]
    assert "Last scrubbed" in succeeded(place, "status")


def test_scrub_exits_1_and_says_whose_events_are_gone(place: Path) -> None:
    shutil.rmtree(place / "mirror")
    path = max((place / "archive").rglob("events/**/*.parquet"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    for at in range(len(content) // 4, len(content) // 2):  # whole pages, whatever the footer takes
        content[at] ^= 1
    path.write_bytes(content)
    done = thermocline(place, "scrub")
    assert done.returncode == 1
    assert path.name in done.stdout
    assert "gone unless it is restored" in done.stdout
    found = json.loads(thermocline(place, "scrub", "-o", "json").stdout)
    assert found["ok"] is False
    assert found["damages"][0]["events"] > 0


def test_a_lost_data_directory_is_restored_by_one_command(place: Path) -> None:
    query = ("query", "SELECT count(*) AS n, count(DISTINCT conversation_id) AS c FROM events", "-o", "json")
    before = json.loads(succeeded(place, *query))
    embedded.stop(place / "thermocline-data")
    shutil.rmtree(place / "thermocline-data")
    said = succeeded(place, "restore", "--from", f"file://{place}/mirror")
    assert said.startswith("Restored as of ")
    assert json.loads(succeeded(place, *query)) == before
    assert "Every sum closes" in succeeded(place, "verify", "--deep")
    assert "is not empty" in failed(place, "restore", "--from", f"file://{place}/mirror", code=1)


def test_restore_from_a_place_without_a_mirror_is_one_line(place: Path) -> None:
    assert "there is no snapshot" in failed(place, "restore", "--namespace", "other", "--from", f"file://{place}/nothing", code=1)
    assert "--from" in failed(place, "restore", "--namespace", "other", "--from", "nothing", code=1)
