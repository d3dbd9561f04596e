"""Tables of text: what a value looks like, how columns line up, what gives way when they do not fit."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import MonthDayNano
from rich.cells import cell_len

from thermocline.cli.app import hoisted
from thermocline.cli.columns import GAP, NARROW, cell, fitted, laid_out, plain
from thermocline.cli.output import bytes_text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        (True, "yes"),
        (1234567, "1,234,567"),
        (0, "0"),
        (-0.0, "-0"),
        (1.5, "1.5"),
        (1234.5678, "1,234.568"),
        (100.0, "100"),
        (0.000012345678, "1.235e-05"),
        (0.25, "0.25"),
        (1e300, "1e+300"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (Decimal("1.10"), "1.1"),
        (Decimal("12345678901234567890123"), "12,345,678,901,234,567,890,123"),
        (dt.datetime(2026, 11, 20, 9, 41, 7, 250_000, dt.UTC), "2026-11-20 09:41:07.25Z"),
        (dt.datetime(2026, 11, 20, 9, 41, tzinfo=dt.timezone(dt.timedelta(hours=1))), "2026-11-20 08:41:00Z"),
        (dt.datetime(2026, 11, 20, 9, 41), "2026-11-20 09:41:00"),
        (dt.date(2026, 11, 20), "2026-11-20"),
        ("two\nlines\tand a tab", "two⏎ lines and a tab"),
        (b"\xffab", "\\xffab"),
        ([1, "a"], "[1, 'a']"),
        (MonthDayNano([14, 3, 3_723_250_000_000]), "14 months 3 days 01:02:03.25"),
        (MonthDayNano([1, 1, 0]), "1 month 1 day"),
        (MonthDayNano([0, 0, 0]), "00:00:00"),
        (MonthDayNano([0, 0, -90_000_000_000]), "-00:01:30"),
    ],
)
def test_a_value_as_people_read_it(value: object, shown: str) -> None:
    assert cell(value) == shown


def test_numbers_are_to_the_right_and_lines_have_no_spaces_at_the_end() -> None:
    rows = [("a", 1, None), ("longer", 1000, 2.5), ("", None, None)]
    assert laid_out(rows, ["name", "count", "share"], None) == [
        "name    count  share",
        "────────────────────",
        "a           1",
        "longer  1,000    2.5",
        "",
    ]


def test_a_table_without_rows_is_its_head() -> None:
    assert laid_out([], ["a", "bc"], 80) == ["a  bc", "─────"]


@given(st.lists(st.integers(0, 300), min_size=1, max_size=12), st.integers(20, 200))
def test_columns_fit_whenever_they_can_and_only_wide_ones_give_way(widths: list[int], width: int) -> None:
    found = fitted(widths, width)
    gaps = len(GAP) * (len(widths) - 1)
    assert sum(found) + gaps <= max(width, sum(min(size, NARROW) for size in widths) + gaps)
    assert all(new == old or new >= NARROW for new, old in zip(found, widths, strict=True))
    assert all(new <= old for new, old in zip(found, widths, strict=True))


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=60), min_size=1, max_size=5), st.integers(30, 120))
def test_no_line_is_wider_than_the_terminal_and_a_cut_is_shown(texts: list[str], width: int) -> None:
    lines = laid_out([(text, "x" * 200) for text in texts], ["a", "b"], width)
    assert max(map(cell_len, lines)) <= width
    assert all(line.endswith("…") for line in lines[2:])


def test_an_object_no_format_knows_is_its_text() -> None:
    assert plain(dt.timedelta(minutes=3)) == "0:03:00"


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 KiB"), (1 << 20, "1.0 MiB"), (3 << 39, "1,536.0 GiB")]
)
def test_sizes_people_read(count: int, shown: str) -> None:
    assert bytes_text(count) == shown


@pytest.mark.parametrize(
    ("given_", "front"),
    [
        ([], []),
        (["query", "SELECT 1"], ["query", "SELECT 1"]),
        (["query", "--namespace", "a", "SELECT 1"], ["--namespace", "a", "query", "SELECT 1"]),
        (["query", "--data-dir=x", "SELECT 1", "--config", "c"], ["--data-dir=x", "--config", "c", "query", "SELECT 1"]),
        (["query", "--", "--namespace"], ["query", "--", "--namespace"]),
        (["query", "--namespace"], ["--namespace", "query"]),
        (["--version"], ["--version"]),
    ],
)
def test_global_options_move_to_the_front(given_: list[str], front: list[str]) -> None:
    assert hoisted(given_) == front
