"""The receipt of an answer, and the result that carries it."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal

import msgspec
import pyarrow as pa

from thermocline.query.coverage import Coverage
from thermocline.query.result import Result, with_integers

AT = dt.datetime(2026, 11, 13, 12, 0, 1, tzinfo=dt.UTC)
PLAIN = Coverage(
    taken_at=AT,
    relations={"events": "exact"},
    hot_rows=1200,
    hot_newest_at=AT,
    warm_rows=34_000,
    cold_rows=0,
    sampled_rows=0,
    segments_read=3,
    segments_pruned=9,
    files_read=0,
    files_pruned=0,
    rejected=0,
    lost=0,
    retries=0,
)


def test_an_exact_answer_says_what_was_read_in_one_line() -> None:
    assert str(PLAIN) == (
        "35,200 events as of 2026-11-13 12:00:01 UTC: 1,200 hot (newest 2026-11-13 12:00:01), "
        "34,000 warm in 3 of 12 segments. Exact."
    )
    assert PLAIN.exact
    assert PLAIN.reason == ""


def test_an_answer_from_a_sample_says_so_and_how_to_weigh_it() -> None:
    sampled = msgspec.structs.replace(
        PLAIN,
        relations={"events": "sample", "hourly_stats": "exact"},
        cold_rows=500,
        sampled_rows=500,
        files_read=1,
        files_pruned=2,
    )
    assert not sampled.exact
    assert "500 cold in 1 of 3 files" in str(sampled)
    assert "An estimate: 500 archived rows of events are a sample: weigh each by 1 / sample_rate." in str(sampled)


def test_columns_that_are_not_exact_are_named_in_the_line() -> None:
    labels = (("event_type", "exact"), ("n", "unknown"), ("about", "estimated"))
    sampled = msgspec.structs.replace(PLAIN, relations={"events": "sample"}, sampled_rows=5, cold_rows=5, columns=labels)
    assert str(sampled).endswith("weigh each by 1 / sample_rate. Estimated: about. Unknown: n.")
    assert "Unknown" not in str(msgspec.structs.replace(PLAIN, columns=(("n", "exact"),)))
    assert sampled.as_dict()["columns"][1] == {"name": "n", "label": "unknown"}
    whole = msgspec.structs.replace(sampled, units="conversation")
    assert "add up by conversation_id first" in str(whole)


def test_everything_unusual_is_said() -> None:
    unusual = msgspec.structs.replace(PLAIN, rejected=2, lost=3, retries=1, not_pruned="a table function", hot_newest_at=None)
    assert str(unusual).endswith(
        "Exact. Nothing pruned: a table function. 2 unsettled events cannot be read and are left out. "
        "3 acknowledged events are declared lost. Data moved meanwhile: view 2."
    )
    assert "newest" not in str(unusual)


def test_what_redis_answers_alone_names_no_segments() -> None:
    cached = msgspec.structs.replace(PLAIN, cached_rows=100, hot_rows=0, warm_rows=0)
    assert str(cached) == "100 events as of 2026-11-13 12:00:01 UTC, all from Redis. Exact."


def test_as_json_it_has_every_field_and_the_verdict() -> None:
    stated = json.loads(json.dumps(PLAIN.as_dict()))
    told = {"exact", "reason", "bytes", "tiers", "snapshot", "bounds"}
    assert set(stated) == {*Coverage.__struct_fields__, *told} - {"evidence"}
    assert stated["taken_at"] == "2026-11-13T12:00:01Z"


def test_sums_are_integers_where_they_fit() -> None:
    table = pa.table({"a": [Decimal(2**62), None], "b": [Decimal(2**70), Decimal(1)], "c": [Decimal("1.5"), Decimal(2)]})
    wide = pa.decimal128(38, 0)
    table = table.set_column(0, "a", table["a"].cast(wide)).set_column(1, "b", table["b"].cast(wide))
    result = with_integers(table, [0, 1])
    assert (result["a"].type, result["b"].type) == (pa.int64(), wide)
    assert result["a"].to_pylist() == [2**62, None]


def test_columns_of_one_name_are_all_shown() -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    result = Result(table, PLAIN)
    assert result.fetchall() == [(1, 2)]
    assert "<td>1</td><td>2</td>" in result._repr_html_()
    assert "more rows" not in result._repr_html_()
