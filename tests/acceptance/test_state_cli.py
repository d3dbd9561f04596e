"""`thermocline state` as its users have it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.test_cli import failed, succeeded, thermocline
from thermocline.tiers import embedded

MODULE = """
from thermocline import Projection


class Words(Projection):
    name = "words"

    def initial(self):
        return {"words": []}

    def apply(self, state, event):
        return {"words": [*state["words"], event["content"]]}
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "mine.py").write_text(MODULE)
    lines = [{"conversation_id": "c", "event_type": "output.chunk", "content": word} for word in ("one", "two", "three")]
    (tmp_path / "events.ndjson").write_text("".join(json.dumps(line) + "\n" for line in lines))
    succeeded(tmp_path, "append", "events.ndjson")
    yield tmp_path
    embedded.stop(tmp_path / "thermocline-data")


def test_state_shows_the_state_at_any_event_and_what_is_kept(place: Path) -> None:
    done = thermocline(place, "state", "c", "--projection", "mine:Words")
    assert json.loads(done.stdout) == {"words": ["one", "two", "three"]}
    assert "words (version 1) of c at seq 3" in done.stderr
    assert json.loads(succeeded(place, "state", "c", "--projection", "mine:Words", "--at-seq", "1")) == {"words": ["one"]}
    kept = json.loads(succeeded(place, "state", "c", "--projection", "mine:Words", "--versions"))
    assert [(one["seq"], one["sound"]) for one in kept] == [(1, True), (3, True)]
    assert "is at seq 3" in failed(place, "state", "c", "--projection", "mine:Words", "--at-seq", "4", code=1)
    assert "mine:Nothing" in thermocline(place, "state", "c", "--projection", "mine:Nothing").stderr
