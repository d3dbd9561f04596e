"""More callers than connections: whose turn it is, and that none is lost when a caller gives up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.model_store import NOW_US, ModelStore, ModelTiers
from tests.waiting import wait_until
from thermocline.config import Settings
from thermocline.errors import Backpressure
from thermocline.ingest.append import Client

CALLERS = 6
APPENDS = 60
Connect = Callable[[int, float], Client]


@pytest.fixture
def store() -> ModelStore:
    return ModelStore()


@pytest.fixture
def connect(store: ModelStore) -> Iterator[Connect]:
    made = []

    def connected(sessions_max: int, deadline_s: float) -> Client:
        ingest = {"sessions_max": sessions_max, "deadline_s": deadline_s}
        config = Settings(ingest=ingest, hot={"connect_timeout_s": deadline_s})  # type: ignore[arg-type]
        made.append(Client(config, tiers=ModelTiers(store)))
        return made[-1]

    yield connected
    for client in made:
        client.close()


@contextmanager
def one_append_under_way(client: Client, store: ModelStore) -> Iterator[None]:
    """Another thread appends to the conversation `a`; the store takes it when this ends."""
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        assert leave.wait(5)

    store.on_send = hold
    thread = threading.Thread(target=client.append, args=("a", "t"), kwargs={"timestamp": NOW_US})
    thread.start()
    try:
        assert inside.wait(5)
        yield
    finally:
        leave.set()
        thread.join()


def together(call: Callable[[int], object]) -> None:
    """Let CALLERS threads call it at once."""
    begin = threading.Barrier(CALLERS)
    failed: list[BaseException] = []

    def run(number: int) -> None:
        try:
            begin.wait(5)
            call(number)
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


@pytest.mark.parametrize("sessions_max", [1, 2])
def test_callers_have_their_turn_as_they_came(connect: Connect, store: ModelStore, sessions_max: int) -> None:
    client = connect(sessions_max, 10.0)
    counts = [0] * CALLERS
    when_first_ended: list[list[int]] = []

    def append(number: int) -> None:
        for _ in range(APPENDS):
            client.append(f"caller-{number}", "t", timestamp=NOW_US)
            counts[number] += 1
        when_first_ended.append(list(counts))

    sending: set[int] = set()
    lock = threading.Lock()

    def taken() -> bool:
        """The store takes what is sent, all of it, when everybody who has more to append sends or waits for a connection."""
        with lock:
            if len(client._pool._turns) + len(sending) == CALLERS - len(when_first_ended):
                sending.clear()
            return threading.get_ident() not in sending

    def send() -> None:
        with lock:
            sending.add(threading.get_ident())
        wait_until(taken, 30, "all are there")

    store.on_send = send
    together(append)
    assert counts == [APPENDS] * CALLERS
    assert min(when_first_ended[0]) >= APPENDS - 2 * CALLERS
    assert store.sessions == sessions_max


def test_an_appender_that_comes_when_its_caller_has_given_up_is_the_next_ones(connect: Connect, store: ModelStore) -> None:
    client = connect(1, 0.004)
    stored = [0] * CALLERS
    ended: list[int] = []
    given_up = threading.Event()

    def append(number: int) -> None:
        for _ in range(3 * APPENDS):
            try:
                client.append(f"caller-{number}", "t", timestamp=NOW_US)
                stored[number] += 1
            except Backpressure:
                given_up.set()
        ended.append(number)
        given_up.set()

    def one_gives_up() -> None:
        """At that moment others, who began to wait with it, are about to."""
        given_up.clear()
        assert len(ended) >= CALLERS - 1 or given_up.wait(5)

    store.on_send = one_gives_up
    together(append)
    assert 0 < sum(stored) < 3 * APPENDS * CALLERS, "some waited for too long"
    assert client.append("after", "t", timestamp=NOW_US).seq == 1
    assert len(store.stored) == sum(stored) + 1
    assert store.sessions == 1


def test_more_threads_than_connections_wait_then_hear_of_it(connect: Connect, store: ModelStore) -> None:
    client = connect(1, 0.2)
    with one_append_under_way(client, store), pytest.raises(Backpressure, match=r"ingest\.sessions_max"):
        client.append("a", "t", timestamp=NOW_US)
    assert client.append("a", "t", timestamp=NOW_US).seq == 2


def test_an_interrupted_caller_leaves_its_turn_to_the_next(connect: Connect, store: ModelStore) -> None:
    client = connect(1, 5.0)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with one_append_under_way(client, store), pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            client.append("b", "t", timestamp=NOW_US)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert client.append("c", "t", timestamp=NOW_US).seq == 1
    assert len(store.stored) == 2
    assert store.sessions == 1
