"""Run SQL over fresh cuts: which segments a query needs, the three relations over them, and the answer with its coverage."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeVar

import msgspec
import pyarrow as pa

from thermocline.config import MIB, QuerySettings, Settings
from thermocline.errors import IncompleteAnswer, QueryRefused, TierCorrupt, TierUnavailable
from thermocline.policy import Policy
from thermocline.tiers.block import shard_of
from thermocline.tiers.duck import BinderError, Connection, DuckError, Parameters, asked, connect, fresh_name
from thermocline.tiers.ledger import ColdFile, Segment
from thermocline.tiers.opening import Tiers
from thermocline.tiers.user_rollups import Definition

from .archived import Archived
from .attached import SegmentGone
from .bounds import Bounds, chosen
from .conversations import Conversations
from .coverage import Coverage
from .covered import covered, labelled
from .estimates import ALL_NAMES, define
from .lacking import lacking
from .missing import incomplete
from .relations import BY_HOUR, NAMES, NEEDED, Place, Sources, relation_sql, tail_sql
from .result import Result, with_integers
from .suggestion import with_suggestion
from .tail import EMPTY, Chunk, TailState
from .view import Cut, Reader, first_line

if TYPE_CHECKING:
    from .prune import Reading

T = TypeVar("T")
READS: Final = ("SELECT", "EXPLAIN")
"""Statement types that leave nothing behind."""


Columns = Mapping[str, frozenset[str]]
"""Relation → the columns of events that it is to read; all, if it is not named."""
_ALL_COLUMNS: Final[Columns] = {}


class Plan(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What one query reads. Its cut is held, and its segments are attached, for as long as it is used."""

    cut: Cut
    sources: Mapping[str, Sources]
    coverage: Coverage


