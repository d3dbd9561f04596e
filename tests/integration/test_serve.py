"""The store over HTTP: appends with an outcome for every event, pages of conversations, queries in every form, tails."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from urllib.parse import quote

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.servers import RedisServer, redis_binaries
from tests.serving import NDJSON, Served, event, messages, ndjson, served, settings_for
from tests.waiting import wait_until
from thermocline.event import COLUMN_NAMES
from thermocline.query.coverage import Coverage

PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server on an empty store; every test uses conversations of its own."""
    folder = tmp_path_factory.mktemp("serve")
    redis = RedisServer(redis_binaries()[-1], folder / "redis")
    redis.start()
    try:
        with served(settings_for(redis.url, folder / "data", page_bytes_max=4096, body_bytes_max=1 << 20)) as running:
            yield running
    finally:
        redis.stop()


@pytest.fixture
def client(server: Served) -> Iterator[httpx.Client]:
    with server.client() as found:
        yield found


@pytest.fixture
def name() -> str:
    """A conversation nobody else uses."""
    return f"talk/{uuid.uuid4().hex}?ü"


def path(conversation: str) -> str:
    return f"/v1/conversations/{quote(conversation, safe='')}/events"


def contents(client: httpx.Client, conversation: str) -> list[str]:
    return [one["content"] for one in client.get(path(conversation)).raise_for_status().json()["events"]]


