"""The process of one untrusted query. It is started by sandbox_children.py, answers one query, and ends.

1. it is ready: everything is imported, the system calls of sandbox_guards.py are denied
2. it is asked: limits are set, then the text is parsed, by a database that can open no file; the answer is which rows it can use
3. it is handed files and unsettled events: it attaches them, loses sight of every other file, and locks DuckDB's configuration
4. the query runs, and its rows leave in frames

A text is never parsed before 2: `IMPORT DATABASE` reads files while it is parsed.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
import pyarrow as pa

from thermocline.query.estimates import define
from thermocline.query.handed import SCHEMA, TAIL, TAIL_COLUMNS, Handover
from thermocline.query.labels import labels
from thermocline.query.prune import Reading, read
from thermocline.tiers.duck import Connection, DuckError, asked, connect, quoted, registered

from . import sandbox_wire as wire
from .sandbox_guards import confine, deny_calls, has_landlock, limit_process, step_back
from .sandbox_rows import Cutter, TooLarge

MIB: Final = 1 << 20
OPEN_FILES: Final = 4096
MESSAGE_CHARS_MAX: Final = 500
PARSER_BYTES: Final = 64 << 20
_TAIL_TOLD: Final = f'"{TAIL.partition(".")[2]}"'
"""What DuckDB calls the table of the unsettled events, which is ours."""
_EXPLAIN: Final = re.compile(r"\s*EXPLAIN(\s+ANALYZE)?(\s*\((\s*(ANALYZE|FORMAT\s+\w+)\s*,?)*\))?(?=[\s(])", re.IGNORECASE)


class Refused(Exception):
    """The query cannot be run; the text says why."""


class Gone(Exception):
    """A file that was handed over is not there any more."""


def main() -> None:
    """Answer one query that comes on standard input, on what was standard output."""
    answers = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    os.close(nothing)

    def say(kind: bytes, content: bytes = b"") -> None:
        left = memoryview(wire.frame(kind, content))
        while left:
            left = left[os.write(answers, left) :]

    try:
        parser = locked_parser()
        _warm_up(parser)
        guards = {"seccomp": deny_calls(), "landlock": has_landlock()}
        say(wire.READY, wire.encode(wire.Ready(tuple(name for name, is_there in guards.items() if is_there))))
        _answer(parser, say)
    except (wire.Hangup, BrokenPipeError):
        os._exit(0)
    except Gone as exc:
        say(wire.FAILED, wire.encode(wire.Failed("gone", str(exc))))
    except (Refused, TooLarge) as exc:
        say(wire.FAILED, wire.encode(wire.Failed("refused", str(exc))))
    except MemoryError:
        say(wire.FAILED, wire.encode(wire.Failed("refused", "it needs more than sandbox.memory_bytes_max")))
    except BaseException as exc:
        say(wire.FAILED, wire.encode(wire.Failed("broken", f"{type(exc).__name__}: {line(exc)}")))
    os._exit(0)  # nothing here is worth an orderly end, and threads of DuckDB may still be at work


def _answer(parser: Connection, say: Callable[..., None]) -> None:
    source = sys.stdin.buffer
    kind, content = wire.read_frame(source.read, bytes_max=wire.TALK_BYTES_MAX)
    assert kind == wire.ASK
    ask = msgspec.msgpack.decode(content, type=wire.Ask)
    limits = ask.limits
    step_back()  # only now: who waits for a process to be ready should not wait behind those that run
    limit_process(
        memory_bytes=limits.memory_bytes_max,
        cpu_s=limits.deadline_s * limits.threads,
        wall_s=limits.deadline_s,
        file_bytes=limits.spill_bytes_max,
        open_files=OPEN_FILES,
    )
    reading = reading_of(parser, ask)
    say(wire.READING, wire.encode(reading))
    parser.close()
    kind, content = wire.read_frame(source.read, bytes_max=sys.maxsize)
    assert kind == wire.HANDED
    handed = msgspec.msgpack.decode(content, type=wire.Handed)
    con = prepared(handed, limits, source)
    cutter = Cutter(limits)
    try:
        rows, types = rows_of(con, ask)
        say(wire.LABELS, wire.encode(wire.Labels(_labels(ask.query, rows.schema.names, reading, handed.handover.sampled))))
        for found in cutter.frames(rows, types):
            say(wire.BATCH, found)
    except BrokenPipeError:
        raise
    except (DuckError, RuntimeError, pa.ArrowException, OSError) as exc:
        raise _explained(exc, handed.handover, limits) from exc
    say(wire.END, wire.encode(wire.End(cutter.rows, cutter.cut_by)))


def _labels(query: str, names: Sequence[str], reading: Reading, sampled: Sequence[str]) -> tuple[Any, ...]:
    if sampled or reading.foreign or reading.not_pruned:
        return labels(query, names, sampled)
    return tuple("exact" for _ in names)


def locked_parser() -> Connection:
    """A database that can open nothing, to parse with."""
    con = connect(memory_bytes=PARSER_BYTES, threads=1)
    for statement in _LOCKS:
        con.execute(statement)
    return con


_LOCKS: Final = (
    "SET allow_community_extensions = false",
    "SET allow_persistent_secrets = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)
"""In this order: the last one makes the others final."""


def _warm_up(con: Connection) -> None:
    """Have everything imported that is imported on first use: files are out of sight later."""
    cutter = Cutter(wire.Limits(**dict.fromkeys(wire.Limits.__struct_fields__, 1 << 20)))
    found = con.sql("SELECT sum(i) AS i, now() AS t, 'x' AS x, [{'a': 1}] AS l FROM range(3) t(i)")
    list(cutter.frames(found.to_arrow_reader(1024), [str(kind) for kind in found.types]))
    read("SELECT hour FROM hourly_stats WHERE hour > now() - INTERVAL 1 DAY", None, now_us=0)
    with suppress(DuckError):
        con.sql("SELECT no_such_column")


def reading_of(parser: Connection, ask: wire.Ask) -> Reading:
    """Which rows the query can use. Refused unless it is one SELECT, or EXPLAIN of one."""
    text = ask.query
    try:
        kinds = [statement.type.name for statement in parser.extract_statements(text)]
        if kinds == ["EXPLAIN"]:  # EXPLAIN ANALYZE runs what it explains
            start = _EXPLAIN.match(text)
            if start is None:
                raise Refused("write EXPLAIN or EXPLAIN ANALYZE, without comments, then the SELECT")
            kinds = [statement.type.name for statement in parser.extract_statements(text[start.end() :])]
    except DuckError as exc:
        raise Refused(line(exc)) from exc
    if not kinds:
        raise Refused("the query is empty")
    if kinds != ["SELECT"]:
        raise Refused(f"one SELECT, or EXPLAIN of one, is what may run here, not {' and '.join(kinds[:3])}{_hint(kinds)}")
    return read(text, ask.parameters, now_us=time.time_ns() // 1000, of_user=ask.of_user)


def _hint(kinds: Sequence[str]) -> str:
    if kinds in (["CREATE", "SELECT"], ["MULTI"]):  # the latter from DuckDB 2.0 on
        return "; of PIVOT name the values: ON column IN (…)"
    return "; send statements one by one" if len(kinds) > 1 else ""


def prepared(handed: wire.Handed, limits: wire.Limits, source: Any) -> Connection:
    """A database with the relations of the handover, in which nothing else can be reached. Gone."""
    handover = handed.handover
    con = connect(memory_bytes=limits.memory_bytes_max, threads=1, temp_dir=handed.spill or None)
    try:  # where there is no Landlock, DuckDB's own locks hold
        confine([*handover.segments.values(), *handover.files, os.devnull], [handed.spill] if handed.spill else [])
    except OSError as exc:
        raise Gone(str(exc.filename)) from exc
    con.execute(f"SET threads = {limits.threads}")  # which start now, and are confined too
    for name, path in handover.segments.items():
        _attach(con, name, path)
    con.execute(f"CREATE SCHEMA {SCHEMA}")
    con.execute(f"CREATE TABLE {TAIL} ({TAIL_COLUMNS})")
    with registered(con, pa.ipc.open_stream(source)) as rows:
        con.execute(f"INSERT INTO {TAIL} BY NAME FROM {rows}")
    try:
        for name, select in handover.relations.items():
            con.execute(f"CREATE VIEW memory.main.{name} AS {select}")
    except DuckError as exc:
        raise _explained(exc, handover, limits) from exc
    define(con)
    con.execute(f"SET allowed_paths = [{', '.join(map(quoted, handover.files))}]")
    con.execute(f"SET max_temp_directory_size = '{limits.spill_bytes_max // 1024}KiB'")
    for statement in _LOCKS:
        con.execute(statement)
    return con


def _attach(con: Connection, name: str, path: str) -> None:
    try:
        con.execute(f"ATTACH {quoted(path)} AS {name} (READ_ONLY)")
    except DuckError as exc:
        if not os.path.exists(path):  # noqa: PTH110
            raise Gone(path) from exc
        raise


def rows_of(con: Connection, ask: wire.Ask) -> tuple[Any, list[str]]:
    """(batches of the answer, made as they are read; DuckDB's types of its columns)."""
    found = asked(con, ask.query, ask.parameters)
    return found.to_arrow_reader(2048), [str(column[1]) for column in found.description or ()]


def _explained(exc: BaseException, handover: Handover, limits: wire.Limits) -> Exception:
    """What to tell of a failure."""
    gone = next((path for path in (*handover.segments.values(), *handover.files) if not os.path.exists(path)), None)  # noqa: PTH110
    if gone is not None:
        return Gone(gone)
    text = line(exc)
    if "max_temp_directory_size" in text or "File too large" in text:
        return Refused(f"the query spills more than sandbox.spill_bytes_max ({limits.spill_bytes_max // MIB} MiB): {text}")
    if type(exc).__name__ in ("OutOfMemoryException", "ArrowMemoryError") or "bad_alloc" in text or "bad allocation" in text:
        return Refused(f"the query needs more than sandbox.memory_bytes_max ({limits.memory_bytes_max // MIB} MiB): {text}")
    return Refused(text)


def line(exc: BaseException) -> str:
    """The first paragraph of a message, in one line that can be encoded."""
    text = " ".join(str(exc).strip().split("\n\n", 1)[0].split())[:MESSAGE_CHARS_MAX]
    text = text.replace(_TAIL_TOLD, '"events"')  # which a typing error is near to
    return text.encode(errors="replace").decode()
