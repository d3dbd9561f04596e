"""PostgreSQL 15, the ground under TimescaleDB: a server of its own, day partitions, COPY in batches."""

from __future__ import annotations

import io
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from bench.servers import free_port, wait_for

from .peer import AGGREGATE, BY_HOUR, COLUMNS, HISTORY, NAMES, ONE_CONVERSATION, ONE_DAY, Peer, Rows, plain, program, values_of

BATCH_EVENTS = 10_000
DAY_US = 86_400_000_000
INDEXES = {"by_time": "USING brin (timestamp)", "by_conversation": "(conversation_id, timestamp)"}
_TYPES = {"text": "text", "int": "bigint", "float": "double precision", "time": "bigint"}
_OPTIONS = {
    "shared_buffers": "2GB",
    "maintenance_work_mem": "512MB",
    "max_wal_size": "4GB",
    "effective_cache_size": "8GB",
    "work_mem": "64MB",
    "default_toast_compression": "lz4",
    "wal_level": "minimal",
    "max_wal_senders": "0",
}
USERS = ("postgres", "nobody")
"""Who the server runs as when we are root, which it refuses to be."""


class Postgres(Peer):
    name = "postgres"
    title = "PostgreSQL 15"
    configuration = (
        "its own server on a unix socket, synchronous_commit on, shared_buffers 2 GB, max_wal_size 4 GB, maintenance_work_mem "
        "512 MB, wal_level minimal (its manual: resource consumption, populating a database), lz4 for long texts; partitioned "
        "by day of timestamp (µs as bigint), BRIN on timestamp, B-tree on (conversation_id, timestamp); COPY of 10,000 events a "
        "transaction by psycopg 3; loaded by one transaction, which makes the indexes afterwards, and ANALYZE"
    )
    modules = ("psycopg",)
    programs = ("postgres", "initdb")
    install = "apt install postgresql && pip install psycopg[binary]"
    events_max = 1_000_000
    stays = False  # its user may not enter the benchmark's folder
    queries: ClassVar[dict[str, str]] = {
        HISTORY: "SELECT * FROM events WHERE conversation_id = %s ORDER BY timestamp",
        ONE_DAY: "SELECT count(*), sum(octet_length(content)) FROM events WHERE timestamp >= %s AND timestamp < %s",
        ONE_CONVERSATION: "SELECT count(*), min(timestamp), max(timestamp), count(DISTINCT task_id) FROM events"
        " WHERE conversation_id = %s",
        BY_HOUR: "SELECT timestamp / 3600000000, count(*), sum(octet_length(content)) FROM events GROUP BY 1",
        AGGREGATE: "SELECT event_type, count(*), sum(output_tokens), avg(duration_ms) FROM events"
        " WHERE timestamp >= %s AND timestamp < %s GROUP BY event_type",
    }

    @classmethod
    def version(cls) -> str:
        shown = subprocess.run([program("postgres"), "--version"], capture_output=True, text=True, check=True)
        return shown.stdout.split()[2]

    def open(self) -> None:
        import psycopg

        self._short = tempfile.mkdtemp(prefix="tcb-pg-")
        self._user = _other_user() if os.getuid() == 0 else None
        data = f"{self._short}/data"
        if self._user:
            shutil.chown(self._short, self._user)
        self._run([program("initdb"), "-D", data, "-U", "bench", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"])
        options = {**_OPTIONS, "unix_socket_directories": self._short, "listen_addresses": "", "port": str(free_port())}
        command = [
            program("postgres"),
            "-D",
            data,
            *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
        ]
        self._process = subprocess.Popen(command, user=self._user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        where = f"host={self._short} port={options['port']} user=bench dbname=postgres"
        wait_for(lambda: psycopg.connect(where).close(), self._process, "postgres")
        self._con = psycopg.connect(where, autocommit=True)
        columns = ", ".join(f"{name} {_TYPES[kind]}" for name, kind in COLUMNS)
        self._con.execute(f"CREATE TABLE events ({columns}) PARTITION BY RANGE (timestamp)")
        self._make_indexes()
        self._days: set[int] = set()
        self._loading = False

    def _make_indexes(self) -> None:
        for name, columns in INDEXES.items():
            self._con.execute(f"CREATE INDEX IF NOT EXISTS {name} ON events {columns}")

    def _run(self, command: list[str]) -> None:
        subprocess.run(command, user=self._user, check=True, capture_output=True, cwd="/")

    def close(self) -> None:
        self._con.close()
        self._process.send_signal(signal.SIGQUIT)  # at once: what it holds is thrown away
        self._process.wait(60)
        shutil.rmtree(self._short, ignore_errors=True)

    def append_one(self, event: dict[str, Any]) -> None:
        self._partition(event["timestamp"])
        self._con.execute(f"INSERT INTO events VALUES ({', '.join(['%s'] * len(NAMES))})", values_of(event), prepare=True)

    def append(self, events: Sequence[dict[str, Any]]) -> None:
        for start in range(0, len(events), BATCH_EVENTS):
            self._copy([values_of(event) for event in events[start : start + BATCH_EVENTS]])

    def load(self, table: pa.Table) -> None:
        if not self._loading:
            self._loading = True
            self._con.execute("BEGIN")  # with the tables made in it, so that no log is written
            for name in INDEXES:  # made again when all is there, as its manual advises
                self._con.execute(f"DROP INDEX IF EXISTS {name}")
        rows = plain(table).select(NAMES)
        for day in pc.unique(pc.divide(rows["timestamp"], DAY_US)).to_pylist():
            self._partition(day * DAY_US)
        text = io.BytesIO()
        pyarrow.csv.write_csv(rows, text, pyarrow.csv.WriteOptions(include_header=False, quoting_style="all_valid"))
        with self._con.cursor() as cursor, cursor.copy(f"COPY events ({', '.join(NAMES)}) FROM STDIN (FORMAT csv)") as copy:
            copy.write(text.getbuffer())

    def _copy(self, rows: Sequence[tuple[Any, ...]]) -> None:
        place = NAMES.index("timestamp")
        for day in {row[place] // DAY_US for row in rows}:
            self._partition(day * DAY_US)
        with self._con.cursor() as cursor, cursor.copy(f"COPY events ({', '.join(NAMES)}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)

    def _partition(self, stamp_us: int) -> None:
        day = stamp_us // DAY_US
        if day not in self._days:
            bounds = f"FROM ({day * DAY_US}) TO ({(day + 1) * DAY_US})"
            self._con.execute(f"CREATE TABLE events_{day} PARTITION OF events FOR VALUES {bounds}")
            self._days.add(day)

    def loaded(self) -> None:
        self._make_indexes()
        self._con.execute("COMMIT")
        self._loading = False
        self._con.execute("ANALYZE events")

    def query(self, name: str, parameters: Sequence[Any] = ()) -> Rows:
        return self._con.execute(self.queries[name], list(parameters), prepare=True).fetchall()


def _other_user() -> str:
    names = {one.pw_name for one in pwd.getpwall()}
    return next(name for name in USERS if name in names)
