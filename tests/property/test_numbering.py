"""Whatever is lost, refused, restarted or rolled back: an acknowledged event is stored once, or reported lost; order is kept."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.model_store import NOW_US, ModelShard, ModelStore
from thermocline.event import Event
from thermocline.ingest.appender import Appender, Unresolved
from thermocline.ingest.encode import blocks_of, events_of
from thermocline.ingest.line import line_of
from thermocline.ingest.sending import Sending, Stored
from thermocline.ingest.validate import fields_of
from thermocline.tiers.block import Block, shard_of

SHARDS = 3
CONVERSATIONS = [f"conversation-{number}" for number in range(6)]
LATE_US = NOW_US + 400 * 1_000_000

faults = st.sampled_from(["", "down", "lost before", "lost after", "lost after 1", "lost after 2", "lost after 5"])
requests = st.lists(
    st.tuples(st.sampled_from(CONVERSATIONS), st.integers(1, 4), st.sampled_from([NOW_US] * 9 + [LATE_US])),
    min_size=1,
    max_size=40,
)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> None:
        self.now_s += seconds


class Numbering(RuleBasedStateMachine):
    @initialize(reconfirms=st.booleans())
    def start(self, reconfirms: bool) -> None:
        self.store = ModelStore()
        self.clock = Clock()
        self.appender = Appender(
            self.store.session(),
            unacked_blocks_max=4,
            reconfirm=self.store.confirm if reconfirms else None,
            clock=self.clock,
            pause=self.clock.pause,
        )
        self.names = itertools.count()
        self.pending: Sending | None = None
        self.snapshots: list[dict[int, ModelShard]] = [{}]
        self.order: dict[str, list[str]] = {name: [] for name in CONVERSATIONS}
        self.acked: dict[str, tuple[str, int]] = {}  # content → (conversation, seq)
        self.heard: set[str] = set()  # acknowledged, ever
        self.refused: set[str] = set()
        self.given: dict[tuple[str, int], str] = {}  # (conversation, seq) → content, for ever
        self.lost: Counter[int] = Counter()

    def block(self, conversation: str, count: int, timestamp: int) -> Block:
        contents = [f"{next(self.names)}" for _ in range(count)]
        self.order[conversation] += contents
        events = [Event(conversation_id=conversation, event_type="t", content=text, timestamp=timestamp) for text in contents]
        (made,) = blocks_of(
            conversation, [line_of(fields_of(event), 0) for event in events], shards=SHARDS, events_max=500, bytes_max=1 << 20
        )
        return made

    @precondition(lambda self: self.pending is None)
    @rule(wanted=requests, faults=st.lists(faults, max_size=6))
    def send(self, wanted: list[tuple[str, int, int]], faults: list[str]) -> None:
        self.run(Sending([self.block(*request) for request in wanted]), faults)

    @precondition(lambda self: self.pending is not None)
    @rule(faults=st.lists(faults, max_size=3))
    def resume(self, faults: list[str]) -> None:
        assert self.pending is not None
        self.run(self.pending, faults)

    @precondition(lambda self: self.pending is not None)
    @rule()
    def hang_up(self) -> None:
        self.appender.disconnect()

    def run(self, sending: Sending, faults: list[str]) -> None:
        self.store.faults.extend(faults)
        try:
            self.appender.resume(sending, deadline_s=0.05)
            self.pending = None
        except Unresolved:
            self.pending = sending
        self.store.faults.clear()
        failed: set[str] = set()
        for block, outcome in zip(sending.blocks, sending.outcomes, strict=True):
            assert not (isinstance(outcome, Stored) and block.conversation_id in failed), "stored after a block that was not"
            if not isinstance(outcome, Stored):
                failed.add(block.conversation_id)
            contents = [event.content for event in events_of(block)]
            if isinstance(outcome, Stored):
                for seq, content in enumerate(contents, outcome.seq_first):
                    place = (block.conversation_id, seq)
                    assert self.given.setdefault(place, content) == content, f"{place} was given twice"
                    if content not in self.heard:
                        self.heard.add(content)
                        self.acked[content] = place
                        self.settle_loss(content)
            elif outcome is not None:
                self.refused.update(contents)

    def settle_loss(self, content: str) -> None:
        """Acknowledged in this call, yet already gone: only in a call that went over a rollback."""
        if content not in {stored for _, _, stored in self.store.stored}:
            self.forget([content])

    def forget(self, contents: list[str]) -> None:
        for content in contents:
            conversation, _ = self.acked.pop(content)
            self.lost[shard_of(conversation, SHARDS)] += 1

    @rule()
    def reach_the_disk(self) -> None:
        self.snapshots.append(self.store.copy())

    @rule(back=st.integers(1, 3), confirmed=st.booleans())
    def restart_from_the_disk(self, back: int, confirmed: bool) -> None:
        self.snapshots = self.snapshots[: max(1, len(self.snapshots) - back + 1)]
        self.store.restart(self.snapshots[-1], confirmed=confirmed)
        there = {content for _, _, content in self.store.stored}
        self.forget([content for content in self.acked if content not in there])

    @rule(confirmed=st.booleans())
    def restart_whole(self, confirmed: bool) -> None:
        self.store.restart(confirmed=confirmed)

    @rule(upto=st.integers(1, SHARDS))
    def confirm(self, upto: int) -> None:
        self.store.confirm(upto)

    @rule(code=st.sampled_from(["", "", "BUSY", "FULL"]))
    def shed_load(self, code: str) -> None:
        self.store.refusing = code

    @precondition(lambda self: self.pending is None)
    @rule()
    def wipe(self) -> None:
        """A wipe is declared by who confirms, not by producers: what was there is no longer expected."""
        if self.store.unconfirmed:
            return
        self.flush()
        self.store.wipe()
        self.store.restart(confirmed=True)
        self.snapshots = [{}]
        self.acked.clear()

    @invariant()
    def acknowledged_events_are_stored_once(self) -> None:
        stored = {content: (conversation, seq) for conversation, seq, content in self.store.stored}
        assert len(stored) == len(self.store.stored), "an event is stored twice"
        missing = {content: place for content, place in self.acked.items() if stored.get(content) != place}
        assert not missing, f"acknowledged, not stored there: {missing}"

    @invariant()
    def refused_events_are_not_stored(self) -> None:
        assert self.refused.isdisjoint(content for _, _, content in self.store.stored)

    @invariant()
    def order_within_a_conversation_is_kept(self) -> None:
        for conversation, sent in self.order.items():
            remaining = iter(sent)
            assert all(content in remaining for content in self.store.contents(conversation))

    def flush(self) -> None:
        """Everything works again: resolve what is pending and hear of every loss."""
        self.store.confirm()
        self.store.refusing = ""
        if self.pending is not None:
            self.run(self.pending, [])
        self.run(Sending([self.block(conversation, 1, NOW_US) for conversation in CONVERSATIONS]), [])
        assert self.pending is None

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        self.flush()
        self.acknowledged_events_are_stored_once()
        reported: Counter[int] = Counter()
        for (shard, _, _), events in self.store.reported.items():
            reported[shard] += events
        assert +reported == +self.lost, "losses reported are not the losses"


TestNumbering = Numbering.TestCase
TestNumbering.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
