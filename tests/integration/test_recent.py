"""recent(): the newest events of a conversation, from Redis alone when it has them, and the same either way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.redis_calls import calls
from tests.servers import RedisServer
from tests.site import Site, chats
from thermocline.errors import QueryRefused, TierUnavailable
from thermocline.event import COLUMN_NAMES
from thermocline.query.result import Result
from thermocline.store import connect


@pytest.fixture
def site(data_dir: Path, server: RedisServer) -> Iterator[Site]:
    with Site(data_dir, server.url) as site:
        yield site


def seqs(result: Result) -> list[int]:
    found: list[int] = result.to_arrow().column("seq").to_pylist()
    return found


def from_redis(result: Result) -> bool:
    """Whether no tier but Redis was asked."""
    assert (result.coverage.cached_rows > 0) == ("all from Redis" in str(result.coverage))
    return result.coverage.cached_rows > 0


def the_long_way(site: Site, conversation_id: str, limit: int) -> Result:
    newest = "SELECT * FROM events WHERE conversation_id = $who ORDER BY seq DESC LIMIT $limit"
    return site.store.sql(f"SELECT * FROM ({newest}) ORDER BY seq", {"who": conversation_id, "limit": limit})


def test_the_newest_events_come_from_redis_settled_or_not(site: Site) -> None:
    site.append(chats(300, conversations=3))
    for step in (lambda: None, site.settle, lambda: site.append(chats(30, conversations=3))):
        step()
        result = site.store.recent("chat-1", 20)
        last = seqs(result)[-1]
        assert seqs(result) == list(range(last - 19, last + 1))
        assert from_redis(result)
    assert last == 110
    assert seqs(site.store.recent("chat-1")) == list(range(11, 111))


def test_both_ways_give_the_same_rows_and_types(site: Site) -> None:
    odd: list[dict[str, Any]] = [
        {"event_type": "a", "content": None, "metadata": '{"a": 1.00, "b": "\\u00e9"}', "timestamp": 1_700_000_000_123_456},
        {"event_type": "b", "content": '\x00 \x1f \\ " é 日 \U0001f600', "event_id": "0191F3A0-0000-7000-8000-00000000ABCD"},
        {"event_type": "c", "cost_usd": 1e300, "duration_ms": -0.0, "input_tokens": -(2**63), "output_tokens": 2**63 - 1},
        {"event_type": "d", "status": "", "model": "m", "tool_name": "t", "agent_id": "a", "task_id": "t", "parent_id": "p"},
        {"event_type": "e", "duration_ms": 0.1 + 0.2, "cost_usd": 5e-324, "correlation_id": "c", "metadata": {"x": [None, True]}},
    ]
    site.append({"conversation_id": "odd", **event} for event in odd * 3)
    for limit in (1, 4, 15, 100):
        quick = site.store.recent("odd", limit)
        assert quick.to_arrow().equals(the_long_way(site, "odd", limit).to_arrow())
        assert quick.columns == list(COLUMN_NAMES)
    site.append({"conversation_id": "plain", **event} for event in odd[2:] * 3)
    assert from_redis(site.store.recent("plain", 5))
    assert site.store.recent("plain", 100).to_arrow().equals(the_long_way(site, "plain", 100).to_arrow())


def test_what_redis_has_forgotten_comes_from_segments(site: Site) -> None:
    site.append(chats(60, conversations=2))
    site.settle()
    assert from_redis(site.store.recent("chat-0", 10))
    site.trim()
    assert not from_redis(site.store.recent("chat-0", 10)), "although it was read before"
    assert seqs(site.store.recent("chat-0", 10)) == list(range(21, 31))
    site.append(chats(10, conversations=2))
    few, many = site.store.recent("chat-0", 5), site.store.recent("chat-0", 6)
    assert (seqs(few), seqs(many)) == (list(range(31, 36)), list(range(30, 36)))
    assert (from_redis(few), from_redis(many)) == (True, False)
    assert (many.coverage.segments_read, many.coverage.hot_rows) == (1, 10)


def test_a_short_conversation_is_whole_and_an_unknown_one_empty(site: Site) -> None:
    site.append(chats(7, conversations=1))
    result = site.store.recent("chat-0", 100)
    assert seqs(result) == [1, 2, 3, 4, 5, 6, 7]
    assert from_redis(result)
    nobody = site.store.recent("nobody")
    assert (len(nobody), nobody.columns) == (0, list(COLUMN_NAMES))


def test_numbers_skipped_for_known_ids_leave_no_gap(site: Site) -> None:
    ids = [f"0191f3a0-0000-7000-8000-{number:012x}" for number in range(4)]
    site.append({"conversation_id": "c", "event_type": "t", "event_id": event_id} for event_id in ids[:2])
    site.append({"conversation_id": "c", "event_type": "t", "event_id": event_id} for event_id in ids)
    result = site.store.recent("c", 10)
    assert from_redis(result)
    assert result.to_arrow().column("event_id").to_pylist() == ids
    assert result.to_arrow().equals(the_long_way(site, "c", 10).to_arrow())


def test_events_skip_ahead_after_a_loss_and_recent_follows(site: Site, server: RedisServer) -> None:
    site.append(chats(10, conversations=1))
    site.settle()
    site.tiers.hot.drop()
    assert seqs(site.store.recent("chat-0")) == list(range(1, 11))
    site.append(chats(3, conversations=1))
    found = seqs(site.store.recent("chat-0"))
    assert (found[:10], len(found)) == (list(range(1, 11)), 13)
    assert found[10] > 1_000_000
    assert from_redis(site.store.recent("chat-0", 3))


def test_of_a_conversation_that_is_followed_only_what_is_new_is_read(site: Site, server: RedisServer) -> None:
    site.append(chats(200, conversations=1))
    first = site.store.recent("chat-0")
    assert first.coverage.bytes > 0
    for count in (0, 1, 7):
        if count:
            site.append(chats(count, conversations=1))
        before = calls(server, "xrange")
        result = site.store.recent("chat-0")
        assert calls(server, "xrange") - before == (1 if count else 0), "XRANGE once for each block that is new"
        assert from_redis(result)
        assert result.to_arrow().equals(the_long_way(site, "chat-0", 100).to_arrow())
        assert (result.coverage.bytes > 0) == (count > 0), "the receipt says what was read"
    assert seqs(site.store.recent("chat-0", 3)) == [206, 207, 208]
    assert seqs(site.store.recent("chat-0", 150)) == list(range(59, 209)), "more than what is kept is read anew"
    assert seqs(first)[-1] == 200, "an answer stays as it is"


STEPS = st.tuples(st.integers(0, 30), st.integers(1, 60), st.booleans())


@given(steps=st.lists(STEPS, min_size=1, max_size=6))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_who_follows_sees_what_a_new_reader_sees(site: Site, steps: list[tuple[int, int, bool]]) -> None:
    keeps_none = site.settings.model_copy(update={"query": site.settings.query.model_copy(update={"recent_bytes_max": 0})})
    with connect(keeps_none) as new:
        for count, limit, settle in steps:
            site.append(chats(count, conversations=2))
            if settle:
                site.settle()
                site.merge()
                site.trim()
            kept, fresh = site.store.recent("chat-1", limit), new.recent("chat-1", limit)
            assert kept.to_arrow().equals(fresh.to_arrow())
            assert from_redis(kept) == from_redis(fresh), "what Redis has trimmed away is no longer answered from it"


def test_what_is_kept_is_bounded_and_what_was_asked_for_longest_ago_goes_first(data_dir: Path, server: RedisServer) -> None:
    with Site(data_dir, server.url, query={"recent_bytes_max": 100_000}) as site:
        for number in range(20):
            site.append({"conversation_id": f"c{number}", "event_type": "t", "content": "x" * 100} for _ in range(100))
            assert len(site.store.recent(f"c{number}")) == 100
            assert 0 < site.store.recent_bytes <= 100_000
        before = calls(server, "xrange")
        assert len(site.store.recent("c19")) == 100
        assert calls(server, "xrange") == before
        assert len(site.store.recent("c0")) == 100
        assert calls(server, "xrange") == before + 1
        site.append({"conversation_id": "large", "event_type": "t", "content": "x" * 60_000} for _ in range(3))
        kept = site.store.recent_bytes
        assert len(site.store.recent("large")) == 3
        assert site.store.recent_bytes == kept, "one that is larger than the bound is not kept"
    with Site(data_dir, server.url, query={"recent_bytes_max": 0}) as site:
        assert [len(site.store.recent("c1")) for _ in range(2)] == [100, 100]
        assert site.store.recent_bytes == 0


@pytest.mark.parametrize("limit", [0, -1, 100_001, True, 1.5, "3"])
def test_a_limit_out_of_bounds_is_refused(site: Site, limit: Any) -> None:
    with pytest.raises(QueryRefused, match="limit must be an integer from 1 to 100000"):
        site.store.recent("chat-0", limit)


def test_without_redis_there_is_no_answer(site: Site, server: RedisServer) -> None:
    site.append(chats(5))
    server.stop()
    with pytest.raises(TierUnavailable):
        site.store.recent("chat-0")
    server.start()
    assert len(site.store.recent("chat-0")) == 1
