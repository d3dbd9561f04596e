"""What limits the other tables: their steps one by one, each alone, beside the least one could do and other ways to do it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import msgspec
import orjson
import pyarrow as pa

from bench import filling, stores
from bench.case import Bench, Case, Table
from bench.measure import Call, Clock, interleaved_s, middle_ratio, percentile, quiet, seconds, shown_rate, spread
from bench.peers.redis_py import pipelined
from bench.results import Row
from bench.servers import RedisServer
from bench.workload import Workload, kwargs_of
from thermocline.event import COLUMNS, Event
from thermocline.ingest.append import Client
from thermocline.ingest.appender import Appender
from thermocline.ingest.encode import block_of
from thermocline.ingest.line import Line, line_of
from thermocline.ingest.source import Source
from thermocline.ingest.validate import FIELDS, fields_of
from thermocline.query.lines import SCHEMA, decoded
from thermocline.store import connect
from thermocline.tiers import line_sql, rollups
from thermocline.tiers.block import Position
from thermocline.tiers.duck import Connection, quoted, registered
from thermocline.tiers.duck import connect as open_duck
from thermocline.tiers.redis_link import exchange_packed
from thermocline.tiers.rows_strict import chunked
from thermocline.tiers.segment_file import PACKED_TEXT, PLAIN_TEXT

from .append import events as events_of
from .recent import LIMIT, fill

BLOCKS = (1, 10, 100, 500)
PIECES = {"one piece": None, "8,192 events each": 8192}
SEGMENTS = 24
FOLLOWED = 50
_TYPES = ", ".join(f"{column.name} {column.sql_type}" for column in COLUMNS)


def _cases(size: int, quick: bool) -> list[Case]:
    count = min(max(size, 2_000), 3_000 if quick else 100_000)
    return [
        Case("append", 0, partial(_append, calls=count // 10)),
        Case("blocks", 0, partial(_blocks, count=count // 4)),
        Case("ready", 0, partial(_ready, count=count)),
        Case("formats", 0, partial(_formats, count=count // 2)),
        Case("settle", 0, partial(_settle, count=count)),
        Case("recent", 0, partial(_recent, calls=count // 100)),
    ]


def _cpu_us(call: Callable[[], object], count: int, *, rounds: int = 3) -> float:
    """µs of CPU of this process for each of `count`, the least of some rounds."""
    taken = []
    for _ in range(rounds):
        with quiet():
            clock = Clock()
            call()
            taken.append(clock.cpu_s)
    return min(taken) / count * 1e6


def _append(bench: Bench, *, calls: int) -> Sequence[Row]:
    """One append: what Redis does for it, what we do, and what a round trip takes."""
    given = events_of(bench, calls)
    folder = bench.folder("append")
    with RedisServer(folder / "redis") as server, Client(stores.settings(folder, server)) as client:
        client.append(**given[0])
        server.client.config_resetstat()
        own_us = _cpu_us(lambda: [client.append(**event) for event in given], calls, rounds=1)
        stats = server.client.info("commandstats")
        server.client.config_resetstat()
        lines = [orjson.dumps(event) for event in given]
        bare_us = _cpu_us(lambda: [server.client.xadd("bare", {"d": line}) for line in lines], calls, rounds=1)
        bare_stats = server.client.info("commandstats")
        link = server.client.connection_pool.get_connection()
        pings: dict[str, Call] = {"ping": lambda _: exchange_packed(link, b"*1\r\n$4\r\nPING\r\n", 1, shown_url="")}
        round_trip = interleaved_s(pings, calls)["ping"]
    fields = [tuple(event.get(name) for name in FIELDS) for event in given]
    now_us = time.time_ns() // 1000
    check_us = _cpu_us(lambda: [line_of(one, now_us) for one in fields], calls)
    made = [line_of(one, now_us) for one in fields]
    block_us = _cpu_us(lambda: [block_of("conversation", [line], 16) for line in made], calls)
    inside = {name.removeprefix("cmdstat_"): one for name, one in stats.items() if one["calls"] >= calls}
    parts = sorted(inside.items(), key=lambda one: -one[1]["usec"])
    shown = ", ".join(f"{name} {one['calls'] / calls:.0f}× {one['usec'] / calls:.1f} µs" for name, one in parts[1:])
    return [
        Row(
            what="append: the script, time in redis-server",
            value=f"{stats['cmdstat_evalsha']['usec_per_call']:.1f} µs",
            against=f"a bare XADD: {bare_stats['cmdstat_xadd']['usec_per_call']:.1f} µs",
            note=f"of it {shown}",
        ),
        Row(
            what="append: CPU of the caller's process",
            value=f"{own_us:.1f} µs",
            against=f"redis-py for a bare XADD: {bare_us:.1f} µs",
            note=f"of it checking and encoding {check_us:.1f}, making the block {block_us:.1f}",
        ),
        Row(what="append: a PING there and back, over the same socket", value=spread(round_trip)),
    ]


def _blocks(bench: Bench, *, count: int) -> Sequence[Row]:
    """append_many of lists that become one block each."""
    folder = bench.folder("blocks")
    given = [{**event, "conversation_id": "one"} for event in events_of(bench, count)]
    rows = []
    with RedisServer(folder / "redis") as server, Client(stores.settings(folder, server, hot=stores.ROOM)) as client:
        client.append(**given[0])
        for size in BLOCKS:
            lists = [given[start : start + size] for start in range(0, count if size > 1 else count // 5, size)]
            events = sum(map(len, lists))
            server.client.config_resetstat()
            with quiet():
                begin = time.perf_counter()
                for one in lists:
                    client.append_many(one)
                taken_s = time.perf_counter() - begin
            server_us = server.client.info("commandstats")["cmdstat_evalsha"]["usec"] / events
            note = f"{server_us:.1f} µs an event in redis-server"
            rows.append(Row(what=f"append_many, blocks of {size}", events=events, value=shown_rate(events, taken_s), note=note))
    return rows


def _ready(bench: Bench, *, count: int, rounds: int = 4) -> Sequence[Row]:
    """What Redis takes from a client that costs next to nothing: its blocks are ready before the time begins."""
    sent_s, bare_s, server_s, blocks_sent = [], [], [], 0
    with RedisServer(bench.folder("ready")) as server, ExitStack() as stack:
        config = stores.settings(bench.folder("store"), server, hot=stores.ROOM)
        source = stack.enter_context(closing(Source(config, None)))
        appender = stack.enter_context(closing(Appender(source.session(), reconfirm=source.reconfirm)))
        for table in Workload(count, end_us=bench.end_us).arrivals(rows_max=count // rounds):
            given = kwargs_of(table)
            lines: dict[str, list[Line]] = {}
            for event in given:
                lines.setdefault(event["conversation_id"], []).append(line_of(fields_of(Event(**event)), bench.end_us))
            blocks = [block_of(name, its, config.hot.shards) for name, its in lines.items()]
            with quiet():
                bare_s.append(seconds(partial(pipelined, server.client, given)))
                busy_s = _busy_s(server)
                sent_s.append(seconds(partial(filling.send, appender, blocks)))
                server_s.append(_busy_s(server) - busy_s)
            blocks_sent += len(blocks)
    bare = f"bare redis-py, an XADD of JSON per event: {count / sum(bare_s):,.0f}; ratio {middle_ratio(bare_s, sent_s):.2f}"
    note = f"{count / blocks_sent:.0f} events a block, {sum(server_s) / count * 1e6:.1f} µs of CPU an event in redis-server"
    what = "append: ready blocks of ten conversations at a time, only sent"
    return [Row(what=what, events=count, value=shown_rate(count, sum(sent_s)), against=bare, note=note)]


def _busy_s(server: RedisServer) -> float:
    """CPU that redis-server has had."""
    used = server.client.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])


def _formats(bench: Bench, *, count: int) -> Sequence[Row]:
    """What another encoding than NDJSON would cost: to make it from Python values, and to get a DuckDB table out of it."""
    given = [{name: value for name, value in one.items() if name != "conversation_id"} for one in events_of(bench, count)]
    fields = [tuple(event.get(name) for name in FIELDS) for event in given]
    json_of, pack = msgspec.json.Encoder().encode, msgspec.msgpack.Encoder().encode
    lines = [json_of(event) for event in given]
    packed = [pack(event) for event in given]
    names = [column for column in COLUMNS if column.in_line and column.name != "event_id"]
    kinds = {"VARCHAR": pa.string(), "BIGINT": pa.int64(), "DOUBLE": pa.float64()}
    schema = pa.schema([(column.name, kinds[column.line_type]) for column in names])

    def arrow() -> pa.Buffer:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            for start in range(0, count, 500):
                writer.write_batch(pa.RecordBatch.from_pylist(given[start : start + 500], schema=schema))
        return sink.getvalue()

    unpack = msgspec.msgpack.Decoder().decode
    spec = "{" + ", ".join(f'"{column.name}": "{column.line_type}"' for column in names) + "}"
    column = pa.table({"line": pa.array([line.decode() for line in lines])})
    stream = arrow()
    con = open_duck(memory_bytes=2 << 30, threads=2)

    def insert(table: pa.Table, select: str) -> None:
        with registered(con, table) as source:
            con.execute(f"CREATE OR REPLACE TEMP TABLE stored AS SELECT {select} FROM {source}")

    ways: dict[str, tuple[Callable[[], object], Callable[[], object], int]] = {
        "NDJSON": (
            lambda: [json_of(event) for event in given],
            lambda: insert(column, f"unnest(from_json(line, '{spec}'))"),
            sum(map(len, lines)),
        ),
        "MessagePack": (
            lambda: [pack(event) for event in given],
            lambda: insert(pa.Table.from_pylist([unpack(one) for one in packed], schema=schema), "*"),
            sum(map(len, packed)),
        ),
        "Arrow IPC, blocks of 500": (arrow, lambda: insert(pa.ipc.open_stream(stream).read_all(), "*"), stream.size),
    }
    now_us = time.time_ns() // 1000
    checked_us = _cpu_us(lambda: [line_of(one, now_us) for one in fields], count)
    rows = [
        Row(
            what=f"{name}: from Python values, and into a DuckDB table",
            events=count,
            value=f"{_cpu_us(make, count):.2f} and {_cpu_us(take, count):.2f} µs of CPU an event",
            note=f"{size / count:,.0f} bytes an event"
            + (f"; with all checks {checked_us:.2f} µs to make" if name == "NDJSON" else ""),
        )
        for name, (make, take, size) in ways.items()
    ]
    con.close()
    return rows


def _settle(bench: Bench, *, count: int) -> Sequence[Row]:
    """Parsing, and writing a segment, in other ways than settle does."""
    folder = bench.folder("settle")
    con, blocks, reading = _waiting(bench, folder, count)
    parse = {name: partial(_parse, con, _cut(blocks, size)) for name, size in PIECES.items()}
    parse["64 pieces, as settle does"] = partial(_parse, con, chunked(blocks))
    rows = [
        Row(
            what=f"settle: parsing, {name}",
            events=count,
            value=f"{_cpu_us(call, count):.2f} µs of CPU an event",
        )
        for name, call in parse.items()
    ]
    plain, packed = _stored_as(PLAIN_TEXT), _stored_as(PACKED_TEXT)
    writes = {
        "as settle does: sorted, text as it is, no rollups": (plain, True, False),
        "not sorted": (plain, False, False),
        "text in zstd, as a merge writes it": (packed, True, False),
        "text compressed as DuckDB chooses": (_TYPES, True, False),
        "with rollups": (plain, True, True),
    }
    for name, (columns, in_order, rolled) in writes.items():
        target = folder / "written.duckdb"
        call = partial(_write, con, target, columns, in_order=in_order, rolled=rolled)
        cost_us = _cpu_us(call, count)
        note = f"{target.stat().st_size / count:,.0f} bytes an event"
        rows.append(Row(what=f"settle: writing, {name}", events=count, value=f"{cost_us:.2f} µs of CPU an event", note=note))
    return [reading, *rows, _attaching(bench, con, folder / "written.duckdb")]


def _stored_as(compression: str) -> str:
    """The columns of events with their texts compressed so."""
    text = f" USING COMPRESSION {compression}"
    return _TYPES.replace("content VARCHAR", f"content VARCHAR{text}").replace("metadata JSON", f"metadata JSON{text}")


def _waiting(bench: Bench, folder: Any, count: int) -> tuple[Connection, pa.Table, Row]:
    """A DuckDB like settle's, the blocks of so many events as Redis gives them, and what reading them takes."""
    with RedisServer(folder / "redis") as server:
        config = stores.settings(folder, server)
        filling.append(config, Workload(count, end_us=bench.end_us).arrivals())
        with connect(config) as store:
            hot = store.tiers.hot
            cuts = list(zip(hot.cut(), store.tiers.ledger.view().shards, strict=True))

            def read() -> list[pa.Table]:
                return [hot.page(cut.shard, state.position, cut.last, bytes_max=1 << 40) for cut, state in cuts]

            pages = read()
            names = [hot.keys.log(cut.shard) for cut, _ in cuts]
            replies_us = _cpu_us(lambda: [server.client.xrange(name) for name in names], count)
            reading = Row(
                what="settle: reading the log: Python for each block, none for an event",
                events=count,
                value=f"{_cpu_us(read, count):.2f} µs of CPU an event",
                against=f"XRANGE through redis-py and hiredis, nothing looked at: {replies_us:.2f}",
                note=f"{count / sum(page.num_rows for page in pages):.0f} events a block",
            )
    warm = config.warm
    con = open_duck(memory_bytes=warm.memory_bytes_max, threads=warm.threads, temp_dir=str(folder / "spill"))
    return con, pa.concat_tables(pages), reading


