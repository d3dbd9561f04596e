"""Odd events through every way in and every tier: `python -m tests.fuzzed --events 100000 --seed 1`.

Random types, sizes, encodings, depths, ids, numbers and times, around every limit and beyond, given as arguments, Event, dict or
NDJSON through append, append_many, Producer, the feed behind the CLI, and the CLI. Plain Python (odd_events.py) says of each
whether docs/formats.md allows it. Either it is refused with InvalidEvent that names the field, and nothing is stored; or every
column comes back to the bit: from the hot tail, after settle, after merge, from the archive, by SQL and by recent().
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from tests.archiving import settle_all
from tests.odd_dice import OddDice, is_sayable, ndjson_line
from tests.odd_events import faults, row_of, unlike
from tests.reporting import reported
from tests.servers import RedisServer, binary_version, redis_binaries
from tests.tidying import BucketCold
from thermocline.archiver.archive import Archiver
from thermocline.archiver.merge import Merger
from thermocline.archiver.settle import Settler
from thermocline.config import Settings, load
from thermocline.errors import InvalidEvent, PartialAppend
from thermocline.event import COLUMN_NAMES, Event, Receipt
from thermocline.feed import Rejected, feed
from thermocline.ingest.append import Client
from thermocline.ingest.producer import Producer
from thermocline.store import Store
from thermocline.tiers.opening import Tiers, open_tiers

ROUND = 5000
"""Events that go through the tiers together."""
WAYS = {"append": 4, "append_many of dicts": 3, "append_many of Events": 3, "Producer": 3, "feed": 4}
CLI_LINES = 60
SHARDS = 4
TOLD_MAX = 20
FAR_US = 4_000_000_000_000_000
ROWS = (
    "SELECT * REPLACE (epoch_us(timestamp) AS timestamp, epoch_us(ingested_at) AS ingested_at)"
    " FROM events ORDER BY conversation_id, seq"
)

Given = Mapping[str, Any]


class Report(msgspec.Struct, kw_only=True):
    """What became of the events. `problems` is empty when every promise held."""

    seed: int
    redis: str = ""
    events: int = 0
    stored: int = 0
    refused: int = 0
    repeated: int = 0
    """Of the stored: ids that their conversation had already, of which no second copy is kept."""
    by_way: dict[str, int] = {}
    refused_by_field: dict[str, int] = {}
    compared_in: dict[str, int] = {}
    """Rows compared with what was given, or with what they were before."""
    largest_bytes: int = 0
    """Of an event's line."""
    seconds: float = 0.0
    problems: list[str] = []


