"""Readers that follow while producers append and a worker settles, merges and trims at once, all at the same time."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

from tests.archiving import append, settings_for
from tests.servers import RedisServer
from thermocline.archiver.merge import Merger
from thermocline.archiver.settle import Settler
from thermocline.archiver.trim import Trimmer
from thermocline.query.follow import Followed, Tail
from thermocline.store import connect
from thermocline.tiers.opening import Tiers

EVENTS = 1500
BATCH = 50
CONVERSATIONS = 7


def work(tiers: Tiers, done: threading.Event) -> None:
    """Settle, merge and trim, again and again."""
    epoch = tiers.ledger.take_epoch("test", time.time_ns() // 1000)
    settler, merger, trimmer = Settler(tiers, epoch), Merger(tiers, epoch), Trimmer(tiers)
    while not done.is_set():
        settler.step(force=True)
        merger.step(force=True)
        trimmer.step()


def test_tails_and_groups_get_every_event_while_a_worker_takes_the_log_away(server: RedisServer, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, server, hot={"cache_window_s": 0, "log_grace_s": 0, "hold_s_max": 0})
    found: dict[str, list[str]] = defaultdict(list)
    failures: list[BaseException] = []
    done = threading.Event()
    with connect(settings) as store:

        def follow(name: str, tail: Tail, count: int) -> None:
            while len(found[name]) < count:
                items = tail.read(100, timeout_s=1)
                assert all(isinstance(item, Followed) for item in items), items
                found[name] += [item.event["content"] for item in items if isinstance(item, Followed)]
            assert tail.read(timeout_s=0) == []

        def consume() -> None:
            with store.subscribe("g", ack_wait_s=3600, prefetch=40) as subscription:
                while len(found["g"]) < EVENTS:
                    found["g"] += [one.event["content"] for one in subscription.read(20, timeout_s=0.2) if one.ack()]

        def guarded(what: object, *arguments: object) -> None:
            try:
                what(*arguments)  # type: ignore[operator]
            except BaseException as exc:
                failures.append(exc)
                done.set()

        store.subscribe("g").close()
        of_one = (EVENTS + CONVERSATIONS - 1) // CONVERSATIONS
        readers = [
            threading.Thread(target=guarded, args=(follow, "all", store.tail(), EVENTS)),
            threading.Thread(target=guarded, args=(follow, "c0", store.tail("c0"), of_one)),
            threading.Thread(target=guarded, args=(consume,)),
            threading.Thread(target=guarded, args=(consume,)),
        ]
        worker = threading.Thread(target=guarded, args=(work, store.tiers, done))
        for thread in (*readers, worker):
            thread.start()
        for start in range(0, EVENTS, BATCH):
            append(store.tiers, BATCH, start=start, conversations=CONVERSATIONS)
        for thread in readers:
            thread.join(300)
        done.set()
        worker.join(300)
        assert failures == []
        assert Counter(found["all"]) == Counter(str(number) for number in range(EVENTS))
        assert found["c0"] == [str(number) for number in range(0, EVENTS, CONVERSATIONS)]
        assert Counter(found["g"]) == Counter(found["all"])
        assert store.groups()[0].pending == 0