def _cut(blocks: pa.Table, events: int | None) -> pa.Table:
    """The blocks in pieces of about so many events."""
    per_block = sum(blocks["events"].to_pylist()) / blocks.num_rows
    rows = blocks.num_rows if events is None else max(1, int(events / per_block))
    return pa.Table.from_batches(blocks.combine_chunks().to_batches(max_chunksize=rows), schema=blocks.schema)


def _parse(con: Connection, blocks: pa.Table) -> None:
    with registered(con, blocks) as source:
        select = f"SELECT {line_sql.values()} FROM ({line_sql.parsed(line_sql.lines_of(source))})"
        con.execute(f"CREATE OR REPLACE TEMP TABLE parsed AS {select}")


def _write(con: Connection, target: Any, columns: str, *, in_order: bool, rolled: bool) -> None:
    target.unlink(missing_ok=True)
    con.execute(f"ATTACH {quoted(str(target))} AS written (STORAGE_VERSION 'v1.5.0', ROW_GROUP_SIZE 20480)")
    con.execute(f"CREATE TABLE written.events ({columns})")
    order = "ORDER BY conversation_id, timestamp, seq" if in_order else ""
    con.execute(f"INSERT INTO written.events SELECT * EXCLUDE (shard, position_ms, position_seq) FROM parsed {order}")
    for statement in rollups.create_statements("written", "written.events") if rolled else ():
        con.execute(statement)
    con.execute("CHECKPOINT written")
    con.execute("DETACH written")


