"""What the tables of reads share: a loaded store of ours, loaded peers, and which conversations and times are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from thermocline.store import connect
from thermocline.tiers.duck import Connection, quoted
from thermocline.tiers.duck import connect as open_duck

from . import loader, stores
from .case import DAY_US, WHOLE, Bench
from .measure import forget_files
from .peers import PEERS
from .peers.peer import Peer
from .servers import RedisServer
from .workload import Workload

GROUP = "reads"
ASKED = 50
"""Conversations that are asked for, one after the other."""


class Own:
    """Our store with `size` events, most of them merged."""

    def __init__(self, bench: Bench, size: int) -> None:
        with bench.loading(f"own-{size}") as (folder, whole):
            self.folder = folder
            self.server = RedisServer(folder / "redis")
            self.config = stores.settings(folder, self.server)
            self.load = loader.workload(size, self.config, end_us=bench.end_us)
            if not whole:
                loader.load(self.load, self.config)
        self.store = connect(self.config)

    def cold(self) -> None:
        """Open it anew, with none of its files in the kernel's cache."""
        self.store.close()
        forget_files(self.config.namespace_dir / "segments")
        self.store = connect(self.config)

    def give_up(self) -> None:
        """Leave it to who changes it; it is not kept for another run."""
        self.store.close()
        (self.folder / WHOLE).unlink(missing_ok=True)

    def close(self) -> None:
        self.store.close()
        self.server.close()

    def by_hand(self, first_us: int = 0, last_us: int = 1 << 62) -> tuple[Connection, int]:
        """A DuckDB with a view `events` over the segments that have events of that time, and how many there are."""
        settings, warm = self.config.query, self.store.tiers.warm
        con = open_duck(memory_bytes=settings.memory_bytes_max, threads=settings.threads)
        chosen = [
            one
            for one in self.store.tiers.ledger.view().segments
            if one.timestamp_max_us >= first_us and one.timestamp_min_us <= last_us
        ]
        for number, one in enumerate(chosen):
            con.execute(f"ATTACH {quoted(warm.path(one.segment_id))} AS s{number} (READ_ONLY)")
        con.execute(f"CREATE VIEW events AS {' UNION ALL '.join(f'FROM s{number}.events' for number in range(len(chosen)))}")
        return con, len(chosen)


class Loaded:
    """A peer with the same events."""

    def __init__(self, bench: Bench, size: int, peer: type[Peer], tables: Sequence[pa.Table] = ()) -> None:
        """tables  the events, if they are there already"""
        with bench.loading(f"{peer.name}-{size}", keep=peer.stays) as (folder, whole):
            self.folder = folder
            self.peer = peer(folder)
            self.peer.open()
            if not whole:
                for table in tables or _events(bench, size, folder).tables(rows_max=self.peer.load_rows):
                    for start in range(0, table.num_rows, self.peer.load_rows):
                        self.peer.load(table.slice(start, self.peer.load_rows))
                self.peer.loaded()

    def cold(self) -> None:
        self.peer.close()
        forget_files(self.folder)
        self.peer.open()

    def close(self) -> None:
        self.peer.close()


class Together:
    """Our store and all peers that answer queries, with the same events: for the quick run, in which they are small and time is
    short."""

    def __init__(self, bench: Bench, size: int) -> None:
        there = [peer for peer in PEERS if peer.queries and not peer.missing()]
        with ThreadPoolExecutor(len(there) + 1) as pool:
            self._own = pool.submit(Own, bench, size)
            tables = list(_events(bench, size, bench.root).tables(rows_max=max([peer.load_rows for peer in there], default=1)))
            self._peers = {peer: pool.submit(Loaded, bench, size, peer, tables) for peer in there}

    def own(self) -> Own:
        """Ours; raises what loading it raised."""
        return self._own.result()

    def loaded(self, peer: type[Peer]) -> Loaded:
        """One of them; raises what loading it raised."""
        return self._peers[peer].result()

    def close(self) -> None:
        for load in (self._own, *self._peers.values()):
            if load.exception() is None:
                load.result().close()


def _events(bench: Bench, size: int, folder: Path) -> Workload:
    """Those of our store."""
    return loader.workload(size, stores.settings(folder), end_us=bench.end_us)


def group(peer: type[Peer], *, quick: bool) -> str:
    """The group of the cases that load a peer: in the full run one peer at a time takes its room on disk."""
    return GROUP if quick else f"{GROUP}/{peer.name}"


def own(bench: Bench, size: int) -> Own:
    if bench.quick:
        return _together(bench, size).own()
    made: Own = bench.shared((GROUP, "own", size), lambda: Own(bench, size))
    return made


def loaded(bench: Bench, size: int, peer: type[Peer]) -> Loaded:
    if bench.quick:
        return _together(bench, size).loaded(peer)
    made: Loaded = bench.shared((group(peer, quick=False), size), partial(Loaded, bench, size, peer))
    return made


def _together(bench: Bench, size: int) -> Together:
    made: Together = bench.shared((GROUP, "together", size), partial(Together, bench, size))
    return made


def runs(load: Workload) -> list[str]:
    """Conversations that ended days ago, from all over the week."""
    numbers = np.linspace(load.hot_count, load.conversations - 1, ASKED + 2)[1:-1].astype(np.int64)
    return load.names(numbers)


def hot(load: Workload) -> list[str]:
    """Conversations that went on all week."""
    return load.names(np.arange(min(load.hot_count, ASKED)))


def hours(load: Workload, count: int) -> list[tuple[int, int]]:
    """Spans of `count` hours (µs, half-open), one in each day of the week."""
    begins = [load.start_us + day * DAY_US + 6 * 3_600_000_000 for day in range(7)]
    return [(begin, begin + count * 3_600_000_000) for begin in begins]


def days(load: Workload) -> list[tuple[int, int]]:
    return [(load.start_us + day * DAY_US, load.start_us + (day + 1) * DAY_US) for day in range(7)]


def pick(asked: Sequence[str] | Sequence[tuple[int, int]], number: int) -> tuple[object, ...]:
    """The parameters of the call of that number."""
    found = asked[number % len(asked)]
    return (found,) if isinstance(found, str) else tuple(found)
