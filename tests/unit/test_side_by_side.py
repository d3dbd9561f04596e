"""Tasks in threads of their own: a few at a time, and what an error among them does."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from thermocline.tiers.side_by_side import side_by_side


def test_as_many_run_at_once_as_asked_for() -> None:
    both = threading.Barrier(2, timeout=10)
    done: list[int] = []

    def meet(number: int) -> None:
        both.wait()
        done.append(number)

    side_by_side([partial(meet, number) for number in range(6)], at_once=2)
    assert sorted(done) == list(range(6))


def test_after_an_error_no_more_begin() -> None:
    done: list[int] = []

    def fail() -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        side_by_side([partial(done.append, 1), fail, partial(done.append, 2)], at_once=1)
    assert done == [1]


def test_after_an_error_what_is_under_way_comes_to_its_end() -> None:
    begun, failing = threading.Event(), threading.Event()
    done: list[int] = []

    def fail() -> None:
        assert begun.wait(10)
        failing.set()
        raise OSError("no space")

    def go_on() -> None:
        begun.set()
        assert failing.wait(10)
        done.append(1)

    with pytest.raises(OSError, match="no space"):
        side_by_side([fail, go_on], at_once=2)
    assert done == [1]
