"""The rules of a history. Every step is done in the real world and said of the list; then all three relations are compared."""

from __future__ import annotations

import itertools
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, get_state_machine_test, initialize, invariant, precondition, rule

from tests.archiving import Crash
from tests.killed import BATCH_STEPS, VISIBLE_FROM
from tests.sampling import DAY_US, HOUR_US
from tests.servers import RedisServer
from thermocline.errors import IncompleteAnswer, OutcomeUnknown, PartialAppend, SequenceConflict, ThermoclineError
from thermocline.event import Receipt
from thermocline.ingest.producer import Producer
from thermocline.policy import DEFAULT_RULES

from .model import PlainList, Row, Sample, differences
from .world import SHARDS, STEPS, World

CONVERSATIONS = ("a", "b%_*'\"", "ü 😀 " + "x" * 60, "l" * 256)
KINDS = ("output.chunk", "tool.call", "error", "tool.error", "intervention", "intervention.asked", "file.created")
TEXTS = ("", "text", "ü😀\u2028", "tail\x00", '{"a":1}\n{"b":2}', "\r\n\t")
DAYS_AGO = (0, 0, 1, 6, 7, 8, 8, 9, 30)
OLD_DAYS_AGO = (8, 8, 9, 30)
CLOCKS_US = tuple(hours * HOUR_US for hours in (0, 2, -26, 9 * 24, 400 * 24, -40 * 24))
POLICIES: dict[str, Any] = {
    "default": DEFAULT_RULES,
    "keep all": [{"name": "all", "keep": True}],
    "half": [{"name": "whole", "event_types": ["error"], "keep": True}, {"name": "half", "rate": 0.5}],
    "none": [{"name": "none", "rate": 0}],
    "conversations": [
        {"name": "failed", "scope": "conversation", "when": {"errors_min": 1}, "keep": True},
        {"name": "large", "scope": "conversation", "when": {"events_min": 3}, "rate": 0.5},
        {"name": "calls", "event_types": ["tool.*"], "formula": "age"},
    ],
}
EVENTS = (
    "SELECT * REPLACE (epoch_us(timestamp) AS timestamp, epoch_us(ingested_at) AS ingested_at)"
    " FROM events ORDER BY conversation_id, seq"
)
HOURLY = "SELECT epoch_us(hour), conversation_id, event_count, total_bytes FROM hourly_stats ORDER BY ALL"
SUMMARIES = (
    "SELECT conversation_id, epoch_us(started_at), epoch_us(ended_at), total_events, task_count, interventions"
    " FROM conversation_summary ORDER BY ALL"
)


class Ground:
    """What histories stand on: one server, a folder, and counts of what was done."""

    def __init__(self, folder: Path, server: RedisServer) -> None:
        self.folder = folder
        self.server = server
        self.names = itertools.count()
        self.rules: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        """What came of them: crashes by step, events archived, dropped by sampling …"""
        self.histories = 0


specs = st.fixed_dictionaries(
    {
        "conversation_id": st.sampled_from(CONVERSATIONS),
        "event_type": st.sampled_from(KINDS),
        "content": st.sampled_from(TEXTS),
        "at": st.tuples(st.sampled_from(DAYS_AGO), st.sampled_from((0, 1, HOUR_US - 1, 11 * HOUR_US, DAY_US - 1))),
    },
    optional={
        "task_id": st.sampled_from(("t1", "t2", "")),
        "status": st.sampled_from(("error", "ok")),
        "agent_id": st.sampled_from(("agent", "ä")),
        "model": st.just("m"),
        "tool_name": st.just("tool"),
        "cost_usd": st.sampled_from((0.1, 0.7, -0.0, 1e22)),
        "duration_ms": st.sampled_from((1.5, 0.0)),
        "input_tokens": st.sampled_from((0, 7, 2**63 - 1)),
        "metadata": st.sampled_from(("{}", '{"a": 1.00}', ' {"b":"\\u0000"}')),
        "own_id": st.just(True),
    },
)
few = st.lists(specs, max_size=3)
breaks = {move: st.none() | st.sampled_from(steps) for move, steps in STEPS.items()}
breaks["archive"] |= st.sampled_from(BATCH_STEPS[VISIBLE_FROM:])


