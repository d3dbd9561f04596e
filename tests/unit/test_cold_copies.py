"""Local copies of cold objects: each is fetched once, what is needed or kept on purpose stays, the rest goes by age."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from thermocline.errors import TierCorrupt
from thermocline.tiers.cold_copies import PINS, ColdCopies
from thermocline.tiers.cold_folder import FolderCold

SIZE = 100
NAMES = ("a", "b", "c", "d")


class FarCold(FolderCold):
    """A folder that is used as if it were far away; notes what is fetched."""

    is_local = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.fetched: list[str] = []

    def fetch(self, key: str, target: Path) -> None:
        self.fetched.append(key)
        super().fetch(key, target)


@pytest.fixture
def cold(tmp_path: Path) -> FarCold:
    """A store with an object of SIZE bytes for each of NAMES."""
    cold = FarCold(tmp_path / "far")
    for name in NAMES:
        cold.put(key(name), name.encode() * SIZE)
    return cold


def key(name: str) -> str:
    return f"rollup_task/day=2026-11-13/{name}.parquet"


def keys(names: str) -> list[str]:
    return [key(name) for name in names]


def copies_of(cold: FarCold, folder: Path, *, objects_max: int = 100) -> ColdCopies:
    return ColdCopies(cold, folder / "copies", bytes_max=objects_max * SIZE)


def here(folder: Path) -> str:
    """The names of the copies there are."""
    return "".join(sorted(path.stem for path in (folder / "copies").rglob("*.parquet")))


def age(folder: Path, name: str, hours: int) -> None:
    path = folder / "copies" / key(name)
    at = path.stat().st_mtime - hours * 3600
    os.utime(path, (at, at))


def test_an_object_is_read_from_far_until_it_is_copied(cold: FarCold, tmp_path: Path) -> None:
    copies = copies_of(cold, tmp_path)
    assert copies.place(key("a")) == f"cold://{key('a')}"
    copies.ensure(keys("a"))
    assert Path(copies.place(key("a"))).read_bytes() == b"a" * SIZE


def test_an_object_is_fetched_once_however_many_ask_for_it(cold: FarCold, tmp_path: Path) -> None:
    copies = copies_of(cold, tmp_path)
    together = threading.Barrier(8)

    def ensure(_: int) -> None:
        together.wait()
        copies.ensure([*keys("ab"), key("a")])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ensure, range(8)))
    assert sorted(cold.fetched) == keys("ab")


def test_without_room_the_copies_read_longest_ago_go_and_no_more_than_have_to(cold: FarCold, tmp_path: Path) -> None:
    copies = copies_of(cold, tmp_path, objects_max=3)
    copies.ensure(keys("abc"))
    age(tmp_path, "a", 1)
    age(tmp_path, "b", 3)
    age(tmp_path, "c", 2)
    copies.ensure(keys("d"))
    assert here(tmp_path) == "acd"


def test_copies_that_are_asked_for_together_all_stay_when_they_pass_the_limit(cold: FarCold, tmp_path: Path) -> None:
    """Those that were there before too: whoever asked reads them next, and may have no other way to."""
    copies = copies_of(cold, tmp_path, objects_max=1)
    copies.ensure(keys("a"))
    age(tmp_path, "a", 1)
    copies.ensure(keys("ab"))
    assert here(tmp_path) == "ab"
    copies.ensure(keys("c"))
    assert here(tmp_path) == "c"


def test_copies_kept_on_purpose_do_not_make_room(cold: FarCold, tmp_path: Path) -> None:
    copies = copies_of(cold, tmp_path, objects_max=1)
    assert copies.keep(keys("ab"), until_us=10) == 2 * SIZE
    copies.ensure(keys("c"))
    copies.ensure(keys("d"))
    assert here(tmp_path) == "abd"


def test_keeping_what_is_there_by_chance_with_what_is_not_keeps_both(cold: FarCold, tmp_path: Path) -> None:
    """As after a rehydrate that was broken off, when there is no room."""
    copies = copies_of(cold, tmp_path, objects_max=1)
    copies.ensure(keys("a"))
    age(tmp_path, "a", 1)
    assert copies.keep(keys("ab"), until_us=10) == 2 * SIZE
    assert copies.kept() == {key("a"): 10, key("b"): 10}


def test_copies_go_when_their_time_is_over_or_their_object_is_not_live(cold: FarCold, tmp_path: Path) -> None:
    copies = copies_of(cold, tmp_path)
    assert copies.let_go(now_us=0, live=()) == 0
    copies.keep(keys("a"), until_us=10)
    copies.keep(keys("b"), until_us=20)
    copies.ensure(keys("cd"))
    assert copies.let_go(now_us=9, live=keys("abcd")) == 0
    assert copies.let_go(now_us=10, live=keys("abc")) == 2
    assert here(tmp_path) == "bc"
    assert copies.kept() == {key("b"): 20}
    assert copies_of(cold, tmp_path).kept() == {key("b"): 20}, "another process sees the same"


def test_copies_that_were_never_finished_go_when_whoever_made_them_has_had_its_time(cold: FarCold, tmp_path: Path) -> None:
    copies = copies_of(cold, tmp_path)
    copies.ensure(keys("a"))
    unfinished = Path(copies.place(key("a"))).with_name("0123.tmp")
    unfinished.write_bytes(b"half a file")
    written_us = unfinished.stat().st_mtime_ns // 1000
    copies.let_go(now_us=0, live=keys("a"), unfinished_before_us=written_us)
    assert unfinished.exists()
    copies.let_go(now_us=0, live=keys("a"), unfinished_before_us=written_us + 1)
    assert not unfinished.exists()
    assert here(tmp_path) == "a"


@pytest.mark.parametrize("text", ["", "{"])
def test_a_list_of_kept_copies_that_cannot_be_read_is_an_empty_one(cold: FarCold, tmp_path: Path, text: str) -> None:
    copies = copies_of(cold, tmp_path)
    copies.ensure(keys("a"))
    (tmp_path / "copies" / PINS).write_text(text)
    assert copies.kept() == {}
    assert copies.keep(keys("a"), until_us=5) == SIZE
    assert copies.kept() == {key("a"): 5}


def test_an_object_that_is_not_there_leaves_no_copy(cold: FarCold, tmp_path: Path) -> None:
    copies = copies_of(cold, tmp_path)
    with pytest.raises(TierCorrupt, match=r"e\.parquet.* is not there any more"):
        copies.ensure(keys("ae"))
    assert here(tmp_path) == "a"


def test_a_file_that_was_just_written_becomes_the_copy(cold: FarCold, tmp_path: Path) -> None:
    copies = copies_of(cold, tmp_path)
    written = tmp_path / "written"
    written.write_bytes(b"a" * SIZE)
    copies.take(key("a"), written)
    assert not written.exists()
    copies.ensure(keys("a"))
    assert cold.fetched == []
