"""What a user would pick instead, each set up as its own documentation advises. One file per peer; peer.py is their interface."""

from __future__ import annotations

from .clickhouse import ClickHouse
from .duckdb_table import DuckTable
from .naive import Naive
from .nats import Nats
from .peer import Peer
from .postgres import Postgres
from .redis_py import RedisPy
from .sqlite import Sqlite

PEERS: tuple[type[Peer], ...] = (RedisPy, Sqlite, Postgres, ClickHouse, DuckTable, Nats, Naive)
