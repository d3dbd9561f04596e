"""Attacks on the process of an untrusted query, each with a name: what tests/faults/test_attacks.py runs.

`{secrets}` is a folder of files that hold a secret, `{data}` the store's data directory, `{other}` another namespace's segment,
`{copy}` a file that must not come to be.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Attack(NamedTuple):
    sql: str
    """`{secrets}` and so on are replaced, as text: braces of others stay."""
    refused: bool = True
    """False: it may be answered too, as long as the answer tells nothing."""
    deadline_s: float = 60


def _harmless(sql: str) -> Attack:
    return Attack(sql, refused=False)


def _bomb(sql: str) -> Attack:
    """Memory or size: it ends by itself at a limit."""
    return Attack(sql)


def _slow(sql: str) -> Attack:
    return Attack(sql, deadline_s=1.0)


READS: Final = {
    "read_text": "FROM read_text('{secrets}/secret.txt')",
    "read_blob": "FROM read_blob('{secrets}/secret.txt')",
    "read_csv": "FROM read_csv('{secrets}/secret.csv')",
    "read_csv_auto": "FROM read_csv_auto('{secrets}/secret.csv', header = false)",
    "sniff_csv": "FROM sniff_csv('{secrets}/secret.csv')",
    "read_json": "FROM read_json('{secrets}/secret.json')",
    "read_json_objects": "FROM read_json_objects('{secrets}/secret.json')",
    "read_ndjson": "FROM read_ndjson_auto('{secrets}/secret.json')",
    "read_parquet": "FROM read_parquet('{secrets}/secret.parquet')",
    "parquet_metadata": "FROM parquet_metadata('{secrets}/secret.parquet')",
    "parquet_schema": "FROM parquet_schema('{secrets}/secret.parquet')",
    "parquet_kv_metadata": "FROM parquet_kv_metadata('{secrets}/secret.parquet')",
    "parquet_file_metadata": "FROM parquet_file_metadata('{secrets}/secret.parquet')",
    "parquet_bloom_probe": "FROM parquet_bloom_probe('{secrets}/secret.parquet', 'a', 'x')",
    "glob": "FROM glob('{secrets}/*')",
    "file as a table": "FROM '{secrets}/secret.csv'",
    "file as a quoted name": 'FROM "{secrets}/secret.parquet"',
    "DuckDB file as a table": "FROM '{secrets}/secret.duckdb'",
    "read_duckdb": "FROM read_duckdb('{secrets}/secret.duckdb')",
    "summarize a file": "SUMMARIZE '{secrets}/secret.csv'",
    "describe a file": "DESCRIBE FROM '{secrets}/secret.csv'",
    "explain reads a file": "EXPLAIN ANALYZE FROM read_text('{secrets}/secret.txt')",
    "subquery reads a file": "SELECT (SELECT content FROM read_text('{secrets}/secret.txt')) FROM events",
    "query() reads a file": "FROM query('FROM read_text(''{secrets}/secret.txt'')')",
    "query_table() reads a file": "FROM query_table('{secrets}/secret.csv')",
    "prepared name reads a file": "FROM query('FROM read_' || 'text(''{secrets}/secret.txt'')')",
    "list of files": "FROM read_text(['{data}/none', '{secrets}/secret.txt'])",
    "symbolic link": "FROM read_text('{secrets}/link-in-the-store/secret.txt')",
    "link inside the store": "FROM read_text('{data}/default/cold/link/secret.txt')",
    "dots": "FROM read_text('{data}/default/cold/../../../secrets/secret.txt')",
    "doubled slashes": "FROM read_text('/{secrets}//secret.txt')",
    "file URL": "FROM read_text('file://{secrets}/secret.txt')",
    "S3 URL": "FROM read_parquet('s3://bucket/secret.parquet')",
    "HTTP URL": "FROM read_csv('http://127.0.0.1:1/secret.csv')",
    "cold URL": "FROM read_parquet('cold://events/x.parquet')",
    "environment of the process": "FROM read_blob('/proc/self/environ')",
    "environment of the server": "FROM read_blob('/proc/{pid}/environ')",
    "memory map": "FROM read_text('/proc/self/maps')",
    "open file": "FROM read_csv('/dev/fd/0')",
    "standard input": "FROM read_csv('/dev/stdin')",
    "password file": "FROM read_csv('/etc/passwd', sep = ':')",
    "the ledger": "FROM read_blob('{data}/default/ledger.db')",
    "another namespace's segment": "FROM read_duckdb('{other}')",
    "sqlite extension": "FROM sqlite_scan('{data}/default/ledger.db', 'segments')",
    "postgres extension": "FROM postgres_scan('host=127.0.0.1', 'public', 'x')",
    "name of an extension": "FROM httpfs",
    "python variable": "FROM canary_table",
    "python scan": "FROM python_map_function('canary_table')",
    "arrow scan of an address": "FROM arrow_scan(1, 1, 1)",
    "pandas scan of an address": "FROM pandas_scan(1)",
    "pandas scan of nothing": "FROM pandas_scan(NULL)",
    "getenv": "SELECT getenv('AWS_SECRET_ACCESS_KEY')",
}
"""All of them are refused."""

WRITES: Final = {
    "copy to": "COPY (SELECT 1) TO '{copy}'",
    "copy from": "COPY events FROM '{secrets}/secret.csv'",
    "copy inside explain": "EXPLAIN ANALYZE COPY (SELECT 1) TO '{copy}'",
    "copy inside a hidden explain": "EXPLAIN /* */ (ANALYZE, FORMAT json) COPY (SELECT 1) TO '{copy}'",
    "copy after a comment": "-- SELECT 1\nCOPY (SELECT 1) TO '{copy}'",
    "export": "EXPORT DATABASE '{copy}'",
    "import": "IMPORT DATABASE '{secrets}'",
    "import as a pragma": "PRAGMA import_database('{secrets}')",
    "attach": "ATTACH '{secrets}/secret.duckdb' AS stolen",
    "attach a new file": "ATTACH '{copy}' AS fresh",
    "detach": "DETACH memory",
    "use": "USE memory",
    "install": "INSTALL httpfs",
    "install from": "FORCE INSTALL httpfs FROM 'http://127.0.0.1:1'",
    "load": "LOAD httpfs",
    "load a path": "LOAD '{secrets}/secret.duckdb_extension'",
    "set": "SET enable_external_access = true",
    "set global": "SET GLOBAL allowed_directories = ['/']",
    "set memory": "SET memory_limit = '100GB'",
    "set variable": "SET VARIABLE x = (SELECT content FROM read_text('{secrets}/secret.txt'))",
    "reset": "RESET enable_external_access",
    "pragma": "PRAGMA enable_profiling = 'json'",
    "pragma assigns": "PRAGMA temp_directory = '{secrets}'",
    "call": "CALL enable_logging()",
    "checkpoint": "FORCE CHECKPOINT",
    "create secret": "CREATE SECRET (TYPE s3, KEY_ID 'x', SECRET 'y')",
    "create table": "CREATE TABLE x AS FROM read_text('{secrets}/secret.txt')",
    "create macro": "CREATE MACRO f() AS TABLE FROM read_text('{secrets}/secret.txt')",
    "create a view": "CREATE VIEW events AS SELECT 1",
    "drop": "DROP VIEW events",
    "delete": "DELETE FROM events",
    "delete in a CTE": "WITH x AS (DELETE FROM tail.events RETURNING *) SELECT * FROM x",
    "insert in a CTE": "WITH x AS (INSERT INTO tail.events SELECT * FROM events RETURNING *) SELECT * FROM x",
    "update": "UPDATE tail.events SET content = ''",
    "transaction": "BEGIN",
    "prepare": "PREPARE p AS SELECT 1",
    "two statements": "SELECT 1; COPY (SELECT 1) TO '{copy}'",
    "two statements after a comment": "SELECT 1 /* ; */ ; -- \n ATTACH '{copy}'",
    "unicode space": "SELECT 1;\u00a0COPY (SELECT 1) TO '{copy}'",
    "unicode quotes": "COPY (SELECT 1) TO \u2018{copy}\u2019",
    "text that ends a string": "SELECT ''' ; COPY (SELECT 1) TO ''{copy}''",
    "nothing": " \n -- nothing",
    "NUL character": "SELECT 1\0; COPY (SELECT 1) TO '{copy}'",
    "lone surrogate": "SELECT '\ud800'",
    "text of 64 KiB and one": "SELECT '" + "x" * ((64 << 10) + 1 - 9) + "'",
}
"""All of them are refused, and change nothing."""

LOOKS: Final = {
    "secrets": "FROM duckdb_secrets()",
    "which secret": "FROM which_secret('s3://bucket/x', 's3')",
    "settings": "FROM duckdb_settings()",
    "a setting": "SELECT current_setting('s3_secret_access_key')",
    "variables": "FROM duckdb_variables()",
    "a variable": "SELECT getvariable('canary')",
    "databases": "FROM duckdb_databases()",
    "all columns": "SELECT * FROM information_schema.columns",
    "temporary files": "FROM duckdb_temporary_files()",
    "logs": "FROM duckdb_logs()",
    "functions": "SELECT function_name FROM duckdb_functions()",
    "views": "SELECT sql FROM duckdb_views()",
    "user agent": "PRAGMA user_agent",
    "home": "SELECT current_setting('home_directory'), current_setting('extension_directory')",
    "own events as JSON": "SELECT to_json(e) FROM events e LIMIT 3",
    "serialized SQL": "FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "own segment": "SELECT count(*) FROM glob('{data}/default/segments/*')",
}
"""Answered or refused, and nothing is told."""

BOMBS: Final = {
    "printf": "SELECT printf('%1000000000d', 1)",
    "format": "SELECT format('{:>1000000000}', 'x')",
    "repeat": "SELECT repeat('x', 2000000000)",
    "repeat many": "SELECT repeat('x', 1000000) || i FROM range(100000) t(i) ORDER BY 1",
    "lpad": "SELECT lpad('x', 2000000000, 'y')",
    "range": "SELECT range(2000000000)",
    "list of lists": "SELECT list(range(1000000)) FROM range(10000)",
    "list_resize": "SELECT list_resize([1], 2000000000)",
    "string_agg": "SELECT string_agg(repeat('x', 100000), '') FROM range(100000)",
    "one long row": "SELECT repeat('x', 3000000)",
    "unnest": "SELECT count(*) FROM (SELECT unnest(range(1000000000)))",
    "recursive strings": "WITH RECURSIVE r AS (SELECT 'x' AS s UNION ALL SELECT s || s FROM r) SELECT max(length(s)) FROM r",
    "big decimals": "SELECT list(i::DECIMAL(38, 0)) FROM range(1000000000) t(i)",
    "distinct": "SELECT count(*) FROM (SELECT DISTINCT i, repeat('x', 200) || i FROM range(100000000) t(i))",
    "sort that spills": "SELECT * FROM (SELECT repeat(i::VARCHAR, 40) AS s FROM range(9000000) t(i)) ORDER BY s OFFSET 8000000",
    "window": "SELECT sum(length(s)) FROM (SELECT string_agg(i::VARCHAR) OVER (ORDER BY i) AS s FROM range(1000000) t(i))",
    "join that spills": "SELECT count(*) FROM range(50000000) a(i) JOIN (SELECT hash(i) i FROM range(50000000) b(i)) USING (i)",
    "regular expression": "SELECT regexp_replace(repeat('a', 30000000), '(a*)*b', 'x')",
    "JSON": "SELECT json_array_length(repeat('[', 100000000))",
    "deep parentheses": "SELECT " + "(" * 30_000 + "1" + ")" * 30_000,
    "deep functions": "SELECT " + "abs(" * 10_000 + "1" + ")" * 10_000,
    "deep subqueries": "SELECT * FROM " + "(SELECT * FROM " * 3_000 + "range(1)" + ")" * 3_000,
    "deep lists": "SELECT " + "[" * 30_000 + "]" * 30_000,
    "many columns": "SELECT " + ",".join(["1"] * 4_000),
    "many columns of a star": "SELECT COLUMNS(*) FROM (SELECT " + ",".join(f"{n} AS c{n}" for n in range(3_000)) + ")",
}
"""Each ends at a limit, and says at which."""

SLOW: Final = {
    "cross join": "SELECT count(*) FROM range(10000000000) a, range(10000000000) b WHERE a.range + b.range = -1",
    "recursion without end": "WITH RECURSIVE r AS (SELECT 1 AS i UNION ALL SELECT (i + 1) % 7 FROM r) SELECT count(*) FROM r",
    "generate_series": "SELECT sum(sin(i)) FROM generate_series(1, 100000000000) t(i)",
    "hashes": "SELECT count(*) FROM range(10000000000) t(i) WHERE md5(i::VARCHAR) = 'x'",
    "events to the tenth": "SELECT count(*) FROM events a, events b, events c, events d, events e WHERE a.seq + e.seq < 0",
    "distances": "SELECT max(levenshtein(repeat('ab', 20000), repeat('ba', 20000) || i)) FROM range(1000) t(i)",
}
"""Killed at the deadline."""

CUT: Final = {
    "rows without end": "SELECT i FROM range(10000000000) t(i)",
    "bytes without end": "SELECT repeat('x', 1000) AS x FROM range(10000000000)",
    "every event many times": "SELECT a.* FROM events a, range(1000000)",
}
"""Answered up to a cap."""

LONG: Final = frozenset(
    {
        *(
            "look: a setting",
            "look: databases",
            "look: own segment",
            "slow: recursion without end",
            "cut: every event many times",
        ),
        *(
            "bomb: format",
            "bomb: range",
            "bomb: one long row",
            "write: call",
            "write: reset",
            "write: create table",
            "write: load",
        ),
        *("read: summarize a file", "read: list of files", "read: password file", "read: sqlite extension"),
    }
) | frozenset(
    [
        f"read: {name}"
        for name in (
            "read_csv_auto",
            "read_json_objects",
            "read_ndjson",
            "parquet_schema",
            "parquet_kv_metadata",
            "parquet_file_metadata",
            "parquet_bloom_probe",
            "file as a quoted name",
            "DuckDB file as a table",
            "describe a file",
            "prepared name reads a file",
            "symbolic link",
            "doubled slashes",
            "cold URL",
            "memory map",
            "standard input",
            "postgres extension",
            "python scan",
            "arrow scan of an address",
            "pandas scan of an address",
            "subquery reads a file",
            "query_table() reads a file",
        )
    ]
    + [
        f"write: {name}"
        for name in (
            "copy after a comment",
            "import",
            "attach a new file",
            "detach",
            "use",
            "install from",
            "load a path",
            "set global",
            "set memory",
            "pragma",
            "checkpoint",
            "create macro",
            "create a view",
            "drop",
            "delete",
            "insert in a CTE",
            "update",
            "transaction",
            "prepare",
            "two statements after a comment",
            "unicode space",
            "unicode quotes",
            "text that ends a string",
        )
    ]
    + [
        f"look: {name}"
        for name in (
            "which secret",
            "a variable",
            "all columns",
            "temporary files",
            "logs",
            "functions",
            "views",
            "user agent",
            "home",
            "serialized SQL",
        )
    ]
    + [
        f"bomb: {name}"
        for name in (
            "repeat many",
            "lpad",
            "list of lists",
            "list_resize",
            "unnest",
            "big decimals",
            "window",
            "join that spills",
            "regular expression",
            "JSON",
            "deep functions",
            "deep lists",
            "many columns of a star",
        )
    ]
    + [f"slow: {name}" for name in ("generate_series", "hashes", "distances")]
)
"""What goes much the way of another: for the long ring."""

ATTACKS: Final[dict[str, Attack]] = {
    **{f"read: {name}": Attack(sql) for name, sql in READS.items()},
    **{f"write: {name}": Attack(sql) for name, sql in WRITES.items()},
    **{f"look: {name}": _harmless(sql) for name, sql in LOOKS.items()},
    **{f"bomb: {name}": _bomb(sql) for name, sql in BOMBS.items()},
    **{f"slow: {name}": _slow(sql) for name, sql in SLOW.items()},
    **{f"cut: {name}": _harmless(sql) for name, sql in CUT.items()},
}
