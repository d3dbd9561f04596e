"""What the embedded server's supervisor speaks of the Redis protocol, against a server that says what it is told."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from thermocline.tiers import supervisor
from thermocline.tiers.supervisor import FAILED, SERVER_LOCK, USERS_LOCK, Connection, Refusal, Unwritten, parse_info, shut_down


class Scripted:
    """A server that answers each piece it receives with the next of its answers, then closes."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.heard: list[bytes] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(0)
        self._thread: threading.Thread | None = None

    def says(self, *answers: bytes) -> str:
        self._thread = threading.Thread(target=self._serve, args=(answers,))
        self._thread.start()
        return self.path

    def _serve(self, answers: tuple[bytes, ...]) -> None:
        client, _ = self._listener.accept()
        with client:
            for answer in answers:
                self.heard.append(client.recv(4096))
                client.sendall(answer)

    def close(self) -> None:
        if self._thread is not None:
            self._thread.join(10)
        self._listener.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Scripted]:
    server = Scripted(tmp_path / "s")
    yield server
    server.close()


def test_every_kind_of_reply_is_read(server: Scripted) -> None:
    path = server.says(b"+OK\r\n:-7\r\n$4\r\na\r\nb\r\n$-1\r\n*2\r\n$1\r\nx\r\n*0\r\n-ERR no such thing\r\n")
    with Connection(path, 5) as link:
        replies = link.ask(*[("PING",)] * 5, ("ÄH", ""))
    assert replies == [b"OK", -7, b"a\r\nb", None, [b"x", []], "ERR no such thing"]
    assert isinstance(replies[-1], Refusal)
    assert server.heard == [b"*1\r\n$4\r\nPING\r\n" * 5 + "*2\r\n$3\r\nÄH\r\n$0\r\n\r\n".encode()]


def test_a_connection_that_closes_inside_a_reply_is_an_error(server: Scripted) -> None:
    with Connection(server.says(b"+OK\r\n$10\r\nshort"), 5) as link, pytest.raises(ConnectionResetError):
        link.ask(("PING",), ("GET", "key"), ("PING",))


def test_a_server_with_a_full_queue_is_waited_for_up_to_the_timeout(server: Scripted) -> None:
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(server.path)  # takes the only place
        with pytest.raises(TimeoutError, match="queue"):
            Connection(server.path, 0.05)


def test_info_is_a_dict_and_a_refused_one_is_empty() -> None:
    assert parse_info(b"# Server\r\nrun_id:abc\r\nexecutable:/a:b\r\n") == {"run_id": "abc", "executable": "/a:b"}
    assert parse_info(Refusal("LOADING")) == {}


def test_shutting_down_sends_mark_and_shutdown_in_one_piece(server: Scripted) -> None:
    with Connection(server.says(b"$10\r\nrun_id:abc\r\n", b""), 5) as link:
        shut_down(link)
    assert server.heard[1].endswith(b"*3\r\n$3\r\nSET\r\n$8\r\ntc:clean\r\n$3\r\nabc\r\n*1\r\n$8\r\nSHUTDOWN\r\n")


def test_a_server_whose_disk_has_not_taken_everything_is_not_shut_down(server: Scripted) -> None:
    info = b"run_id:abc\r\naof_last_write_status:err\r\n"
    path = server.says(b"$%d\r\n%s\r\n" % (len(info), info))
    with Connection(path, 5) as link, pytest.raises(Unwritten, match="free some space"):
        shut_down(link)
    assert all(b"SHUTDOWN" not in heard for heard in server.heard)


def test_a_server_that_refuses_to_shut_down_is_an_error(server: Scripted) -> None:
    path = server.says(b"$10\r\nrun_id:abc\r\n", b"+OK\r\n+OK\r\n-ERR Errors trying to SHUTDOWN\r\n")
    with Connection(path, 5) as link, pytest.raises(OSError, match=r"refuses to shut down.*Errors trying"):
        shut_down(link)


BECOME = """
import sys
from thermocline.tiers import supervisor
supervisor.LOCK_WAIT_S = 0.05
supervisor._become_server(sys.argv[1], int(sys.argv[2]))
"""


def last_words(folder: Path, binary: str, parent: int) -> str:
    """What a process that turns into redis-server writes to the log instead."""
    done = subprocess.run([sys.executable, "-c", BECOME, binary, str(parent)], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def test_a_server_whose_supervisor_is_gone_before_it_starts_does_not_start(tmp_path: Path) -> None:
    assert last_words(tmp_path, "/bin/true", os.getpid() + 1) == "/bin/true cannot be started: its supervisor is gone\n"
    assert not (tmp_path / SERVER_LOCK).exists()


def test_elsewhere_than_on_linux_a_server_outlives_its_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    supervisor._die_with(0)  # no parent of ours: on Linux it would not start


def test_a_server_does_not_start_beside_another(tmp_path: Path) -> None:
    with (tmp_path / SERVER_LOCK).open("w") as other:
        fcntl.lockf(other, fcntl.LOCK_EX)
        said = last_words(tmp_path, "/bin/true", os.getpid())
    assert "another redis-server still runs in this folder; its pid is in redis.pid" in said


def test_a_program_that_cannot_be_run_is_told_to_the_starter_and_to_the_log(tmp_path: Path) -> None:
    command = [sys.executable, "-I", supervisor.__file__, str(tmp_path / "nothing")]
    with (tmp_path / USERS_LOCK).open("w") as user:
        fcntl.flock(user, fcntl.LOCK_SH)
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)  # until its last process has ended
    assert (done.returncode, done.stdout) == (0, f"{FAILED}\n")
    assert done.stderr == f"{tmp_path}/nothing cannot be started: [Errno 2] No such file or directory\n"
