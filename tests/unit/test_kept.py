"""What is kept of files that never change: read once, as long as there is room."""

from __future__ import annotations

import pytest

from thermocline.tiers.kept import Kept


def test_a_name_is_read_once_while_there_is_room_and_who_was_not_asked_for_longest_goes() -> None:
    kept: Kept[str] = Kept(6)
    read: list[str] = []

    def get(name: str) -> str:
        def reading() -> str:
            read.append(name)
            return name

        return kept.get(name, reading)

    for name in ("aa", "bb", "cc", "aa", "dd"):
        assert get(name) == name
    assert read == ["aa", "bb", "cc", "dd"]
    for name in ("aa", "cc", "dd", "bb"):
        assert get(name) == name
    assert read == ["aa", "bb", "cc", "dd", "bb"]


def test_what_is_larger_than_all_the_room_is_read_again_and_pushes_nothing_out() -> None:
    kept: Kept[str] = Kept(3)
    assert kept.get("small", lambda: "abc") == "abc"
    assert kept.get("large", lambda: "abcd") == "abcd"
    assert kept.get("large", lambda: "other") == "other"
    assert kept.get("small", lambda: "other") == "abc"


def test_nothing_takes_room_too() -> None:
    kept: Kept[str] = Kept(2)
    for name in ("a", "b", "c"):
        assert kept.get(name, lambda: "") == ""
    assert kept.get("a", lambda: "x") == "x"


def test_what_could_not_be_read_is_read_again() -> None:
    kept: Kept[str] = Kept(3)

    def fail() -> str:
        raise OSError("away")

    with pytest.raises(OSError, match="away"):
        kept.get("a", fail)
    assert kept.get("a", lambda: "abc") == "abc"
