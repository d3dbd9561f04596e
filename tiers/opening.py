"""The three tiers of one namespace, opened from settings: the one way in for producers, worker, readers and CLI."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from types import TracebackType

from thermocline.config import Settings

from .cold import Cold
from .cold_copies import ColdCopies
from .confirm import Confirmation, confirm
from .embedded import Endpoint, ensure
from .hot_redis import RedisHot
from .iceberg import IcebergTables
from .ledger_sql import SqlLedger
from .redis_link import Link
from .user_rollups import Definition
from .warm_duckdb import DuckWarm
from .whole_file import file_errors, make_folder


class Tiers:
    """Hot, warm and ledger of one namespace. A context manager; thread-safe.

    `hot`, `warm` and `ledger` stay the same objects for the life of this one; when the embedded Redis has to be started again
    they go on with the new server.
    """

    def __init__(
        self,
        settings: Settings,
        hot: RedisHot,
        warm: DuckWarm,
        ledger: SqlLedger,
        endpoint: Endpoint | None,
        rollups: tuple[Definition, ...] = (),
    ) -> None:
        self.settings = settings
        self.rollups = rollups
        self.hot = hot
        self.warm = warm
        self.ledger = ledger
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._cold: Cold | None = None
        self._copies: ColdCopies | None = None
        self._iceberg: IcebergTables | None = None

    def reconfirm(self) -> Confirmation:
        """Bring the embedded Redis back if it is gone, and confirm a Redis that was restarted. Cheap when nothing happened."""
        with self._lock:
            if self._endpoint is not None:
                self._endpoint.ensure()
            return confirm(self.hot, self.warm, self.ledger, self.settings)

    @property
    def cold(self) -> Cold:
        """The objects of the cold tier, opened when first asked for. ConfigError when the URL cannot be used."""
        with self._lock:
            if self._cold is None:
                from .cold_opening import open_cold  # with boto3 when it is S3, which appends never need

                self._cold = open_cold(self.settings)
            return self._cold

    @property
    def copies(self) -> ColdCopies:
        """Where the cold files are read from."""
        cold = self.cold
        with self._lock:
            if self._copies is None:
                folder = self.settings.namespace_dir / "cold"
                self._copies = ColdCopies(cold, folder, bytes_max=self.settings.cold.cache_bytes_max)
            return self._copies

    @property
    def iceberg(self) -> IcebergTables:
        """The tables other engines read the archive by. Nothing is opened before it is used."""
        cold = self.cold
        with self._lock:
            if self._iceberg is None:
                self._iceberg = IcebergTables(cold, self.settings)
            return self._iceberg

    def close(self) -> None:
        if self._cold is not None:
            self._cold.close()
        self.hot.close()
        self.warm.close()
        self.ledger.close()
        if self._endpoint is not None:
            self._endpoint.close()

    def __enter__(self) -> Tiers:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_tiers(settings: Settings) -> Tiers:
    """Open a namespace, creating it when it is new and starting the embedded Redis when none is configured.

    ConfigError, TierUnavailable and TierCorrupt say what is in the way; nothing is left running then.
    """
    rollups = definitions_of(settings)
    _make_folders(settings)
    with ExitStack() as opened:
        endpoint = ensure(settings.data_dir, settings.hot) if settings.redis_url is None else None
        if endpoint is not None:
            opened.callback(endpoint.close)
        hot = RedisHot(open_link(settings, endpoint), settings.namespace, settings.hot)
        opened.callback(hot.close)
        ledger_url = settings.ledger_url or f"sqlite:///{settings.namespace_dir.resolve()}/ledger.db"
        ledger = SqlLedger(ledger_url, folder=settings.namespace_dir)
        opened.callback(ledger.close)
        warm = DuckWarm(settings.namespace_dir / "segments", settings.warm, shards=settings.hot.shards, rollups=rollups)
        opened.callback(warm.close)
        confirm(hot, warm, ledger, settings)
        opened.pop_all()
    return Tiers(settings, hot, warm, ledger, endpoint, rollups)


def definitions_of(settings: Settings) -> tuple[Definition, ...]:
    """The rollups the settings define. ConfigError names every key that is wrong."""
    if not settings.rollups:
        return ()
    from .definition_check import checked

    return checked(settings.rollups)


def open_link(settings: Settings, endpoint: Endpoint | None) -> Link:
    """A link to the configured Redis, or to the embedded one at `endpoint`."""
    url = endpoint.url if endpoint is not None else settings.redis_url
    assert url is not None, "without redis_url there is an embedded Redis"
    shown = f"unix://{settings.data_dir}/redis/r.sock" if endpoint is not None else None
    return Link(url, connect_timeout_s=settings.hot.connect_timeout_s, timeout_s=settings.hot.timeout_s, shown_url=shown)


def _make_folders(settings: Settings) -> None:
    """Durably: Redis outlives a loss of power that takes the name of a folder, and what is in the ledger below it."""
    for name in ("segments", "trash", "rejected"):
        folder = settings.namespace_dir / name
        with file_errors(str(folder), setting="data_dir"):
            make_folder(folder)
