"""Statistics by agent, model and tool, and rollups of the user's: right wherever events are, and open about what they lack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.archiving import settle_all
from tests.servers import RedisServer
from tests.site import Site
from tests.tidying import Archive
from thermocline.archiver.archive import Archiver
from thermocline.archiver.settle import Settler
from thermocline.config import load
from thermocline.errors import IncompleteAnswer
from thermocline.ingest.append import Client
from thermocline.store import Store

HOUR = "make_timestamptz(epoch_us(timestamp) // 3600000000 * 3600000000)"
ERRORS = "count_if(event_type = 'error' OR coalesce(status = 'error', false))"
VALUES = f"""count(*) AS events, sum(strlen(content))::BIGINT AS content_bytes,
    coalesce(sum(input_tokens), 0)::BIGINT AS input_tokens, coalesce(sum(output_tokens), 0)::BIGINT AS output_tokens,
    round(coalesce(sum(cost_usd), 0), 6) AS cost_usd, {ERRORS}::BIGINT AS errors,
    round(coalesce(sum(duration_ms), 0), 6) AS duration_ms_sum, count(duration_ms) AS duration_count"""
KEYS = {
    "usage": "conversation_id, event_type, agent_id, model, tool_name",
    "agent_stats": "event_type, agent_id",
    "model_stats": "event_type, model",
    "tool_stats": "event_type, tool_name",
}
CALLS = {
    "sql": "SELECT hour, event_type AS kind, metadata->>'$.number' AS number, count(*) AS n, sum(cost_usd) AS cost,"
    " min(timestamp) AS first FROM events WHERE seq % 3 > 0 GROUP BY ALL",
    "merge": {"n": "sum", "cost": "sum", "first": "min"},
}
BY_HAND = (
    f"SELECT {HOUR} AS hour, event_type AS kind, metadata->>'$.number' AS number, count(*) AS n, round(sum(cost_usd), 6) AS cost,"
    " min(timestamp) AS first FROM events WHERE seq % 3 > 0 GROUP BY ALL ORDER BY ALL"
)
ROLLED = "SELECT hour, kind, number, n, round(cost, 6) AS cost, first FROM rollup_calls ORDER BY ALL"


def events(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Many of everything, among them what is NULL."""
    return [
        {
            "conversation_id": f"c{n % 5}",
            "event_type": ("tool.call", "tool.result", "error")[n % 3],
            "agent_id": None if n % 7 == 0 else f"agent-{n % 2}",
            "model": None if n % 4 else "gpt",
            "tool_name": f"tool-{n % 3}",
            "status": "error" if n % 11 == 0 else None,
            "cost_usd": n / 8,
            "input_tokens": n,
            "output_tokens": 2**62 if n == 5 else None,
            "duration_ms": None if n % 5 else n * 1.5,
            "content": "ü" * (n % 9),
            "metadata": {"number": n % 4},
        }
        for n in range(start, start + count)
    ]


def by_hand(store: Store, relation: str) -> Any:
    query = f"SELECT {HOUR} AS hour, {KEYS[relation]}, {VALUES} FROM events GROUP BY ALL ORDER BY ALL"
    return store.sql(query).fetchall()


def asked(store: Store, relation: str) -> Any:
    doubles = "* REPLACE (round(cost_usd, 6) AS cost_usd, round(duration_ms_sum, 6) AS duration_ms_sum)"
    return store.sql(f"SELECT {doubles} FROM {relation} ORDER BY ALL").fetchall()


@pytest.fixture
def site(data_dir: Path, server: RedisServer) -> Iterator[Site]:
    with Site(data_dir, server.url, warm={"fan_in": 2, "rollup_rows_min": 40}, rollups={"calls": CALLS}) as site:
        yield site


