"""Search: the newest events that hold a text, over all tiers, each with a snippet and where in it the text is.

It is a query like any other, over one cut, with the same pruning and the same receipt. To find the newest without reading
everything, it asks for the newest events first, and goes further back, several times as far each time, while it has fewer than
were asked for: what is answered is what the last of these queries saw. It stops at `query.search_rows_max` rows, and says so.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec
import pyarrow as pa

from thermocline.errors import IncompleteAnswer, QueryRefused
from thermocline.tiers.duck import quoted
from thermocline.tiers.opening import Tiers

from .bounds import Bounds, Texts, chosen
from .coverage import Coverage
from .instants import Instant, instant_us
from .matching import Wanted, rungs
from .result import Result
from .run import Runner, at

LIMIT_MAX: Final = 10_000
SNIPPET_CHARS_MAX: Final = 10_000
EVENT_TYPES_MAX: Final = 100
FIRST_ROWS: Final = 200_000
"""Stored rows looked at before going further back."""
GROWTH: Final = 4
CONTEXT: Final = 4
"""A snippet begins a fourth of its length before the first match."""
FILTERS: Final = ("conversation_id", "agent_id", "task_id", "model", "tool_name", "status")
SHOWN: Final = (
    *("timestamp", "conversation_id", "seq", "event_type", "agent_id", "task_id", "model", "tool_name", "status"),
    *("event_id", "sample_rate"),
)
"""Columns of every answer, before `snippet`."""
ORDER: Final = "timestamp DESC, conversation_id, seq DESC"
_SPANS: Final = pa.list_(pa.struct([pa.field("start", pa.int32()), pa.field("length", pa.int32())]))


class Found(Result):
    """What a search found, the newest first.

    Columns: SHOWN; `snippet`, a piece of the content; `spans`, a list of {start, length}, where in it the text is;
    `snippet_start`, where in the content it begins; `content_chars`, how long that is; all in characters. With full=True also
    `content` and `metadata`. `thermocline.highlighted(snippet, spans)` is HTML that is safe in a page.
    """

    def __init__(self, table: pa.Table, coverage: Coverage, *, more: str | None, searched_from: dt.datetime | None) -> None:
        super().__init__(table, coverage)
        self.more = more
        """Give it as `before` to go on from here; None when there is nothing further back."""
        self.searched_from = searched_from
        """Set when the search stopped at query.search_rows_max: nothing before this was looked at."""


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The conditions on events beside the text, and what of them the ledger knows about."""

    conditions: tuple[str, ...]
    parameters: Mapping[str, Any]
    bounds: Bounds


class Searcher:
    """Thread-safe."""

    def __init__(self, tiers: Tiers, runner: Runner) -> None:
        self._ledger = tiers.ledger
        self._rows_max = tiers.settings.query.search_rows_max
        self._runner = runner

    def search(
        self,
        text: str,
        *,
        phrase: bool = False,
        whole_words: bool = False,
        event_types: str | Iterable[str] | None = None,
        since: Instant | None = None,
        until: Instant | None = None,
        before: str | None = None,
        limit: int = 100,
        snippet_chars: int = 240,
        full: bool = False,
        require: Literal["complete"] | None = None,
        **filters: str | None,
    ) -> Found:
        """See Store.search."""
        wanted = Wanted.of(text, phrase=phrase, whole_words=whole_words)
        _check_count("limit", limit, LIMIT_MAX)
        _check_count("snippet_chars", snippet_chars, SNIPPET_CHARS_MAX)
        asked = _asked(event_types, since, until, before, filters)
        answer, low_us = None, None
        for low_us, rows in self._rungs(asked.bounds):
            if answer is not None and rows > self._rows_max:
                break
            answer, reached_us = self._ask(wanted, asked, low_us, limit, snippet_chars, full=full, require=require), low_us
            if len(answer) >= limit or low_us is None:
                break
        assert answer is not None
        cut_short = len(answer) < limit and reached_us is not None
        if cut_short and require == "complete":
            raise IncompleteAnswer(
                f"nothing before {at(reached_us or 0):%Y-%m-%d %H:%M:%S} UTC was looked at: give since, conversation_id or "
                f"event_types, or raise query.search_rows_max ({self._rows_max:,})"
            )
        table = _with_spans(answer.to_arrow(), wanted)
        return Found(
            table,
            answer.coverage,
            more=_cursor(table) if len(answer) >= limit else str(reached_us) if cut_short else None,
            searched_from=at(reached_us) if cut_short and reached_us is not None else None,
        )

    def _rungs(self, bounds: Bounds) -> list[tuple[int | None, int]]:
        if bounds.conversations.values is not None:
            return [(None, 0)]  # its rows are found without reading the others
        view = self._ledger.view()
        files = [file for file in view.files if file.kind == "events"]
        extents = [(one.timestamp_max_us, one.rows) for one in (*chosen(view.segments, bounds), *chosen(files, bounds))]
        return rungs(extents, first_rows=FIRST_ROWS, growth=GROWTH)

    def _ask(
        self,
        wanted: Wanted,
        asked: _Asked,
        low_us: int | None,
        limit: int,
        chars: int,
        *,
        full: bool,
        require: Literal["complete"] | None,
    ) -> Result:
        conditions, parameters = list(asked.conditions), dict(asked.parameters)
        if low_us is not None:
            conditions.append("timestamp >= $low")
            parameters["low"] = at(low_us)
        where = " AND ".join([*conditions, wanted.sql("content", quoted)])
        columns = [*SHOWN, "content", *(["metadata"] if full else [])]
        newest = f"SELECT {', '.join(columns)} FROM events WHERE {where} ORDER BY {ORDER} LIMIT {limit}"
        start = f"greatest(0, {wanted.place_sql('content', quoted)} - {chars // CONTEXT})::INTEGER"
        return self._runner.sql(
            f"SELECT {', '.join(SHOWN)}, substring(content, snippet_start + 1, {chars}) AS snippet, snippet_start,"
            f" length(content)::INTEGER AS content_chars{', content, metadata' if full else ''}"
            f" FROM (SELECT *, {start} AS snippet_start FROM ({newest})) ORDER BY {ORDER}",
            parameters,
            require=require,
        )


