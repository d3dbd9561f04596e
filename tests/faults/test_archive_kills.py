"""kill -9 at steps of archiving: each event stays in exactly one place, nothing is written twice. The long ring takes every step
in a folder and on Swift."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.archived import append_and_work, archive, statistics
from tests.killed import BATCH_STEPS, IN_SHORT, VISIBLE_FROM, killed_at
from thermocline.config import load
from thermocline.store import Store, connect
from thermocline.tiers.cold_schema import KINDS

DAY_US = 86_400_000_000


@pytest.mark.parametrize(
    ("cold_url", "step"),
    [
        *(pytest.param("folder", step, marks=[pytest.mark.long] * (step not in IN_SHORT)) for step in BATCH_STEPS),
        *(pytest.param("swift", step, marks=pytest.mark.long) for step in BATCH_STEPS),
    ],
    indirect=["cold_url"],
)
def test_a_worker_killed_while_it_archives_loses_and_doubles_nothing(cold_overrides: dict[str, Any], step: str) -> None:
    settings = load(cold_overrides, environ={})
    append_and_work(settings, events(240))
    with connect(settings) as store:
        before = statistics(store)
    killed_at(step, "archive", settings)
    with connect(settings) as store:
        assert statistics(store) == before
        assert store.verify(deep=True).problems == ()
        objects = stored(store)
        [batch_id] = [one.batch_id for one in store.tiers.ledger.intents()] or [""]
    report = archive(settings)
    assert report.problem is None
    with connect(settings) as store:
        check(store, before, objects)
        finished = {row.batch_id for row in store.tiers.ledger.batches()}
        assert len(finished) == 1
        assert (batch_id in finished) == (VISIBLE_FROM <= BATCH_STEPS.index(step) < BATCH_STEPS.index("commit done"))


@pytest.mark.parametrize("cold_url", [pytest.param(store, marks=pytest.mark.long) for store in ("folder", "moto")], indirect=True)
def test_a_worker_killed_twice_in_a_row_starts_where_it_was(cold_overrides: dict[str, Any]) -> None:
    settings = load(cold_overrides, environ={})
    append_and_work(settings, events(240))
    with connect(settings) as store:
        before = statistics(store)
    for step in ("write done", "upload done", "publish", "commit"):
        killed_at(step, "archive", settings)
    archive(settings)
    with connect(settings) as store:
        check(store, before, {})


def events(count: int) -> list[dict[str, Any]]:
    """Events of the last twelve days, a few of each in the same conversation; two days in three are old enough to be archived."""
    now_us = time.time_ns() // 1000
    return [
        {
            "conversation_id": f"c{number % 7}",
            "event_type": ("output.chunk", "tool.call", "error")[number % 3],
            "content": str(number),
            "duration_ms": number / 7,
            "timestamp": now_us - 12 * DAY_US + number * 12 * DAY_US // count,
        }
        for number in range(count)
    ]


def stored(store: Store) -> dict[str, bytes]:
    """The data objects there are."""
    cold = store.tiers.cold
    return {one.key: cold.get(one.key) for one in cold.objects() if one.key.endswith(".parquet")}


def check(store: Store, before: list[Any], objects: dict[str, bytes]) -> None:
    """Statistics as before, all sums and files sound, objects unchanged, and Iceberg has exactly what the ledger lists."""
    assert statistics(store) == before
    assert store.verify(deep=True).problems == ()
    now = stored(store)
    assert {key: now.get(key) for key in objects} == objects
    live = store.tiers.ledger.view().files
    for kind in KINDS:
        keys = {file.key for file in live if file.kind == kind}
        assert store.tiers.iceberg.keys(kind) == keys, kind
    assert store.tiers.ledger.intents() == []
    assert not (store.settings.namespace_dir / "staging").exists()
    old = "SELECT count(*) FROM events WHERE event_type = 'error'"
    assert store.sql(old).fetchall() == [(80,)]
