"""Transactions on the ledger's database, SQLite or PostgreSQL, and its errors as ours.

A write is alone from its first statement: `BEGIN IMMEDIATE`, or an advisory lock on PostgreSQL. (A deferred transaction that
reads and then writes fails at once when another writer came between, whatever the timeout.) A read is one snapshot.
"""

from __future__ import annotations

import itertools
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc

from thermocline.config import mask_url
from thermocline.errors import ConfigError, TierCorrupt, TierUnavailable

BUSY_TIMEOUT_S = 30
CHECKPOINT_TIMEOUT_S = 1
WAL_BYTES_KEPT = 4 << 20
"""journal_size_limit: what the write-ahead log is cut back to after a checkpoint."""
_POSTGRES_LOCK = 0x7468_6572_6D6F
"""Key of the advisory lock every write holds: "thermo"."""
_UNAVAILABLE = {
    3: "permission denied; give this user read and write access to the file and its folder",
    5: f"locked by another process for {BUSY_TIMEOUT_S} s; look for one that hangs inside a transaction",
    6: f"locked by another process for {BUSY_TIMEOUT_S} s; look for one that hangs inside a transaction",
    8: "read-only; give this user write access to the file and its folder",
    10: "the disk failed to read or write; check it and its free space",
    13: "the disk is full; free disk space, nothing was lost",
    14: "cannot be opened; the folder must exist and be writable, and the limit of open files not be reached (ulimit -n)",
}
_CORRUPT = {11: "damaged", 26: "not a database"}


