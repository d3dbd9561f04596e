"""Limits of requests and the forms of answers: pure functions of the server."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thermocline.errors import InvalidEvent
from thermocline.event import Event
from thermocline.serve.accepting import chosen
from thermocline.serve.cloudevents import event_of
from thermocline.serve.coverage_header import ENTRY_BYTES_MAX, HEADER_BYTES_MAX, brief
from thermocline.serve.limits import CALLERS_MAX, Budget, Rates, Room, deeper_than
from thermocline.serve.parsing import items_of, with_ids
from thermocline.serve.problems import Problem

FORMS = ("application/json", "text/csv", "application/x-ndjson")


def depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (isinstance(value, dict | list)) + max(map(depth, inner), default=0)


TREES = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=40,
)


@given(TREES, st.integers(1, 6))
def test_depth_is_told_without_parsing(tree: object, most: int) -> None:
    assert deeper_than(json.dumps(tree).encode(), most) == (depth(tree) > most)


def test_brackets_in_text_are_not_depth() -> None:
    assert not deeper_than(json.dumps({"a": "[" * 100 + '\\"' + "{" * 100}).encode(), 3)
    assert deeper_than(b"[" * 1_000_000, 64)


def test_a_caller_may_make_a_burst_and_then_as_many_a_second() -> None:
    rates = Rates(10, 5)
    assert [rates.wait_s("a", 0.0) for _ in range(5)] == [0.0] * 5
    assert rates.wait_s("a", 0.0) == pytest.approx(0.1)
    assert rates.wait_s("b", 0.0) == 0.0
    assert rates.wait_s("a", 0.05) == pytest.approx(0.05)
    assert rates.wait_s("a", 0.11) == 0.0


def test_no_rate_is_no_limit() -> None:
    rates = Rates(0, 0)
    assert not any(rates.wait_s("a", 0.0) for _ in range(1000))


def test_callers_are_remembered_up_to_a_bound() -> None:
    rates = Rates(1, 1)
    for number in range(CALLERS_MAX + 10):
        rates.wait_s(str(number), 0.0)
    assert len(rates) == CALLERS_MAX


def test_a_room_has_so_many_places() -> None:
    room = Room(1)
    with room.place("queries", "serve.x"), pytest.raises(Problem) as full, room.place("queries", "serve.x"):
        pass
    assert (full.value.status, room.taken) == (503, 0)
    assert "serve.x" in full.value.detail


def test_a_budget_has_so_many_bytes() -> None:
    budget = Budget(10)
    assert budget.take(6)
    assert not budget.take(5)
    budget.give_back(6)
    assert budget.take(10)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/csv", "text/csv"),
        ("text/*;q=0.5, application/x-ndjson;q=0.9", "application/x-ndjson"),
        ("application/json;q=0, */*", "text/csv"),
        ("TEXT/CSV; charset=utf-8", "text/csv"),
        ("image/png", None),
        ("text/csv;q=nonsense", None),
        (",;,=", None),
    ],
)
def test_the_form_is_the_one_the_client_likes_best(accept: str, expected: str | None) -> None:
    assert chosen(accept, FORMS) == expected


@given(st.text())
def test_no_accept_header_breaks_the_choice(accept: str) -> None:
    assert chosen(accept, FORMS) in (*FORMS, None)


class Told:
    """A receipt of any size."""

    def __init__(self, **entries: object) -> None:
        self._entries = entries

    def as_dict(self) -> dict[str, object]:
        return self._entries


def test_a_receipt_in_a_header_leaves_out_what_is_long() -> None:
    text = brief(Told(exact=True, files=["x" * 100] * 100, reason="ü", **{f"n{number}": "y" * 300 for number in range(40)}))
    assert text.isascii()
    assert len(text) <= HEADER_BYTES_MAX + ENTRY_BYTES_MAX
    found = json.loads(text)
    assert (found["exact"], found["reason"]) == (True, "ü")
    assert "files" not in found


def test_ids_made_from_a_key_are_the_same_for_the_same_request() -> None:
    body = b'{"conversation_id":"c","event_type":"t"}\nbad\n{"conversation_id":"c","event_type":"t"}'
    items = items_of(body, "application/x-ndjson", depth_max=64, items_max=10)
    first, again, other = (with_ids(items, key) for key in ("k", "k", "l"))
    ids = [item.event_id for _, item in first if isinstance(item, Event)]
    assert len(set(ids)) == 2
    assert ids == [item.event_id for _, item in again if isinstance(item, Event)]
    assert ids != [item.event_id for _, item in other if isinstance(item, Event)]


def test_lines_are_numbered_as_in_the_body() -> None:
    found = items_of(b"\n \n{}\n\r\nx", "application/x-ndjson", depth_max=64, items_max=10)
    assert [place for place, _ in found] == [3, 5]


@given(
    st.binary(max_size=200), st.sampled_from(["application/x-ndjson", "application/json", "application/cloudevents-batch+json"])
)
def test_no_body_breaks_the_parser(body: bytes, media_type: str) -> None:
    try:
        items = items_of(body, media_type, depth_max=64, items_max=10)
    except Problem as problem:
        assert problem.status in (400, 413)
    else:
        assert all(isinstance(item, Event | InvalidEvent) for _, item in items)


CLOUD = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "subject": "c"}


def cloud(**more: object) -> Event:
    return event_of(json.dumps({**CLOUD, **more}).encode())


def test_a_cloud_events_id_is_kept_when_it_is_a_uuid_and_else_made_from_it_and_its_source() -> None:
    own = "01a1fb68-3a43-7654-b3c4-4b98cde469b0"
    assert cloud(id=own).event_id == own
    assert cloud().event_id == cloud().event_id
    assert len({cloud().event_id, cloud(id="2").event_id, cloud(source="/t").event_id}) == 3


def test_what_a_cloud_event_says_beyond_an_event_is_kept_in_metadata() -> None:
    assert json.loads(str(cloud(dataschema="urn:x", n=7).metadata, "utf-8")) == {  # type: ignore[arg-type]
        "cloudevent": {"source": "/s", "dataschema": "urn:x", "n": 7, "id": "1"}
    }
    assert cloud(conversationid="d").conversation_id == "d"
    assert cloud(metadata='{"a":1.00}').metadata == '{"a":1.00}'


def test_what_was_exported_becomes_the_event_it_was() -> None:
    data = {"content": "ü", "tool_name": "track", "cost_usd": 1.5, "metadata": {"a": [1]}}
    found = cloud(source="/thermocline/default", id="01a1fb68-3a43-7654-b3c4-4b98cde469b0", sequence="7", data=data)
    assert (found.content, found.tool_name, found.cost_usd) == ("ü", "track", 1.5)
    assert bytes(found.metadata) == b'{"a": [1]}'  # type: ignore[arg-type]
    with pytest.raises(InvalidEvent, match="no column"):
        cloud(source="/thermocline/default", data={"other": 1})


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("specversion", {"specversion": "0.3"}),
        ("Bad-Name", {"Bad-Name": 1}),
        ("data_base64", {"data_base64": "/w=="}),
        ("data_base64", {"data_base64": "no"}),
        ("duration_ms", {"durationms": "long"}),
        ("metadata", {"metadata": {}}),
    ],
)
def test_a_cloud_event_that_cannot_be_an_event_says_why(field: str, more: dict[str, object]) -> None:
    with pytest.raises(InvalidEvent) as found:
        cloud(**more)
    assert found.value.field == field
