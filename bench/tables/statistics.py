"""Statistics from rollups: one day, one conversation, by hour, a full listing, against the same question to SQLite and others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from bench import loader, reads
from bench.case import Bench, Case, Table
from bench.measure import interleaved_s, percentile, seconds, shown_time, spread
from bench.peers import ClickHouse, DuckTable, Postgres, Sqlite
from bench.peers.peer import BY_HOUR, ONE_CONVERSATION, ONE_DAY, Peer
from bench.results import Row
from thermocline.store import Store

LIMIT_S, LISTING_RATE, SQLITE_RATIO = 0.100, 10_000_000, 20
CALLS = {True: 20, False: 50}
PEER_CALLS = {True: 1, False: 5}
WARM_UP = {True: 0, False: 1}
QUERIES = {
    ONE_DAY: (
        "statistics of one day",
        "SELECT sum(event_count), sum(total_bytes) FROM hourly_stats WHERE hour >= make_timestamptz(?) AND hour < "
        "make_timestamptz(?)",
    ),
    ONE_CONVERSATION: ("summary of one conversation", "SELECT * FROM conversation_summary WHERE conversation_id = ?"),
    BY_HOUR: (
        "statistics by hour over everything",
        "SELECT hour, sum(event_count), sum(total_bytes) FROM hourly_stats GROUP BY hour",
    ),
}


def _cases(size: int, quick: bool) -> list[Case]:
    peers = [one for one in (Sqlite, ClickHouse, DuckTable, Postgres) if size <= one.events_max]
    return [
        Case("own", size, partial(_own, size=size), group=reads.GROUP),
        *(Case(one.name, size, partial(_peer, size=size, peer=one), group=reads.group(one, quick=quick)) for one in peers),
    ]


def _parameters(made: reads.Own, name: str, number: int) -> list[Any]:
    if name == BY_HOUR:
        return []
    return list(reads.pick(reads.days(made.load) if name == ONE_DAY else reads.runs(made.load), number))


def _ask(made: reads.Own, name: str, number: int) -> object:
    store: Store = made.store
    return store.sql(QUERIES[name][1], _parameters(made, name, number)).to_arrow()


def _own(bench: Bench, *, size: int) -> Sequence[Row]:
    made = reads.own(bench, size)
    segments, rows_each = loader.backlog(size, made.config)
    rows = []
    for name, (what, _) in QUERIES.items():
        taken = interleaved_s({"own": partial(_ask, made, name)}, CALLS[bench.quick], warm_up=3)["own"]
        p50_s = percentile(taken, 0.5)
        rows.append(
            Row(
                what=what,
                events=size,
                value=spread(taken),
                target=f"p50 ≤ {shown_time(LIMIT_S)}",
                met=p50_s <= LIMIT_S,
                note=f"{segments} unmerged segments of {rows_each:,} rows",
                figures={f"{name}_p50_s": p50_s, "p99_s": percentile(taken, 0.99)},
            )
        )
    return [*rows, _listing(made, size)]


def _listing(made: reads.Own, size: int) -> Row:
    """Everything in hourly_stats, by the rows of the rollups it is added up from."""
    segments = [one for one in made.store.tiers.ledger.view().segments if one.has_rollups]
    with made.store.tiers.warm.reading(segments, task="counting rollups") as (con, aliases):
        counted = " UNION ALL ".join(f"SELECT count(*) AS n FROM {alias}.rollup_hourly" for alias in aliases)
        [(rolled,)] = con.execute(f"SELECT sum(n)::BIGINT FROM ({counted})").fetchall()
    listed = 0

    def list_all() -> None:
        nonlocal listed
        listed = made.store.sql("SELECT * FROM hourly_stats").to_arrow().num_rows

    list_all()
    taken_s = min(seconds(list_all) for _ in range(3))
    return Row(
        what="a full listing of hourly_stats",
        events=size,
        value=f"{rolled / taken_s / 1e6:.1f} M rollup rows/s",
        target=f"≥ {LISTING_RATE / 1e6:.0f} M/s",
        met=rolled / taken_s >= LISTING_RATE,
        note=f"{listed:,} rows from {rolled:,} in {shown_time(taken_s)}, the best of three",
        figures={"listing_rows_per_s": rolled / taken_s},
    )


def _peer(bench: Bench, *, size: int, peer: type[Peer]) -> Sequence[Row]:
    if peer.missing():
        return [Row(what=f"{peer.title}, statistics", events=size, value=peer.missing())]
    made, other = reads.own(bench, size), reads.loaded(bench, size, peer)
    rows = []
    for name, (what, _) in QUERIES.items():
        calls = {
            "own": partial(_ask, made, name),
            "peer": lambda number, name=name: other.peer.query(name, _parameters(made, name, number)),
        }
        taken = interleaved_s(calls, PEER_CALLS[bench.quick], warm_up=WARM_UP[bench.quick])
        ratio = percentile(taken["peer"], 0.5) / percentile(taken["own"], 0.5)
        target = peer is Sqlite
        rows.append(
            Row(
                what=f"{peer.title}, {what}",
                events=size,
                value=spread(taken["peer"]),
                against=f"Thermocline, taking turns: {spread(taken['own'])}; ratio {ratio:.1f}",
                target=f"Thermocline ≥ {SQLITE_RATIO}× faster" if target else "",
                met=ratio >= SQLITE_RATIO if target else None,
                figures={f"{name}_p50_s": percentile(taken["peer"], 0.5), "ratio": ratio},
            )
        )
    return rows


TABLE = Table(
    name="statistics",
    title="Statistics",
    about="Thermocline answers from rollups, kept exact; the others count the events themselves, SQLite and PostgreSQL with "
    "an index on time and on conversation: for them one conversation is an index look-up. The store has the largest backlog "
    "of unmerged segments without rollups that the design allows.",
    sizes=(1_000_000, 10_000_000, 100_000_000),
    cases=_cases,
)
