"""What the ledger's engine does where no database is needed to see it: PostgreSQL's side, and a SQLite that is busy."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.base import PGDialect

from thermocline.errors import ConfigError, TierCorrupt, TierUnavailable
from thermocline.tiers import ledger_engine
from thermocline.tiers.ledger_engine import LedgerEngine


class NoServer(PGDialect):
    """PostgreSQL without a driver: it connects to nothing."""

    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> Any:
        return sqlite3

    def create_connect_args(self, url: sa.URL) -> Any:
        return ((), {})

    def connect(self, *_: Any, **__: Any) -> Any:
        raise sqlite3.OperationalError("connection refused")


registry.register("postgresql.noserver", __name__, "NoServer")
URL = "postgresql+noserver://user:secret@host/ledger"


@pytest.fixture
def postgres() -> LedgerEngine:
    return LedgerEngine(URL)


class Recorder:
    """A connection that notes what it is told."""

    def __init__(self, transaction: str) -> None:
        self.transaction = transaction
        self.told: list[str] = []

    def get_execution_options(self) -> dict[str, str]:
        return {"transaction": self.transaction}

    def exec_driver_sql(self, text: str) -> None:
        self.told.append(text)


def test_a_write_on_postgresql_waits_for_the_one_before_it_and_a_read_does_not(postgres: LedgerEngine) -> None:
    write, read = Recorder("write"), Recorder("read")
    postgres._begin(write)  # type: ignore[arg-type]
    postgres._begin(read)  # type: ignore[arg-type]
    assert write.told[0] == "SET LOCAL lock_timeout = '30s'"
    assert write.told[1].startswith("SELECT pg_advisory_xact_lock(")
    assert read.told == []


def test_postgresql_has_no_log_to_fold_and_no_file_to_move(postgres: LedgerEngine) -> None:
    assert postgres.checkpoint() == 0
    with pytest.raises(ConfigError, match="cannot be moved aside: name another, empty database"):
        postgres.move_aside("old")


@pytest.mark.parametrize("create", [False, True])
def test_a_postgresql_that_does_not_answer_is_unavailable_and_its_password_not_shown(
    postgres: LedgerEngine, create: bool
) -> None:
    with pytest.raises(TierUnavailable, match="connection refused") as caught, postgres.write(create=create):
        pass
    assert "secret" not in str(caught.value)
    assert "user:***@host" in str(caught.value)
    with pytest.raises(TierUnavailable):
        postgres.exists()


def refused(error: Exception) -> Exception:
    return ledger_engine._error(sa.exc.DBAPIError.instance("", {}, error, sqlite3.Error), "here")  # type: ignore[arg-type]


def test_what_a_driver_says_becomes_an_error_that_names_the_ledger() -> None:
    missing = sqlite3.ProgrammingError('relation "identity" does not exist')
    missing.sqlstate = "42P01"  # type: ignore[attr-defined]
    assert "has no tables yet" in str(refused(missing))
    assert isinstance(refused(missing), TierUnavailable)
    assert isinstance(refused(sqlite3.InterfaceError("closed")), TierUnavailable)
    assert isinstance(refused(sqlite3.IntegrityError("twice")), TierCorrupt)


class Busy:
    """A SQLite connection whose switch to the write-ahead log is refused a few times."""

    def __init__(self, refusals: int, code: int) -> None:
        self.refusals = refusals
        self.code = code
        self.isolation_level: str | None = ""
        self.told: list[str] = []

    def execute(self, text: str) -> None:
        self.told.append(text)
        if "journal_mode" in text and self.refusals:
            self.refusals -= 1
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = self.code
            raise error


def test_the_switch_to_the_write_ahead_log_is_tried_again_while_another_process_makes_it() -> None:
    connection = Busy(3, sqlite3.SQLITE_BUSY)
    ledger_engine._set_pragmas(connection, None)  # type: ignore[arg-type]
    assert connection.isolation_level is None
    assert [text for text in connection.told if "journal_mode" in text] == ["PRAGMA journal_mode = WAL"] * 4
    assert connection.told[-2:] == ["PRAGMA synchronous = FULL", "PRAGMA journal_size_limit = 4194304"]


def test_it_is_not_tried_for_ever_and_not_at_all_for_another_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Busy(9, sqlite3.SQLITE_READONLY)
    with pytest.raises(sqlite3.OperationalError):
        ledger_engine._set_pragmas(other, None)  # type: ignore[arg-type]
    assert other.refusals == 8
    monkeypatch.setattr(ledger_engine, "BUSY_TIMEOUT_S", -1)
    late = Busy(9, sqlite3.SQLITE_BUSY)
    with pytest.raises(sqlite3.OperationalError):
        ledger_engine._set_pragmas(late, None)  # type: ignore[arg-type]
    assert late.refusals == 8


def test_a_ledger_moved_aside_twice_within_a_second_never_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    names = []
    for content in (b"first", b"second", b"third"):
        path.write_bytes(content)
        names.append(LedgerEngine(f"sqlite:///{path}").move_aside("20260101T000000Z.old"))
    assert [Path(str(name)).read_bytes() for name in names] == [b"first", b"second", b"third"]