class Runner:
    """SQL in the caller's process, each time over a fresh cut. Thread-safe: every call borrows a connection of its own."""

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers
        self._settings = tiers.settings.query
        self._shards = tiers.settings.hot.shards
        self._base = open_memory(tiers.settings)
        self._definitions = {one.relation: one for one in tiers.rollups}
        self._archived = Archived(tiers, self._base)
        self._conversations = Conversations(self._base)
        self._reader = Reader(tiers, self._base.cursor())
        self._lock = threading.Lock()
        self._free: list[_Place] = []
        self._opaque = ""
        self._narrows = True
        """Relations read only the columns that matter. Not so once a file was met that does not have them all."""
        self._described: dict[str, tuple[tuple[str, str], ...]] = {}

    def sql(self, query: str, parameters: Parameters = None, *, require: Literal["complete"] | None = None) -> Result:
        """The answer to `query`.

        QueryRefused: DuckDB does not take it. IncompleteAnswer: `require="complete"` and it would rest on a sample.
        TierUnavailable, TierCorrupt: a tier cannot be read; there is no answer without one.
        """
        _check_arguments(parameters, require)
        with self._borrowed() as place:
            kinds = place.kinds(query)
            reading = self._read(query, parameters, kinds)

            def answer(plan: Plan) -> Result:
                table = self._answer(place, plan, query, parameters, _columns_of(reading))
                return Result(table, labelled(plan.coverage, reading, query, table.column_names, self._units))

            try:
                return self.planned(reading, answer, require=require)
            finally:
                if not set(kinds) <= set(READS):
                    place.forget()
                    self._opaque = self._opaque or place.opaque()

    def planned(self, reading: Reading, use: Callable[[Plan], T], *, require: Literal["complete"] | None = None) -> T:
        """What `use` makes of a plan for a query that reads so; of one over a fresh cut when it raises SegmentGone.

        Errors are those of `sql`, and what `use` raises.
        """
        gone: SegmentGone | None = None
        for retries in range(self._settings.view_retries_max):
            cut = self._reader.take(self._shards_of(reading.bounds))
            try:
                return use(self._plan(cut, reading, retries=cut.retries + retries, require=require))
            except SegmentGone as exc:
                gone = exc
            finally:
                self._reader.release(cut)
        raise TierCorrupt(f"{gone} is missing, but the ledger lists it: run `thermocline verify`") from gone

    def _plan(self, cut: Cut, reading: Reading, *, retries: int, require: Literal["complete"] | None = None) -> Plan:
        sources = self._archived.narrowed(sources_of(cut, reading.bounds, sums_only=reading.sums_only), reading.bounds)
        with_totals = self._reader.attach(segment for source in sources.values() for segment in source.segments)
        if reading.hours_only:
            sources["hourly_stats"] = msgspec.structs.replace(sources["hourly_stats"], totals=with_totals)
        for relation in self._definitions.keys() & sources.keys():
            rolled = self._reader.rolled(self._definitions[relation])
            sources[relation] = msgspec.structs.replace(sources[relation], rolled=rolled)
        sources = self._conversations.narrowed(sources, reading.bounds)
        coverage = covered(cut, sources, reading, retries=retries)
        if require == "complete" and not coverage.exact:
            raise incomplete(self._base, self._archived, cut, sources, reading.bounds, coverage)
        self._archived.prepare(sources.values())
        if self._definitions.keys() & sources.keys():
            left_out = lacking(self._base, self._archived, self._definitions, sources, reading.bounds)
            coverage = msgspec.structs.replace(coverage, lacking=left_out)
            if require == "complete" and left_out:
                raise IncompleteAnswer(f"{left_out}; ask without require")
        return Plan(cut=cut, sources=sources, coverage=coverage)

    def built(self, reading: Reading, build: Callable[[Plan, Place], str], parameters: Parameters = None) -> Result:
        """The answer to SQL that `build` makes for a plan: over its segments, files and tail. Errors are those of `sql`."""
        with self._borrowed() as place:

            def use(plan: Plan) -> Result:
                sql = build(plan, self._archived.place)
                return Result(self._answer(place, plan, sql, parameters), plan.coverage)

            return self.planned(reading, use)

    def relations(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """Relation → its columns, each with DuckDB's type, in order: what a query may name. No tier is asked."""
        if not self._described:
            con = self._base.cursor()
            try:
                for name in (*NAMES, *self._definitions):
                    select = relation_sql(name, Sources(), tail=EMPTY, place=_looked_up({}), definitions=self._definitions)
                    found = con.execute(f"DESCRIBE {select}").fetchall()
                    self._described[name] = tuple((str(row[0]), str(row[1])) for row in found)
            finally:
                con.close()
        return dict(self._described)

    def cursor(self) -> Connection:
        """A connection to the database that holds the decoded tail of every plan in use. The caller closes it."""
        return self._base.cursor()

    @contextmanager
    def stream(self, query: str, parameters: Parameters, *, rows: int) -> Iterator[tuple[pa.RecordBatchReader, Coverage]]:
        """The answer to a SELECT of our own in batches of about `rows`, all of one cut, and what it rests on. Batches are made as
        they are asked for; errors are as of `sql`."""
        with self._borrowed() as place:
            reading = self._read(query, parameters, ("SELECT",))
            for retries in range(self._settings.view_retries_max):
                cut = self._reader.take(self._shards_of(reading.bounds))
                try:
                    plan = self._plan(cut, reading, retries=cut.retries + retries)
                    place.define(cut.tail, plan.sources)
                except BaseException as exc:
                    self._reader.release(cut)
                    if isinstance(exc, SegmentGone) and retries + 1 < self._settings.view_retries_max:
                        continue
                    raise
                break
            try:
                yield asked(place.con, query, parameters).to_arrow_reader(rows), plan.coverage
            except (DuckError, pa.ArrowException, OSError) as exc:
                raise self._archived.failure(plan.sources.values(), exc) or QueryRefused(first_line(exc)) from exc
            finally:
                self._reader.release(cut)

    def _shards_of(self, bounds: Mapping[str, Bounds]) -> frozenset[int] | None:
        """The shards of the conversations that a query is about; None when it may be about any."""
        names: set[str] = set()
        for bound in bounds.values():
            if bound.conversations.values is None:
                return None
            names |= bound.conversations.values
        return frozenset(shard_of(name, self._shards) for name in names)

    def _units(self) -> str:
        """What the policies kept or dropped as one: "event", "conversation" (some of it) or "unknown" (an older policy)."""
        policy = Policy(self._tiers.settings.sampling.rules, self._tiers.settings.warm.window_days)
        older = any(row.kind == "archive" and row.policy_hash != policy.hash for row in self._tiers.ledger.batches())
        if any(rule.scope == "conversation" and rule.fixed_rate != 1 for rule in policy.rules):
            return "conversation"
        return "unknown" if older else "event"

    def _answer(self, place: _Place, plan: Plan, query: str, parameters: Parameters, columns: Columns = _ALL_COLUMNS) -> pa.Table:
        """The rows; SegmentGone, or what is wrong with the tier, when a cold file cannot be read.

        columns  relation → the columns of events that it is to read, of those that are not to read all
        """
        columns = columns if self._narrows else _ALL_COLUMNS
        try:
            place.define(plan.cut.tail, plan.sources, columns)
            return place.run(query, parameters, self._settings)
        except (QueryRefused, TierUnavailable) as exc:
            if columns and isinstance(exc.__cause__, BinderError):
                # The query is at fault, or a file of an older format that lacks a column: what reads all columns will tell.
                table = self._answer(place, plan, query, parameters)
                self._narrows = False
                return table
            failure = self._archived.failure(plan.sources.values(), exc) or place.gone()
            if failure is None:
                raise
            place.forget()
            raise failure from exc

    def close(self) -> None:
        with self._lock:
            for place in self._free:
                place.con.close()
            self._free.clear()
            self._base.close()

    def _read(self, query: str, parameters: Parameters, kinds: Sequence[str]) -> Reading:
        from .prune import everything, read  # sqlglot takes long to import, and `import thermocline` should not

        if len(kinds) != 1 or kinds[0] not in READS:
            return everything("not a single SELECT", self._definitions)
        if self._opaque:
            return everything(self._opaque, self._definitions)
        return read(query, parameters, now_us=time.time_ns() // 1000, of_user=self._definitions)

    @contextmanager
    def _borrowed(self) -> Iterator[_Place]:
        with self._lock:
            place = self._free.pop() if self._free else _Place(self._base.cursor(), self._archived.place, self._definitions)
        try:
            yield place
        finally:
            with self._lock:
                self._free.append(place)


class _Place:
    """One connection and what its relations read at the moment."""

    def __init__(self, con: Connection, place: Place, definitions: Mapping[str, Definition]) -> None:
        self.con = con
        self._place = place
        self._definitions = definitions
        self._made: set[str] = set()
        self._seen: dict[str, tuple[tuple[Chunk, ...], Sources, frozenset[str] | None]] = {}
        self._files: dict[str, list[str]] = {}

    def kinds(self, query: str) -> list[str]:
        """The types of the statements in `query`."""
        try:
            kinds = [statement.type.name for statement in self.con.extract_statements(query)]
        except DuckError as exc:
            raise QueryRefused(first_line(exc)) from exc
        if not kinds:
            raise QueryRefused("the query is empty")
        if "TRANSACTION" in kinds:
            raise QueryRefused("every query has its own view, so transactions need a connection: use store.duckdb()")
        return kinds

    def define(self, tail: TailState, sources: Mapping[str, Sources], columns: Columns = _ALL_COLUMNS) -> None:
        """Make the relations read these columns of `tail` and `sources`; those that do already stay."""
        for relation, source in sources.items():
            chosen = columns.get(relation)
            if self._seen.get(relation) != (tail.chunks, source, chosen):
                before = self._seen.pop(relation, None)
                if not columns and before is not None and before[2] is not None:
                    self._made.discard(relation)  # the catalog shows the columns with which a view was bound last
                places = {file.file_id: self._place(file) for file in source.files}
                rows, place = f"({tail_sql(tail.chunks, chosen)})", _looked_up(places)
                select = relation_sql(relation, source, tail=rows, place=place, definitions=self._definitions, columns=chosen)
                self._view(relation, select)
                self._seen[relation] = tail.chunks, source, chosen
                self._files[relation] = list(places.values())

    def gone(self) -> SegmentGone | None:
        """A file that the relations name by its path, and that is not there any more: a local copy whose time is over."""
        paths = [path for files in self._files.values() for path in files if path.startswith("/")]
        return next((SegmentGone(path) for path in paths if not Path(path).exists()), None)

    def forget(self) -> None:
        """Make the relations anew next time: who knows what a statement has done to them."""
        self._made.clear()
        self._seen.clear()

    def _view(self, name: str, select: str) -> None:
        """Let the relation be `select`. DuckDB binds a view when it is made and again in every query; a variable only there."""
        try:
            self.con.execute(f"SET VARIABLE {_VARIABLE_PREFIX}{name} = ?", [select])
            if name not in self._made:
                self.con.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS FROM query(getvariable('{_VARIABLE_PREFIX}{name}'))")
                self._made.add(name)
        except DuckError as exc:
            raise TierUnavailable(f"{name} cannot be defined ({first_line(exc)}): close the store and connect again") from exc

    def run(self, query: str, parameters: Parameters, settings: QuerySettings) -> pa.Table:
        try:
            table, types = _answer(self.con, query, parameters)
            return with_integers(table, [place for place, kind in enumerate(types) if kind == "HUGEINT"])
        except DuckError as exc:
            if type(exc).__name__ == "OutOfMemoryException":
                limit = settings.memory_bytes_max // MIB
                raise QueryRefused(f"the query needs more than query.memory_bytes_max ({limit} MiB): {first_line(exc)}") from exc
            raise QueryRefused(with_suggestion(first_line(exc), (*NAMES, *self._definitions))) from exc
        except RuntimeError as exc:  # how DuckDB passes Ctrl-C on; its threads go on until they are told
            if "interrupted" not in str(exc):
                raise
            self.con.interrupt()
            raise KeyboardInterrupt from exc

    def opaque(self) -> str:
        """Why the text of a query does not show everything it reads any more; empty if it does."""
        ours = {"relations": [*NAMES, *self._definitions], "functions": ALL_NAMES}
        [(views, macros, zone, collation)] = self.con.execute(_SESSION, ours).fetchall()  # DuckDB 2.x wants it read to its end
        if views or macros:
            return "this store has views or macros of its own"
        if zone != "UTC" or collation:
            return "this store's TimeZone or default_collation was changed"
        return ""


_VARIABLE_PREFIX: Final = "thermocline_"
"""With a relation's name the variable of DuckDB that holds its SELECT."""


def _columns_of(reading: Reading) -> Columns:
    """What each relation has to read for a query."""
    if reading.not_pruned:
        return _ALL_COLUMNS
    return NEEDED if reading.columns is None else {**NEEDED, "events": reading.columns}


def _looked_up(places: Mapping[str, str]) -> Place:
    return lambda file: places[file.file_id]


def _answer(con: Connection, query: str, parameters: Parameters) -> tuple[pa.Table, list[str]]:
    """(rows, DuckDB's types of their columns)."""
    found = asked(con, query, parameters)
    types = [] if found is None else [str(column[1]) for column in found.description or ()]
    return (pa.table({}) if found is None else found.to_arrow_table()), types


_SESSION: Final = """
    SELECT (SELECT count(*) FROM duckdb_views() WHERE NOT internal
                AND NOT (temporary AND list_contains($relations, view_name))),
           (SELECT count(*) FROM duckdb_functions() WHERE NOT internal AND NOT list_contains($functions, function_name)),
           current_setting('TimeZone'), current_setting('default_collation')"""


def open_memory(settings: Settings) -> Connection:
    """An in-memory database within the limits of `query.*`; what does not fit spills into the namespace folder."""
    spill = settings.namespace_dir.absolute() / fresh_name(f"spill-{os.getpid()}-query")  # the worker removes what the dead leave
    limits = settings.query
    con = connect(memory_bytes=limits.memory_bytes_max, threads=limits.threads, temp_dir=str(spill))
    define(con)
    return con


def sources_of(cut: Cut, bounds: Mapping[str, Bounds], *, sums_only: bool = False) -> dict[str, Sources]:
    """What each relation has to read. sums_only: as prune.Reading has it."""
    found = {}
    for relation, bound in bounds.items():
        by_hour = relation in BY_HOUR or relation not in NAMES
        segments: list[Segment] = chosen(cut.view.segments, bound, by_hour=by_hour)
        files: list[ColdFile] = chosen(cut.view.files, bound, by_hour=by_hour)
        found[relation] = Sources.of(
            relation, segments, files, sums_only=sums_only and relation == "hourly_stats", whole_batches=cut.view.whole_batches
        )
    return found


def _check_arguments(parameters: Parameters, require: str | None) -> None:
    if parameters is not None and not isinstance(parameters, list | tuple | dict):
        raise QueryRefused(f"params must be a list (for ? and $1) or a dict (for $name), not {type(parameters).__name__}")
    if require not in (None, "complete"):
        raise QueryRefused(f'require must be "complete" or None, not {require!r}')
