"""Synthetic agent events, seeded and the same every time, made by the column: a hundred million take minutes.

A week of conversations in the shape of recorded ones (shape.py), most of them idle after some minutes, and a few hot ones that go
on all week. Conversations are numbered; every value of an event follows from its conversation's number and its place in it.

    load = Workload(1_000_000, end_us=…)
    for table in load.day(0): …          # sorted by conversation and time, as a merged segment is
    for table in load.arrivals(): …      # as they come in when ten conversations are under way at any moment
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from . import shape
from .text import Choices, Cuttings, pool

DAY_US = 86_400_000_000
DAYS = 7
BATCH_ROWS = 100_000
METADATA_TEXTS = 16_384
"""Of each kind that has metadata."""
GAP_MS = (2_000, 16_000)
"""Between two events of a conversation, on average."""
Ints = npt.NDArray[np.int64]


def mixed(numbers: npt.NDArray[Any], salt: int) -> npt.NDArray[np.uint64]:
    """A well-mixed number for each of `numbers`, another one for every salt (splitmix64)."""
    with np.errstate(over="ignore"):
        value = numbers.astype(np.uint64) + np.uint64(salt) * np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def unit(numbers: npt.NDArray[Any], salt: int) -> npt.NDArray[np.float64]:
    """`mixed` as a number from 0 to 1."""
    return (mixed(numbers, salt) >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def at_quantile(share: npt.NDArray[np.float64], values: tuple[int, ...]) -> Ints:
    return np.interp(share, shape.QUANTILES, values).astype(np.int64)


class Workload:
    """`events` events of the week before `end_us`.

    days          of the period, if not a week
    today_events  so many of them lie in the day after it, for what has not been merged yet
    """

    def __init__(self, events: int, *, end_us: int, seed: int = 1, days: int = DAYS, today_events: int = 0) -> None:
        self.events = events
        self.seed = seed
        self.full_days = days
        self.start_us = end_us - days * DAY_US
        self.days = days + bool(today_events)
        full = (events - today_events) / events
        self._until = np.array([full * number / days for number in range(1, days + 1)] + [1.0] * bool(today_events))
        hot = int(events * shape.HOT_SHARE)
        self.hot_events = max(1, min(shape.HOT_EVENTS, hot))
        self.hot_count = hot // self.hot_events
        self._hot_cuts = np.concatenate([[0], np.round(self._until * self.hot_events)]).astype(np.int64)
        self._sizes = self._run_sizes(events - self.hot_count * self.hot_events)
        ends = np.cumsum(self._sizes)
        cuts = np.searchsorted(ends, self._until[:-1] * ends[-1], side="right")
        self._run_cuts = np.concatenate([[0], cuts, [len(self._sizes)]]).astype(np.int64)

    def _run_sizes(self, total: int) -> Ints:
        """Events of each conversation that is not hot."""
        count = total // 20 + 10
        sizes = at_quantile(unit(np.arange(count), 2000 + self.seed), shape.CONVERSATION_EVENTS)
        ends = np.cumsum(sizes)
        last = int(np.searchsorted(ends, total))
        sizes = sizes[: last + 1]
        sizes[-1] -= ends[last] - total
        return sizes

    @property
    def conversations(self) -> int:
        return self.hot_count + len(self._sizes)

    def size_of(self, numbers: Ints) -> Ints:
        """Events of conversations over the whole period."""
        runs = np.maximum(numbers - self.hot_count, 0)
        return np.where(numbers < self.hot_count, self.hot_events, self._sizes[runs])

    def names(self, numbers: Ints) -> list[str]:
        """Ids, in the order of the numbers."""
        return [f"hot-{one:06d}" if one < self.hot_count else f"run-{one - self.hot_count:09d}" for one in numbers.tolist()]

    def of_day(self, day: int) -> tuple[Ints, Ints, Ints]:
        """(conversation, number of its first event that day, events that day), by conversation."""
        first, last = self._hot_cuts[day], self._hot_cuts[day + 1]
        hot = np.arange(self.hot_count if last > first else 0)
        runs = np.arange(self._run_cuts[day], self._run_cuts[day + 1])
        conversations = np.concatenate([hot, runs + self.hot_count])
        firsts = np.concatenate([np.full(len(hot), first), np.zeros(len(runs), np.int64)])
        counts = np.concatenate([np.full(len(hot), last - first), self._sizes[runs]])
        return conversations, firsts, counts

    def day(self, day: int, *, rows_max: int = BATCH_ROWS) -> Iterator[pa.Table]:
        """The rows of a day, sorted by conversation and time, in tables of about `rows_max`, whole conversations each."""
        return self.grouped(day, *self.of_day(day), rows_max=rows_max)

    def grouped(self, day: int, conversations: Ints, firsts: Ints, counts: Ints, *, rows_max: int) -> Iterator[pa.Table]:
        """The rows of some conversations of a day, as `of_day` lists them."""
        for first, last in _slices(counts, rows_max):
            part = slice(first, last)
            owner = np.repeat(np.arange(first, last), counts[part])
            place = np.arange(len(owner)) - np.repeat(np.cumsum(counts[part]) - counts[part], counts[part])
            yield self.rows(np.full(len(owner), day), conversations[owner], firsts[owner] + place, place)

    def sample(self) -> pa.Table:
        """Some rows."""
        return next(self.tables(rows_max=10))

    def tables(self, *, rows_max: int = BATCH_ROWS) -> Iterator[pa.Table]:
        """All rows, day by day."""
        for day in range(self.days):
            yield from self.day(day, rows_max=rows_max)

    def arrivals(self, *, active: int = 10, burst: int = 5, rows_max: int = BATCH_ROWS) -> Iterator[pa.Table]:
        """All rows as they come in when `active` conversations are under way at any moment, each `burst` events at a time."""
        waiting: list[pa.Table] = []
        for day in range(self.days):
            for table in self._arrivals(day, active, burst, rows_max):
                waiting.append(table)
                if sum(one.num_rows for one in waiting) >= rows_max:
                    full = pa.concat_tables(waiting)
                    yield full.slice(0, rows_max)
                    waiting = [full.slice(rows_max)]
        left = pa.concat_tables(waiting)
        if left.num_rows:
            yield left

    def _arrivals(self, day: int, active: int, burst: int, rows_max: int) -> Iterator[pa.Table]:
        conversations, firsts, counts = self.of_day(day)
        lanes = np.arange(len(counts)) % active
        begins = np.zeros(len(counts), np.int64)
        for lane in range(min(active, len(counts))):
            mine = lanes == lane
            begins[mine] = np.cumsum(counts[mine]) - counts[mine]
        owner = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        progress = begins[owner] + place
        order = np.lexsort((progress, lanes[owner], progress // burst))
        owner, place = owner[order], place[order]
        for start in range(0, len(owner), rows_max):
            mine, local = owner[start : start + rows_max], place[start : start + rows_max]
            yield self.rows(np.full(len(mine), day), conversations[mine], firsts[mine] + local, local)

    def rows(self, days: Ints, conversations: Ints, ordinals: Ints, place: Ints) -> pa.Table:
        """Rows of events given by conversation and number in it; `place` is the number within its day."""
        pools = _pools(self.seed)
        key = mixed(conversations, 1000 + self.seed) ^ mixed(ordinals, 3)
        last = ordinals == self.size_of(conversations) - 1
        kinds = np.searchsorted(_KIND_ENDS, unit(key, 4), side="right") + 2
        kinds = np.where(ordinals == 0, 0, np.where(last, 1, np.minimum(kinds, len(shape.KINDS) - 1)))
        starts, lengths = self._contents(pools, kinds, key)
        user, assistant, call, result = (kinds == number for number in range(2, 6))
        tool = np.searchsorted(_TOOL_ENDS, unit(key, 7), side="right")
        failed = result & (unit(key, 8) < shape.ERROR_SHARE)
        tokens = lengths // 4 + 1
        duration = np.where(result, 80 + mixed(key, 9) % np.uint64(820), 700 + 8 * lengths).astype(np.float64)
        tasks = conversations * 100 + ordinals // 50
        ids = np.stack([mixed(key, 10), mixed(ordinals, 11) ^ key]).T.astype("<u8").tobytes()
        event_ids = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(key), [None, pa.py_buffer(ids)])
        by_agent = user | (kinds == 0)
        columns = {
            "event_id": pa.ExtensionArray.from_storage(pa.uuid(), event_ids),
            "conversation_id": self._ids(conversations),
            "seq": pa.array(ordinals + 1),
            "event_type": pa.DictionaryArray.from_arrays(pa.array(kinds.astype(np.int8)), _KIND_NAMES).cast(pa.string()),
            "timestamp": pa.array(self._times(days, conversations, place), pa.timestamp("us", "UTC")),
            "agent_id": pools.agents.take(conversations % pools.agents.count, nulls=by_agent),
            "task_id": _numbered("task-", tasks, nulls=kinds == 1),
            "parent_id": pools.calls.take((key % np.uint64(pools.calls.count)).astype(np.int64), nulls=~result),
            "model": pools.models.take((conversations % 5 == 0).astype(np.int64), nulls=~(assistant | call)),
            "tool_name": pools.tools.take(np.minimum(tool, pools.tools.count - 1), nulls=~(call | result)),
            "status": pools.statuses.take(np.where(kinds == 1, 2, failed.astype(np.int64)), nulls=~(result | (kinds == 1))),
            "duration_ms": pa.array(duration, mask=~(assistant | result)),
            "cost_usd": pa.array(np.round(tokens * 1e-5, 6), mask=~assistant),
            "input_tokens": pa.array(800 + 40 * np.minimum(ordinals, 90), mask=~assistant),
            "output_tokens": pa.array(tokens, mask=~assistant),
            "content": pools.texts.cut(starts, lengths),
            "metadata": self._metadata(pools, kinds, key),
        }
        return pa.table(columns)

    def _ids(self, conversations: Ints) -> pa.Array:
        """conversation_id of each row; the text of each conversation is made once."""
        numbers, places = np.unique(conversations, return_inverse=True)
        return pa.DictionaryArray.from_arrays(pa.array(places.astype(np.int32)), pa.array(self.names(numbers))).cast(pa.string())

    def _times(self, days: Ints, conversations: Ints, place: Ints) -> Ints:
        """µs since the epoch: evenly spaced in a day for a hot conversation, seconds apart for others; never two at once."""
        hot = conversations < self.hot_count
        low, high = GAP_MS
        gap_us = np.where(
            hot,
            DAY_US // (self.hot_events // self.full_days + 2),
            1000 * (low + (unit(conversations, 12) * (high - low)).astype(np.int64)),
        )
        span_us = np.where(hot, 0, gap_us * (max(shape.CONVERSATION_EVENTS) + 1))
        begin_us = np.where(hot, 0, (unit(conversations, 13) * (DAY_US - span_us)).astype(np.int64))
        jitter_us = (unit(mixed(conversations, 14) ^ mixed(place, 15), 16) * gap_us * 0.9).astype(np.int64)
        return self.start_us + days * DAY_US + begin_us + place * gap_us + jitter_us

    def _contents(self, pools: _Pools, kinds: Ints, key: npt.NDArray[np.uint64]) -> tuple[Ints, Ints]:
        """(starts in the pool, lengths) of contents."""
        repeated = unit(key, 5) < shape.REPEATED_SHARE
        again = mixed(key % np.uint64(shape.REPEATED_TEXTS), 20) ^ kinds.astype(np.uint64)
        own = np.where(repeated, again, key)
        lengths = np.zeros(len(kinds), np.int64)
        for number, kind in enumerate(shape.KINDS):
            mine = kinds == number
            lengths[mine] = at_quantile(unit(own[mine], 6), kind.content)
        starts = (unit(own, 17) * (pools.texts.size - 10_000)).astype(np.int64)
        prompts = (key % np.uint64(shape.SYSTEM_PROMPTS)).astype(np.int64) * 6400
        return np.where(kinds == 0, prompts, starts), lengths

    def _metadata(self, pools: _Pools, kinds: Ints, key: npt.NDArray[np.uint64]) -> pa.Array:
        chosen = (mixed(key, 18) % np.uint64(METADATA_TEXTS)).astype(np.int64)
        group = np.array([0, 1, 0, 2, 3, 4])[kinds]
        has = (group > 0) & ((group != 2) | (unit(key, 19) < 0.25))
        return pools.metadata.take(np.where(has, (group - 1) * METADATA_TEXTS + chosen, 0), nulls=~has)


class _Pools:
    """What strings are chosen from."""

    def __init__(self, seed: int) -> None:
        self.texts = Cuttings(pool(seed))
        self.agents = Choices([f"agent-{number:02d}" for number in range(50)])
        self.models = Choices(["gpt-4o", "gpt-4o-mini"])
        self.tools = Choices([name for name, _ in shape.TOOLS])
        self.statuses = Choices(["ok", "error", "solved"])
        dice = np.random.default_rng(seed + 1)
        names = _call_names(dice)
        self.calls = Choices(names)
        self.metadata = Choices(_metadata_texts(pool(seed), names, dice))


def _call_names(dice: np.random.Generator) -> list[str]:
    raw = dice.bytes(12 * METADATA_TEXTS * 4).hex()
    return [f"call_{raw[24 * number : 24 * number + 24]}" for number in range(METADATA_TEXTS * 4)]


def _metadata_texts(text: npt.NDArray[np.uint8], names: list[str], dice: np.random.Generator) -> list[str]:
    """JSON objects of the lengths of recorded ones: METADATA_TEXTS each for finished runs, answers, calls and results."""
    words = text.tobytes().decode()
    found = []
    for kind in (shape.FINISHED, shape.ASSISTANT, shape.CALL, shape.RESULT):
        shares = dice.random(METADATA_TEXTS) * (0.25 if kind is shape.ASSISTANT else 1) + (0.75 if kind is shape.ASSISTANT else 0)
        starts = dice.integers(0, len(words) - 10_000, METADATA_TEXTS)
        for name, start, size in zip(names, starts.tolist(), at_quantile(shares, kind.metadata).tolist(), strict=False):
            head = f'{{"id":"{name}","type":"function","index":0'
            rest = size - len(head) - 11
            found.append(f'{head},"note":"{words[start : start + rest]}"}}' if rest > 0 else head + "}")
    return found


@cache
def _pools(seed: int) -> _Pools:
    return _Pools(seed)


def _numbered(prefix: str, numbers: Ints, *, nulls: npt.NDArray[np.bool_]) -> pa.Array:
    unique, places = np.unique(numbers, return_inverse=True)
    names = pa.array([f"{prefix}{one}" for one in unique.tolist()])
    return pa.DictionaryArray.from_arrays(pa.array(places.astype(np.int32), mask=nulls), names).cast(pa.string())


def _slices(counts: Ints, rows_max: int) -> Iterator[tuple[int, int]]:
    """Ranges of indices with about `rows_max` rows each."""
    ends, first = np.cumsum(counts), 0
    while first < len(counts):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + rows_max, side="right")))
        yield first, last
        first = last


_WEIGHTS = np.array([kind.weight for kind in shape.KINDS[2:]])
_KIND_ENDS = np.cumsum(_WEIGHTS / _WEIGHTS.sum())
_KIND_NAMES = pa.array([kind.name for kind in shape.KINDS])
_CALLS = np.array([count for _, count in shape.TOOLS])
_TOOL_ENDS = np.cumsum(_CALLS / _CALLS.sum())


def kwargs_of(table: pa.Table) -> list[dict[str, Any]]:
    """The rows as arguments of `append`: what is NULL is left out, times are µs, event_id and seq are the store's to give."""
    plain = table.drop_columns(["event_id", "seq"])
    stamps = plain.schema.get_field_index("timestamp")
    plain = plain.set_column(stamps, "timestamp", plain["timestamp"].cast(pa.int64()))
    return [{name: value for name, value in row.items() if value is not None} for row in plain.to_pylist()]


def as_strings(table: pa.Table) -> pa.Table:
    """The rows with strings of their own, which more of Arrow can handle than views."""
    fields = [pa.field(one.name, pa.string()) if pa.types.is_string_view(one.type) else one for one in table.schema]
    return table.cast(pa.schema(fields))
