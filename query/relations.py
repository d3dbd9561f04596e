"""The relations of a query as SQL text: `events`, the statistics, the user's rollups. Pure: nothing is run here.

`events` is the hot tail ∪ segments ∪ cold files, one row per event, event_id and metadata as text. The others come from the
rollups segments carry, and from the events of what has none: small level-0 segments and the tail.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from thermocline.event import COLUMN_NAMES, COLUMNS
from thermocline.tiers import rollups, user_rollups
from thermocline.tiers.duck import quoted
from thermocline.tiers.ledger import ColdFile, Segment
from thermocline.tiers.user_rollups import Definition

from .attached import alias
from .bounds import Bounds
from .tail import EMPTY, Chunk

_AS_TEXT: Final = ("event_id", "metadata")


def _columns_sql(columns: Container[str] | None = None) -> str:
    """The select list of `events`, or of these columns of it."""
    chosen = [column.name for column in COLUMNS if columns is None or column.name in columns]
    return ", ".join(f"{name}::VARCHAR AS {name}" if name in _AS_TEXT else name for name in chosen)


COLUMNS_SQL: Final = _columns_sql()
_RAW_COLUMNS: Final = ", ".join(column.name for column in COLUMNS)
_FILE_KINDS: Final = {
    "events": ("events",),
    "hourly_stats": ("rollup_hourly",),
    "conversation_summary": ("rollup_conversation", "rollup_task"),
    **dict.fromkeys(rollups.USAGE_KEYS, ("rollup_hourly",)),
    "quantile_stats": ("rollup_quantile",),
}
_OF_USER: Final = (user_rollups.TABLE, "rollup_hourly")
"""What says how many events were archived, and of how many of them a definition was made."""
LIMITED_ROWS_MAX: Final = 256
"""Of a segment's rows that count: 50 take 12 ms of CPU with a LIMIT and 15 without, 5,000 in seven segments 50 and 37."""
NAMES: Final = tuple(_FILE_KINDS)
BY_HOUR: Final = frozenset(("hourly_stats", "quantile_stats", *rollups.USAGE_KEYS))
"""Those with the start of an hour for a time, as rollups of the user have it."""


class Sources(msgspec.Struct, frozen=True):
    """What one relation reads besides the tail: segments and cold files."""

    segments: tuple[Segment, ...] = ()
    files: tuple[ColdFile, ...] = ()
    ranges: Mapping[str, tuple[int, int]] = {}
    """segment → first and last row of its events that count; all of the others do."""
    sums_only: bool = False
    """The query adds its rows up by their keys: they need not be added up before."""
    totals: frozenset[str] = frozenset()
    """Ids of segments of which rollups.TOTAL does, as the query does not ask about conversations."""
    rolled: frozenset[str] = frozenset()
    """Ids of segments that store the rollup of the user that this is."""
    thinned: bool = False
    """Events that the query asks for may be sampled out, and if all of a file are there is none."""

    @classmethod
    def of(
        cls,
        relation: str,
        segments: Iterable[Segment],
        files: Iterable[ColdFile],
        *,
        sums_only: bool = False,
        whole_batches: Container[str] = (),
    ) -> Sources:
        """The sources of `relation` among these.

        whole_batches  those that kept all events
        """
        kinds, found = _FILE_KINDS.get(relation, _OF_USER), tuple(files)
        of_kind = tuple(file for file in found if file.kind in kinds)
        # What was archived is known from the rollups, which are made before sampling.
        thinned = "events" in kinds and any(file.kind == "rollup_hourly" and file.batch_id not in whole_batches for file in found)
        return cls(tuple(segments), of_kind, sums_only=sums_only, thinned=thinned)

    def sampled_rows(self, whole_batches: Container[str]) -> int:
        """Rows that stand for others too; of files that were not counted all of them. Rollups are made before sampling."""
        files = self.sampled_files(whole_batches)
        return sum(file.rows if file.sampled_rows is None else file.sampled_rows for file in files)

    def sampled_files(self, whole_batches: Container[str]) -> list[ColdFile]:
        """Events of batches that did not keep all."""
        return [file for file in self.files if file.kind == "events" and file.batch_id not in whole_batches]


def tail_sql(chunks: Iterable[Chunk], columns: Container[str] | None = None) -> str:
    """The SELECT of all rows of the tail, of these columns; None: of all."""
    # DuckDB 2.0 fails to plan ORDER BY and LIMIT over one table with a condition on its rowid; beside another it does not.
    names = _names(columns)
    return " UNION ALL ".join(f"SELECT {names} FROM {rows}" for rows in (EMPTY, *(chunk.sql for chunk in chunks)))


def _names(columns: Container[str] | None) -> str:
    return _RAW_COLUMNS if columns is None else ", ".join(column.name for column in COLUMNS if column.name in columns)


Place = Callable[[ColdFile], str]
"""What DuckDB reads a cold file by."""


