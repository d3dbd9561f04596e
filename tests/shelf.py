"""Archives that a test begins with: each made once by the real thing, and put back byte for byte for every other test that asks.

    with shelf.fresh(cold={"retention_days": 11}) as archive:   # an empty one
        archive.archive_rounds(2)                               # archived, or put back as it was after that

All lie in one folder, as Iceberg files name each other by full URL, and on one Redis: one after the other.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from redis import Redis

from tests.servers import RedisServer, redis_binaries
from tests.tidying import Archive


class _Kept(NamedTuple):
    now_us: int
    folder: Path
    keys: dict[bytes, tuple[int, bytes]]
    """What Redis has: key → for how long (ms, 0: for ever), and its value."""


class Shelf:
    """place  the folder of the archive; what else a test keeps there goes with it"""

    def __init__(self, folder: Path, server: RedisServer) -> None:
        self.place = folder / "archive"
        self._kept_in = folder / "kept"
        self._server = server
        self._kept: dict[tuple[object, ...], _Kept] = {}

    @contextmanager
    def fresh(self, *, bucket: bool = False, **sections: Any) -> Iterator[Archive]:
        """An empty archive, where the last one was. The arguments are those of Archive."""
        shutil.rmtree(self.place, ignore_errors=True)
        with self._redis() as redis:
            redis.flushall()
        with Archive(self.place, self._server, bucket=bucket, shelf=self, **sections) as made:
            yield made

    def fill(self, archive: Archive, count: int, *, bucket: bool) -> None:
        """Bring an empty archive of `fresh` to where it is after so many rounds, opened anew."""
        key = (repr(archive.settings), bucket, count)
        if key in self._kept:
            archive.close()
            self._put_back(self._kept[key])
            archive.now_us, archive.rounds = self._kept[key].now_us, count
        else:
            for _ in range(count):
                archive.archive_round()
            archive.close()
            self._kept[key] = self._keep(archive.now_us)
        archive.open()

    def _keep(self, now_us: int) -> _Kept:
        folder = self._kept_in / str(len(self._kept))
        shutil.copytree(self.place, folder)
        with self._redis() as redis:
            keys = {key: (max(0, redis.pttl(key)), redis.dump(key)) for key in redis.scan_iter()}
        return _Kept(now_us, folder, keys)

    def _put_back(self, kept: _Kept) -> None:
        shutil.rmtree(self.place)
        shutil.copytree(kept.folder, self.place)
        with self._redis() as redis:
            redis.flushall()
            for key, (left_ms, value) in kept.keys.items():
                redis.restore(key, left_ms, value)

    @contextmanager
    def _redis(self) -> Iterator[Redis]:
        with closing(Redis.from_url(self._server.url)) as redis:
            yield redis


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    """Its Redis acknowledges only what is on disk."""
    folder = tmp_path_factory.mktemp("shelf")
    server = RedisServer(redis_binaries()[-1], folder / "redis", options={"appendfsync": "always"})
    server.start()
    yield Shelf(folder, server)
    server.stop()


@pytest.fixture
def archive(shelf: Shelf) -> Iterator[Archive]:
    with shelf.fresh() as made:
        yield made
