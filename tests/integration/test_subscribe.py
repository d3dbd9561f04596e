"""Groups of consumers: each event answered for once, redelivery, parking, what a trimmed log lacks, and what is refused."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.archiving import append, corrupt_block, settings_for
from tests.conftest import StartServer
from tests.servers import RedisServer
from thermocline.archiver.worker import Worker
from thermocline.errors import QueryRefused, StoreReplaced, TierUnavailable
from thermocline.query.subscribe import Delivery, Subscription
from thermocline.store import Store, connect

SOON_S = 0.2


@pytest.fixture
def store(tmp_path: Path, server: RedisServer) -> Iterator[Store]:
    with connect(settings_for(tmp_path, server)) as opened:
        yield opened


def answered(subscription: Subscription) -> list[str]:
    """Contents of everything there is now, acknowledged."""
    found = []
    while deliveries := subscription.read(10, timeout_s=0.5):
        for delivery in deliveries:
            assert delivery.ack()
            found.append(delivery.event["content"])
    return found


def one(subscription: Subscription) -> Delivery:
    [found] = subscription.read(timeout_s=60)
    return found


def state_of(store: Store, name: str = "g") -> tuple[int, int, int]:
    """(lag, pending, parked)."""
    [found] = [group for group in store.groups() if group.name == name]
    return found.lag_events, found.pending, found.parked


def trim_all(store: Store) -> None:
    Worker(store.tiers).once()
    for state in store.tiers.ledger.view().shards:
        store.tiers.hot.trim(state.shard, state.position, settled_events=state.events, settled_bytes=state.bytes, others_bytes=0)


def numbers(count: int, start: int = 0) -> list[str]:
    return sorted(str(number) for number in range(start, start + count))


def test_a_group_gets_what_is_appended_after_it_was_made(store: Store) -> None:
    append(store.tiers, 5)
    with store.subscribe("g") as subscription:
        append(store.tiers, 20, start=5)
        assert state_of(store) == (20, 0, 0)
        assert sorted(answered(subscription)) == numbers(20, 5)
    assert state_of(store) == (0, 0, 0)


def test_a_conversation_comes_in_order_to_a_single_consumer(store: Store) -> None:
    append(store.tiers, 40, conversations=3)
    with store.subscribe("g", start="begin", prefetch=7) as subscription:
        seen: dict[str, list[int]] = {}
        for _ in range(40):
            delivery = one(subscription)
            seen.setdefault(delivery.event["conversation_id"], []).append(delivery.event["seq"])
            delivery.ack()
    assert all(seqs == sorted(seqs) for seqs in seen.values())


def test_consumers_share_the_events_and_every_one_is_answered_once(store: Store) -> None:
    append(store.tiers, 200, conversations=11)
    found: list[str] = []

    def consume() -> None:
        with store.subscribe("g", start="begin", prefetch=10) as subscription:
            found.extend(answered(subscription))

    consumers = [threading.Thread(target=consume) for _ in range(3)]
    for consumer in consumers:
        consumer.start()
    for consumer in consumers:
        consumer.join(120)
    assert sorted(found) == numbers(200)


def test_an_event_nobody_answers_for_comes_again(store: Store) -> None:
    with store.subscribe("g", ack_wait_s=SOON_S) as subscription:
        append(store.tiers, 1)
        assert one(subscription).deliveries == 1
        again = one(subscription)
        assert again.deliveries == 2 and again.ack() and not again.ack()
        assert subscription.read(timeout_s=SOON_S) == []


def test_an_event_that_is_extended_does_not_come_again_meanwhile(store: Store) -> None:
    with store.subscribe("g", ack_wait_s=1) as subscription:
        append(store.tiers, 1)
        assert one(subscription).extend(3600)
        assert subscription.read(timeout_s=1.5) == []
        assert state_of(store)[1] == 1


def test_a_late_ack_counts_and_a_late_nack_does_not(store: Store) -> None:
    with store.subscribe("g", ack_wait_s=SOON_S) as first, store.subscribe("g", ack_wait_s=60) as second:
        append(store.tiers, 1)
        lost = one(first)
        taken = one(second)
        assert taken.deliveries == 2
        assert not lost.nack() and not lost.extend()
        assert lost.ack() and not taken.ack()
        assert state_of(store) == (0, 0, 0)


def test_what_is_refused_often_is_parked_and_may_be_replayed_or_forgotten(store: Store) -> None:
    with store.subscribe("g", deliveries_max=2) as subscription:
        append(store.tiers, 1)
        assert one(subscription).nack(reason="first")
        assert one(subscription).nack(0.01, reason="no\nmore")
        [parked] = store.parked("g")
        assert (parked.conversation_id, parked.seq, parked.deliveries, parked.reason) == ("c0", 1, 2, "no more")
        assert subscription.read(timeout_s=0) == [] and state_of(store) == (0, 0, 1)
        assert store.replay_parked("g") == 1
        again = one(subscription)
        assert again.deliveries == 1 and again.park("by hand")
        assert store.discard_parked("g", store.parked("g")) == 1
        assert subscription.read(timeout_s=0) == [] and state_of(store) == (0, 0, 0)


def test_a_group_of_some_types_gets_no_others(store: Store) -> None:
    with store.subscribe("g", event_types=["tool.*"]) as subscription:
        append(store.tiers, 9)
        append(store.tiers, 4, start=9, event_type="tool.call")
        assert sorted(answered(subscription)) == numbers(4, 9)
        assert state_of(store) == (0, 0, 0)
    store.subscribe("g").close()
    with pytest.raises(QueryRefused, match="was made for"):
        store.subscribe("g", event_types=["error"])


def test_what_a_log_does_not_have_any_more_comes_from_segments(store: Store) -> None:
    append(store.tiers, 30)
    with store.subscribe("g", start="begin", prefetch=4, pending_max=5) as subscription:
        held = [one(subscription) for _ in range(3)]
        trim_all(store)
        append(store.tiers, 10, start=30)
        found = [delivery.event["content"] for delivery in held if delivery.ack()]
        assert sorted(found + answered(subscription)) == numbers(40)
    assert state_of(store) == (0, 0, 0)


def test_a_parked_event_is_replayed_after_its_block_was_trimmed(store: Store) -> None:
    with store.subscribe("g") as subscription:
        append(store.tiers, 1)
        one(subscription).park()
        trim_all(store)
        assert store.replay_parked("g") == 1
        assert one(subscription).event["content"] == "0"


def test_a_line_that_cannot_be_read_is_passed_over(store: Store) -> None:
    append(store.tiers, 1, conversations=1)
    corrupt_block(store.tiers, 0)
    append(store.tiers, 1, conversations=1, start=1)
    with store.subscribe("g", start="begin") as subscription:
        assert answered(subscription) == ["1"]
    assert state_of(store) == (0, 0, 0)


def test_a_consumer_that_closes_gives_back_what_it_did_not_deliver(store: Store) -> None:
    append(store.tiers, 10)
    with store.subscribe("g", start="begin", ack_wait_s=3600) as first:
        one(first).ack()
    with store.subscribe("g") as second:
        assert len(answered(second)) == 9


def test_groups_go_on_after_a_restart_of_redis(tmp_path: Path, redis_server: StartServer) -> None:
    server = redis_server(options={"appendfsync": "always"})
    with connect(settings_for(tmp_path, server)) as store, store.subscribe("g", ack_wait_s=SOON_S) as subscription:
        append(store.tiers, 10)
        kept = one(subscription)
        kept.ack()
        server.kill()
        with pytest.raises(TierUnavailable):
            subscription.read(3, timeout_s=5)
        server.start()
        found = answered(subscription)
        assert Counter([kept.event["content"], *found]) == Counter(numbers(10))


def test_a_group_whose_redis_was_wiped_says_so_until_it_is_deleted(store: Store) -> None:
    with store.subscribe("g") as subscription:
        append(store.tiers, 3)
        store.tiers.hot.drop()
        store.tiers.reconfirm()
        with pytest.raises(StoreReplaced, match="wiped since group 'g'"):
            subscription.read(timeout_s=0)
        with pytest.raises(StoreReplaced, match="groups delete g"):
            store.subscribe("g")
        store.delete_group("g")
        append(store.tiers, 2)
        with store.subscribe("g", start="begin") as again:
            assert len(answered(again)) >= 2


def test_a_group_that_was_deleted_is_gone(store: Store) -> None:
    append(store.tiers, 3)
    with store.subscribe("g", start="begin") as subscription:
        one(subscription)
        store.delete_group("g")
        with pytest.raises(QueryRefused, match="no group"):
            store.parked("g")
    assert store.groups() == []
    left = store.tiers.hot.link.call("KEYS", "*:g[pdko]:*")
    assert left == []
    with pytest.raises(QueryRefused, match="no group"):
        store.delete_group("g")


@pytest.mark.parametrize(
    "how",
    [
        {"group": "A b"},
        {"group": ""},
        {"group": "g", "start": "yesterday"},
        {"group": "g", "start": 7},
        {"group": "g", "ack_wait_s": 0},
        {"group": "g", "deliveries_max": 0},
        {"group": "g", "prefetch": True},
    ],
)
def test_what_is_no_subscription_is_refused(store: Store, how: dict[str, Any]) -> None:
    with pytest.raises(QueryRefused):
        store.subscribe(**how)
