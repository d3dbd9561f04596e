"""Whatever moves, breaks off, restarts or is lost: a store answers as a plain list of its events does, at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.servers import RedisServer
from tests.worlds.machine import Ground, counts, play
from tests.worlds.model import PlainList, Row, differences
from thermocline.query import run
from thermocline.query.relations import tail_sql

HISTORIES = 6
STEPS = 10
SEED = 6
"""Of histories in which much is archived, so that some of it is sampled out whatever the ids of events are."""


@pytest.mark.lengthy
def test_both_worlds_agree_at_every_step_of_short_histories(server: RedisServer, tmp_path: Path) -> None:
    ground = Ground(tmp_path / "data", server)
    play(ground, HISTORIES, STEPS, seed=SEED)
    found = counts(ground)
    assert found["histories"] >= HISTORIES
    assert found["seen"]["archived events"] and found["seen"]["of them sampled out"]


def test_a_store_that_shows_a_waiting_event_twice_is_caught(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "tail_sql", lambda chunks, columns: tail_sql([*chunks, *chunks], columns))
    with pytest.raises(AssertionError):
        play(Ground(tmp_path / "data", server), 3, 3)


def rows() -> list[Row]:
    """What a list of three events says of them."""
    events = PlainList(shards=1)
    for number in range(3):
        events.append({"conversation_id": "c", "event_type": "t", "timestamp": number, "content": "x\x00"}, str(number))
    events.learn_arrivals([{"conversation_id": "c", "seq": seq, "ingested_at": 7} for seq in (1, 2, 3)])
    return events.rows()


def test_a_list_agrees_with_itself() -> None:
    assert differences(rows(), rows()) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda found: found[:2], "missing: [('c', 3)]"),
        (lambda found: [*found, found[0]], "1 rows are there twice"),
        (lambda found: [*found, {**found[0], "seq": 4}], "not invited: [('c', 4)]"),
        (lambda found: found[::-1], "the order is another"),
        (lambda found: [*found[:2], {**found[2], "content": "x"}], "('c', 3) content: 'x', not 'x\\x00'"),
        (lambda found: [{**found[0], "sample_rate": 0.5}, *found[1:]], "('c', 1) sample_rate: 0.5, not 1.0"),
    ],
)
def test_a_store_that_answers_anything_else_is_told(change: Any, told: str) -> None:
    assert differences(rows(), change(rows())) == [told]
