"""The checker of histories: right ones pass, and each kind of wrong one is seen."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from tests.history.check import check
from tests.history.record import Digests, History, Read, Row, Total, Write, digest

ROWS: list[Row] = [(1, "a"), (2, "b"), (3, "c"), (4, "d")]


def write(content: str, invoked: int, ended: int | None, seq: int | None = None, **more: Any) -> Write:
    outcome = more.pop("outcome", "ok" if ended is not None else "unknown")
    given = {"client": 0, "call": invoked, "place": 0, "conversation": "x", **more}
    return Write(content=content, invoked_ns=invoked, ended_ns=ended, seq=seq, outcome=outcome, **given)


def four() -> list[Write]:
    """One after the other: a in 10..20, b in 30..40, c in 50..60, d in 70..80."""
    return [write(content, 20 * seq - 10, 20 * seq, seq) for seq, content in ROWS]


def told(rows: Sequence[Row], invoked: int, ended: int, kind: str = "history", **more: Any) -> Read:
    first, last = (rows[0][0], rows[-1][0]) if rows else (0, 0)
    given: dict[str, Any] = {"client": 1, "conversation": "x", "kind": kind, **more}
    return Read(invoked_ns=invoked, ended_ns=ended, rows=len(rows), first=first, last=last, digest=digest(rows), **given)


def kinds(writes: list[Write], rows: list[Row], *reads: Read, totals: Sequence[Total] = (), step: int = 0) -> list[str]:
    history = History(writes=writes, reads=list(reads), totals=list(totals))
    return [problem.kind for problem in check(history, {"x": rows}, step=step)]


def test_a_right_history_has_no_problem() -> None:
    reads = [
        told([], 5, 15),
        told(ROWS[:1], 12, 18),  # sees an append that has not ended yet
        told(ROWS[:1], 25, 35),
        told(ROWS[:2], 31, 32),
        told(ROWS[1:3], 65, 70, "recent", limit=2),
        told(ROWS, 90, 95),
        told(ROWS, 90, 95, "recent", limit=9),
        told(ROWS, 90, 95, "count"),
        told(ROWS[2:], 85, 86, "conflict"),
    ]
    assert kinds(four(), ROWS, *reads) == []


def test_appends_that_overlap_may_be_in_any_order() -> None:
    writes = [write("a", 10, 50, 2), write("b", 40, 60, 1)]
    assert kinds(writes, [(1, "b"), (2, "a")]) == []


def test_an_append_of_unknown_outcome_may_be_there_late_or_not_at_all() -> None:
    writes = [*four(), write("e", 15, None), write("f", 15, None)]
    assert kinds(writes, [*ROWS, (5, "e")]) == []
    assert kinds(writes, [*ROWS, (5, "e")], told([*ROWS, (5, "e")], 90, 95)) == []


def test_an_append_that_failed_and_is_not_there_is_no_problem() -> None:
    assert kinds([*four(), write("e", 15, 20, outcome="failed")], ROWS) == []


@pytest.mark.parametrize(
    ("writes", "rows", "kind"),
    [
        (four(), ROWS[:3], "lost"),
        (four(), [*ROWS, (5, "d")], "doubled"),
        (four(), [*ROWS, (5, "who?")], "stranger"),
        ([*four(), write("e", 85, 90, outcome="failed")], [*ROWS, (5, "e")], "uninvited"),
        ([*four(), write("e", 15, None)], [*ROWS, (5, "e"), (6, "e")], "doubled"),
        (four(), [*ROWS[:3], (5, "d")], "gap"),
        (four(), [(2, "a"), *ROWS[1:]], "gap"),
        (four(), [*ROWS[:3], (3, "d")], "reused"),
        ([*four()[:3], write("d", 70, 80, 3)], ROWS, "misplaced"),
        ([write("a", 10, 20, 2), write("b", 30, 40, 1)], [(1, "b"), (2, "a")], "reordered"),
        ([write("a", 10, 20, call=1, place=1), write("b", 10, 20, call=1, place=0)], ROWS[:2], "scrambled"),
        ([write("a", 10, 20, 1), write("b", 30, 40, 2, expected_seq=0)], ROWS[:2], "unexpected"),
        ([write("a", 10, 20, 1, expected_seq=7)], ROWS[:1], "unexpected"),
    ],
)
def test_wrong_appends_are_seen(writes: list[Write], rows: list[Row], kind: str) -> None:
    assert kind in kinds(writes, rows)


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (told(ROWS[:1], 45, 50), "stale"),
        (told([], 21, 22), "stale"),
        (told(ROWS[:3], 90, 95, "count"), "stale"),
        (told(ROWS[1:3], 90, 95, "recent", limit=2), "stale"),
        (told(ROWS[:3], 90, 95, "conflict"), "stale"),
        (told(ROWS[:2], 22, 25), "early"),
        (told(ROWS[:4], 61, 65, "count"), "early"),
        (told([ROWS[0], ROWS[2]], 65, 68), "untrue"),
        (told([ROWS[1], ROWS[0]], 45, 48), "untrue"),
        (told([(1, "a"), (2, "B")], 45, 48), "untrue"),
        (told([*ROWS, (5, "e")], 90, 95), "untrue"),
        (told([*ROWS, (5, "e")], 90, 95, "count"), "untrue"),
        (told([*ROWS, ROWS[3]], 90, 95), "untrue"),
        (told(ROWS[1:], 90, 95), "untrue"),
        (told(ROWS[2:], 90, 95, "recent", limit=3), "untrue"),
        (told([(9, "z")], 90, 95, "conflict"), "untrue"),
    ],
)
def test_wrong_reads_are_seen(read: Read, kind: str) -> None:
    assert kinds(four(), ROWS, read) == [kind]


def test_a_read_that_saw_less_than_one_before_it_is_seen_also_when_both_might_be_right_alone() -> None:
    writes = [write("a", 10, 90, 1)]
    assert kinds(writes, ROWS[:1], told(ROWS[:1], 20, 30), told([], 40, 50)) == ["backwards"]
    assert kinds(writes, ROWS[:1], told(ROWS[:1], 20, 45), told([], 40, 50)) == []  # they overlap


def test_a_client_that_does_not_read_its_own_write_is_named() -> None:
    found = check(History(writes=four(), reads=[told(ROWS[:3], 90, 95, client=0)]), {"x": ROWS})
    assert [problem.kind for problem in found] == ["stale"]
    assert "its own" in found[0].text


def test_a_read_of_what_in_the_end_is_not_there_is_seen() -> None:
    writes = [*four(), write("e", 15, None)]
    assert kinds(writes, ROWS, told([*ROWS, (5, "e")], 90, 95)) == ["untrue"]


def test_numbers_may_skip_by_declared_steps_only() -> None:
    rows = [*ROWS[:3], (1_000_004, "d")]
    writes = [*four()[:3], write("d", 70, 80, 1_000_004)]
    assert kinds(writes, rows, step=1_000_000) == []
    assert kinds(writes, rows) == ["gap"]
    rows = [*ROWS[:3], (1_000_005, "d")]
    assert kinds([*four()[:3], write("d", 70, 80, 1_000_005)], rows, step=1_000_000) == ["gap"]


@pytest.mark.parametrize(
    ("rows", "distinct", "invoked", "ended", "wrong"),
    [(2, 2, 45, 48, 0), (2, 2, 25, 35, 0), (1, 1, 45, 48, 1), (3, 3, 45, 48, 1), (2, 1, 45, 48, 1)],
)
def test_counts_of_everything_are_of_an_instant_within_the_call(
    rows: int, distinct: int, invoked: int, ended: int, wrong: int
) -> None:
    total = Total(client=1, invoked_ns=invoked, ended_ns=ended, rows=rows, distinct=distinct)
    assert kinds(four(), ROWS, totals=[total]) == ["total"] * wrong


def test_a_count_of_everything_does_not_go_back() -> None:
    totals = [Total(client=1, invoked_ns=at, ended_ns=at + 2, rows=rows, distinct=rows) for at, rows in ((20, 1), (30, 0))]
    assert kinds([write("a", 10, 90, 1)], ROWS[:1], totals=totals) == ["total"]


def test_digests_of_ranges_are_those_of_their_rows() -> None:
    digests = Digests(ROWS)
    for start in range(5):
        for end in range(start, 5):
            assert digests.of(start, end) == digest(ROWS[start:end])
    assert len({digest(rows) for rows in ([], ROWS[:1], ROWS[:2], ROWS[::-1], [(1, "b")])}) == 5


@pytest.mark.parametrize("seed", range(50))
def test_what_a_real_list_did_passes_and_what_is_changed_in_it_does_not(seed: int) -> None:
    """A list with a lock, operated by clients whose calls overlap; then one answer is made wrong."""
    dice = random.Random(seed)
    writes: list[Write] = []
    reads: list[Read] = []
    rows: list[Row] = []
    for number in range(60):
        instant = 100 * number
        invoked, ended = instant - dice.randrange(400), instant + dice.randrange(400)
        if dice.random() < 0.5:
            rows.append((len(rows) + 1, f"e{number}"))
            known = dice.random() < 0.8
            writes.append(write(f"e{number}", invoked, ended if known else None, len(rows) if known else None, call=number))
        else:
            reads.append(told(rows, invoked, ended))
    assert kinds(writes, rows, *reads) == []
    instant = 100 * 60 + 1000
    assert kinds(writes, rows, *reads, told(rows, instant, instant + 1)) == []
    acknowledged = [one for one in writes if one.outcome == "ok"]
    without = [row for row in rows if row[1] != dice.choice(acknowledged).content]
    assert without == rows or "lost" in kinds(writes, without, *reads)
    assert acknowledged[-1].seq is not None
    assert "stale" in kinds(writes, rows, told(rows[: acknowledged[-1].seq - 1], instant, instant + 1))
