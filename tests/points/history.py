"""What was appended, and whether a store still says exactly that."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from thermocline.store import Store

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
Row = tuple[Any, ...]
ROWS = (
    "SELECT conversation_id, seq, event_type, content, metadata, epoch_us(timestamp), cost_usd, input_tokens, duration_ms,"
    " task_id FROM events ORDER BY conversation_id, seq"
)
HOURLY = "SELECT epoch_us(hour), conversation_id, event_count, total_bytes FROM hourly_stats ORDER BY ALL"
SUMMARY = (
    "SELECT conversation_id, epoch_us(started_at), epoch_us(ended_at), total_events, task_count, interventions"
    " FROM conversation_summary ORDER BY ALL"
)
TYPES = ("output.chunk", "tool.call", "error", "intervention")
CONVERSATIONS = 7
WILL_BE_REJECTED = "settle will put it into rejected/"


class History:
    """Every event appended, by what it must read as."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.expired_before_us = 0
        self._seqs: dict[str, int] = defaultdict(int)

    def copy(self) -> History:
        """One that goes on for itself."""
        other = History()
        other.rows, other.expired_before_us = list(self.rows), self.expired_before_us
        other._seqs.update(self._seqs)
        return other

    def events(self, count: int, *, first_us: int, days: float, conversations: int = CONVERSATIONS) -> list[dict[str, Any]]:
        """The next events, spread over so many days from `first_us` on; noted as appended."""
        start, made = len(self.rows), []
        for number in range(start, start + count):
            given = {
                "conversation_id": f"c{number % conversations}",
                "event_type": TYPES[number % len(TYPES)],
                "content": f"{number} " + "ü" * (number % 5),
                "metadata": json.dumps({"number": number, "of": [None, 1.00]}),
                "timestamp": first_us + int((number - start) * days * DAY_US / count),
                "cost_usd": number / 7,
                "input_tokens": number,
                "duration_ms": number * 1.5,
                "task_id": f"task-{number % 3}",
            }
            made.append(given)
            self.note(given)
        return made

    def note(self, given: dict[str, Any]) -> None:
        """An event was appended."""
        conversation_id = given["conversation_id"]
        self._seqs[conversation_id] += 1
        names = ("event_type", "content", "metadata", "timestamp", "cost_usd", "input_tokens", "duration_ms", "task_id")
        self.rows.append((conversation_id, self._seqs[conversation_id], *(given[name] for name in names)))

    def problems(self, store: Store) -> list[str]:
        """Where the three relations do not say what was appended: rows, order, values, statistics."""
        expired = sum(one.erased for one in store.tiers.ledger.view().totals) > 0
        rows = sorted(row for row in self.rows if not expired or row[5] >= self.expired_before_us)
        found = _difference("events", store.sql(ROWS).fetchall(), rows)
        found += _difference("hourly_stats", store.sql(HOURLY).fetchall(), self._hourly())
        return found + _difference("conversation_summary", store.sql(SUMMARY).fetchall(), self._summary())

    def _hourly(self) -> list[Row]:
        sums: dict[tuple[int, str], list[int]] = defaultdict(lambda: [0, 0])
        for row in self.rows:
            found = sums[row[5] // HOUR_US * HOUR_US, row[0]]
            found[0] += 1
            found[1] += len(row[3].encode())
        return sorted((*key, *values) for key, values in sums.items())

    def _summary(self) -> list[Row]:
        by_conversation: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            by_conversation[row[0]].append(row)
        return sorted(
            (name, min(r[5] for r in rows), max(r[5] for r in rows), len(rows), len({r[9] for r in rows}), _interventions(rows))
            for name, rows in by_conversation.items()
        )


def _interventions(rows: list[Row]) -> int:
    return sum(row[2] == "intervention" for row in rows)


def _difference(name: str, found: list[Row], expected: list[Row]) -> list[str]:
    if found == expected:
        return []
    missing, more = set(expected) - set(found), set(found) - set(expected)
    doubled = len(found) - len(set(found))
    shown = f"{len(missing)} missing, {len(more)} unknown, {doubled} doubled of {len(expected)}"
    return [f"{name}: {shown}; such as {sorted(missing)[:2]} missing, {sorted(more)[:2]} unknown"]


def verify_problems(store: Store, *, deep: bool) -> list[str]:
    """What `verify` finds, but for lines that settle will reject."""
    return [one for one in store.verify(deep=deep).problems if WILL_BE_REJECTED not in one]
