"""Events that have settled, page by page, in an order that no merge or archive changes: (ingested_at, conversation_id, seq).

One query finds the keys of the next events, a second how large these are, a third their values: so a page is bounded in bytes,
and what a reader does not want is never read. Segments and files whose events were ingested later than the page ends are not
touched: when each of them begins and ends is looked up once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import msgspec

from thermocline.errors import TierCorrupt, TierUnavailable
from thermocline.event import COLUMNS
from thermocline.tiers.cold_copies import SCHEME
from thermocline.tiers.duck import Connection, asked, duckdb_errors, quoted
from thermocline.tiers.ledger import ColdFile, Segment, View
from thermocline.tiers.opening import Tiers

from .archived import Archived
from .attached import Attached, SegmentGone, alias
from .bounds import Bounds, Texts, chosen
from .cursor import Key
from .plain import plain_rows
from .relations import COLUMNS_SQL, Sources
from .run import open_memory

KEYS_MAX: Final = 4000
"""Events looked at for one page."""
CREATED_MARGIN_US: Final = 7_200_000_000
"""An archived file has nothing that was ingested so long after it was made: no clock may be more than an hour off to archive."""
_NONE: Final = ", ".join(f"NULL::{column.sql_type} AS {column.name}" for column in COLUMNS)
Source = Segment | ColdFile
Row = dict[str, Any]
T = TypeVar("T")


class _NotHere(Exception):
    """Internal: archived files that have to be copied first."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys


class Page(msgspec.Struct, frozen=True):
    """What comes next among the settled events."""

    keys: Sequence[tuple[Key, str]]
    """Every event there is after `after`, with its type, in order; those that are not wanted too."""
    rows: Mapping[tuple[str, int], Row]
    """(conversation, seq) → values by column, of those that are wanted."""
    end: Key | None
    """How far it goes; None: there is nothing after it."""
    view: View
    """A ledger's view that had them."""