def _attaching(bench: Bench, con: Connection, file: Any) -> Row:
    """What it takes to open the segments of a merge again, which keeping them attached would save."""
    copies = [shutil.copy(file, file.with_name(f"copy-{number}.duckdb")) for number in range(SEGMENTS)]

    def attach(number: int) -> None:
        path = copies[number % SEGMENTS]
        con.execute(f"ATTACH {quoted(str(path))} AS once (READ_ONLY)")
        con.execute("SELECT count(*) FROM once.events").fetchall()
        con.execute("DETACH once")

    taken = interleaved_s({"attach": attach}, 4 * SEGMENTS)["attach"]
    return Row(what="merge: attaching a segment, reading its tables' names, detaching it", value=spread(taken))


def _recent(bench: Bench, *, calls: int) -> Sequence[Row]:
    """The parts of recent(): of a conversation that is new to the reader, and of one it follows."""
    rows = [_following(bench, calls)]
    for block in (1, 10):
        taken = _parts_of_recent(bench, block, calls)
        shown = ", ".join(f"{name} {percentile(one, 0.5) * 1e3:.2f} ms" for name, one in list(taken.items())[1:])
        value = f"p50 {percentile(taken['all'], 0.5) * 1e3:.2f} ms"
        rows.append(Row(what=f"recent({LIMIT}), blocks of {block}: its parts", value=value, note=shown))
    return rows


