"""Appender over a model of the append script: every answer, every lost reply, every restart."""

from __future__ import annotations

import pytest

from tests.model_store import NOW_US, ModelShard, ModelStore
from thermocline.errors import Backpressure, ConfigError, InvalidEvent, SequenceConflict, TierCorrupt, TierUnavailable
from thermocline.event import Event
from thermocline.ingest.appender import Appender, Unresolved
from thermocline.ingest.encode import blocks_of
from thermocline.ingest.line import line_of
from thermocline.ingest.numbering import PRODUCER_TTL_S, REMEMBERED_BLOCKS_MAX, Numbering
from thermocline.ingest.sending import ROUND_BYTES_MAX, ClockAhead, Sending, Stored
from thermocline.ingest.validate import fields_of
from thermocline.tiers.block import Block, shard_of
from thermocline.tiers.hot import OutcomeLost

SHARDS = 4


class Clock:
    """Time that passes only while someone pauses."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> None:
        self.now_s += seconds


def block(conversation: str, *contents: str, timestamp: int = NOW_US, event_id: str | None = None) -> Block:
    lines = [
        line_of(
            fields_of(Event(conversation_id=conversation, event_type="t", content=text, timestamp=timestamp, event_id=event_id)),
            0,
        )
        for text in contents
    ]
    (made,) = blocks_of(conversation, lines, shards=SHARDS, events_max=500, bytes_max=1 << 20)
    return made


def same_shard(count: int) -> list[str]:
    """Conversations of one shard."""
    names = [f"conversation-{number}" for number in range(100)]
    return [name for name in names if shard_of(name, SHARDS) == 0][:count]


def other_shards(count: int) -> list[str]:
    """Conversations of different shards."""
    found: dict[int, str] = {}
    for number in range(100):
        found.setdefault(shard_of(f"conversation-{number}", SHARDS), f"conversation-{number}")
    return list(found.values())[:count]


@pytest.fixture
def store() -> ModelStore:
    return ModelStore()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def appender(store: ModelStore, clock: Clock) -> Appender:
    return Appender(store.session(), clock=clock, pause=clock.pause)


def firsts(outcomes: list[object]) -> list[int]:
    assert all(isinstance(outcome, Stored) for outcome in outcomes), outcomes
    return [outcome.seq_first for outcome in outcomes if isinstance(outcome, Stored)]


def test_blocks_of_one_conversation_are_stored_in_order_and_numbered_on(appender: Appender, store: ModelStore) -> None:
    assert firsts(appender.send([block("a", "1", "2"), block("a", "3")], deadline_s=1)) == [1, 3]
    assert firsts(appender.send([block("a", "4")], deadline_s=1)) == [4]
    assert store.contents("a") == ["1", "2", "3", "4"]


def test_more_blocks_than_may_be_unacknowledged_go_out_in_several_rounds(appender: Appender, store: ModelStore) -> None:
    sizes: list[int] = []
    send = appender._session.send
    appender._session.send = lambda producer, requests, deadline_s: (
        sizes.append(len(requests))
        or send(  # type: ignore[method-assign,func-returns-value]
            producer, requests, deadline_s=deadline_s
        )
    )
    outcomes = appender.send([block("a", str(number)) for number in range(40)], deadline_s=1)
    assert firsts(outcomes) == list(range(1, 41))
    assert sizes == [16, 16, 8]
    assert store.contents("a") == [str(number) for number in range(40)]


def test_a_round_carries_a_bounded_payload(store: ModelStore, clock: Clock) -> None:
    text = "x" * (1 << 19)
    blocks = [block(name, text) for name in other_shards(4) for _ in range(8)]
    sending, numbering = Sending(blocks), Numbering("p")
    assert sending.fill(numbering, 16)
    assert sum(len(made.payload) for made, _, _ in sending.requests()) <= ROUND_BYTES_MAX
    appender = Appender(store.session(), clock=clock, pause=clock.pause)
    assert len(firsts(appender.send(blocks, deadline_s=1))) == 32


@pytest.mark.parametrize("fault", ["lost before", "lost after", "lost after 1", "lost after 2"])
def test_a_lost_reply_is_resolved_by_resending_under_the_same_numbers(appender: Appender, store: ModelStore, fault: str) -> None:
    store.faults.append(fault)
    names = other_shards(2)
    outcomes = appender.send([block(names[0], "1"), block(names[0], "2"), block(names[1], "3")], deadline_s=1)
    assert firsts(outcomes) == [1, 2, 1]
    assert store.contents(names[0]) == ["1", "2"]
    assert store.contents(names[1]) == ["3"]


def test_replies_lost_until_the_deadline_end_unresolved_and_resume_stores_nothing_twice(
    appender: Appender, store: ModelStore
) -> None:
    store.faults.extend(["lost after"] * 1000)
    with pytest.raises(Unresolved) as caught:
        appender.send([block("a", "1"), block("a", "2")], deadline_s=5)
    store.heal()
    assert firsts(appender.resume(caught.value.sending, deadline_s=5)) == [1, 2]
    assert store.contents("a") == ["1", "2"]
    assert firsts(appender.send([block("a", "3")], deadline_s=5)) == [3]


def test_resume_can_end_unresolved_again(appender: Appender, store: ModelStore) -> None:
    store.lasting_fault = "lost before"
    with pytest.raises(Unresolved) as caught:
        appender.send([block("a", "1")], deadline_s=5)
    with pytest.raises(Unresolved):
        appender.resume(caught.value.sending, deadline_s=5)
    store.heal()
    appender.disconnect()
    assert firsts(appender.resume(caught.value.sending, deadline_s=5)) == [1]


def test_an_interrupt_while_waiting_for_the_reply_leaves_the_round_in_doubt(appender: Appender, store: ModelStore) -> None:
    appender.send([block("a", "0")], deadline_s=1)
    sending = Sending([block("a", "1")])

    def interrupt() -> None:
        raise KeyboardInterrupt

    store.on_send = interrupt
    with pytest.raises(KeyboardInterrupt):
        appender.resume(sending, deadline_s=1)
    assert sending.in_doubt
    store.on_send = None
    assert firsts(appender.resume(sending, deadline_s=1)) == [2]


def test_a_store_that_is_down_is_an_outcome_at_the_deadline_and_stores_nothing(
    appender: Appender, store: ModelStore, clock: Clock
) -> None:
    store.down = True
    (outcome,) = appender.send([block("a", "1")], deadline_s=5)
    assert isinstance(outcome, TierUnavailable)
    assert 1005 <= clock.now_s < 1006
    store.down = False
    assert firsts(appender.send([block("a", "2")], deadline_s=5)) == [1]


def test_a_store_that_comes_back_before_the_deadline_goes_unnoticed(appender: Appender, store: ModelStore) -> None:
    store.faults.extend(["down", "lost before", "down", "lost after", "down"])
    assert firsts(appender.send([block("a", "1")], deadline_s=5)) == [1]
    assert store.contents("a") == ["1"]


def test_a_late_event_fails_its_conversation_and_no_other(appender: Appender, store: ModelStore) -> None:
    first, second = same_shard(2)
    late = NOW_US + 301 * 1_000_000
    blocks = [block(first, "1"), block(first, "2", timestamp=late), block(second, "3"), block(first, "4"), block(second, "5")]
    outcomes = appender.send(blocks, deadline_s=1)
    assert [type(outcome) for outcome in outcomes] == [Stored, ClockAhead, Stored, ClockAhead, Stored]
    error = outcomes[1]
    assert isinstance(error, InvalidEvent)
    assert error.field == "timestamp"
    assert "301 s after Redis' clock (2026-" in str(error)
    assert "at most 300 s" in str(error)
    assert store.contents(first) == ["1"]
    assert store.contents(second) == ["3", "5"]


def test_expected_seq_is_checked_and_a_resend_of_it_is_no_conflict(appender: Appender, store: ModelStore) -> None:
    store.faults.append("lost after")
    assert firsts(appender.send([block("a", "1")], expected_seq=0, deadline_s=1)) == [1]
    (outcome,) = appender.send([block("a", "2")], expected_seq=0, deadline_s=1)
    assert isinstance(outcome, SequenceConflict)
    assert (outcome.expected_seq, outcome.last_seq) == (0, 1)
    assert firsts(appender.send([block("a", "3")], expected_seq=1, deadline_s=1)) == [2]


@pytest.mark.parametrize("code", ["BUSY", "FULL"])
def test_a_store_that_sheds_load_stores_no_later_block_of_the_call(appender: Appender, store: ModelStore, code: str) -> None:
    store.refusing = code
    outcomes = appender.send([block(name, "1") for name in other_shards(3)] * 20, deadline_s=1)
    assert {type(outcome) for outcome in outcomes} == {Backpressure}
    store.refusing = ""
    assert firsts(appender.send([block("a", "1")], deadline_s=1)) == [1]


def test_duplicate_ids_are_answered_with_the_first_copys_seq(appender: Appender) -> None:
    event_id = "01a1fb68-3a43-7654-b3c4-4b98cde469b0"
    assert firsts(appender.send([block("a", "1", event_id=event_id)], deadline_s=1)) == [1]
    (outcome,) = appender.send([block("a", "1", event_id=event_id)], deadline_s=1)
    assert isinstance(outcome, Stored)
    assert outcome.skipped == {0: 1}


def test_an_unconfirmed_store_is_waited_for_and_then_named(appender: Appender, store: ModelStore) -> None:
    appender.send([block("a", "1")], deadline_s=1)
    store.restart()
    (outcome,) = appender.send([block("a", "2")], deadline_s=3)
    assert isinstance(outcome, TierUnavailable)
    assert "thermocline worker" in str(outcome)
    assert "thermocline doctor" in str(outcome)
    store.confirm()
    assert firsts(appender.send([block("a", "3")], deadline_s=3)) == [1_000_002]


def test_a_process_with_the_ledger_confirms_the_store_itself(store: ModelStore, clock: Clock) -> None:
    appender = Appender(store.session(), reconfirm=store.confirm, clock=clock, pause=clock.pause)
    appender.send([block("a", "1")], deadline_s=1)
    store.restart()
    assert firsts(appender.send([block("a", "2")], deadline_s=1)) == [1_000_002]
    assert clock.now_s < 1000.1


def test_a_round_in_doubt_stays_in_doubt_while_the_store_is_unconfirmed(appender: Appender, store: ModelStore) -> None:
    names = same_shard(2)
    appender.send([block(names[0], "0")], deadline_s=1)
    store.faults.append("lost after 2")
    store.on_send = lambda: store.restart() if not store.faults else None
    with pytest.raises(Unresolved) as caught:
        appender.send([block(names[0], "1"), block(names[1], "2"), block(names[0], "3")], deadline_s=2)
    store.on_send = None
    store.confirm()
    outcomes = appender.resume(caught.value.sending, deadline_s=2)
    assert all(isinstance(outcome, Stored) for outcome in outcomes)
    assert store.contents(names[0]) == ["0", "1", "3"]
    assert store.contents(names[1]) == ["2"]


def test_the_numbering_does_not_change_while_a_block_is_in_doubt(appender: Appender, store: ModelStore, clock: Clock) -> None:
    low, high, lossy = sorted(other_shards(3), key=lambda name: shard_of(name, SHARDS))
    appender.send([block(low, "1"), block(high, "1")], deadline_s=1)
    before = store.copy()
    appender.send([block(lossy, "1")], deadline_s=1)

    def come_back_short() -> None:
        if not store.faults and store.era == 0:
            there = store.copy()
            there[shard_of(lossy, SHARDS)] = before.get(shard_of(lossy, SHARDS), ModelShard())
            store.restart(there)
            store.confirm(upto=shard_of(high, SHARDS))

    def pause(seconds: float) -> None:
        clock.pause(seconds)
        store.confirm()

    store.on_send = come_back_short
    store.faults.append("lost after")
    appender._pause = pause
    assert firsts(appender.send([block(low, "2"), block(high, "2")], deadline_s=1)) == [2, 2]
    assert store.contents(high) == ["1", "2"]
    assert sum(store.reported.values()) == 1


def test_lost_acknowledged_blocks_are_counted_and_reported_and_only_the_rest_is_sent_again(
    appender: Appender, store: ModelStore
) -> None:
    busy, idle = other_shards(2)
    appender.send([block(busy, "1"), block(idle, "1")], deadline_s=1)
    old = store.copy()
    appender.send([block(busy, "2", "3"), block(busy, "4"), block(idle, "2", "3", "4")], deadline_s=1)
    producer = appender._numbering.producer
    store.restart(old, confirmed=True)
    assert firsts(appender.send([block(busy, "5")], deadline_s=1)) == [1_000_002]
    assert store.reported == {(shard_of(busy, SHARDS), 1, producer): 3, (shard_of(idle, SHARDS), 1, producer): 3}
    assert store.contents(busy) == ["1", "5"]
    assert appender._numbering.producer != producer
    assert firsts(appender.send([block(idle, "5")], deadline_s=1)) == [1_000_002]


def test_a_reply_of_a_new_era_uncovers_the_loss_of_an_idle_shard(appender: Appender, store: ModelStore) -> None:
    busy, idle = other_shards(2)
    appender.send([block(busy, "1")], deadline_s=1)
    old = store.copy()
    appender.send([block(idle, "1", "2")], deadline_s=1)
    producer = appender._numbering.producer
    store.restart(old, confirmed=True)
    assert firsts(appender.send([block(busy, "2")], deadline_s=1)) == [1_000_002]
    assert store.reported == {(shard_of(idle, SHARDS), 1, producer): 2}


def test_blocks_of_a_former_producer_id_are_accounted_for_too(appender: Appender, store: ModelStore) -> None:
    first, second = other_shards(2)
    empty = store.copy()
    appender.send([block(first, "1")], deadline_s=1)
    former = appender._numbering.producer
    middle = store.copy()
    appender.send([block(second, "1", "2")], deadline_s=1)
    store.restart(middle, confirmed=True)
    appender.send([block(second, "3")], deadline_s=1)
    assert appender._numbering.producer != former
    store.restart(empty, confirmed=True)
    appender.send([block(second, "4")], deadline_s=1)
    assert sum(store.reported.values()) == 2 + 1 + 1
    assert store.reported[shard_of(first, SHARDS), 2, former] == 1


def test_a_restart_that_lost_nothing_is_not_reported(appender: Appender, store: ModelStore) -> None:
    appender.send([block("a", "1")], deadline_s=1)
    store.restart(confirmed=True)
    assert firsts(appender.send([block("a", "2")], deadline_s=1)) == [1_000_002]
    assert store.reported == {}


def test_a_loss_that_could_not_be_reported_is_reported_later(appender: Appender, store: ModelStore) -> None:
    busy, idle = other_shards(2)
    appender.send([block(busy, "1")], deadline_s=1)
    old = store.copy()
    appender.send([block(idle, "1")], deadline_s=1)
    store.restart(old, confirmed=True)
    session = appender._session
    ask, session._ask = session._ask, lambda: (_ for _ in ()).throw(TierUnavailable("not now"))  # type: ignore[attr-defined]
    assert firsts(appender.send([block(busy, "2")], deadline_s=1)) == [1_000_002]
    assert store.reported == {}
    session._ask = ask  # type: ignore[attr-defined]
    assert firsts(appender.send([block(busy, "3")], deadline_s=1)) == [1_000_003]
    assert list(store.reported.values()) == [1]


def test_a_producer_forgotten_after_a_week_starts_over_without_a_report(
    appender: Appender, store: ModelStore, clock: Clock
) -> None:
    appender.send([block("a", "1")], deadline_s=1)
    clock.pause(PRODUCER_TTL_S + 1)
    store.shards[shard_of("a", SHARDS)].last.clear()
    assert firsts(appender.send([block("a", "2")], deadline_s=1)) == [2]
    assert store.reported == {}


def test_a_shard_idle_for_a_week_is_not_taken_for_lost_after_a_restart(
    appender: Appender, store: ModelStore, clock: Clock
) -> None:
    busy, idle = other_shards(2)
    appender.send([block(busy, "1"), block(idle, "1")], deadline_s=1)
    clock.pause(PRODUCER_TTL_S + 1)
    store.shards[shard_of(idle, SHARDS)].last.clear()
    store.restart(confirmed=True)
    assert firsts(appender.send([block(busy, "2")], deadline_s=1)) == [1_000_002]
    assert store.reported == {}


def test_a_wiped_store_that_descends_from_ours_is_appended_to_under_new_numbers(appender: Appender, store: ModelStore) -> None:
    appender.send([block("a", "1"), block("a", "2")], deadline_s=1)
    store.wipe()
    store.faults.append("lost after")
    assert firsts(appender.send([block("a", "3")], deadline_s=1)) == [1]
    assert store.contents("a") == ["3"]


def test_another_store_is_refused(appender: Appender, store: ModelStore) -> None:
    appender.send([block("a", "1")], deadline_s=1)
    store.wipe()
    store.wipe()
    (outcome,) = appender.send([block("a", "2")], deadline_s=1)
    assert isinstance(outcome, TierCorrupt)
    assert not appender.usable
    assert store.stored == []


def test_another_store_met_with_a_block_in_doubt_leaves_it_in_doubt(appender: Appender, store: ModelStore) -> None:
    appender.send([block("a", "1")], deadline_s=1)
    store.faults.append("lost before")

    def replace_store() -> None:
        store.wipe()
        store.wipe()

    store.on_send = replace_store
    with pytest.raises(Unresolved) as caught:
        appender.send([block("a", "2")], deadline_s=1)
    assert isinstance(caught.value.reason, TierCorrupt)


def test_an_unknown_format_stops_the_call(appender: Appender, store: ModelStore) -> None:
    store.format = "9"
    (outcome,) = appender.send([block("a", "1")], deadline_s=1)
    assert isinstance(outcome, TierCorrupt)
    assert "format" in str(outcome)


def test_a_number_taken_by_someone_else_stops_the_call(appender: Appender, store: ModelStore) -> None:
    appender.send([block("a", "1")], deadline_s=1)
    store.shards[shard_of("a", SHARDS)].last[appender._numbering.producer] = 40
    (outcome,) = appender.send([block("a", "2")], deadline_s=1)
    assert isinstance(outcome, TierCorrupt)
    assert "OLD" in str(outcome)


def test_closing_closes_the_session(appender: Appender, store: ModelStore) -> None:
    appender.send([block("a", "1")], deadline_s=1)
    appender.close()
    assert appender._session.closed  # type: ignore[attr-defined]


def test_what_confirming_finds_wrong_ends_the_call(store: ModelStore, clock: Clock) -> None:
    def refuse() -> None:
        raise ConfigError("Redis may evict events")

    appender = Appender(store.session(), reconfirm=refuse, clock=clock, pause=clock.pause)
    store.restart()
    (outcome,) = appender.send([block("a", "1")], deadline_s=5)
    assert isinstance(outcome, ConfigError)
    assert clock.now_s == 1000


@pytest.mark.parametrize("problem", [TierUnavailable("still away"), OutcomeLost("no reply")])
def test_confirming_that_fails_is_tried_again(store: ModelStore, clock: Clock, problem: Exception) -> None:
    problems = [problem, problem]

    def confirm() -> None:
        if problems:
            raise problems.pop()
        store.confirm()

    appender = Appender(store.session(), reconfirm=confirm, clock=clock, pause=clock.pause)
    store.restart()
    assert firsts(appender.send([block("a", "1")], deadline_s=5)) == [1_000_001]


def test_a_question_without_answer_leaves_nothing_in_doubt(appender: Appender) -> None:
    def hang_up() -> None:
        raise OutcomeLost("no reply")

    appender._session._ask = hang_up  # type: ignore[attr-defined]
    (outcome,) = appender.send([block("a", "1")], deadline_s=1)
    assert isinstance(outcome, TierUnavailable)
    assert "nothing was stored" in str(outcome)


def test_a_numbering_remembers_a_bounded_number_of_blocks() -> None:
    numbering = Numbering("p")
    count = 2 * REMEMBERED_BLOCKS_MAX + 10
    for number in range(1, count + 1):
        numbering.acknowledged(0, number, 2, 0.0)
    assert len(numbering._shards[0].events) < 2 * REMEMBERED_BLOCKS_MAX
    assert numbering.take_back({0: count}, 0.0) == (False, {})
    assert numbering.take_back({0: count - 3}, 0.0) == (True, {0: 6})
    assert numbering.take_back({0: count - 3}, 0.0) == (False, {})
    short, lost = numbering.take_back({0: 0}, 0.0)
    assert short
    assert 2 * (REMEMBERED_BLOCKS_MAX - 3) <= lost[0] <= 2 * count
    numbering.acknowledged(0, 1, 7, 0.0)
    assert numbering.take_back({0: 0}, 0.0) == (True, {0: 7})


def test_blocks_acknowledged_out_of_order_are_all_counted() -> None:
    numbering = Numbering("p")
    for number, events in ((1, 1), (3, 30), (2, 20)):
        numbering.acknowledged(0, number, events, 0.0)
    assert numbering.last(0) == 3
    assert numbering.take_back({0: 1}, 0.0) == (True, {0: 50})