class Worlds(RuleBasedStateMachine):
    """One history."""

    ground: Ground

    @initialize(
        bucket=st.booleans(),
        cached=st.booleans(),
        policy=st.sampled_from(tuple(POLICIES)),
        rolled=st.booleans(),
        first=st.lists(specs, min_size=1, max_size=30),
    )
    def begin(self, bucket: bool, cached: bool, policy: str, rolled: bool, first: list[dict[str, Any]]) -> None:
        """rolled  whether every segment carries rollups
        first   events that are there before anything else happens
        """
        ground = self.ground
        ground.histories += 1
        self.list = PlainList(SHARDS)
        self.pending: Sample | None = None
        self.committed = 0
        self.numbers = itertools.count(1)
        self.given: list[dict[str, Any]] = []
        """Events that were appended with an id of their own."""
        self.world = World(
            ground.folder,
            ground.server,
            f"history-{next(ground.names)}",
            bucket=bucket,
            cached=cached,
            warm={"rollup_rows_min": 1} if rolled else {},
            sampling={"rules": POLICIES[policy]},
        )
        self.append_many(first)

    def event(self, spec: dict[str, Any]) -> dict[str, Any]:
        """The event of a spec: its time, and its id if it is to have one."""
        event = {name: value for name, value in spec.items() if name not in ("at", "own_id")}
        days, within_us = spec["at"]
        begun_us = self.world.begun_us
        event["timestamp"] = min((begun_us // DAY_US - days) * DAY_US + within_us, begun_us)
        if spec.get("own_id"):
            event["event_id"] = str(uuid.UUID(int=next(self.numbers)))
        return event

    def events(self, given: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        events = []
        for spec in given:
            events.append(self.event(spec))
            if "event_id" in events[-1]:
                self.given.append(events[-1])
        return events

    def take(self, events: Sequence[dict[str, Any]], receipts: Sequence[Receipt]) -> None:
        """Say to the list what was stored, and compare the receipts."""
        for event, receipt in zip(events, receipts, strict=True):
            [told] = self.list.predicted([event])
            assert (receipt.seq, receipt.duplicate) == told, (event, receipt, told)
            assert receipt.conversation_id == event["conversation_id"]
            assert receipt.durability == "fsync"
            self.list.append(event, receipt.event_id)

    def did(self, what: str) -> None:
        self.ground.rules[what] += 1

    # Appends.

    @rule(spec=specs, expected=st.sampled_from((None, None, 0, -1)))
    def append(self, spec: dict[str, Any], expected: int | None) -> None:
        """expected  how far expected_seq is from the conversation's last seq; None: not given"""
        self.did("append")
        [event] = self.events([spec])
        arguments = {**event}
        conversation_id, kind, content = (arguments.pop(name) for name in ("conversation_id", "event_type", "content"))
        head = self.list.head(conversation_id)
        if expected is not None:
            arguments["expected_seq"] = max(0, head + expected)
        try:
            receipt = self.world.client.append(conversation_id, kind, content, **arguments)
        except SequenceConflict as exc:
            assert expected is not None and max(0, head + expected) != head and exc.last_seq == head
            self.ground.seen["sequence conflicts"] += 1
            return
        assert expected is None or max(0, head + expected) == head
        self.take([event], [receipt])

    @rule(given=st.lists(specs, min_size=1, max_size=12))
    def append_many(self, given: list[dict[str, Any]]) -> None:
        self.did("append_many")
        events = self.events(given)
        self.take(events, self.world.client.append_many(events))

    @rule(given=st.lists(specs, min_size=1, max_size=8))
    def produce(self, given: list[dict[str, Any]]) -> None:
        """A Producer gives no receipts, so each of its events has an id of its own."""
        self.did("produce")
        events = self.events([{**spec, "own_id": True} for spec in given])
        with Producer(self.world.settings, tiers=self.world.tiers, linger_ms=0) as producer:
            for event in events:
                producer.append(**event)
        for event in events:
            self.list.append(event, event["event_id"])

    @precondition(lambda self: self.given)
    @rule(data=st.data(), others=st.lists(specs, max_size=3))
    def repeat(self, data: st.DataObject, others: list[dict[str, Any]]) -> None:
        """Events that were given an id are appended once more, among others: there is no second copy."""
        self.did("repeat")
        again = data.draw(st.lists(st.sampled_from(self.given), min_size=1, max_size=3))
        self.take(events := [*again, *self.events(others)], self.world.client.append_many(events))
        self.ground.seen["repeated events"] += len(again)

    @rule(
        given=st.lists(specs, min_size=1, max_size=6),
        faults=st.lists(st.sampled_from(("request", "reply")), max_size=3),
        then=st.sampled_from(("heal", "heal", "retry", "look")),
    )
    def append_over_a_bad_line(self, given: list[dict[str, Any]], faults: list[str], then: str) -> None:
        """The same blocks are sent again until it is known what became of them; what is surely not stored is appended anew. So
        in the end all are stored, once, however busy the machine is.

        then  the line heals by itself, or all replies get lost until the deadline, and then OutcomeUnknown is asked
        """
        self.did("append_over_a_bad_line")
        self.refused: list[dict[str, Any]] = []
        events = self.events(given)
        with self.world.losing(faults, all_lost=then != "heal") as client:
            unknown = self.settled(events, lambda: client.append_many(events))
        while unknown is not None:
            rest, cause = unknown
            self.ground.seen["unknown outcomes"] += 1
            if then == "look" and len(rest) == 1:
                stored = cause.was_stored()
                self.ground.seen[f"was_stored() said {stored}"] += 1
                if not stored:
                    self.refused += rest
                    break
            unknown = self.settled(rest, cause.retry)
        if self.refused:
            self.ground.seen["refused and appended anew"] += len(self.refused)
            self.take(self.refused, self.world.client.append_many(self.refused))

    def settled(
        self, events: list[dict[str, Any]], act: Callable[[], list[Receipt]]
    ) -> tuple[list[dict[str, Any]], OutcomeUnknown] | None:
        """Take what `act` stored; the events of which that is not known, and who can tell."""
        try:
            self.take(events, act())
            return None
        except PartialAppend as exc:
            told = [(event, receipt) for event, receipt in zip(events, exc.receipts, strict=True) if receipt is not None]
            self.take([event for event, _ in told], [receipt for _, receipt in told])
            rest, cause = [events[index] for index in exc.rest_indices], exc.cause
        except ThermoclineError as exc:
            rest, cause = events, exc
        if isinstance(cause, OutcomeUnknown):
            return rest, cause
        self.refused += rest
        return None

    @precondition(lambda self: self.list.archived_days())
    @rule(data=st.data(), given=st.lists(specs, min_size=1, max_size=3), archives=st.booleans())
    def append_late(self, data: st.DataObject, given: list[dict[str, Any]], archives: bool) -> None:
        """Events of days that are archived, and then, if so, they are archived too."""
        self.did("append_late")
        day = data.draw(st.sampled_from(self.list.archived_days()))
        events = [{**event, "timestamp": day * DAY_US + event["timestamp"] % HOUR_US} for event in self.events(given)]
        events = [event for event in events if event["timestamp"] <= self.world.begun_us]
        self.ground.seen["late events"] += len(events)
        self.take(events, self.world.client.append_many(events))
        if archives:
            self.archive(None, None, [], True)

    # Moves.

    def move(self, name: str, act: Callable[[], Any], breaking: str | None) -> Any:
        """What `act` gives; None, and everything opened again, when it was broken off."""
        self.did(name)
        try:
            return self.world.move(act, breaking)
        except Crash as exc:
            self.ground.seen[f"{name} broken off at {exc}"] += 1
            return None
        finally:
            self.note_settled()

    def note_settled(self) -> None:
        self.list.settle({state.shard: state.events for state in self.world.tiers.ledger.view().shards})

    @rule(breaking=breaks["settle"], given=few)
    def settle(self, breaking: str | None, given: list[dict[str, Any]]) -> None:
        """given  appended before"""
        if given:
            self.append_many(given)
        waiting = self.list.waiting
        self.move("settle", self.world.settle, breaking)
        self.ground.seen["settled events"] += waiting - self.list.waiting

    @rule(breaking=breaks["merge"], segments=st.lists(few, max_size=2))
    def merge(self, breaking: str | None, segments: list[list[dict[str, Any]]]) -> None:
        """segments  made before, each of these events and what waits"""
        for given in segments:
            self.settle(None, given)
        self.ground.seen["merges"] += bool(self.move("merge", self.world.merge, breaking))

    @rule(breaking=breaks["trim"], later_s=st.sampled_from((0, 4000)), settles=st.booleans(), given=few)
    def trim(self, breaking: str | None, later_s: int, settles: bool, given: list[dict[str, Any]]) -> None:
        """settles  before
        given  appended in between, so that they wait
        """
        if settles:
            self.settle(None, [])
            self.world.move(self.world.trimmer.step)
        if given:
            self.append_many(given)
        self.world.monotonic_s += later_s
        self.ground.seen["trimmed blocks"] += self.move("trim", self.world.trimmer.step, breaking) or 0

    @rule(
        breaking=breaks["archive"],
        policy=st.sampled_from((None, None, *POLICIES)),
        old=few,
        settles=st.sampled_from((True, True, False)),
    )
    def archive(self, breaking: str | None, policy: str | None, old: list[dict[str, Any]], settles: bool) -> None:
        """policy  another one from now on
        old     events that are appended before, old enough to be archived
        settles  whether everything that waits is settled first
        """
        if policy is not None:
            self.world.change_policy(POLICIES[policy])
        if old:
            self.append_many([{**spec, "at": (OLD_DAYS_AGO[spec["at"][0] % 4], spec["at"][1])} for spec in old])
        if settles:
            self.settle(None, [])
        self.batch("archive", self.world.archive, breaking)

    @rule(breaking=breaks["compact"], batches=st.lists(few, max_size=2))
    def compact(self, breaking: str | None, batches: list[list[dict[str, Any]]]) -> None:
        """batches  archived before, each of these events and what is due"""
        for old in batches:
            self.archive(None, None, old, True)
        found = self.batch("compact", self.world.compactor.step, breaking, archives=False)
        self.ground.seen["compactions"] += found is not None

    def batch(self, name: str, act: Callable[[], Any], breaking: str | None, *, archives: bool = True) -> Any:
        """Do what writes a batch of the archive, after the one that was begun, and say to the list which came through."""
        due = [self.pending] if self.pending else []
        if archives:
            new = self.list.sample(self.world.settings.policy, self.world.cutoff_us, self.pending)
            due += [new] if new else []
        found = self.move(name, act, breaking)
        broken = self.world.broken
        done = self.world.archived_batches() - self.committed
        self.committed += done
        assert done == len(due) or (broken and done <= len(due)), f"{done} of {len(due)} batches are committed"
        for sample in due[:done]:
            self.list.archive(sample)
            self.ground.seen["archived events"] += len(sample.events)
            self.ground.seen["of them sampled out"] += len(sample.events) - len(sample.kept)
        if found is not None and found.kind == "archive":
            assert (found.events_in, found.events_kept) == (len(due[-1].events), len(due[-1].kept))
        if done == len(due):
            self.pending = None
        elif due[done] is not self.pending:
            self.pending = due[done] if "describe done" in self.world.reached else None
        return found

    @rule()
    def work(self) -> None:
        """A whole pass of a worker, which settles everything first."""
        self.list.settle(dict(Counter(one.shard for one in self.list.events)))
        self.batch("work", self.world.work, None, archives=not self.world.clock_is_off)
        self.world.take_over()

    @rule(breaking=breaks["purge"])
    def purge(self, breaking: str | None) -> None:
        self.move("purge", self.world.clean, breaking)

    @rule(breaking=breaks["rehydrate"], data=st.data(), hours=st.sampled_from((1, 24 * 100)))
    def rehydrate(self, breaking: str | None, data: st.DataObject, hours: int) -> None:
        days = [_day(day) for day in self.list.archived_days()]
        what = data.draw(st.sampled_from((*days, *CONVERSATIONS)))
        self.move("rehydrate", lambda: self.world.rehydrate(what, hours), breaking)

    # What happens to it.

    @rule()
    def restart(self) -> None:
        self.did("restart")
        self.world.reopen()

    @rule(reopen=st.booleans())
    def kill_redis(self, reopen: bool) -> None:
        self.did("kill_redis")
        self.world.restart_redis()
        if reopen:
            self.world.reopen()

    @rule(offset_us=st.sampled_from(CLOCKS_US))
    def set_the_workers_clock(self, offset_us: int) -> None:
        self.did("set_the_workers_clock")
        self.world.offset_us = offset_us

    @rule()
    def lose_the_ledger(self) -> None:
        """A batch that was begun counts from then on if any table shows it, and never will if none does."""
        self.did("lose_the_ledger")
        self.world.lose_ledger()
        self.note_settled()
        done = self.world.archived_batches() - self.committed
        self.committed += done
        assert done <= (self.pending is not None)
        if self.pending is not None and done:
            self.list.archive(self.pending)
        self.pending = None

    # Answers.

    def answer(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        return self.world.store.sql(sql, params or None).fetchall()

    @invariant()
    def both_worlds_agree(self) -> None:
        if not hasattr(self, "world"):
            return
        found: list[Row] = self.world.store.sql(EVENTS).to_arrow().to_pylist()
        self.list.learn_arrivals(found)
        assert differences(self.list.rows(), found) == []
        assert self.answer(HOURLY) == self.list.hourly()
        assert self.answer(SUMMARIES) == self.list.summaries()

    @rule(
        name=st.sampled_from(CONVERSATIONS), kind=st.sampled_from(KINDS), days=st.sampled_from(DAYS_AGO), limit=st.integers(1, 9)
    )
    def query(self, name: str, kind: str, days: int, limit: int) -> None:
        """Questions that leave out tiers, files and rows, asked in several ways."""
        self.did("query")
        rows, whole = self.list.rows(), self.list.rows(whole=True)
        day_us = (self.world.begun_us // DAY_US - days) * DAY_US
        span = f"timestamp >= make_timestamptz({day_us}) AND timestamp < make_timestamptz({day_us + DAY_US})"
        within = [row for row in rows if day_us <= row["timestamp"] < day_us + DAY_US]
        assert self.answer("SELECT count(*), count(DISTINCT (conversation_id, seq)) FROM events") == [(len(rows), len(rows))]
        history = self.answer("SELECT seq, content, metadata FROM events WHERE conversation_id = ? ORDER BY seq", name)
        assert history == [(row["seq"], row["content"], row["metadata"]) for row in rows if row["conversation_id"] == name]
        assert self.answer("SELECT count(*) FROM events WHERE event_type = ?", kind) == [
            (sum(row["event_type"] == kind for row in rows),)
        ]
        assert self.answer(f"SELECT conversation_id, seq FROM events WHERE {span} ORDER BY ALL") == [
            (row["conversation_id"], row["seq"]) for row in within
        ]
        assert self.answer(
            f"SELECT count(*) FROM events WHERE {span} AND conversation_id = ? AND event_type = ?", name, kind
        ) == [(sum(row["conversation_id"] == name and row["event_type"] == kind for row in within),)]
        assert self.answer("SELECT coalesce(sum(event_count), 0), coalesce(sum(total_bytes), 0) FROM hourly_stats") == [
            (len(whole), sum(len(row["content"].encode()) for row in whole))
        ]
        assert self.answer("SELECT coalesce(sum(event_count), 0) FROM hourly_stats WHERE conversation_id = ?", name) == [
            (self.list.head(name),)
        ]
        assert self.answer(
            f"SELECT sum(event_count) FROM hourly_stats WHERE hour >= make_timestamptz({day_us})"
            f" AND hour < make_timestamptz({day_us + DAY_US}) HAVING count(*) > 0"
        ) == [(count,) for count in [sum(day_us <= row["timestamp"] < day_us + DAY_US for row in whole)] if count]
        summary = [row for row in self.list.summaries() if row[0] == name]
        assert self.answer("SELECT total_events, task_count FROM conversation_summary WHERE conversation_id = ?", name) == [
            (row[3], row[4]) for row in summary
        ]
        self.look_at_the_newest(name, limit, rows, whole)
        self.ask_for_all(rows, whole, name, kind)

    def look_at_the_newest(self, name: str, limit: int, rows: list[Row], whole: list[Row]) -> None:
        """recent() answers from Redis, where nothing is sampled, or from all tiers."""
        found = self.world.store.recent(name, limit).fetchall()
        of_rows = [[row for row in each if row["conversation_id"] == name][-limit:] for each in (whole, rows)]
        places = [(row[0], row[2], row[17]) for row in found]
        assert places in [[(row["event_id"], row["seq"], row["content"]) for row in each] for each in of_rows]

    def ask_for_all(self, rows: list[Row], whole: list[Row], name: str, kind: str) -> None:
        """require="complete" gives the number of all events, or refuses; and it refuses when some are sampled out."""
        for where, asked in (
            ("true", lambda row: True),
            (f"event_type = '{kind}'", lambda row: row["event_type"] == kind),
            ("conversation_id = ?", lambda row: row["conversation_id"] == name),
        ):
            params = [name] if "?" in where else None
            try:
                found = self.world.store.sql(f"SELECT count(*) FROM events WHERE {where}", params, require="complete").fetchall()
            except IncompleteAnswer:
                assert any(one.archived and one.row["sample_rate"] < 1 for one in self.list.events)
                continue
            assert found == [(sum(map(asked, whole)),)]
            assert found == [(sum(map(asked, rows)),)]

    @rule()
    def count_the_tiers(self) -> None:
        """status() and verify() say where everything is, and that nothing is missing."""
        self.did("count_the_tiers")
        tiers = {tier.tier: tier.events for tier in self.world.store.status().tiers}
        events = self.list.events
        assert tiers == {
            "hot": self.list.waiting,
            "warm": sum(one.settled and not one.archived for one in events),
            "cold": sum(one.archived and one.kept for one in events),
        }
        assert self.world.store.verify().problems == ()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            assert self.world.store.verify(deep=True).problems == ()
        finally:
            self.world.end()


def play(ground: Ground, histories: int, steps: int, *, seed: int | None = None, shrink: bool = False) -> None:
    """Play so many histories; the first step at which the worlds differ raises.

    seed  None: always the same histories
    """
    Worlds.ground = ground
    how = settings(
        max_examples=histories,
        stateful_step_count=steps,
        derandomize=seed is None,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    test = get_state_machine_test(Worlds, settings=how)
    if seed is not None:
        test = with_seed(seed)(test)
    test()


def counts(ground: Ground) -> dict[str, Any]:
    return {
        "histories": ground.histories,
        "steps": sum(ground.rules.values()),
        "by_rule": dict(sorted(ground.rules.items())),
        "seen": dict(sorted(ground.seen.items())),
    }


def _day(day: int) -> str:
    return date.fromordinal(date(1970, 1, 1).toordinal() + day).isoformat()
