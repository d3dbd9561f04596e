"""What DuckDB and the disk raise comes out in our words, with the thing to do."""

from __future__ import annotations

import duckdb
import pytest

from thermocline.errors import ThermoclineError, TierCorrupt, TierUnavailable
from thermocline.tiers.duck import connect, duckdb_errors, quoted

CASES: list[tuple[Exception, bool, type[ThermoclineError], str]] = [
    (
        duckdb.OutOfMemoryException("Out of Memory Error: 3 GiB\nmore"),
        False,
        TierUnavailable,
        r"3 GiB\); raise warm.memory_bytes",
    ),
    (duckdb.IOException("IO Error: No space left on device"), False, TierUnavailable, "free disk space"),
    (duckdb.FatalException("FATAL: File too large"), False, TierUnavailable, "free disk space"),
    (duckdb.IOException('IO Error: Cannot open "x": Permission denied'), True, TierUnavailable, "let this user read and write"),
    (duckdb.IOException("IO Error: Too many open files"), True, TierUnavailable, "ulimit -n"),
    (duckdb.IOException("IO Error: database does not exist"), True, TierUnavailable, "take a fresh view"),
    (duckdb.IOException("IO Error: Corrupt database file"), False, TierCorrupt, "restore the file"),
    (duckdb.IOException("IO Error: anything"), True, TierCorrupt, "restore the file"),
    (duckdb.IOException("IO Error: anything"), False, TierUnavailable, "run again"),
    (duckdb.CatalogException("Catalog Error: Table does not exist"), True, TierCorrupt, "restore the file"),
    (OSError(5, "Input/output error"), False, TierUnavailable, "Input/output error; check the disk"),
    (OSError("no number"), False, TierUnavailable, "no number"),
]


@pytest.mark.parametrize(("raised", "reading", "kind", "text"), CASES)
def test_an_error_names_the_subject_and_the_fix(
    raised: Exception, reading: bool, kind: type[ThermoclineError], text: str
) -> None:
    with pytest.raises(kind, match=rf"^the subject: .*{text}") as caught, duckdb_errors("the subject", reading=reading):
        raise raised
    assert caught.value.__cause__ is raised


def test_text_is_quoted_whatever_it_holds() -> None:
    con = connect(memory_bytes=64 << 20, threads=1)
    for text in ("", "it's", "''", "\\", "a\nb", "ü\U0001f9ca"):
        assert con.execute(f"SELECT {quoted(text)}").fetchall() == [(text,)]
    con.close()


def test_a_connection_sees_no_python_variable_and_counts_in_utc() -> None:
    con = connect(memory_bytes=64 << 20, threads=1)
    hidden = [1]
    with pytest.raises(duckdb.CatalogException, match="hidden"):
        con.execute("SELECT * FROM hidden")
    assert hidden == [1]
    settings = ("TimeZone", "autoload_known_extensions", "autoinstall_known_extensions", "memory_limit", "threads")
    found = con.cursor().execute("SELECT " + ", ".join(f"current_setting('{name}')" for name in settings)).fetchall()
    assert found == [("UTC", False, False, "64.0 MiB", 1)]
    con.close()
