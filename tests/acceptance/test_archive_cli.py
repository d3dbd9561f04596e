"""The commands of the cold tier as their users have them."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.test_cli import Done, environment, failed, process, succeeded, thermocline
from tests.s3_servers import Bucket
from thermocline.archiver.lease import Lock
from thermocline.cli import progress
from thermocline.config import load
from thermocline.sample_import import events_of, load_runs, ndjson
from thermocline.tiers import embedded

ROOT = Path(__file__).parents[2]
EVENTS = 1516
LATER = {"THERMOCLINE_WARM__WINDOW_DAYS": "60"}
"""What keeps `worker --once` from archiving what the tests want to archive."""
STATISTICS = "SELECT sum(event_count)::BIGINT AS events, sum(total_bytes)::BIGINT AS bytes FROM hourly_stats"


@contextmanager
def store_in(folder: Path) -> Iterator[Path]:
    """A working directory whose store holds the sample of the last ten days, all of it warm."""
    (folder / "events.ndjson").write_bytes(b"".join(ndjson(events_of(load_runs(), end_us=time.time_ns() // 1000))))
    with embedded.ensure(folder / "thermocline-data", load(environ={}).hot):
        succeeded(folder, "append", "events.ndjson")
        succeeded(folder, "worker", "--once", **LATER)
        yield folder
    embedded.stop(folder / "thermocline-data")


@pytest.fixture
def settled(tmp_path: Path) -> Iterator[Path]:
    with store_in(tmp_path) as folder:
        yield folder


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same, for tests that only look."""
    with store_in(tmp_path_factory.mktemp("warm")) as folder:
        yield folder


def rows(folder: Path, *arguments: str, **variables: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(succeeded(folder, *arguments, "-o", "json", **variables))
    return found


def told(done: Done) -> str:
    """What a command says on stderr, without how far it is, which slow machines are told now and then."""
    return "".join(line for line in done.stderr.splitlines(keepends=True) if not re.match(r"batch \d+: ", line))


def tiers(folder: Path) -> dict[str, dict[str, Any]]:
    return {tier["tier"]: tier for tier in json.loads(succeeded(folder, "status", "-o", "json"))["tiers"]}


def test_a_dry_run_says_what_archiving_then_does(settled: Path) -> None:
    before = tiers(settled)
    days = rows(settled, "archive", "--dry-run")
    assert tiers(settled) == before
    assert [day["day"] for day in days] == sorted(day["day"] for day in days)
    assert all(0 <= day["events_kept"] <= day["events"] and day["bytes_kept"] <= day["bytes"] for day in days)
    said = told(thermocline(settled, "archive", "--once"))
    events, kept = (sum(day[name] for day in days) for name in ("events", "events_kept"))
    assert said.startswith(f"archived {events:,} events ({kept:,} of them kept in ")
    after = tiers(settled)
    assert after["cold"]["events"] == kept
    assert after["warm"]["events"] == before["warm"]["events"] - events
    assert told(thermocline(settled, "archive")) == "nothing is due\n"
    assert "Every sum closes" in succeeded(settled, "verify", "--deep")


def test_statistics_are_the_same_before_and_after(settled: Path) -> None:
    before = rows(settled, "query", STATISTICS)
    succeeded(settled, "archive", "--older-than", "0")
    assert rows(settled, "query", STATISTICS) == before
    assert before[0]["events"] == EVENTS
    assert tiers(settled)["cold"]["events"] < EVENTS / 4


def test_older_than_takes_days_or_a_day_and_zero_is_all_but_today(warm: Path) -> None:
    everything = rows(warm, "archive", "--dry-run", "--older-than", "0")
    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert everything[-1]["day"] < today
    assert rows(warm, "archive", "--dry-run", "--older-than", today) == everything
    third = everything[2]["day"]
    assert [day["day"] for day in rows(warm, "archive", "--dry-run", "--older-than", third)] == [
        day["day"] for day in everything[:2]
    ]


def test_what_sampling_would_keep_is_shown_by_type_and_rule(warm: Path) -> None:
    policy = '[{"name": "tools", "event_types": ["tool.*"], "keep": true}, {"name": "others", "rate": 0}]'
    found = rows(warm, "sample", "--dry-run", "--all", THERMOCLINE_SAMPLING__RULES=policy)
    assert sum(row["events"] for row in found) == EVENTS
    for row in found:
        is_tool = row["event_type"].startswith("tool.")
        assert row["rule"] == ("tools" if is_tool else "others")
        assert row["events_kept"] == (row["events"] if is_tool else 0)
        assert row["bytes_kept"] == (row["bytes"] if is_tool else 0)
    table = succeeded(warm, "sample", "--dry-run", "--all", THERMOCLINE_SAMPLING__RULES=policy)
    assert table.splitlines()[-1].startswith("all")
    due = rows(warm, "sample", "--dry-run")
    assert sum(row["events"] for row in due) == sum(day["events"] for day in rows(warm, "archive", "--dry-run"))
    assert tiers(warm)["warm"]["events"] == EVENTS


def test_batches_and_their_files_are_listed(settled: Path) -> None:
    assert rows(settled, "archives", "list") == []
    succeeded(settled, "archive")
    succeeded(settled, "archive", "--older-than", "4")
    first, second = rows(settled, "archives", "list")
    assert [one["kind"] for one in (first, second)] == ["archive", "archive"]
    assert first["events_in"] > first["kept"] > 0
    assert 0 < first["rate_min"] < 1
    files = rows(settled, "archives", "show", first["batch"])
    assert len(files) == first["files"]
    assert sum(file["bytes"] for file in files) == first["bytes"]
    assert sum(file["rows"] for file in files if file["kind"] == "events") == first["kept"]
    assert all(Path(file["url"].removeprefix("file://")).stat().st_size == file["bytes"] for file in files)
    shown = succeeded(settled, "archives", "list").splitlines()[-1].split()[0]
    assert second["batch"].startswith(shown)
    table = list(csv.DictReader(io.StringIO(succeeded(settled, "archives", "show", shown, "-o", "csv"))))
    assert len(table) == second["files"]


def test_a_batch_that_is_not_there_is_one_line(warm: Path) -> None:
    assert "there is no such batch" in failed(warm, "archives", "show", "nope", code=1)


def test_while_a_worker_runs_archive_names_it_and_a_dry_run_works(warm: Path) -> None:
    with Lock(warm / "thermocline-data" / "default"):
        assert "another worker has this namespace" in failed(warm, "archive", code=1)
        assert rows(warm, "archive", "--dry-run")
        assert rows(warm, "sample", "--dry-run")


def test_events_that_have_not_settled_are_spoken_of(settled: Path) -> None:
    succeeded(settled, "append", "events.ndjson")
    said = thermocline(settled, "archive", "--dry-run").stderr
    assert said.startswith("1,516 events are still in Redis and not looked at")


def test_archive_works_as_a_process_of_its_own(settled: Path) -> None:
    done = process(settled, "archive", "--older-than", "0")
    assert (done.returncode, done.stdout) == (0, "")
    assert told(done).count("\n") == 1, done.stderr
    assert told(done).startswith("archived ")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["archive", "--older-than", "soon"], 2, "'soon' is neither a number of days nor a day like 2026-11-13"),
        (["archive", "--older-than", "2999-01-01"], 1, "2999-01-01 is not here yet"),
        (["sample"], 2, "repeat with --dry-run"),
        (["sample", "--dry-run", "--all", "--older-than", "3"], 2, "either --all or --older-than"),
        (["archives", "show"], 2, "Missing argument 'BATCH'"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], code: int, said: str, tmp_path: Path) -> None:
    assert said in failed(tmp_path, *arguments, code=code)
    assert not (tmp_path / "thermocline-data").exists()


