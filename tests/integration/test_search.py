"""Search over real tiers: the newest matches wherever they are, what is marked, what is read for it, and what the answer says."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import RedisServer
from tests.shelf import Shelf
from tests.site import DAY_US, Site
from thermocline import highlighted
from thermocline.errors import IncompleteAnswer, QueryRefused
from thermocline.query import search as search_module
from thermocline.store import connect

NOW_US = 1_731_456_000_000_000
"""2024-11-13T00:00:00Z."""


@pytest.fixture
def site(data_dir: Path, server: RedisServer) -> Iterator[Site]:
    with Site(data_dir, server.url, warm={"fan_in": 2}) as site:
        yield site


def message(number: int, content: str, **fields: Any) -> dict[str, Any]:
    return {
        "conversation_id": f"chat-{number % 3}",
        "event_type": ("message.user", "tool.result")[number % 2],
        "content": content,
        "timestamp": NOW_US + number * 60_000_000,
        **fields,
    }


def seen(found: Any) -> list[tuple[str, int]]:
    return [(row["conversation_id"], row["seq"]) for row in found.to_arrow().to_pylist()]


def in_python(site: Site, words: list[str]) -> list[tuple[str, int]]:
    rows = site.store.sql("SELECT conversation_id, seq, content, timestamp FROM events").fetchall()
    kept = [row for row in rows if all(word.lower() in row[2].lower() for word in words)]
    return [(row[0], row[1]) for row in sorted(kept, key=lambda row: (-row[3].timestamp(), row[0], -row[1]))]


def test_the_newest_matches_come_first_out_of_redis_segments_and_both(site: Site) -> None:
    events = [message(n, f"Refund {n} of ORDER {n % 5}" if n % 2 else f"nothing {n}") for n in range(60)]
    for part in (events[:30], events[30:50], events[50:]):
        site.append(part)
        found = site.store.search("refund order")
        assert seen(found) == in_python(site, ["refund", "order"])
        if part is not events[50:]:
            site.settle()
    assert found.coverage.hot_rows == 10
    assert found.coverage.warm_rows == 50
    assert found.coverage.exact
    assert found.more is None and found.searched_from is None
    assert seen(site.store.search("refund 3", limit=4)) == in_python(site, ["refund", "3"])[:4]
    assert seen(site.store.search("ORDER 3", phrase=True)) == in_python(site, ["order 3"])


def test_filters_and_times_bound_what_is_found_and_what_is_read(site: Site) -> None:
    for day in range(4):
        site.append([message(n, f"refund {day}", timestamp=NOW_US + day * DAY_US + n, agent_id=f"a{n % 2}") for n in range(12)])
        site.settle()
    since, until = dt.datetime(2024, 11, 14), "2024-11-16T00:00:00Z"
    found = site.store.search("refund", since=since, until=until)
    assert {row["snippet"] for row in found.to_arrow().to_pylist()} == {"refund 1", "refund 2"}
    assert (found.coverage.segments_read, found.coverage.segments_pruned) == (2, 2)
    found = site.store.search("refund", conversation_id="chat-1", event_types=["tool.result"], agent_id="a1", since=NOW_US)
    rows = found.to_arrow().to_pylist()
    assert len(rows) == 8
    assert {(row["conversation_id"], row["event_type"], row["agent_id"]) for row in rows} == {("chat-1", "tool.result", "a1")}
    assert len(site.store.search("refund", event_types="message.user")) == 24
    assert site.store.search("refund", event_types="no.such.type").coverage.segments_read == 0
    assert len(site.store.search("refund", tool_name="x")) == 0


def test_a_snippet_shows_the_match_and_says_where_it_is(site: Site) -> None:
    content = "ä" * 1000 + " <script>REFUND</script> " + "ö" * 1000
    site.append([message(1, content, metadata={"a": 1})])
    [row] = site.store.search("refund", snippet_chars=80).to_arrow().to_pylist()
    [span] = row["spans"]
    assert row["snippet"][span["start"] : span["start"] + span["length"]] == "REFUND"
    assert content[row["snippet_start"] :][:80] == row["snippet"]
    assert row["content_chars"] == len(content)
    assert "&lt;script&gt;<mark>REFUND</mark>&lt;/script&gt;" in highlighted(row["snippet"], row["spans"])
    assert "content" not in row
    [row] = site.store.search("refund", full=True).to_arrow().to_pylist()
    assert (row["content"], row["metadata"]) == (content, '{"a":1}')


def test_pages_follow_one_another_without_gap_or_repeat(site: Site) -> None:
    site.append([message(n, f"refund {n}", timestamp=NOW_US + n // 7) for n in range(50)])
    site.settle()
    pages, before = [], None
    while True:
        found = site.store.search("refund", limit=8, before=before)
        pages += seen(found)
        before = found.more
        if before is None:
            break
    assert pages == in_python(site, ["refund"])


def test_the_newest_files_are_read_first_and_no_more_than_needed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "FIRST_ROWS", 20)
    for day in range(6):
        site.append([message(n, f"refund {day}", timestamp=NOW_US + day * DAY_US + n) for n in range(10)])
        site.settle()
    found = site.store.search("refund", limit=15)
    assert seen(found) == in_python(site, ["refund"])[:15]
    assert (found.coverage.segments_read, found.coverage.segments_pruned) == (2, 4)
    everything = site.store.search("refund 0")
    assert everything.coverage.segments_read == 6
    assert everything.searched_from is None
    assert len(everything) == 10


def test_a_search_that_would_read_too_much_stops_and_says_from_where_it_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "FIRST_ROWS", 500)
    for day in range(4):
        site.append([message(n, f"refund {day}", timestamp=NOW_US + day * DAY_US + n) for n in range(600)])
        site.settle()
    small = site.settings.model_copy(update={"query": site.settings.query.model_copy(update={"search_rows_max": 1000})})
    with connect(small) as store:
        found = store.search("refund 2")
        assert (len(found), found.searched_from) == (0, dt.datetime(2024, 11, 15, 0, 0, 0, 600, tzinfo=dt.UTC))
        with pytest.raises(IncompleteAnswer, match=r"nothing before 2024-11-15 .* was looked at.*search_rows_max \(1,000\)"):
            store.search("refund 2", require="complete")
        again = store.search("refund 2", before=found.more)
        assert len(again) == 100
        assert {row["snippet"] for row in again.to_arrow().to_pylist()} == {"refund 2"}


def test_archived_events_are_found_and_a_sample_is_called_one(shelf: Shelf) -> None:
    with shelf.fresh() as archive:
        archive.archive_rounds(2)
        store = archive.store
        found = store.search("1 5", event_types="error")
        kept = store.sql(
            "SELECT conversation_id, seq FROM events WHERE event_type = 'error' AND content LIKE '%1%' AND content LIKE '%5%'"
        )
        assert sorted(seen(found)) == sorted(kept.fetchall())
        assert len(found) > 0
        assert found.coverage.cold_rows > 0
        assert not found.coverage.exact
        with pytest.raises(IncompleteAnswer, match="sample"):
            store.search("1 5", require="complete")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"limit": 0}, "limit must be an integer from 1 to 10,000, not 0"),
        ({"limit": True}, "limit must be"),
        ({"snippet_chars": 10**6}, "snippet_chars must be"),
        ({"since": "soon"}, "since is no time"),
        ({"before": "x"}, "before must be what `more` of a search was"),
        ({"before": "5/a/b"}, "before must be what `more` of a search was"),
        ({"event_types": []}, "event_types must name 1 to 100 types"),
        ({"event_types": [7]}, "event_types must be a str, not int"),
        ({"conversation_id": 7}, "conversation_id must be a str, not int"),
        ({"require": "all"}, 'require must be "complete"'),
    ],
)
def test_wrong_arguments_are_refused_by_name(site: Site, arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(QueryRefused, match=problem):
        site.store.search("refund", **arguments)
