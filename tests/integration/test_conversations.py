"""Queries for conversations open the segments, and read the row groups, that hold them, and answer as if they read everything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np
import pytest

from tests.servers import RedisServer
from tests.site import Site
from thermocline.errors import TierCorrupt
from thermocline.query import conversations, relations
from thermocline.query.attached import alias
from thermocline.store import connect
from thermocline.tiers.block import shard_of
from thermocline.tiers.duck import Connection
from thermocline.tiers.hot_redis import RedisHot

HISTORY = "SELECT seq, content FROM events WHERE conversation_id = ? ORDER BY seq"


@pytest.fixture(params=[(1, 256), (1, 0), (conversations.ROWS_MIN, 256)], ids=["by few rows", "by many rows", "by segment"])
def site(tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Site]:
    """Six segments, each with conversations of its own and `conversation-both`; the first three are merged, with rollups."""
    rows_min, limited_max = request.param
    monkeypatch.setattr(conversations, "ROWS_MIN", rows_min)
    monkeypatch.setattr(relations, "LIMITED_ROWS_MAX", limited_max)
    with Site(tmp_path / "data", server.url, warm={"fan_in": 3, "rollup_rows_min": 50_000}) as made:
        for number in range(6):
            names = [f"conversation-{number}-{place % 40:03d}" for place in range(400)]
            made.append(said(name, f"{number}") for name in (*names, "conversation-both", "conversation-both"))
            made.settle()
            if number == 2:
                assert made.merge()
        yield made


def said(conversation_id: str, content: str) -> dict[str, str]:
    return {"conversation_id": conversation_id, "event_type": "output.chunk", "content": content}


def test_a_history_opens_the_segments_that_hold_it(site: Site) -> None:
    assert len(site.tiers.ledger.view().segments) == 4
    for name, contents, segments in (
        ("conversation-1-007", ["1"] * 10, 1),
        ("conversation-5-039", ["5"] * 10, 1),
        ("conversation-both", [str(number) for number in range(6) for _ in "ab"], 4),
        ("conversation-1-999", [], 0),
    ):
        result = site.store.sql(HISTORY, [name])
        assert result.fetchall() == list(enumerate(contents, start=1))
        assert (result.coverage.segments_read, result.coverage.segments_pruned) == (segments, 4 - segments)


def test_what_comes_after_the_first_look_is_seen(site: Site) -> None:
    name = "conversation-1-007"
    assert len(site.store.sql(HISTORY, [name])) == 10
    site.append([said(name, "new")])
    assert len(site.store.sql(HISTORY, [name])) == 11
    site.settle()
    assert len(site.store.sql(HISTORY, [name])) == 11
    while site.merge():
        pass
    assert [row[1] for row in site.store.sql(HISTORY, [name]).fetchall()] == ["1"] * 10 + ["new"]


def test_several_conversations_and_statistics_are_found_the_same_way(site: Site) -> None:
    names = ["conversation-0-001", "conversation-4-001", "nobody"]
    asked = "conversation_id IN (" + ", ".join(f"'{name}'" for name in names) + ")"
    for query in (
        f"SELECT conversation_id, count(*) FROM events WHERE {asked} GROUP BY 1",
        f"SELECT conversation_id, sum(event_count) FROM hourly_stats WHERE {asked} GROUP BY 1",
        f"SELECT conversation_id, total_events FROM conversation_summary WHERE {asked}",
    ):
        result = site.store.sql(query)
        assert sorted(result.fetchall()) == [(name, 10) for name in names[:2]]
        assert result.coverage.segments_read == 2


def test_what_is_remembered_is_bounded_and_forgotten_without_harm(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "BYTES_MAX", 700)
    with connect(site.settings) as store:
        known = store._runner._conversations._known
        for number in (0, 5, 3, 0, 4):
            assert len(store.sql(HISTORY, [f"conversation-{number}-000"])) == 10
            assert len(known) == 1 or sum(conversations._size(one) for one in known.values()) <= 700


def test_what_a_name_hashes_to_is_asked_once_and_remembered_for_so_many(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "HASHES_MAX", 2)
    asked: list[object] = []

    def columns(con: Connection, query: str, parameters: Sequence[Any] | None = None) -> tuple[Any, ...]:
        if parameters:
            asked.extend(parameters[0])
        return tuple(column.to_numpy() for column in con.sql(query, params=parameters).to_arrow_table().columns)

    monkeypatch.setattr(conversations, "_columns", columns)
    names = [f"conversation-{number}-001" for number in range(6)]
    with connect(site.settings) as store:
        for name in (*names, *names[-1:] * 5, names[0]):
            assert len(store.sql(HISTORY, [name])) == 10
    assert asked == [*names, names[0]]


def test_the_rows_of_a_conversation_are_where_those_before_it_end(site: Site) -> None:
    with connect(site.settings) as store:
        for segment in store.tiers.ledger.view().segments:
            path = store.tiers.warm.path(segment.segment_id)
            with duckdb.connect(":memory:") as con:
                con.execute(f"ATTACH '{path}' AS {alias(segment.segment_id)} (READ_ONLY)")
                looked_at = con.sql(
                    f"SELECT hash(conversation_id) AS hash, min(rowid), max(rowid) FROM {alias(segment.segment_id)}.events"
                    " GROUP BY ALL ORDER BY hash"
                ).fetchall()
                counted = conversations._rows_of(con, segment)
                assert list(zip(*(column.tolist() for column in counted), strict=True)) == looked_at
                with pytest.raises(TierCorrupt, match="its conversations add up to"):
                    conversations._rows_of(con, msgspec.structs.replace(segment, rows=segment.rows + 1))


def test_two_names_with_one_hash_have_the_rows_of_both() -> None:
    hashes, events = np.array([7, 5, 7, 9], np.uint64), np.array([10, 1, 20, 3])
    found, first, last = conversations.ranges(hashes, events)
    assert (found.tolist(), first.tolist(), last.tolist()) == ([5, 7, 9], [10, 0, 31], [10, 30, 33])


def test_a_conversation_that_has_not_settled_takes_one_shard_of_the_log(
    tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Site(tmp_path / "data", server.url) as site:
        site.append(said(f"chat-{number % 40}", f"{number}") for number in range(400))
        asked: list[int] = []
        page = RedisHot.page
        monkeypatch.setattr(
            RedisHot, "page", lambda hot, shard, *rest, **how: (asked.append(shard), page(hot, shard, *rest, **how))[1]
        )
        shard = shard_of("chat-7", site.settings.hot.shards)
        first = site.store.sql(HISTORY, ["chat-7"])
        assert [row[1] for row in first.fetchall()] == [str(number) for number in range(7, 400, 40)]
        assert set(asked) == {shard}
        assert site.count() == 400
        assert set(asked) == set(range(site.settings.hot.shards))
        asked.clear()
        site.append([said("chat-7", "new"), said("chat-8", "new")])
        assert len(site.store.sql(HISTORY, ["chat-7"])) == 11
        assert set(asked) == {shard}
        assert site.count() == 402


def test_shards_read_by_and_by_give_every_event_once_while_they_settle_and_are_trimmed(
    tmp_path: Path, server: RedisServer
) -> None:
    with Site(tmp_path / "data", server.url) as site:
        names = [f"chat-{number}" for number in range(12)]
        sent = dict.fromkeys(names, 0)
        for turn in range(40):
            name = names[turn * 5 % 12]
            site.append(said(one, f"{turn}") for one in names[: 1 + turn % 12])
            for one in names[: 1 + turn % 12]:
                sent[one] += 1
            assert len(site.store.sql(HISTORY, [name])) == sent[name]
            if turn % 7 == 3:
                site.settle()
            if turn % 7 == 5:
                site.trim()
            if turn % 10 == 9:
                assert site.count() == sum(sent.values())
                both = site.store.sql("SELECT count(*) FROM events WHERE conversation_id IN (?, ?)", names[:2]).fetchall()
                assert both == [(sent[names[0]] + sent[names[1]],)]