def relation_sql(
    relation: str,
    sources: Sources,
    *,
    tail: str,
    place: Place,
    definitions: Mapping[str, Definition] | None = None,
    columns: Container[str] | None = None,
) -> str:
    """The SELECT that is `relation` over `sources` and the tail.

    tail         what FROM names it by
    definitions  relation → the rollup of the user that it is
    columns      of events, those that are read, None being all: DuckDB fails where a file of an older format lacks one
    """
    if definitions and relation in definitions:
        return _of_user(definitions[relation], sources, tail, place)
    chosen = f"SELECT {_names(columns)} " if columns is not None else ""
    if relation == "events":
        files = _parquet(sources.files, "events", place)
        return f"SELECT {_columns_sql(columns)} FROM ({_union(tail, sources.segments, files, sources.ranges, chosen)})"
    segments = [segment for segment in sources.segments if segment.segment_id not in sources.totals]
    plain = [segment for segment in segments if not segment.has_rollups]
    raw = f"(SELECT {_names(columns)} FROM ({_union(tail, plain, [], {}, chosen)}))"

    def tables(kind: str) -> list[str]:
        rolled = [f"{alias(segment.segment_id)}.{kind}" for segment in segments if segment.has_rollups]
        return rolled + _parquet(sources.files, kind, place)

    totals = [f"{alias(one.segment_id)}.{rollups.TOTAL}" for one in sources.segments if one.segment_id in sources.totals]
    return _statistics(relation, tables, raw, totals, added_up=not sources.sums_only)


def _statistics(
    relation: str, tables: Callable[[str], list[str]], raw: str, totals: Sequence[str] = (), *, added_up: bool = True
) -> str:
    """The SELECT of a relation over tables of rollups, by kind, and rows of which there are none."""
    if relation == "hourly_stats":
        return rollups.hourly_stats(tables("rollup_hourly"), [raw], totals, added_up=added_up)
    if relation in rollups.USAGE_KEYS:
        return rollups.usage(relation, tables("rollup_hourly"), [raw])
    if relation == "quantile_stats":
        return rollups.added_up("rollup_quantile", f"({rollups.combined('rollup_quantile', tables('rollup_quantile'), [raw])})")
    return rollups.conversation_summary(tables("rollup_conversation"), tables("rollup_task"), [raw])


def columns_in(text: str) -> frozenset[str]:
    """Columns of events whose names stand in a text, be it within a longer word."""
    lowered = text.lower()
    return frozenset(name for name in COLUMN_NAMES if name in lowered)


NEEDED: Final = {name: columns_in(_statistics(name, lambda _: [], "rows")) for name in NAMES if name != "events"}
"""Relation of statistics → the columns of events it is made from, those that are not in a rollup yet."""


def kinds_of(relation: str) -> tuple[str, ...]:
    """The kinds of cold files a relation reads."""
    return _FILE_KINDS.get(relation, _OF_USER)


def _of_user(definition: Definition, sources: Sources, tail: str, place: Place) -> str:
    stored = [f"{alias(one.segment_id)}.{user_rollups.TABLE}" for one in sources.segments if one.segment_id in sources.rolled]
    plain = [one for one in sources.segments if one.segment_id not in sources.rolled]
    rows = f"(SELECT {_RAW_COLUMNS} FROM ({_union(tail, plain, [], {})}))"
    return definition.relation_sql([*stored, *_parquet(sources.files, user_rollups.TABLE, place)], [rows])


def archived_sql(definition: Definition, sources: Sources, bounds: Bounds, place: Place) -> str | None:
    """SELECT of (archived events within `bounds`, those of them that the rollup was made from); None when there are none."""
    hourly = _parquet(sources.files, "rollup_hourly", place)
    if not hourly:
        return None
    limits = [f"hour >= make_timestamptz({bounds.time_min_us})"] if bounds.time_min_us is not None else []
    limits += [f"hour <= make_timestamptz({bounds.time_max_us})"] if bounds.time_max_us is not None else []
    where = " AND ".join(limits) or "true"
    made = [definition.events(table, where) for table in _parquet(sources.files, user_rollups.TABLE, place)]
    return f"SELECT (SELECT coalesce(sum(events), 0)::BIGINT FROM {hourly[0]} WHERE {where}), ({made[0] if made else 'SELECT 0'})"


def _union(
    tail: str, segments: Sequence[Segment], files: Sequence[str], ranges: Mapping[str, tuple[int, int]], chosen: str = ""
) -> str:
    """All rows; by name, so that what an older format lacks is NULL. The tail comes first: it has every column.

    chosen  the SELECT of each part, if not all its columns are wanted
    """
    parts = [tail, *(_rows(segment, ranges.get(segment.segment_id)) for segment in segments), *files]
    return " UNION ALL BY NAME ".join(f"{chosen}FROM {part}" for part in parts)


def _rows(segment: Segment, span: tuple[int, int] | None) -> str:
    table = f"{alias(segment.segment_id)}.events"
    if span is None:
        return table
    first, last = span
    rows = f"FROM {table} WHERE rowid BETWEEN {first} AND {last}"
    # The LIMIT keeps DuckDB from looking for the conversation in every row group; but then it reads all columns before it looks.
    return f"({rows} LIMIT {last - first + 1})" if last - first < LIMITED_ROWS_MAX else f"({rows})"


def _parquet(files: Iterable[ColdFile], kind: str, place: Place) -> list[str]:
    """The relation of all files of a kind, in a list; an empty one when there are none."""
    places = [quoted(place(file)) for file in files if file.kind == kind]
    return [f"read_parquet([{', '.join(places)}], hive_partitioning = false)"] if places else []
