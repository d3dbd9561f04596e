"""What is vendored into the page is what was published, and the page names no other server."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "serve" / "static"
VENDORED = json.loads((STATIC / "vendored.json").read_text())
OWN = sorted(
    path for folder in ("static", "templates") for path in (ROOT / "serve" / folder).iterdir() if path.name not in VENDORED
)


@pytest.mark.parametrize("name", VENDORED)
def test_a_vendored_file_is_what_was_published(name: str) -> None:
    assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == VENDORED[name]["sha256"]


def test_every_vendored_package_has_its_licence_beside_it() -> None:
    packages = {one["package"] for one in VENDORED.values()}
    assert packages == {one["package"] for one in VENDORED.values() if one["file"] == "LICENSE"}


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_the_page_names_no_other_server_and_has_no_script_or_style_in_its_pages(path: Path) -> None:
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"https?://|(?<=[\"'(])//", text) == []
    if path.suffix == ".html":
        assert re.findall(r"<script(?![^>]* src=)|<style|\sstyle=|\son[a-z]+=|javascript:|\|\s*safe\b", text) == []
