"""docs/http.md says what is so: its lines are run against a server, its limits and addresses compared with the code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.docs.test_docs import blocks
from tests.serve_process import serving
from thermocline.config import load
from thermocline.serve.openapi import document
from thermocline.serve_settings import ServeSettings
from thermocline.tiers import embedded

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "http.md").read_text()
LINES = blocks("sh", PAGE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("page")
    yield folder
    embedded.stop(folder / "thermocline-data")


@pytest.fixture(scope="module")
def url(place: Path) -> Iterator[str]:
    with serving(place) as running:
        yield running.url
        assert running.stop() == 0, running.said


@pytest.fixture(scope="module")
def said(place: Path, url: str) -> list[str]:
    """What each block of shell lines prints, all run in order."""
    found = []
    for block in LINES:
        program = "set -euo pipefail\n" + block.replace("http://localhost:8700", url)
        done = subprocess.run(["bash", "-c", program], cwd=place, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        found.append(done.stdout)
    return found


def test_the_page_has_lines_for_every_address(said: list[str]) -> None:
    for path in document(load(environ={}))["paths"]:
        pattern = re.escape(path).replace(r"\{conversation_id\}", "[^/]+").replace(r"\{query_id\}", "[^/ ]+")
        assert re.search(rf"localhost:8700{pattern}\b", PAGE) or path == "/openapi.json", path


def test_appends_are_stored_as_the_page_says(said: list[str]) -> None:
    first, second, third = (json.loads(text) for text in said[:3])
    assert [one["seq"] for answer in (first, second, third) for one in answer["outcomes"]] == [1, 2, 3, 4]
    assert first["outcomes"][1]["line"] == 2


def test_the_conversation_is_read_page_by_page(said: list[str]) -> None:
    page = json.loads(said[3])
    assert [one["event_type"] for one in page["events"]] == ["message.user", "tool.call"]
    assert page["next"].endswith("from_seq=3&limit=2")


def test_queries_answer_in_the_form_asked_for(said: list[str], place: Path) -> None:
    assert said[4].splitlines() == [
        '"event_type","events"',
        '"message.agent",1',
        '"message.user",1',
        '"tool.call",1',
        '"tool.result",1',
    ]
    assert pq.read_table(place / "stats.parquet").column("event_count").to_pylist() == [4]


def test_a_query_that_is_too_long_is_cancelled_by_its_id(said: list[str]) -> None:
    assert json.loads(said[5])["type"] == "urn:thermocline:problem:query-cancelled"


def test_a_tail_gives_the_conversation_from_its_beginning(said: list[str]) -> None:
    assert re.findall(r'^data: .*"event_type":"([a-z.]+)"', said[6], flags=re.MULTILINE) == [
        "message.user",
        "tool.call",
        "message.agent",
        "tool.result",
    ]
    assert len(re.findall(r"^id: t1\.", said[6], flags=re.MULTILINE)) >= 5


def test_status_and_health_are_given(said: list[str]) -> None:
    assert '"health":"green"' in said[7]
    assert '{"status":"ok"}' in said[7]
    assert "thermocline_store_up 1.0" in said[7]
    assert len(said) == 8


def test_the_client_in_python_does_what_the_page_says(place: Path, url: str) -> None:
    [program] = blocks("python", PAGE)
    command = [sys.executable, "-W", "error", "-c", program.replace("http://localhost:8700", url)]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert re.search(r"│ 2\s+│", done.stdout)
    assert done.stdout.splitlines()[-2:] == ["Hello", "Hello!"]


def test_the_table_of_addresses_is_that_of_the_document() -> None:
    table = PAGE[PAGE.index("| address |") : PAGE.index("What goes wrong")]
    named = {(path.split("/")[-1], method) for method, path in re.findall(r"`(GET|POST|DELETE) (/[^`]*)`", table)}
    documented = {
        (path.split("/")[-1], method.upper())
        for path, methods in document(load(environ={}))["paths"].items()
        for method in methods
    }
    assert {(last.strip("{}").removeprefix("query_"), method) for last, method in documented} == {
        (last.strip("{}"), method) for last, method in named
    }


def test_every_limit_is_a_setting_and_has_the_default_that_the_page_names() -> None:
    table = PAGE[PAGE.index("| setting | default |") : PAGE.index("Queries have those")]
    rows = re.findall(r"^\| (`.*?`) \| (.*?) \|", table, flags=re.MULTILINE)
    settings = ServeSettings()  # type: ignore[call-arg]
    named = set()
    for names, defaults in rows:
        for name, default in zip(
            re.findall(r"`(\w+)`", names), _numbers(defaults, len(re.findall(r"`(\w+)`", names))), strict=True
        ):
            named.add(name)
            assert getattr(settings, name) == default, name
    ours = {
        name for name in ServeSettings.model_fields if name.endswith(("_max", "_threads", "_timeout_s", "_per_s", "_per_min"))
    }
    assert ours - named == {"jwks_bytes_max"} | {"jwks_timeout_s"}


def _numbers(text: str, count: int) -> list[float]:
    """The numbers of a cell, in bytes or seconds; the last one again when there are fewer than settings."""
    units = {"KiB": 1 << 10, "MiB": 1 << 20}
    found = [int(number.replace(",", "")) * units.get(unit, 1) for number, unit in re.findall(r"([\d,]*\d)(?: (KiB|MiB))?", text)]
    return [float(one) for one in (found + found[-1:] * count)[:count]]
