"""What a search looks for: DuckDB and Python find the same, marks are safe in a page, looking back ends."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thermocline import highlighted
from thermocline.errors import QueryRefused
from thermocline.query.instants import instant_us
from thermocline.query.matching import Wanted, rungs
from thermocline.tiers.duck import Connection, connect, quoted

LETTERS = "aAbBäÄßſsKkİiıΣσςжЖ日_-.()[]\\*+?'\"%$^|\u00a0\u0301 \n\t"


@pytest.fixture(scope="module")
def con() -> Iterator[Connection]:
    with connect(memory_bytes=64 << 20, threads=1) as opened:
        yield opened


def found(con: Connection, wanted: Wanted, text: str) -> bool:
    return bool(con.execute(f"SELECT {wanted.sql('t', quoted)} FROM (SELECT ? AS t)", [text]).fetchall()[0][0])


def place(con: Connection, wanted: Wanted, text: str) -> int:
    return int(con.execute(f"SELECT {wanted.place_sql('t', quoted)} FROM (SELECT ? AS t)", [text]).fetchall()[0][0])


def test_every_word_has_to_be_there_whatever_its_case_and_place(con: Connection) -> None:
    wanted = Wanted.of("REFUND order")
    assert found(con, wanted, "the Order was\nrefunded")
    assert not found(con, wanted, "the order was returned")
    assert wanted.spans("the Order was\nrefunded") == [(4, 5), (14, 6)]


def test_a_phrase_is_its_words_in_a_row_with_any_white_space_between(con: Connection) -> None:
    wanted = Wanted.of("order  17", phrase=True)
    for text in ("my Order 17!", "order\n17", "order\u00a0\t17"):
        assert found(con, wanted, text)
        assert len(wanted.spans(text)) == 1
    assert not found(con, wanted, "17 order")
    assert not found(con, wanted, "order no 17")


def test_whole_words_are_not_found_within_others(con: Connection) -> None:
    wanted = Wanted.of("cat", whole_words=True)
    for text in ("cat", "a Cat.", "concat cat", "«cat»"):
        assert found(con, wanted, text), text
        assert len(wanted.spans(text)) == 1, text
    for text in ("concat", "cats", "cat_1", "cätcat1"):
        assert not found(con, wanted, text), text
        assert wanted.spans(text) == [], text


def test_signs_that_mean_something_to_patterns_mean_themselves(con: Connection) -> None:
    for text in (r"a.b", r"(x)", r"[a]", r"\d", "a|b", "^a$", "50%", "it's", '{"a": 1}', "a*b+c?", "日本", "🙂"):
        wanted = Wanted.of(text)
        assert found(con, wanted, f"… {text} …"), text
        assert wanted.spans(f"… {text} …"), text
    assert not found(con, Wanted.of("a.b"), "axb")


def test_letters_whose_case_is_disputed_are_marked_where_they_are_found(con: Connection) -> None:
    letters = "iIİısSſkK\u212aßẞﬅﬆσΣςµμ"
    for word, text in itertools.product(letters, repeat=2):
        assert bool(Wanted.of(word).spans(text)) == found(con, Wanted.of(word), text), (word, text)
    assert Wanted.of("İ").spans("i?İ") == [(2, 1)]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    word=st.text(LETTERS, min_size=1, max_size=4).filter(lambda text: bool(text.split())),
    text=st.text(LETTERS, max_size=30),
    phrase=st.booleans(),
    whole=st.booleans(),
)
def test_where_duckdb_finds_something_python_marks_something(
    con: Connection, word: str, text: str, phrase: bool, whole: bool
) -> None:
    wanted = Wanted.of(word, phrase=phrase, whole_words=whole)
    if found(con, wanted, text):
        spans = wanted.spans(text)
        assert spans
        assert abs(place(con, wanted, text) - spans[0][0]) <= 1  # a whole word begins after the sign before it
        assert all(left + length < right for (left, length), (right, _) in itertools.pairwise(spans))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "1 to 32 words, not 0"),
        (" \n", "1 to 32 words, not 0"),
        ("x " * 33, "1 to 32 words, not 33"),
        ("x" * 1001, "at most 1000 characters"),
        ("a\0b", "none of them NUL"),
        ("\ud800", "lone surrogate"),
        (7, "must be a str, not int"),
    ],
)
def test_a_text_that_cannot_be_looked_for_is_refused(text: str, problem: str) -> None:
    with pytest.raises(QueryRefused, match=problem):
        Wanted.of(text)


def test_a_highlighted_snippet_is_safe_in_a_page() -> None:
    snippet = "<b>refund</b> & <mark>refund"
    marked = highlighted(snippet, Wanted.of("refund").spans(snippet))
    assert marked == "&lt;b&gt;<mark>refund</mark>&lt;/b&gt; &amp; &lt;mark&gt;<mark>refund</mark>"
    assert highlighted("a b", [{"start": 2, "length": 1}], before="[", after="]", escape=str) == "a [b]"


def test_looking_back_takes_in_more_each_time_and_at_last_everything() -> None:
    extents = [(day, 100) for day in range(1, 101)]
    steps = rungs(extents, first_rows=500, growth=4)
    assert steps == [(96, 500), (81, 2000), (21, 8000), (None, 10_000)]
    for low_us, rows in steps[:-1]:
        assert low_us is not None
        assert sum(count for latest, count in extents if latest >= low_us) == rows


def test_extents_that_end_together_are_looked_at_together() -> None:
    assert rungs([(5, 10), (5, 10), (4, 10)], first_rows=5, growth=2) == [(5, 20), (None, 30)]
    assert rungs([], first_rows=5, growth=2) == [(None, 0)]


@pytest.mark.parametrize(
    ("value", "us"),
    [("1970-01-02", 86_400_000_000), ("1970-01-01T01:00:00+01:00", 0), ("1970-01-01T00:00:01Z", 1_000_000), (5, 5)],
)
def test_times_are_read_as_utc(value: str | int, us: int) -> None:
    assert instant_us(value, "since") == us


@pytest.mark.parametrize("value", ["yesterday", -1, 10**18, True, 1.5, None])
def test_what_is_no_time_is_refused_by_its_name(value: object) -> None:
    with pytest.raises(QueryRefused, match=r"^since "):
        instant_us(value, "since")  # type: ignore[arg-type]