class Fuzz:
    """One namespace, the events given to it, and what must be in it."""

    def __init__(self, settings: Settings, dice: OddDice, report: Report, *, bucket: bool) -> None:
        """bucket  whether the folder of the cold tier is not read as one"""
        self.settings = settings
        self.tiers: Tiers = open_tiers(settings)
        if bucket:
            self.tiers._cold = BucketCold(settings.namespace_dir / "bucket")
        self.store = Store(self.tiers)
        self.client = Client(settings, tiers=self.tiers)
        self._dice = dice
        self._report = report
        self._wanted: dict[tuple[str, int], dict[str, Any]] = {}
        self._heads: Counter[str] = Counter()
        self._ids: dict[tuple[str, str], int] = {}
        self._first: dict[tuple[str, int], dict[str, Any]] = {}
        """Rows as they were first seen."""
        self._epoch = self.tiers.ledger.take_epoch("fuzzed", time.time_ns() // 1000)
        self._settler = Settler(self.tiers, self._epoch)

    def close(self) -> None:
        self.tiers.hot.drop()
        self.client.close()
        self.store.close()
        shutil.rmtree(self.settings.namespace_dir, ignore_errors=True)

    def problem(self, text: str) -> None:
        if len(self._report.problems) < TOLD_MAX:
            self._report.problems.append(text)

    # What was said of each event.

    def stored(self, event: Given, receipt: Receipt | None = None) -> None:
        """It was taken; the receipt must say what is known of it."""
        self._report.stored += 1
        wrong = self._faults(event)
        if wrong:
            self.problem(f"stored, though {sorted(wrong)} are wrong: {event!r:.300}")
            return
        row = row_of(event)
        key = row["conversation_id"], row.get("event_id", "")
        known = self._ids.get(key) if key[1] else None
        if known is None:
            self._heads[key[0]] += 1
            seq = self._heads[key[0]]
            self._wanted[key[0], seq] = row
            if key[1]:
                self._ids[key] = seq
        else:
            seq = known
            self._report.repeated += 1
        if receipt is not None:
            row.setdefault("event_id", receipt.event_id)
            told = (receipt.conversation_id, receipt.seq, receipt.event_id, receipt.duplicate)
            if told != (key[0], seq, row["event_id"], known is not None):
                self.problem(f"the receipt says {told}, the event is {seq} of {key[0]!r}: {event!r:.300}")

    def refused(self, event: Given, field: str, text: str, *, line: bytes | None = None) -> None:
        """It was refused by a message about a field."""
        self._report.refused += 1
        self._report.refused_by_field[field] = self._report.refused_by_field.get(field, 0) + 1
        wrong = self._faults(event) | ({"line"} if line is not None and _is_no_line(line, event) else set())
        if field not in wrong:
            self.problem(f"refused for {field} ({text}), wrong are {sorted(wrong)}: {event!r:.300}")
        if field not in text or len(text) <= len(field) + 2:
            self.problem(f"the message does not say what is wrong with {field}: {text!r}")

    def _faults(self, event: Given) -> set[str]:
        return faults(event, time.time_ns() // 1000)

    # Ways in.

    def give(self, way: str, events: Sequence[dict[str, Any]]) -> None:
        self._report.by_way[way] = self._report.by_way.get(way, 0) + len(events)
        self._report.events += len(events)
        match way:
            case "append":
                self._append(events)
            case "append_many of dicts":
                for part in self._parts(events):
                    self._append_many(part, list(part))
            case "append_many of Events":
                for part in self._parts(events):
                    self._append_many(part, [Event(**event) for event in part])
            case "Producer":
                self._produce(events)
            case "feed":
                for part in self._parts(events, most=400):
                    self._feed(part)
            case "CLI":
                self._run_cli(events)

    def _parts(self, events: Sequence[dict[str, Any]], most: int = 60) -> Iterator[list[dict[str, Any]]]:
        start = 0
        while start < len(events):
            size = self._dice.randint(1, most)
            yield list(events[start : start + size])
            start += size

    def _append(self, events: Sequence[dict[str, Any]]) -> None:
        for event in events:
            try:
                receipt = self.client.append(**event)
            except InvalidEvent as exc:
                self.refused(event, exc.field, str(exc))
            else:
                self.stored(event, receipt)

    def _append_many(self, events: list[dict[str, Any]], given: list[Any]) -> None:
        """All at once; what is found wrong is left out, and the rest given again."""
        while given:
            try:
                receipts: Sequence[Receipt | None] = self.client.append_many(given)
                found = None
            except InvalidEvent as exc:
                receipts, found = [None] * len(given), exc
            except PartialAppend as exc:  # a time that only Redis can judge
                if not isinstance(exc.cause, InvalidEvent):
                    raise
                receipts, found = exc.receipts, exc.cause
            for event, receipt in zip(events, receipts, strict=True):
                if receipt is not None:
                    self.stored(event, receipt)
            left = [index for index, receipt in enumerate(receipts) if receipt is None]
            if found is not None:
                if found.index is None:
                    self.problem(f"the message does not name the event: {found}")
                    return
                self.refused(events[left[found.index]], found.field, str(found))
                del left[found.index]
            events, given = [events[index] for index in left], [given[index] for index in left]

    def _produce(self, events: Sequence[dict[str, Any]]) -> None:
        with Producer(self.settings, tiers=self.tiers, linger_ms=0) as producer:
            for event in events:
                try:
                    producer.append(**event)
                except InvalidEvent as exc:
                    self.refused(event, exc.field, str(exc))
                else:
                    self.stored(event)

    def _feed(self, events: Sequence[dict[str, Any]]) -> None:
        lines = [ndjson_line(self._dice, event) for event in events]
        rejected: list[Rejected] = []
        with tempfile.TemporaryFile() as file:
            file.write(b"\n".join(lines))
            file.seek(0)
            with io.FileIO(file.fileno(), closefd=False) as stream:
                feed(self.client, stream, reject=rejected.append)
        self._said(events, lines, {one.number: one.reason for one in rejected})

    def _run_cli(self, events: Sequence[dict[str, Any]]) -> None:
        lines = [ndjson_line(self._dice, event) for event in events]
        with tempfile.TemporaryDirectory() as folder:
            config, rejected = Path(folder) / "settings.json", Path(folder) / "rejected"
            config.write_bytes(b"\n".join(lines))
            command = [sys.executable, "-m", "thermocline", "--data-dir", str(self.settings.data_dir)]
            command += ["--namespace", self.settings.namespace, "append", str(config), "--rejected", str(rejected)]
            environ = {"THERMOCLINE_REDIS_URL": str(self.settings.redis_url), "THERMOCLINE_HOT__SHARDS": str(SHARDS)}
            done = subprocess.run(command, capture_output=True, text=True, env={**_environ(), **environ})
            reasons = [json.loads(line) for line in rejected.read_bytes().splitlines()]
        if done.returncode != (3 if reasons else 0):
            self.problem(f"the CLI ended with {done.returncode}: {done.stderr[-500:]}")
        self._said(events, lines, {one["line_number"]: one["reason"] for one in reasons})

    def _said(self, events: Sequence[dict[str, Any]], lines: Sequence[bytes], reasons: Mapping[int, str]) -> None:
        for number, (event, line) in enumerate(zip(events, lines, strict=True), start=1):
            if number in reasons:
                self.refused(event, reasons[number].partition(":")[0], reasons[number], line=line)
            elif _is_no_line(line, event):
                self.problem(f"stored, though it is no line of JSON: {line!r:.300}")
            else:
                self.stored(event)

    # What is there.

    def compare(self, where: str) -> None:
        """Every row of `events`: at first with what was given, later with what it was."""
        rows = {(row["conversation_id"], row["seq"]): row for row in self._read(ROWS)}
        for name, keys in (("missing", self._wanted.keys() - rows.keys()), ("not invited", rows.keys() - self._wanted.keys())):
            if keys:
                self.problem(f"{where}: {len(keys)} {name}, such as {sorted(keys)[:3]!r}")
        for key, row in rows.items():
            before = self._first.get(key)
            if before is None:
                self._first[key] = row
                wrong = unlike(self._wanted.get(key, {}), row)
                if row["sample_rate"] != 1:
                    wrong.append(f"sample_rate: {row['sample_rate']}")
            else:
                wrong = unlike(before, row) if repr(before) != repr(row) else []
            if wrong:
                self.problem(f"{where}: {key!r:.100}: {wrong}")
        self._report.compared_in[where] = self._report.compared_in.get(where, 0) + len(rows)
        self._look_closer(where)

    def _look_closer(self, where: str) -> None:
        """A few conversations by themselves: by SQL, and the newest of them by recent()."""
        names = self._dice.sample(sorted(self._heads), k=min(4, len(self._heads)))
        for name in names:
            wanted = [self._first.get((name, seq)) for seq in range(1, self._heads[name] + 1)]
            by_sql = self._read(f"{ROWS.partition(' ORDER')[0]} WHERE conversation_id = ? ORDER BY seq", [name])
            newest = self.store.recent(name, 50)
            times = ("timestamp", "ingested_at")
            seen = [{**row, **{each: _us(row[each]) for each in times}} for row in newest.to_arrow().to_pylist()]
            if repr(by_sql) != repr(wanted) or repr(seen) != repr(wanted[-50:]):
                self.problem(f"{where}: the rows of {name!r:.100} alone are others")

    def _read(self, sql: str, params: Any = None) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.store.sql(sql, params).to_arrow().to_pylist()
        assert not rows or tuple(rows[0]) == COLUMN_NAMES
        return rows

    # Moves.

    def settle(self) -> None:
        report = settle_all(self._settler)
        if report.rejected or any((self.settings.namespace_dir / "rejected").iterdir()):
            self.problem("settle rejected what append had accepted")

    def merge(self) -> None:
        merger = Merger(self.tiers, self._epoch)
        while merger.step(force=True):
            pass

    def archive(self) -> None:
        while Archiver(self.tiers, self._epoch).step(before_us=FAR_US):
            pass
        left = self.tiers.ledger.view().segments
        if left:
            self.problem(f"{len(left)} segments are left by the archive")

    def verify(self) -> None:
        for problem in self.store.verify(deep=True).problems:
            self.problem(f"verify: {problem}")


def _us(at: Any) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("THERMOCLINE_")}


def _is_no_line(line: bytes, event: Given) -> bool:
    """Whether an event as NDJSON is refused before its fields are looked at, or may be."""
    try:
        tree = json.loads(line.decode())
        json.dumps(tree, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return True
    return bool(set(event) - set(Event.__struct_fields__) or {"conversation_id", "event_type"} - set(event))


def play_round(fuzz: Fuzz, events: Sequence[dict[str, Any]], dice: OddDice, *, cli: bool) -> None:
    """Give half of the events, settle, give the other half, settle, merge and archive, and compare at each step."""
    for half in (events[::2], events[1::2]):
        ways: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for event in half:
            way = dice.choices(list(WAYS), list(WAYS.values()))[0]
            ways[dice.possible(way, event)].append(event)
        for way, given in ways.items():
            fuzz.give(way, given)
        fuzz.compare("hot")
        fuzz.settle()
        fuzz.compare("settled")
    if cli:
        fuzz.give("CLI", [event for event in dice.events(CLI_LINES, plain=True) if is_sayable(event)])
        fuzz.compare("hot")
        fuzz.settle()
    fuzz.merge()
    fuzz.compare("merged")
    fuzz.verify()
    fuzz.archive()
    fuzz.compare("archived")


def run_fuzz(folder: Path, server: RedisServer, *, events: int, seed: int) -> Report:
    """So many events in rounds; the same seed gives the same events, but for times near now."""
    begun_s = time.monotonic()
    report = Report(seed=seed, redis=".".join(map(str, binary_version(server.binary))))
    for number, start in enumerate(range(0, events, ROUND)):
        dice = OddDice(f"{seed}:{number}", now_us=time.time_ns() // 1000)
        settings = load(
            {
                "data_dir": folder,
                "namespace": f"fuzz-{number}",
                "redis_url": server.url,
                "hot": {"shards": SHARDS, "durable_lag_s": 0, "log_grace_s": 0, "timeout_s": 60},
                "ingest": {"deadline_s": 120},  # a machine that is busy is no reason to fail
                "cold": {"remainder_rows_max": 0},
                "sampling": {"rules": [{"name": "all", "keep": True}]},
            },
            environ={},
        )
        fuzz = Fuzz(settings, dice, report, bucket=bool(number % 2))
        try:
            play_round(fuzz, dice.events(min(ROUND, events - start)), dice, cli=number % 10 == 0)
        finally:
            report.largest_bytes = max(report.largest_bytes, dice.largest_bytes)
            fuzz.close()
        print(f"{report.events:,} events, {len(report.problems)} problems", file=sys.stderr, flush=True)  # noqa: T201
    report.seconds = round(time.monotonic() - begun_s, 1)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzed", description="Odd events through every way in and every tier.")
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--redis", default=str(redis_binaries()[-1]), help="redis-server binary")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # pyiceberg has something to say of every file
    folder = Path(tempfile.mkdtemp(prefix="thermocline-fuzzed-"))
    server = RedisServer(options.redis, folder / "redis", options={"appendfsync": "always"})
    server.start()
    try:
        report = run_fuzz(folder / "data", server, events=options.events, seed=options.seed)
    finally:
        server.stop()
        shutil.rmtree(folder)
    return reported(report)


if __name__ == "__main__":
    sys.exit(main())
