"""The plain list: events as they were appended, and from them alone what a store must answer, whatever has moved where."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from tests.sampling import DAY_US, HOUR_US, age_rate, name_of, rule_of, share
from thermocline.event import COLUMN_NAMES
from thermocline.policy import MEASURES, Policy
from thermocline.tiers.block import shard_of

Row = dict[str, Any]
"""A row of `events`; its times in µs."""
GIVEN = tuple(name for name in COLUMN_NAMES if name not in ("event_id", "seq", "ingested_at", "sample_rate"))
"""Columns whose values are the caller's."""
RATE_ERROR = 1e-12
"""How far two computations of a logarithm may be apart."""


class Known(msgspec.Struct):
    """One event of the list."""

    row: Row
    shard: int
    settled: bool = False
    archived: bool = False
    kept: bool = True


class Told(NamedTuple):
    """What the receipt of an event must say."""

    seq: int
    duplicate: bool


class Decision(NamedTuple):
    """What the archive once decided of a conversation and a rule."""

    rate: float
    policy_hash: str
    started_us: int


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What one batch of the archive must make of the list."""

    events: dict[int, float]
    """Place in the list → rate."""
    kept: set[int]
    decisions: dict[tuple[str, str], Decision]


class PlainList:
    """The events of one namespace."""

    def __init__(self, shards: int) -> None:
        self.events: list[Known] = []
        self._shards = shards
        self._ids: dict[tuple[str, str], int] = {}
        """(conversation, id the caller gave) → seq."""
        self._heads: dict[str, int] = defaultdict(int)
        self._decisions: dict[tuple[str, str], list[Decision]] = defaultdict(list)

    def head(self, conversation_id: str) -> int:
        return self._heads[conversation_id]

    def predicted(self, events: Sequence[Mapping[str, Any]]) -> list[Told]:
        """What the receipts must say if these are appended now."""
        heads, ids = dict(self._heads), dict(self._ids)
        told = []
        for event in events:
            conversation_id, given = event["conversation_id"], event.get("event_id")
            known = ids.get((conversation_id, given)) if given else None
            if known is None:
                known = heads[conversation_id] = heads.get(conversation_id, 0) + 1
                ids[conversation_id, given or ""] = known
                told.append(Told(known, False))
            else:
                told.append(Told(known, True))
        return told

    def append(self, event: Mapping[str, Any], event_id: str) -> None:
        """Take an event that was stored; nothing happens when its conversation has one of that id."""
        [told] = self.predicted([event])
        if told.duplicate:
            return
        conversation_id = event["conversation_id"]
        self._heads[conversation_id] = told.seq
        if event.get("event_id"):
            self._ids[conversation_id, event["event_id"]] = told.seq
        row = {name: event.get(name) for name in GIVEN}
        row |= {"event_id": event_id, "seq": told.seq, "ingested_at": None, "content": event.get("content", "")}
        row |= {name: row[name] + 0.0 for name in ("duration_ms", "cost_usd") if row[name] is not None}  # -0.0 is stored as 0.0
        self.events.append(Known(row, shard_of(conversation_id, self._shards)))

    def settle(self, events_of_shard: Mapping[int, int]) -> None:
        """Note that so many of each shard's events have settled."""
        for shard, count in events_of_shard.items():
            known = [one for one in self.events if one.shard == shard]
            assert len(known) >= count >= sum(one.settled for one in known), (shard, count, len(known))
            for one in known[:count]:
                one.settled = True

    @property
    def waiting(self) -> int:
        return sum(not one.settled for one in self.events)

    def sample(self, policy: Policy, before_us: int, earlier: Sample | None = None) -> Sample | None:
        """What the next batch must be made of; None when nothing is due.

        earlier  a batch that will be committed before it
        """
        decided = dict(self._decisions)
        for key, decision in (earlier.decisions if earlier else {}).items():
            decided[key] = [*decided.get(key, ()), decision]
        totals, started_us = self._totals()
        chosen: dict[int, str] = {}
        earliest: dict[tuple[str, str], int] = {}
        for place, one in enumerate(self.events):
            if not one.settled or one.archived or one.row["timestamp"] >= before_us or (earlier and place in earlier.events):
                continue
            conversation_id = one.row["conversation_id"]
            chosen[place] = name_of(rule_of(policy, one.row, totals[conversation_id]))
            key = conversation_id, chosen[place]
            earliest[key] = min(earliest.get(key, one.row["timestamp"]), one.row["timestamp"])
        if not chosen:
            return None
        decisions, changed = {}, {}
        for key, at_us in earliest.items():
            before = max(decided.get(key, ()), key=lambda one: (one.rate, one.policy_hash == policy.hash), default=None)
            decisions[key] = _decision(policy, key[1], started_us[key[0]], at_us, before)
            if before is None or before.policy_hash != policy.hash:
                changed[key] = decisions[key]
        rates = {place: decisions[self.events[place].row["conversation_id"], rule].rate for place, rule in chosen.items()}
        whole = {rule.name for rule in policy.rules if rule.scope == "conversation"}
        kept = {place for place, rate in rates.items() if rate >= 1 or self._share(place, chosen[place] in whole) < rate}
        return Sample(events=rates, kept=kept, decisions=changed)

    def _share(self, place: int, by_conversation: bool) -> float:
        row = self.events[place].row
        return share(row["conversation_id"] if by_conversation else row["event_id"])

    def archive(self, sample: Sample) -> None:
        """Note that a batch is committed."""
        for place, rate in sample.events.items():
            one = self.events[place]
            assert one.settled and not one.archived, one
            one.archived, one.kept = True, place in sample.kept
            one.row["sample_rate"] = rate
        for key, decision in sample.decisions.items():
            self._decisions[key].append(decision)

    def _totals(self) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
        """The measures of each conversation, over all that has settled, ever; and when it started."""
        found: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(MEASURES, 0))
        started_us: dict[str, int] = {}
        for one in self.events:
            if not one.settled:
                continue
            row = one.row
            name, totals = row["conversation_id"], found[row["conversation_id"]]
            started_us[name] = min(started_us.get(name, row["timestamp"]), row["timestamp"])
            totals["events"] += 1
            totals["errors"] += row["event_type"] == "error" or row["event_type"].endswith(".error") or row["status"] == "error"
            totals["interventions"] += is_intervention(row)
            totals["content_bytes"] += len(row["content"].encode())
            for measure in ("input_tokens", "output_tokens", "cost_usd"):
                totals[measure] = round(totals[measure] + (row[measure] or 0), 6)
        return found, started_us

    # What must be answered.

    def rows(self, *, whole: bool = False) -> list[Row]:
        """Rows of `events`, by conversation and seq.

        whole  before sampling
        """
        found = [{"sample_rate": 1.0, **one.row} for one in self.events if one.kept or whole]
        if whole:
            found = [{**row, "sample_rate": 1.0} for row in found]
        return sorted(found, key=lambda row: (row["conversation_id"], row["seq"]))

    def hourly(self) -> list[tuple[int, str, int, int]]:
        """Rows of hourly_stats, sorted; the hour in µs."""
        found: dict[tuple[int, str], list[int]] = defaultdict(lambda: [0, 0])
        for row in self.rows(whole=True):
            counts = found[row["timestamp"] // HOUR_US * HOUR_US, row["conversation_id"]]
            counts[0] += 1
            counts[1] += len(row["content"].encode())
        return sorted((*key, *counts) for key, counts in found.items())

    def summaries(self) -> list[tuple[str, int, int, int, int, int]]:
        """Rows of conversation_summary, sorted; its times in µs."""
        by_conversation: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows(whole=True):
            by_conversation[row["conversation_id"]].append(row)
        return sorted(
            (
                name,
                min(row["timestamp"] for row in rows),
                max(row["timestamp"] for row in rows),
                len(rows),
                len({row["task_id"] for row in rows if row["task_id"] is not None}),
                sum(is_intervention(row) for row in rows),
            )
            for name, rows in by_conversation.items()
        )

    def learn_arrivals(self, rows: Iterable[Row]) -> None:
        """Take ingested_at, which only Redis knows, from the first answer that has it."""
        arrived = {(row["conversation_id"], row["seq"]): row["ingested_at"] for row in rows}
        for one in self.events:
            if one.row["ingested_at"] is None:
                one.row["ingested_at"] = arrived.get((one.row["conversation_id"], one.row["seq"]))

    def archived_days(self) -> list[int]:
        """Days since the epoch of which something is archived."""
        return sorted({one.row["timestamp"] // DAY_US for one in self.events if one.archived})


def is_intervention(row: Row) -> bool:
    kind: str = row["event_type"]
    return kind == "intervention" or kind.startswith("intervention.")


def _decision(policy: Policy, rule_name: str, started_us: int, earliest_us: int, before: Decision | None) -> Decision:
    rule = next((one for one in policy.rules if one.name == rule_name), None)
    if before is not None:
        started_us = before.started_us
    if rule is None:
        rate = 1.0
    elif rule.fixed_rate is not None:
        rate = rule.fixed_rate
    else:
        rate = age_rate(started_us, earliest_us, policy.window_days)
    if before is not None:
        rate = before.rate if before.policy_hash == policy.hash else max(rate, before.rate)
    return Decision(rate, policy.hash, started_us)


def differences(wanted: Sequence[Row], found: Sequence[Row]) -> list[str]:
    """What of `found` is not `wanted`, in a few lines."""
    told = []
    places = [{(row["conversation_id"], row["seq"]): row for row in rows} for rows in (wanted, found)]
    if len(places[1]) != len(found):
        told.append(f"{len(found) - len(places[1])} rows are there twice")
    missing, uninvited = places[0].keys() - places[1].keys(), places[1].keys() - places[0].keys()
    told += [f"{name}: {sorted(keys)[:5]}" for name, keys in (("missing", missing), ("not invited", uninvited)) if keys]
    for place in sorted(places[0].keys() & places[1].keys()):
        told += [f"{place} {name}: {one!r}, not {other!r}" for name, other, one in _unlike(places[0][place], places[1][place])]
    if not told and [(row["conversation_id"], row["seq"]) for row in wanted] != [
        (row["conversation_id"], row["seq"]) for row in found
    ]:
        told.append("the order is another")
    return told[:8]


def _unlike(wanted: Row, found: Row) -> list[tuple[str, Any, Any]]:
    unlike = []
    for name in COLUMN_NAMES:
        one, other = wanted[name], found[name]
        if name == "sample_rate":
            if abs(one - other) > RATE_ERROR:
                unlike.append((name, one, other))
        elif repr(one) != repr(other):
            unlike.append((name, one, other))
    return unlike
