"""What doctor makes of its surroundings."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from thermocline import doctor
from thermocline.config import Settings, load
from thermocline.doctor import FAIL, OK, WARN, Finding, examine, file_system
from thermocline.tiers.hot import ServerFacts

MOUNTS = """\
22 27 0:20 / /proc rw,nosuid - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 27 0:40 / /mnt/a\\040share rw - nfs4 server:/x rw
31 27 0:41 / /run rw - tmpfs tmpfs rw
32 31 0:42 / /run/user rw - fuse.sshfs me@there:/ rw
"""


class Usage(NamedTuple):
    free: int


def settings_in(folder: Path) -> Settings:
    return load({"data_dir": folder / "data"}, environ={})


def found(settings: Settings) -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine(settings)}


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/home/x", "ext4"), ("/mnt/a share/data", "nfs4"), ("/run/x", "tmpfs"), ("/run/user/1", "fuse.sshfs"), ("/runner", "ext4")],
)
def test_the_file_system_is_that_of_the_longest_mount(path: str, kind: str, tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTS)
    assert file_system(Path(path), table) == kind


def test_without_a_table_of_mounts_the_file_system_is_not_known(tmp_path: Path) -> None:
    assert file_system(tmp_path, tmp_path / "nothing") == ""


@pytest.mark.parametrize(("kind", "verdict"), [("nfs4", FAIL), ("fuse.sshfs", FAIL), ("tmpfs", WARN), ("ext4", OK), ("", OK)])
def test_only_a_local_file_system_will_do(kind: str, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "file_system", lambda path: kind)
    assert found(settings_in(tmp_path))["file system"].verdict == verdict


@pytest.mark.parametrize(("free", "verdict"), [(100 << 20, FAIL), (1 << 30, WARN), (100 << 30, OK)])
def test_space_that_runs_out_is_seen(free: int, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free))
    assert found(settings_in(tmp_path))["free space"].verdict == verdict


@pytest.mark.parametrize(("limit", "verdict"), [(256, WARN), (4096, OK), (resource.RLIM_INFINITY, OK)])
def test_few_open_files_are_a_warning(limit: int, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (limit, limit))
    assert found(settings_in(tmp_path))["open files"].verdict == verdict


def test_a_file_where_the_data_directory_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    finding = found(settings_in(tmp_path))["data directory"]
    assert finding.verdict == FAIL
    assert str(tmp_path / "data") in finding.found


@pytest.mark.parametrize(
    ("ahead_s", "verdict", "words"),
    [(0.2, OK, "agree"), (-3, WARN, "3.0 s behind"), (7200, WARN, "7,200.0 s ahead"), (-7200, FAIL, "too far in the future")],
)
def test_clocks_that_differ_are_told(ahead_s: float, verdict: str, words: str) -> None:
    finding = doctor._clock(ahead_s)
    assert finding.verdict == verdict
    assert words in finding.found


def facts_with(**changes: Any) -> ServerFacts:
    usual: dict[str, Any] = {
        "version": "7.0.15",
        "run_id": "r",
        "maxmemory_policy": "noeviction",
        "maxmemory": 0,
        "used_memory": 1,
    }
    usual |= {
        "used_memory": 1,
        "append_only": True,
        "append_fsync": "everysec",
        "disk_ok": True,
        "write_ok": True,
        "waits_for_disk": False,
        "replicas": 0,
        "now_us": 1,
    }
    return ServerFacts(**{**usual, **changes})


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({}, OK, "appendfsync everysec"),
        ({"append_fsync": "no"}, WARN, "set everysec or always"),
        ({"maxmemory": 1 << 20}, WARN, "below hot.log_bytes_max"),
        ({"maxmemory_policy": "allkeys-lru"}, FAIL, "maxmemory-policy noeviction"),
        ({"append_only": False}, FAIL, "appendonly yes"),
    ],
)
def test_settings_of_redis_that_may_lose_events_are_told(
    changes: dict[str, Any], verdict: str, words: str, tmp_path: Path
) -> None:
    settings = settings_in(tmp_path)
    finding = doctor._guarded("redis settings", lambda: doctor._server_settings(facts_with(**changes), settings, "here"))
    assert finding.verdict == verdict
    assert words in finding.found


def test_a_redis_that_may_lose_events_is_a_warning_when_that_was_chosen(tmp_path: Path) -> None:
    settings = load({"data_dir": tmp_path, "hot": {"allow_volatile": True}}, environ={})
    assert doctor._server_settings(facts_with(append_only=False), settings, "here").verdict == WARN


@pytest.mark.parametrize(("changes", "verdict"), [({}, OK), ({"disk_ok": False}, WARN), ({"write_ok": False}, FAIL)])
def test_a_redis_that_cannot_write_is_told(changes: dict[str, Any], verdict: str) -> None:
    assert doctor._disk(facts_with(**changes)).verdict == verdict
