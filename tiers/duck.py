"""DuckDB connections for the rest of the project, and its errors in our words. The only module that imports duckdb."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import duckdb
import pyarrow as pa

from thermocline.errors import TierCorrupt, TierUnavailable

Connection: TypeAlias = duckdb.DuckDBPyConnection
DuckError: TypeAlias = duckdb.Error
BinderError: TypeAlias = duckdb.BinderException
"""A name in a query stands for nothing there, or a type does not fit: nothing has run."""
Parameters: TypeAlias = Sequence[Any] | Mapping[str, Any] | None

DATA_ERRORS = (duckdb.DataError, duckdb.InvalidInputException, duckdb.IntegrityError)
"""What a statement raises about the values it was given, as opposed to memory, disk or a bug."""

_numbers = itertools.count(1)


def connect(*, memory_bytes: int, threads: int, temp_dir: str | None = None, preserve_order: bool = False) -> Connection:
    """An in-memory database in UTC that downloads nothing, reads no Python variable and spills only into `temp_dir`.

    memory_bytes    DuckDB's own limit; it is a soft one (sorting may pass it by some tens of MiB)
    temp_dir        where what does not fit in memory goes; None keeps everything in memory and fails when it is full
    preserve_order  whether rows without ORDER BY keep the order of their source; costs parallelism

    TierUnavailable: this process cannot open one more file.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory_bytes // 1024}KiB",
        "threads": threads,
        "temp_directory": temp_dir or "",
        "preserve_insertion_order": preserve_order,
        "python_enable_replacements": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    with duckdb_errors("a database in memory"):  # without a single file left to open DuckDB ends the whole process
        os.close(os.open(os.devnull, os.O_RDONLY))
    con = duckdb.connect(":memory:", config=config)
    con.execute("SET GLOBAL TimeZone = 'UTC'")
    return con


def asked(con: Connection, query: str, parameters: Parameters = None) -> Any:
    """What a query gives: to_arrow_table(), to_arrow_reader(rows) or fetchall() reads it, description has its columns. None when
    DuckDB 2.x says that it gives nothing.

    DuckDB 1.x plans once for execute() and twice for sql(); 2.x makes a copy of what Arrow reads after execute(), and warns.
    """
    return con.execute(query, parameters) if hasattr(con, "arrow") else con.sql(query, params=parameters)


def quoted(text: str) -> str:
    """The text as a SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def fresh_name(stem: str) -> str:
    """A name no other call in this process has had: for aliases and temporary tables of tasks that run side by side."""
    return f"{stem}_{next(_numbers)}"


@contextmanager
def registered(con: Connection, table: pa.Table | pa.RecordBatchReader) -> Iterator[str]:
    """The name under which SQL sees the Arrow table meanwhile; a reader once."""
    name = fresh_name("arrow")
    con.register(name, table)
    try:
        yield name
    finally:
        con.unregister(name)


@contextmanager
def duckdb_errors(subject: str, *, reading: bool = False) -> Iterator[None]:
    """Turn what DuckDB and the file system raise about `subject` into TierUnavailable or TierCorrupt.

    reading  stored data only: what DuckDB cannot make sense of is then damaged, not a failure that may pass
    """
    try:
        yield
    except duckdb.OutOfMemoryException as exc:
        raise TierUnavailable(
            f"{subject}: DuckDB ran out of memory or spill space ({_line(exc)}); "
            "raise warm.memory_bytes_max or free disk space, then run again"
        ) from exc
    except duckdb.Error as exc:
        text = _line(exc)
        lowered = text.lower()
        if any(sign in lowered for sign in _PASSING) and not isinstance(exc, duckdb.ProgrammingError):
            raise TierUnavailable(f"{subject}: {text}; {_fix(lowered)}") from exc
        if reading or any(sign in lowered for sign in _DAMAGED):
            raise TierCorrupt(f"{subject}: cannot be read ({text}); restore the file from a copy") from exc
        raise TierUnavailable(f"{subject}: DuckDB failed ({text}); run again") from exc
    except OSError as exc:
        problem = exc.strerror or str(exc)
        raise TierUnavailable(f"{subject}: {problem}; {_fix(problem.lower())}") from exc


_PASSING = (
    "no space left",
    "file too large",
    "quota",
    "permission denied",
    "read-only file system",
    "no such file",
    "does not exist",
    "too many open files",
    "could not set lock",
)
_DAMAGED = ("corrupt", "checksum", "not a valid duckdb", "failed to deserialize")


def _fix(lowered: str) -> str:
    if "permission" in lowered or "read-only" in lowered:
        return "let this user read and write the folder"
    if "no space" in lowered or "too large" in lowered or "quota" in lowered:
        return "free disk space or raise the limit, then run again"
    if "too many open files" in lowered:
        return "raise the limit of open files (ulimit -n)"
    if "no such file" in lowered or "does not exist" in lowered:
        return "it left the ledger or was moved away: take a fresh view"
    return "check the disk, then run again"


def _line(exc: BaseException) -> str:
    return str(exc).strip().split("\n", 1)[0][:500]
