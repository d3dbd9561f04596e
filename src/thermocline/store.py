"""A store as a reader sees it: SQL over all tiers, the newest events of a conversation, status and verification."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from thermocline.config import Settings, load
from thermocline.errors import ConfigError, TierUnavailable
from thermocline.event import INT64_MAX
from thermocline.query.handover import Lender
from thermocline.query.instants import Instant
from thermocline.query.pinned import Pinned
from thermocline.query.recent import Recent
from thermocline.query.result import Result
from thermocline.query.run import Runner
from thermocline.query.search import Found, Searcher
from thermocline.query.status import Status, status
from thermocline.tiers.duck import Connection
from thermocline.tiers.opening import Tiers, open_tiers

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator
    from typing import BinaryIO

    from thermocline.archiver.verify import Verification
    from thermocline.query.export import Exported, ExportFormat
    from thermocline.query.follow import Followed, Following, Tail
    from thermocline.query.gaps import Gap
    from thermocline.query.groups import GroupStatus, StoreGroups
    from thermocline.query.subscribe import Subscription
    from thermocline.tiers.groups import ParkedEvent


class Store:
    """One namespace, opened for reading. Thread-safe; a context manager. Make one with `connect`."""

    def __init__(self, tiers: Tiers) -> None:
        """tiers  closed with the store"""
        self.tiers = tiers
        self._runner = Runner(tiers)
        self._recent = Recent(tiers, self._runner)
        self._searcher = Searcher(tiers, self._runner)
        self.lender = Lender(tiers, self._runner)
        """For processes that answer queries in this one's place."""
        self._lock = threading.Lock()
        self._pinned: Pinned | None = None
        self._following: Following | None = None
        self._closed = False

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

        query    DuckDB SQL over `events`, `hourly_stats`, `conversation_summary`, and whatever the caller makes. Tables
                 made here live in memory, until the store is closed; `duckdb()` does not see them
        params   a list for `?` and `$1`, a dict for `$name`
        require  "complete": raise IncompleteAnswer rather than answer from a sample

        QueryRefused says what DuckDB does not like. TierUnavailable and TierCorrupt: a tier cannot be read, and there is
        no answer without it.
        """
        self._check_open()
        return self._runner.sql(query, params, require=require)

    def recent(self, conversation_id: str, limit: int = 100) -> Result:
        """The newest `limit` events of a conversation, columns as in `events`, ordered by seq."""
        self._check_open()
        return self._recent.recent(conversation_id, limit)

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

    def tail(
        self,
        conversation_id: str | None = None,
        *,
        event_types: Sequence[str] | None = None,
        start: str | int | dt.datetime = "now",
        page_bytes_max: int | None = None,
    ) -> Tail:
        """Events from `start` on and then as they are appended, of one conversation or of all: docs/following.md.

        event_types  names, with * for any text; None: all
        start        "now", "begin", a datetime (of ingestion), the position of an earlier tail, or of one conversation a seq
        page_bytes_max  payload it holds at most, and at least one event; None: 4 MiB

        QueryRefused: an argument is not one of these. StoreReplaced: a position from before Redis was wiped.
        """
        from thermocline.query.follow import PAGE_BYTES_MAX, Tail

        self._check_open()
        shared = self._shared_following()
        page_bytes = PAGE_BYTES_MAX if page_bytes_max is None else page_bytes_max
        return Tail(shared, conversation_id, event_types=event_types, start=start, page_bytes_max=page_bytes)

    def subscribe(
        self,
        group: str,
        *,
        event_types: Sequence[str] | None = None,
        start: str | dt.datetime = "now",
        ack_wait_s: float = 30.0,
        deliveries_max: int = 5,
        prefetch: int = 100,
        pending_max: int = 1000,
    ) -> Subscription:
        """One consumer of a group, which is made when it is new: docs/following.md.

        start           of a new group: "now", "begin" or a datetime (of ingestion)
        ack_wait_s      without an answer for so long an event is delivered again
        deliveries_max  then it is parked
        prefetch        events leased at once
        pending_max     events of a shard that may be without an answer; then the group waits

        StoreReplaced: Redis was wiped since the group was made.
        """
        from thermocline.query.subscribe import Subscription, check_limits

        self._check_open()
        check_limits(ack_wait_s, deliveries_max, prefetch, pending_max)
        groups = self._groups()
        record = groups.require(group, start, event_types)
        return Subscription(
            self._shared_following(),
            groups,
            record,
            ack_wait_s=ack_wait_s,
            deliveries_max=deliveries_max,
            prefetch=prefetch,
            pending_max=pending_max,
        )

    def groups(self) -> list[GroupStatus]:
        """The groups of consumers: what each has taken, has pending and has parked, and how far behind it is."""
        self._check_open()
        return self._groups().statuses()

    def delete_group(self, group: str) -> None:
        """Forget a group, what it has pending and what it has parked."""
        self._check_open()
        self._groups().delete(group)

    def parked(self, group: str, limit: int = 100) -> list[ParkedEvent]:
        """Events that were set aside, the oldest first; those of `store.sql` have their contents."""
        self._check_open()
        return self._groups().parked(group, limit)

    def replay_parked(self, group: str, events: Sequence[ParkedEvent] | None = None) -> int:
        """Deliver parked events anew, all of them unless given; how many."""
        self._check_open()
        return self._groups().take_out(group, "replay", events)

    def discard_parked(self, group: str, events: Sequence[ParkedEvent] | None = None) -> int:
        """Forget parked events, all of them unless given; how many. They stay in the store."""
        self._check_open()
        return self._groups().take_out(group, "discard", events)

    def _groups(self) -> StoreGroups:
        from thermocline.query.groups import StoreGroups

        return StoreGroups(self.tiers)

    def replay(
        self,
        conversation_id: str,
        *,
        speed: float = 1.0,
        until: dt.datetime | int | None = None,
        from_seq: int = 1,
        pause_s_max: float = 10.0,
    ) -> Iterator[Followed | Gap]:
        """The events of a conversation once more, each when it is due by the original pauses; gaps where events are gone.

        speed        2.0 halves the pauses; math.inf makes none
        until        the last: its seq, or a datetime (of `timestamp`); None: the last there is now
        pause_s_max  no pause is longer, whatever there was
        """
        from thermocline.query.replay import check_replay, replayed

        check_replay(speed, until, pause_s_max)
        return replayed(self.tail(conversation_id, start=from_seq), speed=speed, until=until, pause_s_max=pause_s_max)

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

    def _shared_following(self) -> Following:
        from thermocline.query.follow import Following
        from thermocline.query.settled import SettledEvents
        from thermocline.tiers.hot_watch import LogWatch

        with self._lock:
            if self._following is None:
                self._following = Following(self.tiers, SettledEvents(self.tiers), LogWatch(self.tiers.hot))
            return self._following

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

    def duckdb(self) -> Connection:
        """A DuckDB connection with the three relations, pinned to one view until `refresh()`. The caller closes it.

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

    def _check_open(self) -> None:
        if self._closed:
            raise TierUnavailable("this store is closed: connect() again")

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
