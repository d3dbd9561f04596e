"""The embedded Redis: one server per data directory, whoever dies when."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests import waiting
from tests.embedded_users import GONE_S, HOT, NewUser, ask, pid_of, script, settled_on, supervisor_of, wait_gone
from tests.servers import aof_tail, redis_binaries, servers_in
from tests.waiting import wait_until
from thermocline.config import GIB, HotSettings
from thermocline.errors import ConfigError, TierUnavailable
from thermocline.tiers import embedded, supervisor
from thermocline.tiers.embedded import ensure, running, stop
from thermocline.tiers.supervisor import Connection, parse_info


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
    hot = HotSettings.model_validate({"append_fsync": "always"})  # everysec may hold a write back
    with ensure(settled_on(data_dir, redis_binary), hot) as endpoint:
        ask(endpoint, "SET", "key", "kept")
        before = endpoint.run_id
        os.kill(pid_of(data_dir), signal.SIGKILL)
        wait_until(lambda: not endpoint.alive(), GONE_S, "the server is gone")
        assert endpoint.ensure() and endpoint.started and endpoint.run_id != before
        assert ask(endpoint, "GET", "key") == b"kept"
        wait_until(lambda: len(servers_in(data_dir)) == 2, GONE_S, "the old supervisor is gone")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=str)
def test_a_killed_supervisor_takes_the_server_along_in_order(data_dir: Path, redis_binary: Path, number: int) -> None:
    with ensure(settled_on(data_dir, redis_binary), HOT) as endpoint:
        ask(endpoint, "SET", "key", "kept")
        before = endpoint.run_id
        os.kill(supervisor_of(data_dir), number)
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
            assert [found.kind for found in servers_in(data_dir)].count("redis-server") == 1
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


def test_a_server_does_not_end_with_events_that_its_disk_has_not_taken(data_dir: Path, redis_binary: Path) -> None:
    settled_on(data_dir, redis_binary)
    endpoint = ensure(data_dir, HOT)
    ask(endpoint, "SET", "first", "kept")
    pid, run_id = pid_of(data_dir), endpoint.run_id
    with Connection(endpoint.url.removeprefix("unix://"), 5) as link:

        def says(field: str) -> str:
            return parse_info(link.ask(("INFO",))[0])[field]

        def looked_at() -> bool:
            return int(says("total_connections_received")) > connections

        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))  # as a full disk would
        link.ask(("SET", "second", "kept"))
        wait_until(lambda: says("aof_last_write_status") == "err", GONE_S, "the disk has refused a write")
        connections = int(says("total_connections_received"))
        endpoint.close()
        wait_until(looked_at, GONE_S, "the supervisor has looked whether it may end the server")
        with ensure(data_dir, HOT) as again:
            assert not again.started and again.run_id == run_id
            connections = int(says("total_connections_received"))
            os.kill(supervisor_of(data_dir), signal.SIGTERM)
            wait_until(looked_at, GONE_S, "the supervisor has looked once more")
            assert again.alive()
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
    wait_gone(data_dir)
    with ensure(data_dir, HOT) as endpoint:
        assert [ask(endpoint, "GET", key) for key in ("first", "second")] == [b"kept", b"kept"]
        assert ask(endpoint, "GET", "tc:clean") == run_id.encode()


def test_a_server_that_goes_while_it_is_set_up_is_told_and_started_by_the_next(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = embedded._look

    def look_and_lose(address: str) -> embedded._Seen:
        seen = look(address)
        if seen.state == "up":
            os.kill(int(seen.info["process_id"]), signal.SIGKILL)
            wait_until(lambda: look(address).state == "absent", GONE_S, "the server is gone")
        return seen

    always = HotSettings.model_validate({"append_fsync": "always"})
    with ensure(data_dir, HOT), monkeypatch.context() as patch:
        patch.setattr(embedded, "_look", look_and_lose)
        with pytest.raises(TierUnavailable, match=r"went away .*: try again"):
            ensure(data_dir, always)
    with ensure(data_dir, always) as endpoint:
        assert endpoint.alive()


def test_a_server_that_does_not_say_who_it_is_is_not_taken_for_ours(data_dir: Path, tmp_path: Path) -> None:
    settled_on(data_dir, script(tmp_path / "mute", redis_binaries()[0], options="--requirepass secret"))
    with pytest.raises(TierUnavailable, match="does not answer within"):
        ensure(data_dir, HOT)
    wait_gone(data_dir)


def test_a_socket_that_may_not_be_used_is_named_with_the_setting(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, timeout_s: float) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(embedded, "Connection", refuse)
    with pytest.raises(ConfigError, match=r"data_dir: .* cannot be used \(Permission denied\): choose a folder you may write"):
        ensure(data_dir, HOT)


def test_users_that_cannot_be_told_are_unknown_and_not_none(data_dir: Path) -> None:
    with ensure(data_dir, HOT) as endpoint:
        (data_dir / "redis" / "users.lock").rename(data_dir / "redis" / "elsewhere")
        info = running(data_dir)
        assert info is not None and info.users is None and info.run_id == endpoint.run_id


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
    children = {child.pid for child in psutil.Process().children()}
    assert not children & {found.pid for found in servers_in(data_dir)}  # the server is nobody's child
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


SLOW_TO_WAIT = f"""
import importlib.util, os, sys
def loaded(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
supervisor, waiting = loaded("supervisor", {supervisor.__file__!r}), loaded("waiting", {waiting.__file__!r})
wait, folder = supervisor._wait_for_last_user, os.getcwd()
def wait_late(*args):
    waiting.wait_until(lambda: not os.path.exists(folder), 60, "the folder is removed")
    wait(*args)
supervisor._wait_for_last_user = wait_late
if os.fork() == 0:
    supervisor.supervise(sys.argv[1])
"""


def test_a_folder_removed_before_the_supervisor_waits_for_its_users_leaves_no_server(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "supervisor.py"
    program.write_text(SLOW_TO_WAIT)
    monkeypatch.setattr(supervisor, "__file__", str(program))
    with ensure(data_dir, HOT):
        assert len(servers_in(data_dir)) == 2
        shutil.rmtree(data_dir)
    wait_gone(data_dir)


def test_a_server_that_refuses_is_named(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled_on(data_dir, script(tmp_path / "deaf", redis_binaries()[0], options='--rename-command CONFIG ""'))
    with pytest.raises(TierUnavailable, match="refuses CONFIG SET appendfsync everysec: ERR unknown command"):
        ensure(data_dir, HOT)
    wait_gone(data_dir)
    settled_on(tmp_path / "other", redis_binaries()[0])

    def refuse(link: Connection) -> None:
        raise OSError("redis-server refuses to shut down")

    with ensure(tmp_path / "other", HOT) as endpoint:
        monkeypatch.setattr(embedded, "shut_down", refuse)
        with pytest.raises(TierUnavailable, match=r"does not stop: redis-server refuses.*server\.log"):
            stop(tmp_path / "other")
        assert endpoint.alive()

        def vanish(link: Connection) -> None:
            raise ConnectionResetError

        monkeypatch.setattr(embedded, "shut_down", vanish)
        assert stop(tmp_path / "other") is True
