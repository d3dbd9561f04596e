"""Too few open files, from none to enough, for reader, worker and client: one clear error, over as soon as there are more."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.archiving import append, settings_for
from tests.servers import RedisServer
from tests.waiting import wait_until
from thermocline.archiver.worker import Worker
from thermocline.config import Settings
from thermocline.errors import ThermoclineError
from thermocline.ingest.append import Client
from thermocline.ingest.producer import Producer
from thermocline.store import Store, connect
from thermocline.tiers.opening import open_tiers

LEFT = (0, 1, 2, 3, 5, 9, 20, 60)
WORDS = ("open files", "ulimit -n", "Too many open", "open file")
COUNTS = "SELECT count(*), count(DISTINCT (conversation_id, seq)) FROM events"


@contextmanager
def files_left(count: int) -> Iterator[None]:
    """This process can open so many files more."""
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(count + 1)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = opened[-1]
    for one in opened:
        os.close(one)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def settings(tmp_path: Path, server: RedisServer) -> Settings:
    hot = {"durable_lag_s": 0, "cache_window_s": 0, "log_grace_s": 0, "connect_timeout_s": 0.2}
    return settings_for(tmp_path, server, hot=hot, ingest={"deadline_s": 1.5})


def a_client(settings: Settings) -> None:
    with Client(settings) as client:
        client.append("files", "t", "0")


def a_producer(settings: Settings) -> None:
    with Producer(settings) as producer:
        producer.append("files", "t", "0")
        producer.flush()


def a_reader(settings: Settings) -> None:
    with connect(settings) as store:
        rows, distinct = store.sql(COUNTS).fetchall()[0]
        assert rows == distinct >= 500
        assert len(store.recent("c1", 10).fetchall()) == 10
        store.duckdb().close()


def a_worker(settings: Settings) -> None:
    with open_tiers(settings) as tiers:
        assert Worker(tiers).once().problem is None


@pytest.mark.parametrize("use", [a_client, pytest.param(a_producer, marks=pytest.mark.long), a_reader, a_worker])
def test_with_any_number_of_open_files_left_it_works_or_says_that_there_are_too_few(
    settings: Settings, use: Callable[[Settings], None]
) -> None:
    with connect(settings) as store:
        append(store.tiers, 500)
        use(settings)  # what is imported late is imported now
        worked, failed = 0, 0
        for left in LEFT:
            append(store.tiers, 20, start=1000 + 20 * left)
            with files_left(left):
                try:
                    use(settings)
                except ThermoclineError as exc:
                    failed += 1
                    assert any(word in str(exc) for word in WORDS), (left, exc)
                else:
                    worked += 1
        assert failed > 1
        assert worked > 0
        use(settings)
        rows, distinct = store.sql(COUNTS).fetchall()[0]
        assert rows == distinct >= 500 + 20 * len(LEFT)
        assert Worker(store.tiers).once().problem is None
        assert store.verify(deep=True).problems == ()


def test_an_open_store_that_runs_out_of_files_says_so_and_goes_on_when_there_are_more(settings: Settings) -> None:
    eager = {"settle_after_s": 0, "settle_after_events": 1, "settle_latest_s": 0}
    often = {"settle_every_s": 0.05, "merge_every_s": 0.05, "purge_every_s": 0.05}
    warm = settings.warm.model_copy(update=eager)
    settings = settings.model_copy(update={"warm": warm, "worker": settings.worker.model_copy(update=often)})
    with connect(settings) as store, Client(settings, tiers=store.tiers) as client:
        append(store.tiers, 499)
        client.append("c1", "t", "499")
        worker = Worker(store.tiers)
        worker.start()
        try:
            wait_until(lambda: settled(store) == 500, 30, "the worker works")
            assert store.sql(COUNTS).fetchall() == [(500, 500)]
            with files_left(0):
                client.append("c1", "t", "500")
                wait_until(lambda: worker.problem, 60, "health is red")
                assert any(word in str(worker.problem) for word in WORDS), worker.problem
                assert "please report" not in str(worker.problem)
            wait_until(lambda: worker.problem is None and settled(store) == 501, 60, "the worker goes on")
        finally:
            assert worker.stop(30)
        assert store.sql(COUNTS).fetchall() == [(501, 501)]
        assert store.verify(deep=True).problems == ()


def settled(store: Store) -> int:
    return sum(state.events for state in store.tiers.ledger.view().shards)


@pytest.mark.parametrize("limit", [pytest.param(16, marks=pytest.mark.long), 32])
def test_the_command_line_with_few_open_files_answers_or_fails_in_one_line(settings: Settings, limit: int) -> None:
    with connect(settings) as store:
        append(store.tiers, 500)
    variables = {
        "THERMOCLINE_DATA_DIR": str(settings.data_dir),
        "THERMOCLINE_REDIS_URL": str(settings.redis_url),
        "THERMOCLINE_HOT__SHARDS": "4",
        "THERMOCLINE_HOT__BUCKETS": "64",
    }
    for words in (["query", "SELECT count(*) AS n FROM events", "-o", "csv"], ["worker", "--once"]):
        done = limited(limit, words, variables)
        assert "Traceback" not in done.stderr, done.stderr
        if done.returncode:
            assert done.stderr.count("\n") == 1, done.stderr
            assert any(word in done.stderr for word in WORDS), done.stderr
        else:
            assert words[0] == "worker" or done.stdout.split() == ["n", "500"], done.stdout


def limited(limit: int, words: list[str], variables: dict[str, str]) -> Any:
    command = ["sh", "-c", f'ulimit -n {limit} && exec "$@"', "sh", sys.executable, "-m", "thermocline", *words]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60)
