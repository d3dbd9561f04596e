"""docs/views.md says what is so: its programs are run, its settings are loaded."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from thermocline.config import load
from thermocline.ingest.append import Client
from thermocline.query.search import SHOWN
from thermocline.sample_import import events_of, load_runs
from thermocline.store import Store, connect
from thermocline.tiers import embedded
from thermocline.tiers.rollups import USAGE_KEYS, USAGE_VALUES

PAGE = (Path(__file__).parents[2] / "docs" / "views.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    embedded.stop(tmp_path / "thermocline-data")


def run(place: Path, program: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("THERMOCLINE_")}
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def program(word: str) -> str:
    [found] = [block for block in blocks("python") if word in block]
    return found


def test_the_search_finds_and_marks_what_the_page_says(place: Path) -> None:
    assert run(place, program("store.search")) == [
        "order-17 2 {&quot;<mark>order</mark>&quot;: 17, &quot;<mark>refund</mark>&quot;: &quot;Pending&quot;}",
        "order-17 1 Where is my <mark>refund</mark> for <mark>order</mark> 17?",
        "1 1 0",
        "True None",
    ]


def test_the_projection_gives_the_states_the_page_says(place: Path) -> None:
    assert run(place, program("Projection")) == [
        "4 {'track': 2} 1 45 0.25",
        "['user', 'assistant']",
        "[0, 0, 1, 1]",
        "[2, 4] True",
    ]


def test_the_columns_of_a_search_are_named() -> None:
    assert f"Columns: {', '.join(SHOWN)}, and" in PAGE


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with the rollup of the page that holds the sample, unsettled."""
    (text,) = blocks("toml")
    settings = load({"data_dir": tmp_path_factory.mktemp("views") / "data", **tomllib.loads(text)}, environ={})
    with connect(settings) as opened, Client(settings, tiers=opened.tiers) as client:
        client.append_many(events_of(load_runs(), end_us=opened.tiers.hot.facts().now_us))
        yield opened
    embedded.stop(settings.data_dir)


@pytest.mark.parametrize("sql", blocks("sql"))
def test_every_block_of_sql_has_an_answer(sql: str, store: Store) -> None:
    answer = store.sql(sql)
    assert len(answer) > 0
    assert answer.coverage.exact


def test_the_relations_have_the_keys_named_and_the_values_too(store: Store) -> None:
    keys = dict(re.findall(r"^\| `([a-z_]+)` \| (hour, .*) \|$", PAGE, flags=re.MULTILINE))
    assert {name: tuple(named.split(", ")) for name, named in keys.items()} == USAGE_KEYS
    for name in keys:
        assert store.sql(f"FROM {name} LIMIT 0").columns == [*USAGE_KEYS[name], *USAGE_VALUES]
    assert all(f"`{name}`" in PAGE for name in USAGE_VALUES)