class LedgerEngine:
    """Connections to one ledger. Thread-safe; never carry it across a fork."""

    def __init__(self, url: str) -> None:
        try:
            parsed = sa.make_url(url)
            self._engine = sa.create_engine(parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite")
        except (exc.ArgumentError, ImportError, ValueError) as error:
            shown = mask_url(url)
            raise ConfigError(
                f"ledger_url: {shown} cannot be used ({error}); give a SQLAlchemy URL, or none for SQLite"
            ) from error
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if self.is_sqlite and not parsed.database:
            raise ConfigError("ledger_url: a SQLite ledger needs a file that every process can open: sqlite:////path/ledger.db")
        self._path = Path(parsed.database or "") if self.is_sqlite else None
        self.shown_url = str(self._path) if self._path is not None else mask_url(url)
        self._inode = 0
        self._watch: sqlite3.Connection | None = None
        self._watch_lock = threading.RLock()
        self._watches = 0
        event.listen(self._engine, "begin", self._begin)
        if self.is_sqlite:
            event.listen(self._engine, "connect", _set_pragmas)
        snapshot = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        self._reads = self._engine.execution_options(transaction="read", **snapshot)
        self._writes = self._engine.execution_options(transaction="write")
        self._bare = self._engine.execution_options(transaction="none")

    def exists(self) -> bool:
        """Whether somebody created a ledger here. Creates nothing."""
        if self._path is not None and not self._path.exists():
            return False
        with self.read() as con:
            return sa.inspect(con).has_table("identity")

    def version(self) -> tuple[int, int] | None:
        """Another one than an earlier call gave when anything was committed since. None on PostgreSQL, which has none."""
        if self._path is None:
            return None
        with self._translated(), self._watch_lock:
            self._follow_file()
            if self._watch is None:
                self._watch = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
                self._watches += 1
            (number,) = self._watch.execute("PRAGMA data_version").fetchone()
            return self._watches, number

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One snapshot. TierUnavailable when the file is not there: a read never creates it."""
        with self._translated():
            self._follow_file()
            with self._reads.begin() as con:
                yield con

    @contextmanager
    def write(self, *, create: bool = False) -> Iterator[sa.Connection]:
        """One transaction, alone; committed when the block ends, rolled back when it raises.

        When the commit itself raises, it may have happened: take a fresh view before trying again.
        """
        with self._translated():
            if not create:
                self._follow_file()
            elif self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._writes.begin() as con:
                yield con

    def checkpoint(self) -> int:
        """Fold SQLite's write-ahead log into the database, as far as readers let it; bytes of the log left. 0 on PostgreSQL."""
        if self._path is None:
            return 0
        with self._translated():
            self._follow_file()
            with self._bare.connect() as con:
                con.exec_driver_sql(f"PRAGMA busy_timeout = {CHECKPOINT_TIMEOUT_S * 1000}")
                try:
                    con.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").all()
                finally:
                    con.exec_driver_sql(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
            log = self._path.with_name(self._path.name + "-wal")
            return log.stat().st_size if log.exists() else 0

    def problem(self) -> str:
        """What SQLite finds wrong with the structure of its file; empty when nothing is, and on PostgreSQL."""
        if self._path is None:
            return ""
        with self._translated():
            self._follow_file()
            with self._reads.begin() as con:
                found = [str(row[0]) for row in con.exec_driver_sql("PRAGMA integrity_check(3)").all()]
        return "" if found == ["ok"] else "; ".join(found)

    def bytes_used(self) -> int:
        """Of the database and its log; 0 on PostgreSQL."""
        files = [] if self._path is None else [self._path, self._path.with_name(self._path.name + "-wal")]
        return sum(path.stat().st_size for path in files if path.exists())

    def copy_to(self, target: Path) -> bool:
        """Write one consistent snapshot of the database to a new file; False on PostgreSQL, which has means of its own."""
        if self._path is None:
            return False
        with self._translated():
            self._follow_file()
            with closing(sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)) as source:
                source.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
                with closing(sqlite3.connect(target)) as copy:
                    source.backup(copy)
                    copy.execute("PRAGMA journal_mode = DELETE")
        return True

    def move_aside(self, mark: str) -> str | None:
        """Rename the database, so that a new one can be made here; its new name, None when there is none. Nothing is deleted."""
        if self._path is None:
            raise ConfigError(f"ledger_url: {self.shown_url} cannot be moved aside: name another, empty database")
        self.close()
        names = itertools.chain([mark], (f"{mark}-{number}" for number in itertools.count(2)))
        asides = (self._path.with_name(f"{self._path.name}.{name}") for name in names)
        aside = next(path for path in asides if not path.exists())
        moved = False
        with self._translated():
            for end in ("", "-wal", "-shm"):  # SQLite drops a log it finds without its database
                source = self._path.with_name(self._path.name + end)
                if source.exists():
                    source.rename(aside.with_name(aside.name + end))
                    moved = moved or not end
        return str(aside) if moved else None

    def close(self) -> None:
        """Let go of every connection; a new one is made when it is needed."""
        self._engine.dispose()
        with self._watch_lock:
            watch, self._watch = self._watch, None
            if watch is not None:
                watch.close()

    def _follow_file(self) -> None:
        """Let go of connections to a file that `recover` has moved aside."""
        if self._path is None:
            return
        try:
            inode = self._path.stat().st_ino
        except FileNotFoundError as error:
            self.close()
            raise TierUnavailable(f"{self.shown_url}: no ledger here; append once, or run `thermocline recover`") from error
        if inode != self._inode:
            self.close()
            self._inode = inode

    def _begin(self, con: sa.Connection) -> None:
        kind = con.get_execution_options().get("transaction")
        if self.is_sqlite:
            if kind != "none":
                con.exec_driver_sql("BEGIN IMMEDIATE" if kind == "write" else "BEGIN")
        elif kind == "write":
            con.exec_driver_sql(f"SET LOCAL lock_timeout = '{BUSY_TIMEOUT_S}s'")
            con.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_POSTGRES_LOCK})")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except exc.DBAPIError as error:
            raise _error(error, self.shown_url) from error
        except sqlite3.Error as error:
            raise _error(exc.DBAPIError("PRAGMA data_version", None, error), self.shown_url) from error
        except exc.TimeoutError as error:
            raise TierUnavailable(f"ledger {self.shown_url}: every connection of this process is in use: {error}") from error
        except OSError as error:
            raise TierUnavailable(f"ledger {self.shown_url}: {error.strerror}: the folder must be writable") from error


def _set_pragmas(connection: sqlite3.Connection, _record: Any) -> None:
    """Make a new SQLite connection ours: transactions only where we begin them, and every commit on disk."""
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
    deadline_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:  # the switch to WAL wants the file alone and does not wait for it
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                raise
            time.sleep(0.01)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}")


def _error(error: exc.DBAPIError, shown_url: str) -> Exception:
    """The driver's error as one of ours, naming the ledger and the way out."""
    where, said = f"ledger {shown_url}", " ".join(str(error.orig).split())
    code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    if code in _UNAVAILABLE:
        return TierUnavailable(f"{where}: {_UNAVAILABLE[code]} ({said})")
    if code in _CORRUPT:
        return TierCorrupt(f"{where}: {_CORRUPT[code]} ({said}); move it aside and run `thermocline recover`")
    if "no such table" in said or getattr(error.orig, "sqlstate", "") == "42P01":
        return TierUnavailable(f"{where}: has no tables yet; append once, or run `thermocline recover`")
    if isinstance(error, exc.OperationalError | exc.InterfaceError):
        return TierUnavailable(f"{where}: {said}")
    return TierCorrupt(f"{where}: does not take what it should: {said}")


__all__ = ["LedgerEngine"]