def test_a_cold_tier_that_cannot_be_used_is_one_line_and_leaves_the_events_warm(settled: Path) -> None:
    (settled / "file").write_text("no folder")
    url = {"THERMOCLINE_COLD_URL": f"file://{settled}/file/below"}
    assert "file" in failed(settled, "archive", code=1, **url)
    assert tiers(settled)["warm"]["events"] == EVENTS
    done = thermocline(settled, "worker", "--once", **url)
    assert done.returncode == 3
    assert "nothing more was archived: " in done.stderr
    assert tiers(settled)["warm"]["events"] == EVENTS


def test_rehydrate_says_that_a_folder_is_local_already(settled: Path) -> None:
    succeeded(settled, "archive")
    name = rows(settled, "query", "SELECT conversation_id AS name FROM events WHERE sample_rate < 1 LIMIT 1")[0]["name"]
    for what in (name, rows(settled, "archives", "list")[0]["day"]):
        done = thermocline(settled, "rehydrate", what, "--for", "2")
        assert (done.returncode, done.stdout) == (0, "")
        assert "local already, the cold tier is a folder" in done.stderr
    assert thermocline(settled, "rehydrate", "nobody").stderr == "nothing is archived of nobody\n"
    assert rows(settled, "rehydrate", "--list") == []
    for wrong in (["rehydrate"], ["rehydrate", name, "--list"]):
        assert "give either a day, a conversation or --list" in failed(settled, *wrong, code=2)


