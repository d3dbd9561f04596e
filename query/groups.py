"""The groups of a store: made, looked at, deleted; and their record beside the ledger, which tells when Redis has lost them."""

from __future__ import annotations

import datetime as dt
import re
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from thermocline.errors import QueryRefused, StoreReplaced
from thermocline.tiers.block import ORIGIN
from thermocline.tiers.groups import PARKED_MAX, Groups, GroupState, ParkedEvent
from thermocline.tiers.opening import Tiers
from thermocline.tiers.whole_file import file_errors, whole_file

from .patterns import Patterns
from .run import at
from .starts import Start, micros, places_of

NAME: Final = re.compile(r"[a-z0-9_.-]{1,64}")
GROUPS_MAX: Final = 100
"""Of a store: the worker asks where each is before it trims."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """`groups/<name>.json`."""

    name: str
    made: str
    """UUID hex; the shards have it too."""
    made_us: int
    event_types: tuple[str, ...] | None
    ready: bool
    """Whether it was made in every shard."""


class GroupStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A group of consumers."""

    name: str
    event_types: tuple[str, ...] | None
    made_at: dt.datetime
    lag_events: int
    """Events appended that no consumer has taken yet, those of other types too; at most, while it reads from segments."""
    pending: int
    """Taken and not acknowledged, or waiting to be delivered again."""
    parked: int
    seen_at: dt.datetime
    """When a consumer last asked."""


class StoreGroups:
    """Thread-safe."""

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers
        self.redis = Groups(tiers.hot)
        self._folder = tiers.settings.namespace_dir / "groups"

    def require(self, name: str, start: Start, event_types: Sequence[str] | None) -> Record:
        """The group, made at `start` when it is new. StoreReplaced: Redis has lost it."""
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise QueryRefused(f"a group's name has 1 to 64 of a-z 0-9 _ . -, not {name!r}")
        patterns = Patterns(event_types).patterns
        record = self.record(name)
        if record is None:
            record = self._begin(name, patterns)
        if event_types is not None and patterns != record.event_types:
            raise QueryRefused(
                f"group {name!r} was made for {_types(record.event_types)}, not {_types(patterns)}: "
                f"use another name, or `thermocline groups delete {name}` first"
            )
        if not record.ready:
            made = self._make(record, start)
            record = msgspec.structs.replace(record, made=made, ready=True)
            self._write(record, replace=True)
        self.check(record)
        return record

    def check(self, record: Record) -> list[GroupState]:
        """Its state in every shard. StoreReplaced: Redis has lost it."""
        states = self.redis.states(record.name)
        found = [state for state in states if state is not None and state.made == record.made]
        if len(found) != len(states):
            raise StoreReplaced(
                f"Redis was wiped since group {record.name!r} was made: what it had read, what was pending and what was parked "
                "is gone. Events that had settled are in the store, those that had not are declared lost (`thermocline verify`). "
                f"Begin anew: `thermocline groups delete {record.name}`, then subscribe with start= a time or 'begin'"
            )
        return found

    def record(self, name: str) -> Record | None:
        """What was noted when it was made; None when there is no such group."""
        path = self._path(name)
        with file_errors(str(path), setting="data_dir"):
            try:
                return msgspec.json.decode(path.read_bytes(), type=Record)
            except FileNotFoundError:
                return None
            except msgspec.MsgspecError as exc:
                raise QueryRefused(f"{path}: not readable ({exc}); delete it and the group: groups delete {name}") from exc

    def statuses(self) -> list[GroupStatus]:
        """All groups, by name. StoreReplaced as of `check`."""
        paths = sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []
        records = [record for path in paths if (record := self.record(path.stem)) is not None]
        return [self._status(record) for record in records if record.ready]

    def parked(self, name: str, limit: int) -> list[ParkedEvent]:
        """Parked events of a group, the oldest first."""
        self._known(name)
        return self.redis.parked(name, limit)

    def take_out(self, name: str, what: Literal["replay", "discard"], events: Sequence[ParkedEvent] | None) -> int:
        """Deliver parked events anew, or forget them; how many there were."""
        self._known(name)
        chosen = self.redis.parked(name, PARKED_MAX * self._tiers.hot.shards) if events is None else events
        return self.redis.take_out(name, what, chosen)

    def delete(self, name: str) -> None:
        """Forget a group and what is parked."""
        if not NAME.fullmatch(name) or not self._path(name).exists():
            raise QueryRefused(f"there is no group {name!r}")
        self.redis.delete(name)
        with file_errors(str(self._folder), setting="data_dir"):
            self._path(name).unlink(missing_ok=True)

    def _known(self, name: str) -> Record:
        record = self.record(name) if NAME.fullmatch(name) else None
        if record is None:
            raise QueryRefused(f"there is no group {name!r}")
        self.check(record)
        return record

    def _status(self, record: Record) -> GroupStatus:
        states = self.check(record)
        cut = self._tiers.hot.cut()
        return GroupStatus(
            name=record.name,
            event_types=record.event_types,
            made_at=at(record.made_us),
            lag_events=sum(max(0, one.events_total - state.events) for one, state in zip(cut, states, strict=True)),
            pending=sum(state.pending for state in states),
            parked=sum(state.parked for state in states),
            seen_at=at(1000 * max(state.seen_ms for state in states)),
        )

    def _begin(self, name: str, patterns: tuple[str, ...] | None) -> Record:
        if len(list(self._folder.glob("*.json"))) >= GROUPS_MAX:
            raise QueryRefused(f"there are {GROUPS_MAX} groups already: delete one (`thermocline groups delete`)")
        record = Record(name=name, made=uuid.uuid4().hex, made_us=time.time_ns() // 1000, event_types=patterns, ready=False)
        return self._write(record, replace=False)

    def _write(self, record: Record, *, replace: bool) -> Record:
        with file_errors(str(self._folder), setting="data_dir"):
            try:
                with whole_file(self._path(record.name), replace=replace) as file:
                    file.write(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
            except FileExistsError:
                found = self.record(record.name)
                assert found is not None, "somebody has just made it"
                return found
        return record

    def _make(self, record: Record, start: Start) -> str:
        """Make it in every shard. What Redis has already, as after a restore of the data directory, stays; the id it has."""
        made = record.made
        cut = self._tiers.hot.cut()
        places = places_of(start, cut)
        from_us = micros(start) if isinstance(start, dt.datetime) else 0
        for one, place in zip(cut, places, strict=True):
            events = one.events_total if start == "now" else 0
            if isinstance(start, dt.datetime) and place.position > one.last:
                events = one.events_total
            made = self.redis.make(
                record.name,
                made,
                one.shard,
                position=place.position if place.position > ORIGIN else ORIGIN,
                us=place.us,
                from_us=from_us,
                events=events,
            )
        return made

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def _types(patterns: tuple[str, ...] | None) -> str:
    return "all events" if patterns is None else ", ".join(patterns)
