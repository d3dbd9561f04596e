"""Real S3 servers for tests: OpenStack Swift with its S3 interface, and moto's server. Started by the first test that asks.

    def test_…(swift_bucket): open_cold(Settings(cold_url=swift_bucket.url))   # keys and endpoint are in the environment
    def test_…(s3_bucket): …                                                   # once on each server

Every test gets a bucket of its own. A server runs as long as the test session (of each xdist worker) and dies with it, also when
that is killed. Swift needs Linux, any user, and the package index the first time: it is installed from tests/swift.lock into
.venv-swift (in this repository, or in the temporary folder when that cannot be written), which takes 10 to 60 s; later it starts
in two. moto comes with the development dependencies and keeps everything in memory.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest
from botocore.config import Config

from tests.servers import START_WAIT_S, STOP_WAIT_S, dying_with_parent
from tests.waiting import wait_until
from thermocline.config import ColdSettings

ROOT = Path(__file__).parents[1]
SWIFT_LOCK = ROOT / "tests" / "swift.lock"
INSTALL_WAIT_S = 300
ACCESS_KEY, SECRET_KEY = "test:tester", "the-secret-of-the-tests"
REGION = "us-east-1"
MOTO = """
import threading
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""


class Bucket(NamedTuple):
    """An empty bucket; the environment has what is needed to reach it."""

    name: str
    endpoint_url: str

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def settings(self, **changes: Any) -> ColdSettings:
        return ColdSettings(**{"endpoint_url": self.endpoint_url, **changes})

    def client(self) -> Any:
        """boto3's, for what a test does beside the product."""
        return s3_client(self.endpoint_url)


@cache
def s3_client(endpoint_url: str) -> Any:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


class S3Server:
    """A server that prints its port once it listens on 127.0.0.1."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        """folder  for its log"""
        log, said = folder / "server.log", folder / "server.port"
        with log.open("wb") as errors, said.open("wb") as output:
            environ = {**os.environ, "PYTHONWARNINGS": "ignore"}
            self._process = subprocess.Popen(
                dying_with_parent(command), cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=errors
            )
        try:
            wait_until(lambda: said.read_text().endswith("\n") or self._process.poll() is not None, START_WAIT_S, str(command))
            if self._process.poll() is not None:
                raise RuntimeError(f"{command} ended with {self._process.returncode}: {log.read_text()[-2000:]}")
        except BaseException:
            self.stop()
            raise
        self.endpoint_url = f"http://127.0.0.1:{said.read_text().strip()}"

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_WAIT_S)

    def new_bucket(self) -> Bucket:
        bucket = Bucket(f"test-{uuid.uuid4().hex}", self.endpoint_url)
        bucket.client().create_bucket(Bucket=bucket.name)
        return bucket


def swift_python() -> Path:
    """The Python that has Swift, installed if it is not there yet. RuntimeError with pip's words when that fails."""
    wanted = hashlib.sha256(SWIFT_LOCK.read_bytes() + sys.version.encode()).hexdigest()
    for folder in _swift_folders():
        python, stamp = folder / "venv" / "bin" / "python", folder / "ready"
        if stamp.is_file() and stamp.read_text() == wanted and python.exists():
            return python
    folder = next(folder for folder in _swift_folders() if os.access(folder if folder.exists() else folder.parent, os.W_OK))
    folder.mkdir(exist_ok=True)
    python, stamp = folder / "venv" / "bin" / "python", folder / "ready"
    with (folder / "LOCK").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.is_file() or stamp.read_text() != wanted:
            _install_swift(folder / "venv")
            stamp.write_text(wanted)
    return python


def _swift_folders() -> list[Path]:
    return [ROOT / ".venv-swift", Path(tempfile.gettempdir()) / f"thermocline-swift-{os.getuid()}"]


def _install_swift(venv: Path) -> None:
    base = getattr(sys, "_base_executable", sys.executable)
    with_pip = subprocess.run([base, "-m", "pip", "--version"], capture_output=True).returncode == 0
    _run([base, "-m", "venv", "--clear", *(["--without-pip"] if with_pip else []), str(venv)])
    python = str(venv / "bin" / "python")
    pip = [base, "-m", "pip", "--python", python] if with_pip else [python, "-m", "pip"]
    _run([*pip, "install", "-q", "--no-input", "--no-deps", "--require-hashes", "-r", str(SWIFT_LOCK)])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_WAIT_S)
    if done.returncode:
        raise RuntimeError(f"Swift for the tests cannot be installed: {' '.join(command)}: {done.stderr[-2000:]}")


def _takes_attributes(folder: Path) -> bool:
    try:
        os.setxattr(folder, "user.thermocline", b"1")
    except OSError:
        return False
    return True


@contextmanager
def swift_in(folder: Path) -> Iterator[S3Server]:
    python = swift_python()
    if not _takes_attributes(folder):
        folder = Path(tempfile.mkdtemp(dir=python.parents[2]))
    server = S3Server([str(python), str(ROOT / "tests" / "swift_server.py"), str(folder), ACCESS_KEY, SECRET_KEY], folder)
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def moto_in(folder: Path) -> Iterator[S3Server]:
    server = S3Server([sys.executable, "-c", MOTO], folder)
    yield server
    server.stop()


SERVERS: dict[str, Callable[[Path], AbstractContextManager[S3Server]]] = {"moto": moto_in, "swift": swift_in}
"""Name → runs one, with its data in an empty folder."""


@pytest.fixture(scope="session")
def swift_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with swift_in(tmp_path_factory.mktemp("swift")) as server:
        yield server


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with moto_in(tmp_path_factory.mktemp("moto")) as server:
        yield server


def aws_keys() -> dict[str, str]:
    """What the environment has to say for boto3 to use these servers."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture
def aws_environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of the servers here, and nothing else that boto3 would find."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in aws_keys().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def moto_bucket(moto_server: S3Server, aws_environ: None, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_server.endpoint_url)
    return moto_server.new_bucket()


@pytest.fixture
def swift_bucket(swift_server: S3Server, aws_environ: None, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("AWS_ENDPOINT_URL", swift_server.endpoint_url)
    return swift_server.new_bucket()


S3_SERVERS = ("moto", "swift") if sys.platform == "linux" else ("moto",)


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.long if name == "swift" else ()) for name in S3_SERVERS])
def s3_bucket(request: pytest.FixtureRequest) -> Bucket:
    """A bucket on each server, one after the other."""
    bucket: Bucket = request.getfixturevalue(f"{request.param}_bucket")
    return bucket