def test_doctor_tries_the_cold_tier_once_there_is_one(settled: Path) -> None:
    def cold(**variables: str) -> dict[str, str]:
        done = thermocline(settled, "doctor", "-o", "json", **variables)
        return {one["subject"]: one["verdict"] for one in json.loads(done.stdout) if one["subject"].startswith("cold")}

    assert cold() == {}
    abilities = ("tier", "write", "read", "ranged read", "list after write", "conditional write", "delete")
    healthy = {f"cold {name}": "ok" for name in abilities}
    assert cold(THERMOCLINE_COLD_URL=f"file://{settled}/elsewhere") == healthy
    succeeded(settled, "archive")
    assert cold() == healthy
    assert not list((settled / "thermocline-data" / "default" / "cold").rglob("probe/*"))
    (settled / "file").write_text("no folder")
    found = cold(THERMOCLINE_COLD_URL=f"file://{settled}/file/below")
    assert found["cold write"] == "fail"


def test_status_says_which_days_wait_to_be_archived(settled: Path) -> None:
    oldest = rows(settled, "archive", "--dry-run")[0]["day"]
    assert f"Events of {oldest} on are older than the warm window and wait to be archived." in succeeded(settled, "status")
    succeeded(settled, "archive")
    assert "wait to be archived" not in succeeded(settled, "status")


def test_small_files_become_few(settled: Path) -> None:
    assert thermocline(settled, "compact").stderr == "nothing is due\n"
    for before in ("5", "0"):
        succeeded(settled, "archive", "--older-than", before)
    lower = {"THERMOCLINE_COLD__COMPACT_FILES_MIN": "2"}
    before = rows(settled, "query", "SELECT count(*) AS n, sum(1 / sample_rate) AS estimate FROM events")
    with Lock(settled / "thermocline-data" / "default"):
        assert "another worker has this namespace" in failed(settled, "compact", code=1, **lower)
    said = told(thermocline(settled, "compact", **lower))
    assert "files of the archive became" in said
    batch = rows(settled, "archives", "list")[-1]
    assert batch["kind"] == "compact"
    assert said.startswith(f"{2 * batch['files']} files of the archive became {batch['files']}\n")
    assert rows(settled, "query", "SELECT count(*) AS n, sum(1 / sample_rate) AS estimate FROM events")[0]["n"] == before[0]["n"]
    assert told(thermocline(settled, "compact", **lower)) == "nothing is due\n"
    assert "Every sum closes" in succeeded(settled, "verify", "--deep")


def test_with_s3_everything_works_and_copies_are_kept_for_a_while(settled: Path, moto_bucket: Bucket) -> None:
    """The whole way with an object store, in a bucket made by the script that compose.yml uses."""
    url = {
        "THERMOCLINE_COLD_URL": f"s3://made-{moto_bucket.name[-12:]}/store",
        "THERMOCLINE_COLD__ENDPOINT_URL": moto_bucket.endpoint_url,
    }
    for _ in range(2):
        command = [sys.executable, ROOT / "deploy" / "make_bucket.py"]
        made = subprocess.run(command, env=environment(**url), capture_output=True, text=True, check=True)
        assert made.stderr.endswith(" is there\n")
    assert all(one["verdict"] != "fail" for one in rows(settled, "doctor", **url))
    done = thermocline(settled, "archive", **url)
    assert told(done).startswith("archived "), done.stderr
    statistics = rows(settled, "query", STATISTICS, **url)
    assert statistics[0]["events"] == EVENTS
    day = rows(settled, "archives", "list", **url)[0]["day"]
    assert "copied, and kept until" in thermocline(settled, "rehydrate", day, "--for", "2", **url).stderr
    [copy] = rows(settled, "rehydrate", "--list", **url)
    assert copy["day"] == day
    assert "1 file (" in succeeded(settled, "status", **url)
    assert f"{url['THERMOCLINE_COLD_URL']}/default/events/day=" in succeeded(settled, "archives", "show", "0", **url)
    assert "Every sum closes" in succeeded(settled, "verify", "--deep", **url)


def test_a_store_that_does_not_answer_is_one_line(warm: Path, moto_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 3600.0)  # on a slow machine lines of how far it is come before
    gone = {
        "THERMOCLINE_COLD_URL": moto_bucket.url,
        "THERMOCLINE_COLD__ENDPOINT_URL": "http://127.0.0.1:1",
        "THERMOCLINE_COLD__DEADLINE_S": "2",
        "THERMOCLINE_COLD__TIMEOUT_S": "1",
    }
    assert "127.0.0.1:1" in failed(warm, "archive", code=1, **gone)
    assert tiers(warm)["warm"]["events"] == EVENTS
    findings = {one["subject"]: one for one in json.loads(thermocline(warm, "doctor", "-o", "json", **gone).stdout)}
    assert findings["cold write"]["verdict"] == "fail"
    assert "127.0.0.1:1" in findings["cold write"]["found"]


def test_status_can_be_a_health_check(warm: Path) -> None:
    succeeded(warm, "status", "--check")
    red = {"THERMOCLINE_WARM__BYTES_MAX": "1"}
    assert thermocline(warm, "status", **red).returncode == 0
    done = thermocline(warm, "status", "--check", "-o", "json", **red)
    assert done.returncode == 1
    assert json.loads(done.stdout)["health"] == "red"
