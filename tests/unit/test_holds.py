"""What groups of consumers keep from being trimmed, and for how long."""

from __future__ import annotations

from thermocline.archiver.holds import Holds
from thermocline.config import HotSettings
from thermocline.tiers.block import Position
from thermocline.tiers.groups import Hold

NOW_MS = 1_800_000_000_000
DUE = [Position(100, 0), None]


def holds(**settings: float) -> Holds:
    return Holds(HotSettings(hold_s_max=3600, **settings))  # type: ignore[call-arg, arg-type]


def hold(position: Position, *, seen_ms: int = NOW_MS, group: str = "g") -> Hold:
    return Hold(group, position, seen_ms)


def limited(one: Holds, held: list[Hold], now_s: float, *, full: bool = False, now_ms: int = NOW_MS) -> list[Position | None]:
    return one.limited(DUE, {0: held}, now_s=now_s, now_ms=now_ms, full=full)


def test_what_the_slowest_live_group_needs_stays() -> None:
    found = limited(holds(), [hold(Position(50, 1)), hold(Position(40, 0), group="h"), hold(Position(200, 0), group="i")], 0)
    assert found == [Position(40, 0), None]


def test_a_group_that_is_past_it_holds_nothing() -> None:
    assert limited(holds(), [hold(Position(100, 0))], 0) == DUE


def test_a_group_of_which_no_consumer_asked_for_an_hour_holds_nothing() -> None:
    assert limited(holds(), [hold(Position(1, 0), seen_ms=NOW_MS - 3_600_000)], 0) == DUE


def test_a_live_group_holds_for_an_hour_at_most() -> None:
    one = holds()
    for now_s, expected in ((0, Position(50, 0)), (3599, Position(50, 0)), (3600, Position(100, 0)), (9999, Position(100, 0))):
        assert limited(one, [hold(Position(50, 0))], now_s)[0] == expected, now_s


def test_a_group_that_caught_up_may_hold_again() -> None:
    one = holds()
    assert limited(one, [hold(Position(50, 0))], 0)[0] == Position(50, 0)
    assert limited(one, [hold(Position(100, 0))], 4000)[0] == Position(100, 0)
    assert limited(one, [hold(Position(60, 0))], 4001)[0] == Position(60, 0)


def test_a_full_log_is_not_held() -> None:
    assert limited(holds(), [hold(Position(50, 0))], 0, full=True) == DUE
