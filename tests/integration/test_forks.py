"""The template that chaos and histories fork their worker from."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil

from tests.forks import Template
from tests.waiting import wait_until


def test_a_fork_says_how_it_ended_and_the_next_one_can_start(tmp_path: Path) -> None:
    template = Template("sys:exit", tmp_path / "log")
    assert template.fork("3").wait() == 3
    fork = template.fork("0")
    wait_until(lambda: fork.poll() is not None, 30, "the fork ended")
    assert fork.returncode == 0
    fork.kill()  # nothing happens
    assert template.fork("what no exit code is").wait() == 1
    assert "ValueError" in (tmp_path / "log").read_text()
    template.close()


def test_a_fork_is_killed_and_one_that_runs_dies_with_its_template(tmp_path: Path) -> None:
    template = Template("signal:pause", tmp_path / "log")
    first = template.fork()
    assert first.poll() is None
    first.kill()
    assert first.returncode == -signal.SIGKILL
    second = template.fork()
    process = psutil.Process(second.pid)
    template.close()
    wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, 30, "it is gone")
