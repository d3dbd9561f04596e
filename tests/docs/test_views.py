"""docs/views.md says what is so: its programs are run, its settings are loaded."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from thermocline.query.search import SHOWN
from thermocline.tiers import embedded

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


def test_the_columns_of_a_search_are_named() -> None:
    assert f"Columns: {', '.join(SHOWN)}, and" in PAGE