def test_statistics_count_every_event_in_redis_in_segments_with_and_without_rollups_and_merged(site: Site) -> None:
    """Of the user's rollups too."""
    steps = (lambda: site.append(events(60)), site.settle, lambda: site.append(events(20, 60)), site.settle, site.merge)
    for step in (*steps, lambda: site.append(events(10, 80))):
        step()
        for relation in KEYS:
            assert asked(site.store, relation) == by_hand(site.store, relation), relation
        found = site.store.sql(ROLLED, require="complete")
        assert found.fetchall() == site.store.sql(BY_HAND).fetchall() != []
    with site.store.duckdb() as con:
        assert con.execute(ROLLED).fetchall() == con.execute(BY_HAND).fetchall()
        [(calls,)] = con.execute("SELECT sum(events) FROM tool_stats").fetchall()
        assert calls == 90
    assert site.store.verify(deep=True).problems == ()
    none = site.store.sql("SELECT * FROM rollup_calls WHERE hour < '2001-01-01'")
    assert (len(none), none.coverage.segments_read) == (0, 0)


def reopened(archive: Archive, **rollups: Any) -> None:
    archive.close()
    archive.settings = archive.settings.model_copy(update={"rollups": load({"rollups": rollups}, environ={}).rollups})
    archive.open()


def archive_round(archive: Archive) -> tuple[Any, dict[str, Any]]:
    """Archive old events; what the rollup and the statistics have to be of these alone."""
    old_us = archive.now_us - 12 * 86_400_000_000
    with Client(archive.settings, tiers=archive.tiers) as client:
        client.append_many([{**one, "timestamp": old_us + n * 60_000_000} for n, one in enumerate(events(90))])
    settle_all(Settler(archive.tiers, archive.epoch))
    rolled = archive.store.sql(BY_HAND).fetchall() if not archive.files("events") else None
    expected = rolled, {relation: asked(archive.store, relation) for relation in KEYS}
    assert Archiver(archive.tiers, archive.epoch).step() is not None
    return expected


def test_archived_statistics_survive_sampling_and_compacting(tmp_path: Path, server: RedisServer) -> None:
    with Archive(tmp_path, server, rollups={"calls": CALLS}) as archive:
        rolled, statistics = archive_round(archive)
        answer = archive.store.sql(ROLLED, require="complete")
        assert answer.fetchall() == rolled
        assert archive.store.sql(BY_HAND).fetchall() != rolled  # what is left is a sample
        assert {relation: asked(archive.store, relation) for relation in KEYS} == statistics
        for _ in range(2):
            _, statistics = archive_round(archive)
        [(before,)] = archive.store.sql("SELECT sum(n) FROM rollup_calls").fetchall()
        assert archive.compact() is not None
        assert len(archive.files("rollup_user")) == 1
        assert archive.store.sql("SELECT sum(n) FROM rollup_calls", require="complete").fetchall() == [(before,)]
        assert {relation: asked(archive.store, relation) for relation in KEYS} == statistics
        archive.check()


def test_what_was_archived_under_another_definition_is_lacking_and_said_so(tmp_path: Path, server: RedisServer) -> None:
    with Archive(tmp_path, server) as archive:
        archive_round(archive)
        assert archive.files("rollup_user") == []
        reopened(archive, calls=CALLS)
        archive_round(archive)
        answer = archive.store.sql("SELECT sum(n) FROM rollup_calls")
        assert answer.coverage.lacking == "rollup_calls lacks 90 of 180 archived events: archived without this definition"
        assert not answer.coverage.exact
        assert "Incomplete: rollup_calls lacks 90" in str(answer.coverage)
        with pytest.raises(IncompleteAnswer, match="rollup_calls lacks 90 of 180"):
            archive.store.sql("SELECT sum(n) FROM rollup_calls", require="complete")
        recent = archive.store.sql("SELECT sum(n) FROM rollup_calls WHERE hour > now() - INTERVAL 2 DAY", require="complete")
        assert recent.coverage.lacking == ""
        reopened(archive, calls={**CALLS, "sql": CALLS["sql"].replace("seq % 3 > 0", "true")})
        changed = archive.store.sql("SELECT sum(n) FROM rollup_calls")
        assert changed.fetchall() == [(None,)]
        assert "lacks 180 of 180" in changed.coverage.lacking
        reopened(archive, calls=CALLS)
        assert archive.store.sql("SELECT sum(n) FROM rollup_calls").fetchall() == answer.fetchall()
        archive.check()
