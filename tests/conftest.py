"""Fixtures of all tests: real servers that are stopped when their test ends, and the check that none is left at the end."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests import canaries
from tests.appending import configure  # noqa: F401
from tests.cold_stores import cold_overrides, cold_settings, cold_url  # noqa: F401
from tests.embedded_users import NewUser, User
from tests.s3_servers import aws_environ, moto_bucket, moto_server, s3_bucket, swift_bucket, swift_server  # noqa: F401
from tests.servers import RedisServer, redis_binaries, servers_in
from tests.shelf import archive, shelf  # noqa: F401
from tests.waiting import wait_until
from thermocline.tiers import embedded

LEFT_WAIT_S = 10
MEMORY = Path("/dev/shm")
MEMORY_BYTES_MIN = 4 << 30
"""A run leaves well below 1 GiB there."""
TESTS = Path(__file__).parent

sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
"""Containers set it. Here every worker of pytest and hundreds of processes would compile the same files, each for itself."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--canaries", action="store_true", help="secrets of our own, everything at debug level: none may come out")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    write_to_memory()
    if config.option.canaries:
        canaries.begin(config)


def write_to_memory() -> None:
    """Let temporary files be in memory where there is room, unless TMPDIR says otherwise: a quarter of the time went into waiting
    for the disk, which tests that are about it (strace, a full file system) do not need to be real."""
    if "TMPDIR" in os.environ or not MEMORY.is_dir():
        return
    found = os.statvfs(MEMORY)
    if found.f_bavail * found.f_frsize >= MEMORY_BYTES_MIN and not found.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)


class StartServer(Protocol):
    def __call__(
        self,
        binary: Path | None = None,
        *,
        options: dict[str, object] | None = None,
        password: str | None = None,
        tls: bool = False,
        tcp: bool = False,
    ) -> RedisServer: ...


@pytest.fixture(scope="session", autouse=True)
def no_server_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail the session if a redis-server that a test started outlives it, be it embedded or a RedisServer."""
    folder = tmp_path_factory.getbasetemp()
    yield
    try:
        wait_until(lambda: not servers_in(folder), LEFT_WAIT_S, "the servers of the tests are gone")
    except TimeoutError:
        left = servers_in(folder)
        for found in left:
            os.kill(found.pid, signal.SIGKILL)
        pytest.fail(f"left behind by tests, now killed: {left}")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    choose_redis(items)
    yield  # what is not asked for is taken out
    begin_with_lengthy(items)


def pytest_collection_finish() -> None:
    """Four thousand tests are some million objects that stay: looking through them again and again took a sixth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def begin_with_lengthy(items: list[pytest.Item]) -> None:
    """Let every worker of xdist begin with its share of the tests that take minutes, so that none is left for the end: each is
    given a piece of the list, one after the other."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    lengthy = [item for item in items if item.get_closest_marker("lengthy")]
    others = [item for item in items if not item.get_closest_marker("lengthy")]
    size = len(items) // workers
    items.clear()
    for worker in range(workers):
        mine = lengthy[worker::workers]
        count = size - len(mine) if worker < workers - 1 else len(others)
        items += mine + others[:count]
        del others[:count]


def choose_redis(items: list[pytest.Item]) -> None:
    """A change is tested with one of the Redis versions, another for each test; contracts and the long ring with all."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        binary = callspec.params.get("redis_binary") if callspec else None
        if binary is None or (TESTS / "contract") in item.path.parents:
            continue
        chosen = redis_binaries()[zlib.crc32(item.nodeid.replace(str(binary), "").encode()) % len(redis_binaries())]
        if binary != chosen:
            item.add_marker(pytest.mark.long)


@pytest.fixture(params=redis_binaries(), ids=str)
def redis_binary(request: pytest.FixtureRequest) -> Path:
    """Every redis-server version found here, one after the other."""
    found: Path = request.param
    return found


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A data directory not made yet. Its embedded server, if a test starts one, is stopped afterwards."""
    folder = tmp_path / "data"
    yield folder
    embedded.stop(folder)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[StartServer]:
    """A function that starts a RedisServer in a folder of its own: `redis_server(options={"appendfsync": "always"})`.

    The binary is the newest found unless given. All are killed when the test ends: in order it would take them 0.1 s.
    """
    started: list[RedisServer] = []

    def start(binary: Path | None = None, **how: object) -> RedisServer:
        server = RedisServer(binary or redis_binaries()[-1], tmp_path / f"redis-{len(started)}", **how)  # type: ignore[arg-type]
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.kill()


@pytest.fixture
def server(redis_server: StartServer) -> RedisServer:
    """A Redis that acknowledges only what is on disk."""
    return redis_server(options={"appendfsync": "always"})


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
