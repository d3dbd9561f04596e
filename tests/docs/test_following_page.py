"""docs/following.md: its blocks are run, its numbers are those of the code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from inspect import signature
from pathlib import Path

import pytest

from tests.docs.test_docs import ROOT, blocks, run
from thermocline.store import Store
from thermocline.tiers import embedded

PAGE = (ROOT / "docs" / "following.md").read_text()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    embedded.stop(tmp_path / "thermocline-data")


def test_the_programs_say_what_the_page_promises(place: Path) -> None:
    tail, subscribe = blocks("python", PAGE)
    said = run(place, sys.executable, "-W", "error", "-c", tail)
    assert said.splitlines() == [
        "1 message.user Where is my parcel?",
        '2 tool.call {"parcel": 4711}',
        "It is on its way.",
    ]
    assert run(place, sys.executable, "-W", "error", "-c", subscribe).splitlines() == ['order-17 {"parcel": 4711} 1', "0 0 0"]


def test_the_defaults_named_are_those_of_the_code() -> None:
    parameters = signature(Store.subscribe).parameters
    for name in ("ack_wait_s", "deliveries_max", "prefetch", "pending_max"):
        assert f"| `{name}` = {parameters[name].default:g} |" in PAGE