def _asked(
    event_types: str | Iterable[str] | None,
    since: Instant | None,
    until: Instant | None,
    before: str | None,
    filters: Mapping[str, str | None],
) -> _Asked:
    conditions: list[str] = []
    parameters: dict[str, Any] = {}
    bounds = Bounds()
    for name in filters.keys() - FILTERS:
        raise QueryRefused(f"{name} is no filter: there are event_types, {', '.join(FILTERS)}, since and until")
    for name, value in filters.items():
        if value is not None:
            parameters[name] = _text(name, value)
            conditions.append(f"{name} = ${name}")
    if filters.get("conversation_id") is not None:
        bounds &= Bounds(conversations=Texts.of([parameters["conversation_id"]]))
    if event_types is not None:
        names = [event_types] if isinstance(event_types, str) else list(event_types)
        if not 1 <= len(names) <= EVENT_TYPES_MAX:
            raise QueryRefused(f"event_types must name 1 to {EVENT_TYPES_MAX} types, not {len(names)}")
        parameters |= {f"type_{place}": _text("event_types", name) for place, name in enumerate(names)}
        conditions.append(f"event_type IN ({', '.join(f'$type_{place}' for place in range(len(names)))})")
        bounds &= Bounds(event_types=Texts.of(names))
    if since is not None:
        since_us = instant_us(since, "since")
        conditions.append("timestamp >= $since")
        parameters["since"], bounds = at(since_us), bounds & Bounds(time_min_us=since_us)
    if until is not None:
        until_us = instant_us(until, "until")
        conditions.append("timestamp < $until")
        parameters["until"], bounds = at(until_us), bounds & Bounds(time_max_us=until_us - 1)
    if before is not None:
        place = _place(before)
        conditions += ["timestamp <= $before", place.condition]
        parameters |= {"before": at(place.us), **place.parameters}
        bounds &= Bounds(time_max_us=place.us)
    return _Asked(conditions=tuple(conditions), parameters=parameters, bounds=bounds)


class _Place(msgspec.Struct, frozen=True):
    """Where the next page begins: after this in ORDER."""

    us: int
    condition: str
    parameters: Mapping[str, Any]


def _cursor(table: pa.Table) -> str:
    """The last row of a page as text: µs, seq, conversation."""
    last = table.slice(table.num_rows - 1).select(["timestamp", "seq", "conversation_id"])
    us = last["timestamp"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())[0].as_py()
    return f"{us}/{last['seq'][0].as_py()}/{last['conversation_id'][0].as_py()}"


def _place(before: str) -> _Place:
    us, _, rest = before.partition("/") if isinstance(before, str) else ("", "", "")
    seq, _, conversation = rest.partition("/")
    if not us.isdecimal() or not us.isascii() or (rest and not (seq.isdecimal() and conversation)):
        raise QueryRefused(f"before must be what `more` of a search was, not {before!r}")
    at_us = instant_us(int(us), "before")
    if not rest:
        return _Place(at_us, "timestamp < $before", {})
    later = "(conversation_id > $before_name OR (conversation_id = $before_name AND seq < $before_seq))"
    return _Place(at_us, f"(timestamp < $before OR {later})", {"before_name": conversation, "before_seq": int(seq)})


def _with_spans(table: pa.Table, wanted: Wanted) -> pa.Table:
    """The rows with `spans` after `snippet`."""
    spans = [
        [{"start": start, "length": length} for start, length in wanted.spans(text)] for text in table["snippet"].to_pylist()
    ]
    place = table.column_names.index("snippet") + 1
    return table.add_column(place, pa.field("spans", _SPANS), pa.array(spans, _SPANS))


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise QueryRefused(f"{name} must be a str, not {type(value).__name__}")
    return value


def _check_count(name: str, value: object, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise QueryRefused(f"{name} must be an integer from 1 to {most:,}, not {value!r}")
