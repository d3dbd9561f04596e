"""An aggregate over a span of time, against hand-written DuckDB over one table sorted the same way and peers; planning."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bench import reads
from bench.case import Bench, Case, Table
from bench.measure import interleaved_s, percentile, shown_time, spread
from bench.peers import ClickHouse, DuckTable, Postgres, Sqlite
from bench.peers.peer import AGGREGATE, Peer
from bench.results import Row

QUERY = (
    "SELECT event_type, count(*), sum(output_tokens), avg(duration_ms) FROM events"
    " WHERE timestamp >= make_timestamptz(?) AND timestamp < make_timestamptz(?) GROUP BY event_type"
)
RATIO, PLANNING_S = 1.2, 0.005
HOURS = 6
CALLS = {True: 20, False: 50}
MOST = {ClickHouse: 1.0, DuckTable: RATIO}


def _cases(size: int, quick: bool) -> list[Case]:
    peers = [one for one in (DuckTable, ClickHouse, Sqlite, Postgres) if size <= one.events_max]
    return [
        Case("planning", size, partial(_planning, size=size), group=reads.GROUP),
        *(Case(one.name, size, partial(_peer, size=size, peer=one), group=reads.group(one, quick=quick)) for one in peers),
    ]


def _planning(bench: Bench, *, size: int) -> Sequence[Row]:
    made = reads.own(bench, size)
    spans = reads.hours(made.load, HOURS)
    text = f"EXPLAIN (FORMAT json) {QUERY}"  # drawing it as text takes half as long as making it
    con, segments = made.by_hand(*spans[0])
    calls = {
        "own": lambda number: made.store.sql(text, list(spans[number % len(spans)])),
        "by hand": lambda _: con.execute(text, list(spans[0])).fetchall(),
    }
    both = interleaved_s(calls, CALLS[bench.quick])
    con.close()
    taken = both["own"]
    p50_s = percentile(taken, 0.5)
    return [
        Row(
            what="planning of the aggregate: view, pruning, and DuckDB's own, by EXPLAIN (FORMAT json)",
            events=size,
            value=spread(taken),
            against=f"by hand, in a DuckDB with a view of one day's {segments} segments and nothing else, taking turns: "
            f"{spread(both['by hand'])}",
            target=f"p50 ≤ {shown_time(PLANNING_S)}",
            met=p50_s <= PLANNING_S,
            figures={"planning_p50_s": p50_s},
        )
    ]


def _peer(bench: Bench, *, size: int, peer: type[Peer]) -> Sequence[Row]:
    what = f"aggregate over {HOURS} hours, Thermocline against {peer.title}"
    if peer.missing():
        return [Row(what=what, events=size, value=peer.missing())]
    made, other = reads.own(bench, size), reads.loaded(bench, size, peer)
    spans = reads.hours(made.load, HOURS)
    calls = {
        "own": lambda number: made.store.sql(QUERY, list(spans[number % len(spans)])).to_arrow(),
        "peer": lambda number: other.peer.query(AGGREGATE, spans[number % len(spans)]),
    }
    taken = interleaved_s(calls, CALLS[bench.quick] if peer in MOST else 10, warm_up=3)
    ratio = percentile(taken["own"], 0.5) / percentile(taken["peer"], 0.5)
    most = MOST.get(peer)
    return [
        Row(
            what=what,
            events=size,
            value=spread(taken["own"]),
            against=f"{peer.title}, taking turns: {spread(taken['peer'])}; ratio {ratio:.2f}",
            target="" if most is None else f"≤ {most}×" if most > 1 else "not slower",
            met=None if most is None else ratio <= most,
            figures={
                "own_p50_s": percentile(taken["own"], 0.5),
                f"{peer.name}_p50_s": percentile(taken["peer"], 0.5),
                "ratio": ratio,
            },
        )
    ]


TABLE = Table(
    name="aggregate",
    title="Aggregate over a span of time",
    about=f"Events, tokens and mean duration by event type of {HOURS} hours of one day, from the events themselves; another "
    "day each time.",
    sizes=(1_000_000, 10_000_000, 100_000_000),
    cases=_cases,
)
