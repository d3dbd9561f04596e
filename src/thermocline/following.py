"""What a store gives of events as they come: tails, groups of consumers, replays."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from thermocline.errors import TierUnavailable
from thermocline.tiers.opening import Tiers

if TYPE_CHECKING:
    import datetime as dt

    from thermocline.query.follow import Followed, Following, Tail
    from thermocline.query.gaps import Gap
    from thermocline.query.groups import GroupStatus, StoreGroups
    from thermocline.query.subscribe import Subscription
    from thermocline.tiers.groups import ParkedEvent


class Followable:
    """The part of `Store` that follows. docs/following.md."""

    def __init__(self, tiers: Tiers) -> None:
        self.tiers = tiers
        self._lock = threading.Lock()
        self._following: Following | None = None
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise TierUnavailable("this store is closed: connect() again")

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

    def _shared_following(self) -> Following:
        from thermocline.query.follow import Following
        from thermocline.query.settled import SettledEvents
        from thermocline.tiers.hot_watch import LogWatch

        with self._lock:
            if self._following is None:
                self._following = Following(self.tiers, SettledEvents(self.tiers), LogWatch(self.tiers.hot))
            return self._following
