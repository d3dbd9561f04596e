"""What crashes of a worker leave, opened by the next. `python -m tests.crash_images` does it with thousands of images."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.crash_images import DIED, KINDS_OF_CRASH, Image, Life, Verdict, check, in_memory, one_duckdb, planned, run, run_life
from tests.servers import RedisServer


@pytest.mark.lengthy
def test_every_image_of_a_crash_opens_and_has_every_event_once_and_a_spoilt_one_is_told(
    tmp_path: Path, server: RedisServer
) -> None:
    verdict = Verdict(seed=7)
    with one_duckdb(), in_memory() as disks:
        life = Life(tmp_path / "life", disks / "life", server, "warm", 7)
        run_life(life, 24, verdict, "warm life 7")
        assert verdict.problems == []
        assert sum(verdict.images.values()) == 24
        assert set(verdict.images) == set(KINDS_OF_CRASH)
        before, after = life.images([(len(life.changes) // 2, DIED), (len(life.changes), DIED)], random.Random(7))
        assert check(life, _without_a_segment(after), deep=True).problems
        assert check(life, _with_the_ledger_of(after, before), deep=True).problems
        assert check(life, after, deep=True).problems == []


def _without_a_segment(image: Image) -> Image:
    name = next(name for name in image.tree if name.endswith(".duckdb"))
    return image._replace(tree={path: content for path, content in image.tree.items() if path != name})


def _with_the_ledger_of(image: Image, older: Image) -> Image:
    """As if commits that were acknowledged had been undone, and Redis trimmed all the same."""
    tree = {path: content for path, content in image.tree.items() if "ledger.db" not in path}
    return image._replace(tree=tree | {path: content for path, content in older.tree.items() if "ledger.db" in path})


@pytest.mark.long
@pytest.mark.parametrize("images", [10, 500])
def test_every_image_of_a_crash_opens_and_has_every_event_once_with_an_archive(tmp_path: Path, images: int) -> None:
    found = run(tmp_path, seed=7, cold=images)
    assert found.problems == []
    assert sum(found.images.values()) == images
    assert set(found.images) == set(KINDS_OF_CRASH)


def test_with_room_for_it_the_process_dies_after_every_change_once() -> None:
    places = {kind: list(range(10)) for kind in KINDS_OF_CRASH}
    plan = planned(places, 20, random.Random(1))[:20]
    assert sorted(at for at, kind in plan if kind == DIED) == list(range(10))
    assert {kind for _, kind in planned(places, 6, random.Random(1))[:6]} == set(KINDS_OF_CRASH)
