"""Text of strangers on the page: marks for what is not seen, JSON laid out, long texts folded; numbers as people read them."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from thermocline.serve.page_console import chart
from thermocline.serve.page_login import local
from thermocline.serve.page_overview import Mark, flow
from thermocline.serve.page_text import FOLD_CHARS, cell, pretty, readable, shown
from thermocline.serve.page_timeline import kind_of
from thermocline.serve.page_view import size, span, usd


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\x1b[31mb", "a␛[31mb"),
        ("\u202eexe", "⟨U+202E⟩exe"),
        ("a\u200bb\ufeff", "a⟨U+200B⟩b⟨U+FEFF⟩"),
        ("tab\tand\nlines\r\nstay", "tab\tand\nlines\nstay"),
        ("one\rtwo", "one␍two"),
        ("שלום ä 漢", "שלום ä 漢"),
    ],
)
def test_characters_that_are_not_seen_get_a_mark(text: str, seen: str) -> None:
    assert readable(text) == seen


@pytest.mark.parametrize("text", ["", "plain", "12", '{"a": ', '"text"', "[" * 100_000, '{"a":' * 2_000])
def test_what_is_no_json_object_or_list_is_left_as_it_is(text: str) -> None:
    assert pretty(text) is None


def test_json_is_laid_out() -> None:
    assert pretty('{"a":[1,"ä"]}') == '{\n  "a": [\n    1,\n    "ä"\n  ]\n}'


def test_long_text_is_folded_and_what_was_not_sent_is_counted() -> None:
    assert shown(None) is shown("") is None
    short = shown("x" * 100)
    assert short is not None
    assert (short.head, short.rest, short.cut) == ("x" * 100, "", 0)
    long = shown("x" * 5000, 9000)
    assert long is not None
    assert (len(long.head), len(long.rest), long.cut) == (FOLD_CHARS, 5000, 4000)


def test_cells_are_one_short_line() -> None:
    assert [cell(value) for value in (None, True, 1234, 1.5, "a\nb", "x" * 300)] == [
        "NULL",
        "true",
        "1,234",
        "1.5",
        "a b",
        "x" * 200 + "…",
    ]


@pytest.mark.parametrize(
    ("target", "taken"),
    [
        ("/sql?q=SELECT%201", "/sql?q=SELECT%201"),
        ("https://elsewhere/", "/"),
        ("//elsewhere", "/"),
        ("/\\elsewhere", "/"),
        ("javascript:alert(1)", "/"),
        ("/\nx", "/"),
        ("", "/"),
    ],
)
def test_after_signing_in_one_stays_on_this_server(target: str, taken: str) -> None:
    assert local(target) == taken


@pytest.mark.parametrize(
    ("event_type", "kind"),
    [
        ("message.user", "user"),
        ("message.assistant", "assistant"),
        ("output.chunk", "assistant"),
        ("tool.call", "call"),
        ("tool.result", "result"),
        ("model.error", "error"),
        ("intervention.stop", "intervention"),
        ("file.created", "event"),
    ],
)
def test_an_event_looks_like_what_its_type_says(event_type: str, kind: str) -> None:
    assert kind_of(event_type, None) == kind


def test_spans_sizes_and_sums_are_short() -> None:
    assert [span(value) for value in (None, 0.35, 12.4, 200, 7500, 356_400)] == [
        "–",
        "350 ms",
        "12 s",
        "3 min 20 s",
        "2 h 5 min",
        "4 d 3 h",
    ]
    assert [size(value) for value in (0, 1023, 1536, 5 << 30)] == ["0 B", "1,023 B", "1.5 KiB", "5.0 GiB"]
    assert [usd(value) for value in (None, 0, 1234.5, 0.25, 0.00001)] == ["–", "$0.00", "$1,234.50", "$0.2500", "< $0.0001"]


def test_the_flow_is_what_came_over_the_last_minute() -> None:
    assert flow([]) == flow([Mark(0, 5, 5, 5)]) == {"appended": None, "settled": None, "archived": None}
    marks = [Mark(0, 0, 0, 0), Mark(100, 1000, 900, 0), Mark(150, 1500, 900, 100)]
    assert flow(marks) == {"appended": 10, "settled": 0, "archived": 2}


def test_a_chart_needs_something_across_and_a_number_up() -> None:
    assert (
        chart(pa.table({"n": [1, 2]}))
        == chart(pa.table({"a": ["x", "y"], "b": ["x", "y"]}))
        == chart(pa.table({"a": [1], "b": [1]}))
        == ""
    )
    bars = json.loads(chart(pa.table({"kind": ["<b>", "y"], "n": [2, None]})))
    assert (bars["kind"], bars["labels"], bars["series"][0]["y"]) == ("bars", ["<b>", "y"], [2.0, None])
    lines = json.loads(chart(pa.table({"x": [2, 1], "n": [20.0, float("nan")]})))
    assert (lines["kind"], lines["x"], lines["series"][0]["y"]) == ("lines", [1.0, 2.0], [None, 20.0])
