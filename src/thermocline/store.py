"""A store as a reader sees it: SQL over all tiers, the newest events of a conversation, status and verification."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from thermocline.config import Settings, load
from thermocline.errors import ConfigError
from thermocline.event import INT64_MAX
from thermocline.following import Followable
from thermocline.query.handover import Lender
from thermocline.query.instants import Instant
from thermocline.query.pinned import Pinned
from thermocline.query.projection import Projection
from thermocline.query.recent import Recent
from thermocline.query.result import Result
from thermocline.query.run import Runner
from thermocline.query.search import Found, Searcher
from thermocline.query.states import Kept, State, States
from thermocline.query.status import Status, status
from thermocline.tiers.duck import Connection
from thermocline.tiers.opening import Tiers, open_tiers

if TYPE_CHECKING:
    import datetime as dt
    from typing import BinaryIO

    from thermocline.archiver.verify import Verification
    from thermocline.query.export import Exported, ExportFormat


class Store(Followable):
    """One namespace, opened for reading. Thread-safe; a context manager. Make one with `connect`."""

    def __init__(self, tiers: Tiers) -> None:
        """tiers  closed with the store"""
        super().__init__(tiers)
        self._runner = Runner(tiers)
        self._recent = Recent(tiers, self._runner)
        self._searcher = Searcher(tiers, self._runner)
        self.lender = Lender(tiers, self._runner)
        """For processes that answer queries in this one's place."""
        self._states = States(tiers, self._runner)
        self._pinned: Pinned | None = None

    @property
    def settings(self) -> Settings:
        return self.tiers.settings

    def sql(
        self,
        query: str,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        require: Literal["complete"] | None = None,
    ) -> Result:
        """The answer to `query` over every event acknowledged before the call.

        query    DuckDB SQL over `events`, `hourly_stats`, `conversation_summary`, `usage`, `agent_stats`, `model_stats`,
                 `tool_stats`, rollups of the settings, and whatever the caller makes. Tables made here live in memory, until
                 the store is closed; `duckdb()` does not see them
        params   a list for `?` and `$1`, a dict for `$name`
        require  "complete": raise IncompleteAnswer rather than answer from a sample

        QueryRefused says what DuckDB does not like. TierUnavailable and TierCorrupt: a tier cannot be read, and there is
        no answer without it.
        """
        self._check_open()
        return self._runner.sql(query, params, require=require)

    def relations(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """What `sql` can be asked over: relation → its columns, each with DuckDB's type, in order."""
        self._check_open()
        return self._runner.relations()

    def estimate(
        self, what: str, *, where: str = "", by: str | Sequence[str] = (), params: Mapping[str, Any] | None = None
    ) -> Result:
        """`what` over all events there ever were, those that were sampled out included, with 95 % intervals.

        what    count(*), sum(x), avg(x), count(DISTINCT x), median(x) or quantile(x, 0.95)
        where   a condition on events; `hour` and `day` are there too
        by      hour, day, conversation_id, event_type, agent_id, model or tool_name, or several of them
        params  for `$name` in `what` and `where`

        Columns: those of `by`, estimate, low, high, basis and kept. basis: "exact" from rollups, "histogram" (within 1 %),
        "estimated" from the kept events and made to agree with the rollups, or "unknown": too little was kept to say.
        QueryRefused says what cannot be answered so.
        """
        from thermocline.query.estimate import estimate

        self._check_open()
        return estimate(self._runner.sql, what, where=where, by=by, params=params)

    def recent(self, conversation_id: str, limit: int = 100) -> Result:
        """The newest `limit` events of a conversation, columns as in `events`, ordered by seq."""
        self._check_open()
        return self._recent.recent(conversation_id, limit)

    @property
    def recent_bytes(self) -> int:
        """Of the events that are kept for the next `recent`: at most `query.recent_bytes_max`."""
        return self._recent.bytes

    def whereabouts(self, conversation_id: str, from_seq: int = 1, to_seq: int = INT64_MAX) -> Result:
        """Which tier a conversation's events are in: columns from_seq, to_seq (included) and tier (hot, warm, cold), in order."""
        from thermocline.query.whereabouts import whereabouts

        self._check_open()
        return whereabouts(self._runner, conversation_id, from_seq, to_seq)

    def spread(self, conversation_id: str, to_seq: int, parts: int = 100) -> Result:
        """Columns part (from 0), tier, events: how many of the seqs 1 to `to_seq`, cut into equal parts, are in which tier."""
        from thermocline.query.whereabouts import spread

        self._check_open()
        return spread(self._runner, conversation_id, to_seq, parts)

    def usage(self, conversation_id: str | None = None) -> Result:
        """Events, content_bytes, input_tokens, output_tokens, cost_usd and errors by month and model, the newest month first.

        From rollups, so exact after sampling. conversation_id: of that conversation only.
        """
        from thermocline.query.usage import usage

        self._check_open()
        return usage(self._runner, conversation_id)

    def search(
        self,
        text: str,
        *,
        conversation_id: str | None = None,
        event_types: str | Iterable[str] | None = None,
        agent_id: str | None = None,
        task_id: str | None = None,
        model: str | None = None,
        tool_name: str | None = None,
        status: str | None = None,
        since: Instant | None = None,
        until: Instant | None = None,
        before: str | None = None,
        limit: int = 100,
        phrase: bool = False,
        whole_words: bool = False,
        snippet_chars: int = 240,
        full: bool = False,
        require: Literal["complete"] | None = None,
    ) -> Found:
        """The newest `limit` events whose content holds every word of `text`, in any case, each with a snippet and spans to mark.

        event_types, agent_id …  only events that have these
        since, until             only events of this time, until excluded: datetimes, RFC 3339 text, or µs
        before                   `more` of an earlier answer: its next page
        phrase                   the words one after the other
        whole_words              not within longer words
        full                     content and metadata too
        require                  "complete": raise IncompleteAnswer rather than answer from a sample, or from a part

        Sampled out events are not found; the coverage says so. QueryRefused names what is wrong with an argument.
        """
        self._check_open()
        return self._searcher.search(
            text,
            phrase=phrase,
            whole_words=whole_words,
            event_types=event_types,
            since=since,
            until=until,
            before=before,
            limit=limit,
            snippet_chars=snippet_chars,
            full=full,
            require=require,
            conversation_id=conversation_id,
            agent_id=agent_id,
            task_id=task_id,
            model=model,
            tool_name=tool_name,
            status=status,
        )

    def export(
        self,
        target: str | Path | BinaryIO,
        *,
        format: ExportFormat = "ndjson",
        conversation_id: str | None = None,
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
        event_types: Sequence[str] | None = None,
    ) -> Exported:
        """Write events of one cut to a file, by conversation and seq; how many, and what they rest on.

        target       a path, which is replaced when all of it is written, or a binary file to write to
        format       ndjson (what `thermocline append` takes), parquet, cloudevents (one a line), cloudevents-batch (a JSON array)
        since until  of `timestamp`: from, and before

        Memory stays within query.memory_bytes_max; beyond it, sorting spills into the namespace's folder.
        """
        from thermocline.query.export import Exporter

        self._check_open()
        return Exporter(self._runner, self.settings.namespace).export(
            target, format=format, conversation_id=conversation_id, since=since, until=until, event_types=event_types
        )

    def register(self, projection: Any) -> Projection:
        """Make a `thermocline.Projection`, or an object or class that looks like one, known to this store by its name."""
        self._check_open()
        return self._states.register(projection)

    def state(self, conversation_id: str, *, projection: Any, at_seq: int | None = None, keep: bool = True) -> State:
        """What a projection makes of a conversation's events, up to the newest acknowledged one or up to `at_seq`.

        projection  one, or the name of a registered one
        keep        the state is kept, so that the next one is made from it

        IncompleteAnswer when events are missing and the projection has no `gap`. QueryRefused: the projection, or an argument.
        """
        self._check_open()
        return self._states.state(conversation_id, projection, at_seq=at_seq, keep=keep)

    def states_history(
        self, conversation_id: str, *, projection: Any, from_seq: int = 1, until_seq: int | None = None, every: int = 1
    ) -> Iterator[State]:
        """The states a conversation went through, oldest first, while it reads: after each `every`th event, and the last one."""
        self._check_open()
        return self._states.history(conversation_id, projection, from_seq=from_seq, until_seq=until_seq, every=every)

    def states_kept(self, conversation_id: str, *, projection: str | None = None) -> list[Kept]:
        """The states that are kept of a conversation, of all versions of a projection or of all projections."""
        self._check_open()
        return self._states.kept(conversation_id, projection)

    def duckdb(self) -> Connection:
        """A DuckDB connection with these relations, pinned to one view until `refresh()`. The caller closes it.

        All of them share one in-memory database of their own: tables and views made in one are seen in all.
        """
        self._check_open()
        with self._lock:
            if self._pinned is None:
                self._pinned = Pinned(self.tiers)
        return self._pinned.connection()

    def refresh(self) -> None:
        """Move the connections of `duckdb()` to a fresh view. `sql()` and `recent()` always take one."""
        self._check_open()
        if self._pinned is not None:
            self._pinned.refresh()

    def status(self) -> Status:
        """What each tier holds, what waits, and how healthy the store is."""
        self._check_open()
        return status(self.tiers)

    def verify(self, deep: bool = False) -> Verification:
        """Whether every event ever appended is accounted for; `deep` reads every segment in full."""
        from thermocline.archiver.verify import verify

        self._check_open()
        return verify(self.tiers, deep=deep)

    def close(self) -> None:
        """Let go of everything. Results stay usable; connections of `duckdb()` do not. Safe to repeat."""
        if self._closed:
            return
        self._closed = True
        if self._following is not None:
            self._following.close()
        self._runner.close()
        if self._pinned is not None:
            self._pinned.close()
        self.tiers.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Store {self.settings.namespace!r} in {self.settings.data_dir}>"


def connect(config: Settings | Mapping[str, Any] | str | Path | None = None, **overrides: Any) -> Store:
    """A Store, creating the namespace when it is new and starting the embedded Redis when none is configured.

    config     Settings; a mapping of settings; the path of a TOML file; None: $THERMOCLINE_CONFIG or ./thermocline.toml if there
    overrides  settings that win over it: data_dir="…", namespace="…", hot={"cache_window_s": 60}

    ConfigError lists every wrong setting; TierUnavailable and TierCorrupt say which tier cannot be used, and why.
    """
    if isinstance(config, Settings):
        if overrides:
            raise ConfigError(f"{', '.join(overrides)}: give settings either as Settings or as arguments, not both")
        settings = config
    elif isinstance(config, Mapping):
        settings = load({**config, **overrides})
    else:
        settings = load(overrides, file=None if config is None else Path(config))
    tiers = open_tiers(settings)
    try:
        return Store(tiers)
    except BaseException:
        tiers.close()
        raise