def _following(bench: Bench, calls: int) -> Row:
    """What 50 new events take, and the least that reading and decoding them could."""
    folder = bench.folder("following")
    with RedisServer(folder / "redis") as server:
        config = stores.settings(folder, server)
        name = fill(bench, server.client, config, FOLLOWED)[0]
        with connect(config) as store:
            hot = store.tiers.hot
            columns = hot.recent(name, LIMIT).blocks
            known = Position(columns["position_ms"][-2], columns["position_seq"][-2])
            new = hot.recent(name, LIMIT, known).blocks
            lines = "\n".join(new["payload"]).encode().split(b"\n")
            assert len(lines) == FOLLOWED
            rows = decoded(new, placed=False)
            assert rows is not None and rows.num_rows == FOLLOWED
            values, kind = [tuple(row.values()) for row in rows.to_pylist()], pa.struct(list(SCHEMA))
            taken = interleaved_s(
                {
                    "Redis, parsing its reply, checksums": lambda _: hot.recent(name, LIMIT, known),
                    "lines to Arrow": lambda _: decoded(new, placed=False),
                    "bare": lambda _: server.client.xrevrange(name, count=FOLLOWED),
                    "loads": lambda _: [orjson.loads(line) for line in lines],
                    "array": lambda _: pa.array(values, kind),
                },
                calls,
            )
    shown = {part: f"{percentile(one, 0.5) * 1e6:.0f} µs" for part, one in taken.items()}
    return Row(
        what=f"recent({LIMIT}) that follows, {FOLLOWED} new events in a block: its parts",
        value=", ".join(f"{part} {shown[part]}" for part in list(taken)[:2]),
        against=f"nothing looked at: XREVRANGE of {FOLLOWED} entries {shown['bare']}, orjson.loads of {FOLLOWED} lines "
        f"{shown['loads']}, pyarrow.array of {FOLLOWED} rows {shown['array']}",
    )


def _parts_of_recent(bench: Bench, block: int, calls: int) -> dict[str, list[float]]:
    folder = bench.folder("recent")
    with RedisServer(folder / "redis") as server:
        config = stores.settings(folder, server, query={"recent_bytes_max": 0})
        names = fill(bench, server.client, config, block)
        with connect(config) as store:
            hot = store.tiers.hot
            found = hot.recent(names[0], LIMIT).blocks
            parts: dict[str, Call] = {
                "all": lambda number: store.recent(names[number % len(names)], LIMIT).to_arrow(),
                "Redis, parsing its replies, checksums": lambda number: hot.recent(names[number % len(names)], LIMIT),
                "lines to Arrow": lambda _: decoded(found, placed=False),
            }
            return interleaved_s(parts, calls)


TABLE = Table(
    name="limits",
    title="What limits",
    about="Steps of the tables above one by one, each alone, and other ways to do them. CPU is of this process, all its threads, "
    "the least of three rounds.",
    sizes=(1_000_000,),
    cases=_cases,
)
