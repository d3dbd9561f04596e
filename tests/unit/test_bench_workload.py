"""The benchmarks' workload: the same every time, in the shape of recorded conversations, and taken by the product."""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import closing

import orjson
import pyarrow as pa
import pytest

from bench import shape
from bench.filling import lines_of
from bench.workload import DAY_US, Workload, as_strings, kwargs_of
from thermocline.event import Event
from thermocline.ingest.line import line_of
from thermocline.ingest.validate import checked, fields_of
from thermocline.tiers.duck import connect as open_duck

END_US = 1_763_596_800_000_000
EVENTS = 40_000


@pytest.fixture(scope="module")
def load() -> Workload:
    return Workload(EVENTS, end_us=END_US)


@pytest.fixture(scope="module")
def rows(load: Workload) -> pa.Table:
    return pa.concat_tables(as_strings(table) for table in load.tables())


def test_the_same_seed_gives_the_same_rows_in_batches_of_any_size(rows: pa.Table) -> None:
    again = Workload(EVENTS, end_us=END_US)
    assert pa.concat_tables(as_strings(table) for table in again.tables(rows_max=777)).equals(rows)
    other = pa.concat_tables(as_strings(table) for table in Workload(EVENTS, end_us=END_US, seed=2).tables())
    assert other.num_rows == EVENTS and not other.equals(rows)


def test_there_are_as_many_events_as_asked_for_each_once(rows: pa.Table) -> None:
    places = set(zip(rows["conversation_id"].to_pylist(), rows["seq"].to_pylist(), strict=True))
    assert rows.num_rows == len(places) == EVENTS
    assert len({str(one) for one in rows["event_id"].to_pylist()}) == EVENTS


@pytest.mark.parametrize(("events", "today"), [(10, 0), (999, 0), (5_001, 400), (20_000, 2_000)])
def test_any_size_comes_out_to_the_event_whatever_lies_in_the_last_day(events: int, today: int) -> None:
    made = Workload(events, end_us=END_US, today_events=today)
    by_day = [sum(table.num_rows for table in made.day(day)) for day in range(made.days)]
    assert sum(by_day) == events == sum(table.num_rows for table in made.arrivals(rows_max=500))
    assert len(by_day) == 7 + bool(today)
    assert today == 0 or abs(by_day[-1] - today) <= max(shape.CONVERSATION_EVENTS)


def test_a_day_is_sorted_by_conversation_and_time_and_seq_has_no_gap(load: Workload) -> None:
    seqs: dict[str, list[int]] = defaultdict(list)
    for day in range(load.days):
        found = pa.concat_tables(as_strings(table) for table in load.day(day))
        stamps = found["timestamp"].cast(pa.int64()).to_pylist()
        names = found["conversation_id"].to_pylist()
        assert list(zip(names, stamps, strict=True)) == sorted(set(zip(names, stamps, strict=True)))
        assert load.start_us + day * DAY_US <= min(stamps) and max(stamps) < load.start_us + (day + 1) * DAY_US
        for name, seq in zip(names, found["seq"].to_pylist(), strict=True):
            seqs[name].append(seq)
    assert all(found == list(range(1, len(found) + 1)) for found in seqs.values())


def test_few_conversations_are_hot_and_the_others_have_the_lengths_of_recorded_ones(rows: pa.Table) -> None:
    lengths = Counter(rows["conversation_id"].to_pylist())
    hot = [count for name, count in lengths.items() if name.startswith("hot-")]
    idle = [count for name, count in lengths.items() if name.startswith("run-")]
    assert hot == [shape.HOT_EVENTS]
    assert len(idle) > 500 and max(idle) <= max(shape.CONVERSATION_EVENTS)
    assert abs(sum(idle) / len(idle) - 33) < 3


def test_types_and_texts_have_the_recorded_shares_and_half_of_the_text_is_unique(rows: pa.Table) -> None:
    kinds = Counter(rows["event_type"].to_pylist())
    recorded = {"message.assistant": 0.37, "message.user": 0.22, "tool.call": 0.17, "tool.result": 0.17, "message.system": 0.03}
    assert {kind: pytest.approx(kinds[kind] / EVENTS, abs=0.02) for kind in recorded} == recorded
    texts = Counter(rows["content"].to_pylist())
    size = sum(len(text) * count for text, count in texts.items())
    assert 0.4 < sum(len(text) for text, count in texts.items() if count == 1) / size < 0.6
    assert 350 < size / EVENTS < 480


def test_arrivals_are_the_same_rows_each_conversation_in_order(load: Workload, rows: pa.Table) -> None:
    keys = [("conversation_id", "ascending"), ("seq", "ascending")]
    came = pa.concat_tables(as_strings(table) for table in load.arrivals(active=7, rows_max=1000))
    assert came.sort_by(keys).equals(rows.sort_by(keys))
    last: dict[str, int] = {}
    for name, seq in zip(came["conversation_id"].to_pylist(), came["seq"].to_pylist(), strict=True):
        assert seq == last.get(name, 0) + 1
        last[name] = seq


def test_the_product_takes_every_event_and_metadata_is_json(load: Workload) -> None:
    given = kwargs_of(next(load.arrivals(rows_max=5000)))
    assert {"metadata", "tool_name", "duration_ms"} <= {name for event in given for name in event}
    for event in given:
        checked(fields_of(Event(**event)), END_US)
        assert isinstance(orjson.loads(event.get("metadata", "{}")), dict)


def test_lines_made_by_the_column_are_those_that_the_product_makes(load: Workload) -> None:
    table = next(load.arrivals(rows_max=5000))
    with closing(open_duck(memory_bytes=1 << 28, threads=1)) as con:
        made = lines_of(con, as_strings(table))
    assert made == [line_of(fields_of(Event(**event)), END_US) for event in kwargs_of(table)]
