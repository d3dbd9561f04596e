"""What Redis has on disk under `everysec`, told without a clock: a Redis that answers as scripted."""

from __future__ import annotations

from typing import Any

import pytest

from tests.blocks import cut_of, facts, rows_in_order
from thermocline.archiver.durable import SAMPLES_MAX, Durable
from thermocline.config import HotSettings
from thermocline.tiers.hot import ServerFacts, ShardCut

SETTINGS = HotSettings(durable_lag_s=2)  # type: ignore[call-arg]


class FakeRedis:
    """Answers `facts` with `answers` in turn, the last one for ever; keeps the time of both clocks."""

    def __init__(self, **changes: Any) -> None:
        self.answers: list[ServerFacts] = [facts(**changes)]
        self.asked = 0
        self.now_s = 100.0

    def facts(self) -> ServerFacts:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def say(self, *answers: dict[str, Any]) -> None:
        self.answers = [facts(**answer) for answer in answers]

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def durable(self) -> Durable:
        return Durable(self, SETTINGS, monotonic=lambda: self.now_s, sleep=self.sleep)  # type: ignore[arg-type]


def cut(blocks: int, **changes: Any) -> tuple[ShardCut, ...]:
    return (cut_of(rows_in_order([1] * blocks), **changes),)


@pytest.mark.parametrize(
    "kind", [{"append_fsync": "always"}, {"append_fsync": "no"}, {"append_only": False, "append_fsync": "no"}]
)
def test_where_acknowledged_is_all_redis_promises_everything_may_settle_at_once(kind: dict[str, Any]) -> None:
    redis = FakeRedis(**kind, disk_ok=False)
    durable = redis.durable()
    assert durable.candidate(cut(1)) == cut(1)
    assert durable.prove()


def test_under_everysec_a_cut_is_a_candidate_once_its_mark_is_old_enough() -> None:
    redis = FakeRedis()
    durable = redis.durable()
    assert durable.candidate(cut(1)) is None
    redis.now_s += 1
    assert durable.candidate(cut(2)) is None
    redis.now_s += 1
    assert durable.candidate(cut(3)) == cut(1)
    redis.now_s += 1
    assert durable.candidate(cut(3)) == cut(2)
    redis.now_s += 1
    assert durable.candidate(cut(3)) == cut(3)
    redis.now_s += 100
    assert durable.candidate(cut(3)) == cut(3)


def test_no_mark_is_made_while_an_fsync_runs_or_the_last_write_failed() -> None:
    redis = FakeRedis(disk_ok=False)
    durable = redis.durable()
    assert durable.candidate(cut(1)) is None
    redis.now_s += 10
    assert durable.candidate(cut(1)) is None
    redis.say({"disk_ok": True})
    assert durable.candidate(cut(1)) is None
    redis.now_s += 2
    assert durable.candidate(cut(1)) == cut(1)


def aged(redis: FakeRedis) -> Durable:
    durable = redis.durable()
    durable.candidate(cut(1))
    redis.now_s += 2
    assert durable.candidate(cut(1)) == cut(1)
    return durable


def test_the_first_answer_after_the_lag_proves_nothing_for_redis_may_have_stood_still() -> None:
    """It may be the very turn that starts the fsync; only the answer after it can tell that the fsync has ended."""
    redis = FakeRedis()
    durable = aged(redis)
    redis.say({"disk_ok": True}, {"disk_ok": False})
    assert not durable.prove()


def test_a_running_fsync_is_waited_for_a_little() -> None:
    redis = FakeRedis()
    durable = aged(redis)
    redis.say({}, {"disk_ok": False}, {"disk_ok": False}, {"disk_ok": True})
    started_s = redis.now_s
    assert durable.prove()
    assert redis.now_s - started_s == pytest.approx(0.02)


def test_an_fsync_that_takes_long_is_left_to_the_next_pass() -> None:
    redis = FakeRedis()
    durable = aged(redis)
    redis.say({"disk_ok": False})
    redis.asked = 0
    assert not durable.prove()
    assert redis.asked == SAMPLES_MAX + 1
    redis.say({"disk_ok": True})
    assert durable.candidate(cut(1)) == cut(1)
    assert durable.prove()


def test_a_redis_that_restarts_while_it_is_asked_proves_nothing() -> None:
    redis = FakeRedis()
    durable = aged(redis)
    redis.say({}, {"run_id": "run2"})
    assert not durable.prove()


@pytest.mark.parametrize("change", ["run", "era", "incarnation"])
def test_marks_of_another_run_era_or_incarnation_do_not_count(change: str) -> None:
    redis = FakeRedis()
    durable = redis.durable()
    durable.candidate(cut(1))
    redis.now_s += 2
    changed = {"run": {}, "era": {"era": 1}, "incarnation": {"incarnation": "j"}}[change]
    if change == "run":
        redis.say({"run_id": "run2"})
    assert durable.candidate(cut(1, **changed)) is None
    redis.now_s += 2
    assert durable.candidate(cut(1, **changed)) == cut(1, **changed)
    assert durable.run_id == ("run2" if change == "run" else "run1")


def test_turning_fsync_to_always_makes_everything_a_candidate() -> None:
    redis = FakeRedis()
    durable = aged(redis)
    redis.say({"append_fsync": "always"})
    assert durable.candidate(cut(5)) == cut(5)
    assert durable.prove()


def test_marks_stay_few_however_often_a_pass_looks() -> None:
    redis = FakeRedis()
    durable = redis.durable()
    found = set()
    for number in range(1, 3000):
        redis.now_s += 0.001
        candidate = durable.candidate(cut(1, events_total=number))
        if candidate is not None:
            found.add(candidate[0].events_total)
        assert len(durable._marks) <= 103
    assert len(found) > 40
    assert max(found) >= 3000 - 2100
