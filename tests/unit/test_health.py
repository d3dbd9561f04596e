"""The worker's health: red with a reason, green again, and readable by others at any moment."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from thermocline.archiver.health import FILE_NAME, Health


def said(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / FILE_NAME).read_text())
    return found


def test_a_job_that_fails_a_few_times_in_a_row_turns_health_red_until_it_works(tmp_path: Path) -> None:
    health = Health(tmp_path, failures_red=3, epoch=7)
    for _ in range(2):
        health.failed("merge", "no space")
    assert health.problem is None
    health.failed("merge", "no space left")
    assert health.problem == "merge: no space left"
    health.write()
    assert said(tmp_path)["health"] == "red"
    assert said(tmp_path)["problem"] == "merge: no space left"
    health.worked("merge")
    health.write()
    assert (said(tmp_path)["health"], said(tmp_path)["problem"]) == ("green", None)


def test_only_what_is_new_is_worth_a_line(tmp_path: Path) -> None:
    health = Health(tmp_path, failures_red=3, epoch=7)
    assert [health.failed("merge", text) for text in ("a", "a", "b", "b")] == [True, False, True, False]
    assert health.worked("merge")
    assert not health.worked("merge")
    assert health.failed("merge", "b")


def test_failures_of_different_jobs_do_not_add_up(tmp_path: Path) -> None:
    health = Health(tmp_path, failures_red=2, epoch=1)
    health.failed("merge", "a")
    health.failed("purge", "b")
    assert health.problem is None
    health.failed("merge", "a")
    health.failed("purge", "b")
    assert health.problem == "merge: a; purge: b"


def test_what_is_stuck_is_red_at_once_and_stays_so_when_the_job_works_otherwise(tmp_path: Path) -> None:
    health = Health(tmp_path, failures_red=3, epoch=1)
    health.stuck("settle", "hole in shard 3")
    health.worked("settle")
    assert health.problem == "settle: hole in shard 3"
    health.freed("settle")
    assert health.problem is None


def test_the_file_says_who_works_and_what_was_noted(tmp_path: Path) -> None:
    health = Health(tmp_path, failures_red=3, epoch=7)
    health.note(waiting_events=5)
    health.write()
    found = said(tmp_path)
    assert (found["pid"], found["epoch"], found["waiting_events"], found["running"]) == (os.getpid(), 7, 5, True)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_a_folder_that_cannot_be_written_does_not_stop_the_worker(tmp_path: Path) -> None:
    health = Health(tmp_path / "missing", failures_red=3, epoch=7)
    health.write()
    assert not (tmp_path / "missing").exists()


def test_a_disk_that_is_full_leaves_what_was_said_before_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    health = Health(tmp_path, failures_red=3, epoch=7)
    health.write()

    def full(path: Path, _: str) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    health.note(settled_us=1)
    health.write()
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    assert "settled_us" not in said(tmp_path)


def test_the_last_run_and_the_last_failure_of_every_job_are_told(tmp_path: Path) -> None:
    health = Health(tmp_path, failures_red=3, epoch=1)
    health.worked("settle")
    health.failed("merge", "no space" * 1000)
    health.stuck("verify", "a gap")
    health.write()
    jobs = said(tmp_path)["jobs"]
    assert isinstance(jobs, dict)
    assert set(jobs) == {"settle", "merge", "verify"}
    assert set(jobs["settle"]) == {"worked_us"}
    assert (len(jobs["merge"]["problem"]), jobs["verify"]["problem"]) == (1000, "a gap")