class SettledEvents:
    """Reads segments and cold files for all readers of a store that follow. Thread-safe; one page at a time."""

    def __init__(self, tiers: Tiers, *, keys_max: int = KEYS_MAX) -> None:
        self._tiers = tiers
        self._keys_max = keys_max
        self._lock = threading.RLock()
        self._parsing = threading.Lock()
        self._parser: Connection | None = None
        self._opened: tuple[Connection, Attached, Archived] | None = None
        self._extents: dict[str, tuple[int, int]] = {}

    def page(
        self,
        after: Key,
        upto_us: int,
        *,
        conversation_id: str | None,
        wanted: Callable[[Key, str], bool],
        bytes_max: int,
    ) -> Page:
        """The events after `after` that were ingested up to `upto_us`; of one conversation in the order of seq.

        wanted  of a key and its type: whether the event's values are. TierUnavailable, TierCorrupt: a tier cannot be read
        """
        return self._retried(lambda view: self._page(view, after, upto_us, conversation_id, wanted, bytes_max))

    def before(self, met: Mapping[str, int]) -> dict[str, int]:
        """conversation → the highest seq below `met[conversation]` there is among settled events; 0 when there is none."""
        return self._retried(lambda view: self._before(view, met))

    def rows_of(self, places: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Row]:
        """(conversation, seq) → the values of these events, of those there are among settled ones."""
        return self._retried(lambda view: self._rows_of(view, places))

    def close(self) -> None:
        with self._lock:
            if self._opened is not None:
                self._opened[0].close()
                self._opened, self._parser = None, None

    @contextmanager
    def parser(self) -> Iterator[Connection]:
        """A database in memory to parse blocks with. Does not wait for pages."""
        with self._parsing:
            if self._parser is None:
                with self._lock:
                    self._parser = self._open()[0].cursor()
            yield self._parser

    def _open(self) -> tuple[Connection, Attached, Archived]:
        if self._opened is None:
            con = open_memory(self._tiers.settings)
            self._opened = con, Attached(con, self._tiers.warm), Archived(self._tiers, con)
        return self._opened

    def _retried(self, read: Callable[[View], T]) -> T:
        gone: Exception | None = None
        retries_max = self._tiers.settings.query.view_retries_max
        for _ in range(retries_max):
            try:
                for _ in range(retries_max):
                    try:
                        with self._lock:
                            return read(self._tiers.ledger.view())
                    except _NotHere as exc:
                        self._tiers.copies.ensure(exc.keys)  # other readers need not wait for it
                raise TierUnavailable("copies of archived files are removed faster than read: raise cold.cache_bytes_max")
            except SegmentGone as exc:
                gone = exc
        raise TierCorrupt(f"{gone} is missing, but the ledger lists it: run `thermocline verify`") from gone

    def _page(
        self,
        view: View,
        after: Key,
        upto_us: int,
        conversation_id: str | None,
        wanted: Callable[[Key, str], bool],
        bytes_max: int,
    ) -> Page:
        keys: list[tuple[Key, str]] = []
        read: list[Source] = []
        at: Key | None = after
        while at is not None and not keys:
            sources, before_us = self._sources(view, at, upto_us, conversation_id)
            files = [one.key for one in sources if isinstance(one, ColdFile)]
            if files and conversation_id is None:  # every page reads them from end to end: not over the network
                missing = [key for key in files if self._tiers.copies.place(key).startswith(f"{SCHEME}://")]
                if missing:
                    raise _NotHere(missing)
            relation = self._relation(view, sources)
            keys = self._keys(relation, at, min(upto_us, before_us - 1), conversation_id, self._keys_max, sources)
            read = sources
            if len(keys) == self._keys_max:
                at = keys[-1][0]
            else:
                at = Key(before_us, "", 0) if before_us <= upto_us and conversation_id is None else None
        if not keys:
            return Page([], {}, None, view)
        chosen_keys = [key for key, kind in keys if wanted(key, kind)]
        rows: dict[tuple[str, int], Row] = {}
        if chosen_keys:
            relation = self._relation(view, read)
            fitting = self._fitting(relation, chosen_keys, conversation_id, bytes_max, read)
            if len(fitting) < len(chosen_keys):
                end = chosen_keys[len(fitting)]
                keys = [one for one in keys if _order(one[0], conversation_id) < _order(end, conversation_id)]
                at = keys[-1][0]
            rows = self._rows(relation, fitting, conversation_id, read)
        return Page(keys, rows, at, view)

    def _sources(self, view: View, after: Key, upto_us: int, conversation_id: str | None) -> tuple[list[Source], int]:
        """(what may hold the next events, before when the others begin)."""
        if conversation_id is not None:
            return self._of_conversations(view, [conversation_id]), upto_us + 1
        old_us = after.us - CREATED_MARGIN_US
        found: list[Source] = list(view.segments)
        found += [file for file in view.files if file.kind == "events" and file.created_us >= old_us]
        extents = self._known_extents(view, found)
        left = [(extents[_id(one)], one) for one in found if extents[_id(one)][1] >= after.us and extents[_id(one)][0] <= upto_us]
        if not left:
            return [], upto_us + 1
        begin_us = max(after.us, min(first for (first, _), _ in left))
        now = [one for (first, _), one in left if first <= begin_us]
        later = [first for (first, _), _ in left if first > begin_us]
        return now, min(later, default=upto_us + 1)

    def _known_extents(self, view: View, sources: Sequence[Source]) -> dict[str, tuple[int, int]]:
        """source → first and last ingested_at in it, µs."""
        live = {one.segment_id for one in view.segments} | {one.file_id for one in view.files}
        self._extents = {name: extent for name, extent in self._extents.items() if name in live}
        for one in sources:
            if _id(one) not in self._extents:
                if one.rows == 0:
                    self._extents[_id(one)] = (1 << 62, 0)
                    continue
                relation = self._relation(view, [one])
                found = self._fetched(f"SELECT epoch_us(min(ingested_at)), epoch_us(max(ingested_at)) FROM {relation}", [], [one])
                self._extents[_id(one)] = found[0][0], found[0][1]
        return self._extents

    def _relation(self, view: View, sources: Sequence[Source]) -> str:
        """The rows of these, made readable."""
        _, attached, archived = self._open()
        segments = [one for one in sources if isinstance(one, Segment)]
        files = tuple(one for one in sources if isinstance(one, ColdFile))
        attached.keep_only([one.segment_id for one in view.segments])
        attached.add(segments)
        archived.prepare([Sources(files=files)])
        parts = [f"SELECT {_NONE} WHERE false", *(f"FROM {alias(one.segment_id)}.events" for one in segments)]
        if files:
            places = ", ".join(quoted(archived.place(one)) for one in files)
            parts.append(f"FROM read_parquet([{places}], hive_partitioning = false)")
        return f"({' UNION ALL BY NAME '.join(parts)})"

    def _keys(
        self, relation: str, after: Key, upto_us: int, conversation_id: str | None, limit: int, sources: Sequence[Source]
    ) -> list[tuple[Key, str]]:
        condition, parameters = _after(after, conversation_id)
        order = "us, conversation_id, seq" if conversation_id is None else "seq"
        found = self._fetched(
            f"SELECT epoch_us(ingested_at) AS us, conversation_id, seq, event_type FROM {relation} "
            f"WHERE {condition} AND ingested_at <= make_timestamptz(?) ORDER BY {order} LIMIT {limit}",
            [*parameters, upto_us],
            sources,
        )
        return [(Key(us, name, seq), kind) for us, name, seq, kind in found]

    def _fitting(
        self, relation: str, keys: Sequence[Key], conversation_id: str | None, bytes_max: int, sources: Sequence[Source]
    ) -> list[Key]:
        """As many of the first keys as have `bytes_max` of text together; at least one."""
        condition, parameters = _within(keys, conversation_id)
        found = self._fetched(
            "SELECT conversation_id, seq, strlen(content) + coalesce(strlen(metadata::VARCHAR), 0) "
            f"FROM {relation} WHERE {condition}",
            parameters,
            sources,
        )
        sizes = {(name, seq): size for name, seq, size in found}
        total, count = 0, 0
        for key in keys:
            total += sizes.get((key.conversation_id, key.seq), 0)
            if count and total > bytes_max:
                break
            count += 1
        return list(keys[:count])

    def _rows(
        self, relation: str, keys: Sequence[Key], conversation_id: str | None, sources: Sequence[Source]
    ) -> dict[tuple[str, int], Row]:
        condition, parameters = _within(keys, conversation_id)
        names = ", ".join({quoted(key.conversation_id) for key in keys})
        query = f"SELECT {COLUMNS_SQL} FROM {relation} WHERE {condition} AND conversation_id IN ({names})"
        wanted = {(key.conversation_id, key.seq) for key in keys}
        table = self._run(query, parameters, sources).to_arrow_table()
        rows = {}
        for row in plain_rows(table):
            place = row["conversation_id"], row["seq"]
            if place in wanted:
                rows[place] = row
        return rows

    def _rows_of(self, view: View, places: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Row]:
        sources = self._of_conversations(view, {name for name, _ in places})
        if not sources:
            return {}
        names, seqs = [name for name, _ in places], [seq for _, seq in places]
        relation = self._relation(view, sources)
        query = f"""SELECT {COLUMNS_SQL} FROM {relation} WHERE (conversation_id, seq) IN
            (SELECT (unnest(?::VARCHAR[]), unnest(?::BIGINT[]))) AND conversation_id BETWEEN ? AND ?"""
        rows = plain_rows(self._run(query, [names, seqs, min(names), max(names)], sources).to_arrow_table())
        return {(row["conversation_id"], row["seq"]): row for row in rows}

    def _of_conversations(self, view: View, names: Iterable[str]) -> list[Source]:
        """The segments and files that may have events of these."""
        bounds = Bounds(conversations=Texts.of(names))
        segments: list[Segment] = chosen(view.segments, bounds)
        files: list[ColdFile] = chosen(view.files, bounds)
        events = {"events": Sources.of("events", segments, files)}
        narrowed = self._open()[2].narrowed(events, {"events": bounds})["events"]
        return [*narrowed.segments, *narrowed.files]

    def _before(self, view: View, met: Mapping[str, int]) -> dict[str, int]:
        sources = self._of_conversations(view, met)
        found = dict.fromkeys(met, 0)
        if sources:
            rows = self._fetched(
                f"SELECT e.conversation_id, max(e.seq) FROM {self._relation(view, sources)} AS e, "
                "(SELECT unnest(?::VARCHAR[]) AS name, unnest(?::BIGINT[]) AS seq) AS met "
                "WHERE e.conversation_id = met.name AND e.seq < met.seq GROUP BY e.conversation_id",
                [list(met), list(met.values())],
                sources,
            )
            found |= dict(rows)
        return found

    def _fetched(self, query: str, parameters: Sequence[Any], sources: Sequence[Source]) -> list[Any]:
        rows: list[Any] = self._run(query, parameters, sources).fetchall()
        return rows

    def _run(self, query: str, parameters: Sequence[Any], sources: Sequence[Source]) -> Any:
        """Rows as `asked` gives them. SegmentGone when a file left meanwhile."""
        con, _, archived = self._open()
        try:
            with duckdb_errors("settled events", reading=True):
                return asked(con, query, parameters)
        except Exception as exc:
            files = tuple(one for one in sources if isinstance(one, ColdFile))
            failure = archived.failure([Sources(files=files)], exc)
            if failure is not None:
                raise failure from exc
            raise


def _id(source: Source) -> str:
    return source.segment_id if isinstance(source, Segment) else source.file_id


def _order(key: Key, conversation_id: str | None) -> tuple[Any, ...]:
    return tuple(key) if conversation_id is None else (key.seq,)


def _after(key: Key, conversation_id: str | None) -> tuple[str, list[Any]]:
    """(condition on rows that come after the key, its parameters)."""
    if conversation_id is not None:
        return "conversation_id = ? AND seq > ?", [conversation_id, key.seq]
    at = "make_timestamptz(?)"
    later = f"(ingested_at > {at} OR conversation_id > ? OR (conversation_id = ? AND seq > ?))"
    return f"ingested_at >= {at} AND {later}", [key.us, key.us, key.conversation_id, key.conversation_id, key.seq]


def _within(keys: Sequence[Key], conversation_id: str | None) -> tuple[str, list[Any]]:
    """(condition that the rows of these sorted keys meet, and few others, its parameters)."""
    if conversation_id is not None:
        return "conversation_id = ? AND seq BETWEEN ? AND ?", [conversation_id, keys[0].seq, keys[-1].seq]
    return "ingested_at BETWEEN make_timestamptz(?) AND make_timestamptz(?)", [keys[0].us, keys[-1].us]
