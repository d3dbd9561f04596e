"""One conversation's history, all columns, from warm: of the usual length and of a hot one, against peers, cached or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from bench import reads
from bench.case import Bench, Case, Table
from bench.measure import interleaved_s, percentile, seconds, shown_time, spread
from bench.peers import ClickHouse, DuckTable, Postgres, Sqlite
from bench.peers.peer import HISTORY, Peer
from bench.results import Result, Row
from thermocline.store import Store

QUERY = "SELECT * FROM events WHERE conversation_id = ? ORDER BY timestamp"
LIMIT_S, GROWTH = 0.020, 1.5
CALLS = {True: 20, False: 200}
COLD_CALLS = {True: 3, False: 10}


def _cases(size: int, quick: bool) -> list[Case]:
    peers = [one for one in (Sqlite, ClickHouse, DuckTable, Postgres) if size <= one.events_max]
    return [
        Case("own", size, partial(_own, size=size), group=reads.GROUP),
        *(Case(one.name, size, partial(_peer, size=size, peer=one), group=reads.group(one, quick=quick)) for one in peers),
    ]


def _ask(store: Store, asked: Sequence[str], number: int) -> int:
    rows: int = store.sql(QUERY, list(reads.pick(asked, number))).to_arrow().num_rows
    return rows


def _own(bench: Bench, *, size: int) -> Sequence[Row]:
    made = reads.own(bench, size)
    rows = []
    for name, asked in (("a usual conversation", reads.runs(made.load)), ("a hot conversation", reads.hot(made.load))):
        events = _ask(made.store, asked, 0)
        taken = interleaved_s({"own": partial(_ask, made.store, asked)}, CALLS[bench.quick])["own"]
        p50_s = percentile(taken, 0.5)
        rows.append(
            Row(
                what=f"history of {name}",
                events=size,
                value=spread(taken),
                target=f"p50 ≤ {shown_time(LIMIT_S)}",
                met=p50_s <= LIMIT_S,
                note=f"the first has {events:,} events",
                figures={f"{name.split()[1]}_p50_s": p50_s, "p99_s": percentile(taken, 0.99)},
            )
        )
    rows.append(_by_hand(made, size, CALLS[bench.quick] // 2))
    cold = _cold_s(made.cold, lambda number: _ask(made.store, reads.runs(made.load), number), COLD_CALLS[bench.quick])
    return [
        *rows,
        _cold_row("history of a usual conversation, first query of a store just opened, files not in the cache", size, cold),
    ]


def _by_hand(made: reads.Own, size: int, count: int) -> Row:
    """The same segments, without us: what there is to gain."""
    asked = reads.hot(made.load)
    con, segments = made.by_hand()
    calls = {
        "own": partial(_ask, made.store, asked),
        "by hand": lambda number: con.execute(QUERY, list(reads.pick(asked, number))).to_arrow_table(),
        "planned": lambda _: con.execute(f"PREPARE planned AS {QUERY}"),
    }
    taken = interleaved_s(calls, count, warm_up=5)
    con.close()
    return Row(
        what=f"history of a hot conversation by hand: DuckDB, a view of the same {segments} segments",
        events=size,
        value=f"{spread(taken['by hand'])}; of it planning (PREPARE) {spread(taken['planned'])}",
        against=f"Thermocline, taking turns: {spread(taken['own'])}",
        figures={"by_hand_p50_s": percentile(taken["by hand"], 0.5), "planned_p50_s": percentile(taken["planned"], 0.5)},
    )


def _cold_s(forget: Callable[[], None], ask: Callable[[int], object], count: int) -> list[float]:
    taken = []
    for number in range(count):
        forget()
        taken.append(seconds(lambda number=number: ask(number)))
    return taken


def _cold_row(what: str, size: int, taken: Sequence[float]) -> Row:
    middle = percentile(taken, 0.5)
    return Row(
        what=what, events=size, value=f"p50 {shown_time(middle)}", note=f"{len(taken)} times", figures={"cold_p50_s": middle}
    )


def _peer(bench: Bench, *, size: int, peer: type[Peer]) -> Sequence[Row]:
    what = f"{peer.title}, history of"
    if peer.missing():
        return [Row(what=what, events=size, value=peer.missing())]
    made, other = reads.own(bench, size), reads.loaded(bench, size, peer)
    rows = []
    for name, asked in (("a usual conversation", reads.runs(made.load)), ("a hot conversation", reads.hot(made.load))):
        calls = {
            "own": partial(_ask, made.store, asked),
            "peer": lambda number, asked=asked: other.peer.query(HISTORY, reads.pick(asked, number)),
        }
        taken = interleaved_s(calls, CALLS[bench.quick] // 2, warm_up=5)
        ratio = percentile(taken["peer"], 0.5) / percentile(taken["own"], 0.5)
        ahead = peer is ClickHouse
        rows.append(
            Row(
                what=f"{what} {name}",
                events=size,
                value=spread(taken["peer"]),
                against=f"Thermocline, taking turns: {spread(taken['own'])}; it is {_times(ratio)}",
                target="Thermocline ahead" if ahead else "",
                met=ratio >= 1 if ahead else None,
                figures={f"{name.split()[1]}_p50_s": percentile(taken["peer"], 0.5), "ratio": ratio},
            )
        )
    if peer is Sqlite:
        asked = reads.runs(made.load)
        cold = _cold_s(other.cold, lambda number: other.peer.query(HISTORY, reads.pick(asked, number)), COLD_CALLS[bench.quick])
        rows.append(_cold_row(f"{what} a usual conversation, new connection, file not in the cache", size, cold))
    return rows


def _times(ratio: float) -> str:
    return f"{ratio:.1f}× as quick" if ratio >= 1 else f"{1 / ratio:.1f}× as slow"


def _derived(results: Sequence[Result]) -> list[Row]:
    rows = []
    for name in ("usual", "hot"):
        by_size = {
            one.events: row.figures[f"{name}_p50_s"]
            for one in results
            if one.case == "own"
            for row in one.rows
            if f"{name}_p50_s" in row.figures
        }
        sizes = sorted(by_size)[-2:]
        if len(sizes) == 2 and sizes[0] >= 10_000_000:
            ratio = by_size[sizes[1]] / by_size[sizes[0]]
            what = f"history of a {name} conversation, {sizes[1] // 1_000_000} M events against {sizes[0] // 1_000_000} M"
            rows.append(Row(what=what, value=f"{ratio:.2f}×", target=f"≤ {GROWTH}×", met=ratio <= GROWTH))
    return rows


TABLE = Table(
    name="history",
    title="One conversation's history",
    about="All columns and events of one conversation, ordered by time, as Arrow (SQLite and PostgreSQL: as tuples); another "
    "conversation each time. Usual ones have 7 to 90 events of one day, hot ones 5,000 of every day. The store has a week of "
    "merged days and the largest backlog of unmerged segments that the design allows.",
    sizes=(1_000_000, 10_000_000, 100_000_000),
    cases=_cases,
    derived=_derived,
)
