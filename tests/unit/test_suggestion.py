"""A table that is not there: the relation that was meant, or all there are; never one of DuckDB's own."""

from __future__ import annotations

import duckdb
import pytest

from thermocline.query.suggestion import with_suggestion
from thermocline.query.view import first_line

RELATIONS = ("events", "hourly_stats", "rollup_costs")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("evnts", 'Did you mean "events"?'),
        ("Hourly", 'Did you mean "hourly_stats"?'),
        ("xyzzy", "There are events, hourly_stats, rollup_costs"),
        ("mine_to", 'Did you mean "mine_too"?'),
    ],
)
def test_what_was_meant_is_said(name: str, said: str) -> None:
    with duckdb.connect() as con:
        con.execute("CREATE TABLE mine_too AS SELECT 1")
        with pytest.raises(duckdb.CatalogException) as raised:
            con.execute(f"FROM {name}")
    assert with_suggestion(first_line(raised.value), RELATIONS) == f"Catalog Error: Table with name {name} does not exist! {said}"


def test_other_messages_stay() -> None:
    assert with_suggestion("Parser Error: syntax error", RELATIONS) == "Parser Error: syntax error"