def problem(answer: httpx.Response, status: int, kind: str) -> dict[str, object]:
    """The problem document of an answer."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    found: dict[str, object] = answer.json()
    assert found["type"] == f"urn:thermocline:problem:{kind}"
    assert found["status"] == status
    return found


# Appends


def test_every_line_has_an_outcome_and_a_bad_one_leaves_the_others(client: httpx.Client, name: str) -> None:
    body = ndjson(event(name, content="one")) + b"not json\n\n" + ndjson(event(name, "bad type"), event(name, content="two"))
    answer = client.post("/v1/events", content=body, headers=NDJSON)
    assert answer.status_code == 207
    first, second, third, fourth = answer.json()["outcomes"]
    assert [first["outcome"], second["outcome"], third["outcome"], fourth["outcome"]] == [
        "stored",
        "refused",
        "refused",
        "stored",
    ]
    assert [one["line"] for one in (first, second, third, fourth)] == [1, 2, 4, 5]
    assert (first["seq"], fourth["seq"]) == (1, 2)
    assert (second["field"], third["field"]) == ("line", "event_type")
    assert "such as tool.call" in third["problem"]
    assert uuid.UUID(first["event_id"])
    assert contents(client, name) == ["one", "two"]


def test_json_takes_one_event_or_an_array_and_keeps_the_bytes_of_metadata(client: httpx.Client, name: str) -> None:
    text = f'{{"conversation_id": {json.dumps(name)}, "event_type": "t", "metadata": {{"price":1.00,  "big":1e2}}}}'
    one = client.post("/v1/events", content=text.encode(), headers={"Content-Type": "application/json"})
    assert one.status_code == 200
    many = client.post("/v1/events", json=[event(name, content="a"), event(name, content="b")])
    assert [outcome["seq"] for outcome in many.json()["outcomes"]] == [2, 3]
    assert b'"metadata":{"price":1.00,  "big":1e2}' in client.get(path(name)).content


def test_when_every_event_is_refused_the_answer_is_a_problem_with_the_outcomes(client: httpx.Client, name: str) -> None:
    found = problem(client.post("/v1/events", json=[event(name, content=1)]), 422, "invalid-events")
    [outcome] = found["outcomes"]  # type: ignore[misc]
    assert (outcome["index"], outcome["outcome"], outcome["field"]) == (0, "refused", "content")


def test_an_event_id_sent_again_is_stored_once(client: httpx.Client, name: str) -> None:
    given = event(name, event_id=str(uuid.uuid4()))
    first = client.post("/v1/events", json=given).json()["outcomes"][0]
    again = client.post("/v1/events", json=given).json()
    assert again["duplicates"] == 1
    assert again["outcomes"][0] == {**first, "duplicate": True}


def test_a_request_with_an_idempotency_key_sent_again_is_stored_once(client: httpx.Client, name: str) -> None:
    body, headers = ndjson(event(name, content="a"), event(name, content="b")), {**NDJSON, "Idempotency-Key": uuid.uuid4().hex}
    first = client.post("/v1/events", content=body, headers=headers).json()
    again = client.post("/v1/events", content=body, headers=headers).json()
    assert (first["duplicates"], again["duplicates"]) == (0, 2)
    assert [one["seq"] for one in again["outcomes"]] == [1, 2]
    assert contents(client, name) == ["a", "b"]


def test_expected_seq_makes_an_append_conditional(client: httpx.Client, name: str) -> None:
    assert client.post("/v1/events?expected_seq=0", json=event(name)).status_code == 200
    found = problem(client.post("/v1/events?expected_seq=0", json=event(name)), 409, "sequence-conflict")
    assert found["last_seq"] == 1
    problem(client.post("/v1/events?expected_seq=1", json=[event(name), event(name)]), 400, "bad-request")
    problem(client.post("/v1/events?expected_seq=x", json=event(name)), 400, "bad-request")


def test_atomic_stores_all_or_nothing(client: httpx.Client, name: str) -> None:
    found = problem(client.post("/v1/events?atomic=true", json=[event(name), event(name, "")]), 422, "invalid-events")
    assert [outcome["index"] for outcome in found["outcomes"]] == [1]  # type: ignore[attr-defined]
    problem(client.post("/v1/events?atomic=true", json=[event(name), event(f"{name}2")]), 422, "invalid-events")
    problem(client.post("/v1/events?atomic=true", json=[event(name)] * 501), 422, "invalid-events")
    assert contents(client, name) == []
    assert client.post("/v1/events?atomic=true", json=[event(name)] * 500).json()["stored"] == 500


def test_cloud_events_come_one_by_one_and_in_batches(client: httpx.Client, name: str) -> None:
    cloud = {"specversion": "1.0", "id": "7", "source": "/agents/1", "type": "tool.call", "subject": name, "toolname": "track"}
    one = {**cloud, "time": "2026-11-20T09:41:00Z", "data": {"parcel": 4711}, "durationms": "12.5", "flag": True}
    batch = [{**cloud, "id": "8", "data": "text"}, {**cloud, "id": "9", "data_base64": "w7w="}]
    first = client.post("/v1/events", json=one, headers={"Content-Type": "application/cloudevents+json"})
    more = client.post("/v1/events", json=batch, headers={"Content-Type": "application/cloudevents-batch+json"})
    assert (first.status_code, more.status_code) == (200, 200), (first.text, more.text)
    assert client.post("/v1/events", json=one, headers={"Content-Type": "application/cloudevents+json"}).json()["duplicates"] == 1
    found = client.get(path(name)).json()["events"]
    assert [one["content"] for one in found] == ['{"parcel":4711}', "text", "ü"]
    assert found[0]["timestamp"] == "2026-11-20T09:41:00Z"
    assert (found[0]["tool_name"], found[0]["duration_ms"]) == ("track", 12.5)
    assert found[0]["metadata"]["cloudevent"] == {"source": "/agents/1", "flag": True, "id": "7"}


@pytest.mark.parametrize("missing", ["id", "source", "type", "specversion", "subject"])
def test_a_cloud_event_that_lacks_something_is_refused_by_its_name(client: httpx.Client, missing: str) -> None:
    cloud = {"specversion": "1.0", "id": "7", "source": "/a", "type": "t", "subject": "c"}
    del cloud[missing]
    answer = client.post("/v1/events", json=[cloud], headers={"Content-Type": "application/cloudevents-batch+json"})
    assert problem(answer, 422, "invalid-events")["outcomes"][0]["field"] == missing  # type: ignore[index]


@pytest.mark.parametrize(
    ("body", "headers", "status", "kind"),
    [
        (b"", NDJSON, 400, "bad-request"),
        (b"[", {"Content-Type": "application/json"}, 400, "bad-request"),
        (b"[" * 100_000, {"Content-Type": "application/json"}, 400, "bad-request"),
        (b"{}", {"Content-Type": "text/html"}, 415, "unsupported-media-type"),
        (b"\x1f\x8b", {**NDJSON, "Content-Encoding": "gzip"}, 415, "unsupported-media-type"),
        (b"x" * ((1 << 20) + 1), NDJSON, 413, "too-large"),
        (b'{"conversation_id":"c","event_type":"t"}\n' * 10_001, NDJSON, 413, "too-large"),
        (
            b'{"conversation_id":"c","event_type":"t","metadata":' + b'{"a":' * 80 + b"1" + b"}" * 81,
            NDJSON,
            422,
            "invalid-events",
        ),
        (b"\xff\xfe", NDJSON, 422, "invalid-events"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_a_problem(
    client: httpx.Client, body: bytes, headers: dict[str, str], status: int, kind: str
) -> None:
    problem(client.post("/v1/events", content=body, headers=headers), status, kind)


def test_a_body_without_a_length_is_bounded_too(client: httpx.Client) -> None:
    answer = client.post("/v1/events", content=(b"x" * 65_536 for _ in range(20)), headers=NDJSON)
    problem(answer, 413, "too-large")


# Conversations


def test_a_conversation_comes_in_pages_that_link_to_the_next(client: httpx.Client, name: str) -> None:
    client.post("/v1/events", json=[event(name, content=str(number)) for number in range(25)]).raise_for_status()
    found, address = [], f"{path(name)}?limit=10"
    for _ in range(3):
        answer = client.get(address).raise_for_status()
        found += [one["content"] for one in answer.json()["events"]]
        address = answer.json()["next"]
        assert address is None or answer.links["next"]["url"] == address
    assert found == [str(number) for number in range(25)]
    assert address is None


def test_a_page_is_bounded_in_bytes_but_has_at_least_one_event(client: httpx.Client, name: str) -> None:
    client.post("/v1/events", json=[event(name, content=letter * 3000) for letter in "abc"]).raise_for_status()
    client.post("/v1/events", json=event(name, content="d" * 10_000)).raise_for_status()
    first = client.get(path(name)).json()
    assert [one["content"][0] for one in first["events"]] == ["a"]
    assert first["next"].endswith("from_seq=2&limit=100")
    assert [one["content"][0] for one in client.get(f"{path(name)}?from_seq=4").json()["events"]] == ["d"]


def test_the_newest_events_come_oldest_first(client: httpx.Client, name: str) -> None:
    client.post("/v1/events", json=[event(name, content=str(number)) for number in range(5)]).raise_for_status()
    answer = client.get(f"{path(name)}?newest=true&limit=2").json()
    assert [one["content"] for one in answer["events"]] == ["3", "4"]
    assert answer["next"] is None


def test_events_come_as_ndjson_one_a_line_whatever_is_in_them(client: httpx.Client, name: str) -> None:
    text = f'{{"conversation_id": {json.dumps(name)}, "event_type": "t", "content": "a\\nb", "metadata": "{{\\n\\"a\\": 1}}"}}'
    client.post("/v1/events", content=text.encode(), headers={"Content-Type": "application/json"}).raise_for_status()
    answer = client.get(path(name), headers={"Accept": "application/x-ndjson"})
    [line] = answer.text.splitlines()
    assert json.loads(line)["content"] == "a\nb"
    assert json.loads(line)["metadata"] == {"a": 1}


def test_an_unknown_conversation_has_no_events(client: httpx.Client, name: str) -> None:
    found = client.get(path(name)).json()
    assert found["events"] == []
    assert [one["name"] for one in found["coverage"]["columns"]] == list(COLUMN_NAMES)


@pytest.mark.parametrize("conversation", ["a\nb", "\n", "", "#x", "a\u202eb"])
def test_an_id_that_none_can_have_is_refused_by_its_rule(client: httpx.Client, conversation: str) -> None:
    assert problem(client.get(path(conversation)), 422, "invalid-event")["field"] == "conversation_id"


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "from_seq=-1", "newest=maybe", "limit=٣"])
def test_parameters_of_a_page_are_checked(client: httpx.Client, query: str) -> None:
    problem(client.get(f"{path('c')}?{query}"), 400, "bad-request")


# Queries

SQL = """SELECT 1::BIGINT AS n, 'ü,"x' AS text, TIMESTAMPTZ '2026-11-20 09:41:00.25Z' AS at, NULL AS nothing,
                1.50::DECIMAL(9,2) AS d
         UNION ALL SELECT 2, '', TIMESTAMPTZ '2026-11-20 00:00:00Z', NULL, 2 ORDER BY n"""


def ask(client: httpx.Client, sql: str, accept: str = "application/json", **more: object) -> httpx.Response:
    return client.post("/v1/query", json={"sql": sql, **more}, headers={"Accept": accept})


def test_an_answer_as_json_has_columns_rows_and_coverage(client: httpx.Client) -> None:
    answer = ask(client, SQL).raise_for_status()
    found = answer.json()
    assert [column["name"] for column in found["columns"]] == ["n", "text", "at", "nothing", "d"]
    assert found["rows"][0] == {"n": 1, "text": 'ü,"x', "at": "2026-11-20T09:41:00.250000Z", "nothing": None, "d": 1.5}
    assert (found["row_count"], found["truncated"]) == (2, False)
    assert found["coverage"]["exact"] is True
    assert json.loads(answer.headers["thermocline-coverage"])["taken_at"] == found["coverage"]["taken_at"]
    assert answer.headers["thermocline-rows"] == "2"


def test_an_answer_as_ndjson_and_csv_has_the_same_rows(client: httpx.Client) -> None:
    rows = ask(client, SQL).json()["rows"]
    lines = ask(client, SQL, "application/x-ndjson").text.splitlines()
    assert [json.loads(line) for line in lines] == rows
    text = ask(client, SQL, "text/csv").text
    assert text.splitlines()[0] == '"n","text","at","nothing","d"'
    assert text.splitlines()[1] == '1,"ü,""x","2026-11-20T09:41:00.250000Z",,1.50'


def test_an_answer_as_arrow_and_parquet_has_its_types_and_its_coverage(client: httpx.Client) -> None:
    arrow = pa.ipc.open_stream(ask(client, SQL, "application/vnd.apache.arrow.stream").content).read_all()
    parquet = pq.read_table(pa.BufferReader(ask(client, SQL, "application/vnd.apache.parquet").content))
    for table in (arrow, parquet):
        assert table.column("n").to_pylist() == [1, 2]
        assert pa.types.is_timestamp(table.schema.field("at").type)
        assert json.loads(table.schema.metadata[b"thermocline.coverage"])["exact"] is True
    assert set(Coverage.__struct_fields__) - {"evidence"} <= json.loads(arrow.schema.metadata[b"thermocline.coverage"]).keys()


def test_columns_of_one_name_are_told_apart_and_nested_values_written(client: httpx.Client) -> None:
    sql = "SELECT 1 AS a, 2 AS a, [1, 2] AS list, {'x': 1} AS s, INTERVAL 1 DAY AS i, 'a'::BLOB AS b, 'nan'::DOUBLE AS f"
    assert ask(client, sql).json()["rows"] == [
        {"a": 1, "a_1": 2, "list": [1, 2], "s": {"x": 1}, "i": "0 months 1 days 0 s", "b": "a", "f": None}
    ]
    assert ask(client, sql, "text/csv").text.splitlines()[1].startswith('1,2,"[1,2]"')
    for form in ("application/vnd.apache.arrow.stream", "application/x-ndjson"):
        assert ask(client, sql, form).status_code == 200


def test_sql_may_be_the_body_itself(client: httpx.Client) -> None:
    answer = client.post("/v1/query", content=b"SELECT 1 AS one", headers={"Content-Type": "application/sql"})
    assert answer.json()["rows"] == [{"one": 1}]


def test_rows_max_cuts_an_answer_and_says_so(client: httpx.Client) -> None:
    answer = ask(client, "SELECT * FROM range(100)", rows_max=3)
    assert (answer.json()["row_count"], answer.json()["truncated"]) == (3, True)
    assert answer.headers["thermocline-truncated"] == "true"


@pytest.mark.parametrize(
    ("body", "headers", "status", "kind"),
    [
        (b'{"sql":"SELEC 1"}', {"Content-Type": "application/json"}, 400, "query-refused"),
        (b'{"sql":"SELECT 1","x":1}', {"Content-Type": "application/json"}, 400, "bad-request"),
        (b'{"sql":"SELECT 1","rows_max":0}', {"Content-Type": "application/json"}, 400, "bad-request"),
        (b'{"sql":"SELECT 1","deadline_s":-1}', {"Content-Type": "application/json"}, 400, "bad-request"),
        (b'{"sql":"SELECT 1","id":"a b"}', {"Content-Type": "application/json"}, 400, "bad-request"),
        (b"{", {"Content-Type": "application/json"}, 400, "bad-request"),
        (b"SELECT 1", {"Content-Type": "text/html"}, 415, "unsupported-media-type"),
        (b'{"sql":"SELECT 1"}', {"Content-Type": "application/json", "Accept": "image/png"}, 406, "not-acceptable"),
    ],
)
def test_a_query_that_cannot_be_run_is_refused(
    client: httpx.Client, body: bytes, headers: dict[str, str], status: int, kind: str
) -> None:
    problem(client.post("/v1/query", content=body, headers=headers), status, kind)


def test_a_query_that_is_not_there_cannot_be_cancelled(client: httpx.Client) -> None:
    problem(client.delete("/v1/query/nobody"), 404, "not-found")


# Tails


def test_a_tail_gives_what_is_there_and_then_what_comes(client: httpx.Client, name: str) -> None:
    client.post("/v1/events", json=[event(name, content="1"), event(name, content="2")]).raise_for_status()
    with client.stream("GET", "/v1/tail", params={"conversation_id": name, "start": "begin"}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        found = messages(stream.iter_lines())
        assert [next(found).data["content"] for _ in range(2)] == ["1", "2"]
        client.post("/v1/events", json=event(name, content="3")).raise_for_status()
        third = next(found)
    assert (third.event, third.data["content"], third.data["seq"]) == ("event", "3", 3)


def test_a_tail_goes_on_after_the_last_event_id(client: httpx.Client, name: str) -> None:
    client.post("/v1/events", json=[event(name, content=str(number)) for number in range(4)]).raise_for_status()
    with client.stream("GET", "/v1/tail", params={"conversation_id": name, "start": "1"}) as stream:
        found = messages(stream.iter_lines())
        next(found)
        second = next(found)
    asked = {"params": {"conversation_id": name}, "headers": {"Last-Event-ID": second.id}}
    with client.stream("GET", "/v1/tail", **asked) as stream:  # type: ignore[arg-type]
        found = messages(stream.iter_lines())
        assert [next(found).data["content"] for _ in range(2)] == ["2", "3"]


def test_a_tail_may_be_of_some_types_only(client: httpx.Client, name: str) -> None:
    client.post("/v1/events", json=[event(name, kind) for kind in ("tool.call", "noise", "tool.result")]).raise_for_status()
    asked = {"conversation_id": name, "start": "begin", "event_types": "tool.*"}
    with client.stream("GET", "/v1/tail", params=asked) as stream:
        found = messages(stream.iter_lines())
        assert [next(found).data["event_type"] for _ in range(2)] == ["tool.call", "tool.result"]


def test_a_tail_does_not_rest_before_it_has_passed_over_what_is_not_wanted(client: httpx.Client, name: str) -> None:
    for _ in range(10):
        client.post("/v1/events", json=[event(name, "noise", content="x" * 10_000)] * 50).raise_for_status()
    client.post("/v1/events", json=event(name, "wanted")).raise_for_status()
    asked = {"conversation_id": name, "start": "begin", "event_types": "wanted"}
    with client.stream("GET", "/v1/tail", params=asked) as stream:
        lines = stream.iter_lines()
        before = []
        while not before or not before[-1].startswith("data: "):
            before.append(next(lines))
    assert ": nothing new" not in before


@pytest.mark.parametrize("start", ["yesterday", "t1.xx", "2026-11-20T09:41:00", "x" * 9000, "-1"])
def test_a_start_that_is_none_is_refused(client: httpx.Client, start: str) -> None:
    found = problem(client.get("/v1/tail", params={"start": start}), 400, "query-refused" if len(start) < 9000 else "bad-request")
    assert "SQL" not in f"{found['title']} {found['detail']}"
    assert "begin" in str(found["detail"]) or "time zone" in str(found["detail"]) or len(start) == 9000


def test_a_tail_that_is_left_frees_its_place(server: Served, client: httpx.Client) -> None:
    with client.stream("GET", "/v1/tail") as stream:
        lines = stream.iter_lines()  # kept: the stream ends with it
        next(lines)
        assert server.service.tails.taken == 1
    wait_until(lambda: server.service.tails.taken == 0, 300, "the tail is closed")


# The rest


def test_status_is_that_of_the_library(server: Served, client: httpx.Client) -> None:
    assert client.get("/v1/status").json().keys() == server.service.store.status().as_dict().keys()


def test_the_server_says_that_it_lives_and_is_ready(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json()["status"] == "ready"


def test_unknown_addresses_and_methods_are_problems(client: httpx.Client) -> None:
    problem(client.get("/v2/events"), 404, "not-found")
    problem(client.get("/v1/nothing", headers={"Accept": "text/html"}), 404, "not-found")
    page = client.get("/nothing", headers={"Accept": "text/html,*/*"})
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "there is no such address" in page.text
    answer = client.get("/v1/events")
    problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "POST"


def test_every_answer_keeps_browsers_careful(client: httpx.Client) -> None:
    for answer in (client.get("/healthz"), client.get("/nothing"), client.get("/v1/status")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert "access-control-allow-origin" not in answer.headers
