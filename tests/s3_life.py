"""One store with an archive that lives through the faults of s3_matrix.py: what is done while one lasts, what is looked at then,
and what must hold when it is over."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.s3_cells import FAULTS, NEVER_MET, OF_COMMITS, RED, REQUESTS, TIMES, Cell, Trial
from tests.s3_front import Action, Front
from tests.s3_servers import Bucket
from thermocline.archiver.batches import key_of
from thermocline.archiver.janitor import Janitor
from thermocline.archiver.rehydrate import rehydrate
from thermocline.archiver.worker import Worker
from thermocline.config import Settings, load
from thermocline.errors import ThermoclineError
from thermocline.ingest.append import Client
from thermocline.store import Store
from thermocline.tiers.cold import Cold
from thermocline.tiers.cold_s3 import S3Cold
from thermocline.tiers.cold_schema import KINDS
from thermocline.tiers.iceberg import IcebergTables
from thermocline.tiers.opening import Tiers, open_tiers

DAY_US: Final = 86_400_000_000
OLD_DAYS: Final = 12
EVENTS, YOUNG = 24, 2
CONVERSATIONS: Final = 3
ROUNDS_MAX: Final = 12
"""In which each fault must have occurred: one that is not tried again breaks off what others would meet."""
POINTERS: Final = ("latest.metadata.json", "version-hint.text")
ROWS: Final = "SELECT conversation_id, seq, content, epoch_us(timestamp) FROM events ORDER BY ALL"
SUMS: Final = (
    "SELECT sum(event_count)::BIGINT FROM hourly_stats",
    "SELECT sum(total_events)::BIGINT FROM conversation_summary",
)


class Outcome(msgspec.Struct, kw_only=True):
    """What became of one cell."""

    met: int = 0
    """How often the fault was done."""
    said: list[str] = []
    """Errors of reads, and reasons of red health, while it lasted."""


class JobByJob(Worker):
    """A worker whose jobs are run when it is told to, in the caller's thread. Each life of it is a start of the worker."""

    def settle(self) -> None:
        self._run(self._settle_job)

    def work(self) -> str | None:
        """Why health is red after one run of every job that moves something."""
        self._run(self._settle_job, self._archive_job, self._tidy_job, self._purge_job)
        return self.problem

    def _run(self, *jobs: Callable[[], None]) -> None:
        with self._leased():
            for job in jobs:
                job()


class _Log(logging.Handler):
    """What the worker logs in this thread."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()
        self.traces: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread and (record.exc_info or "\n" in record.getMessage()):
            self.traces.append(logging.Formatter().format(record))


class Life:
    """One store, its bucket behind a front, and what it must hold. Problems are collected in `problems`."""

    def __init__(self, folder: Path, redis_url: str, bucket: Bucket, *, seed: int, checks: bool, patience: float) -> None:
        """checks    whether the front checks bodies for the server
        patience  by what the deadlines are multiplied"""
        self.namespace = f"life-{uuid.uuid4().hex[:8]}"
        self.front = Front(bucket.endpoint_url, lambda kind, number: None, checks=checks, seed=seed)
        self.problems: list[str] = []
        self.calls: list[float] = []
        self.outcomes: dict[Cell, Outcome] = {}
        self.requests: Counter[str] = Counter()
        self.rounds_max = ROUNDS_MAX
        self._waiting = False
        self._colds: dict[float, Cold] = {}
        self._iceberg: IcebergTables | None = None
        self.batches = 0
        self.events: list[tuple[str, int, str, int]] = []
        self._folder, self._redis_url, self._bucket, self._patience = folder, redis_url, bucket, patience
        self._client = bucket.client()
        self._seqs: Counter[str] = Counter()
        self._seen: dict[str, tuple[str, int]] = {}
        self._first_us = (time.time_ns() // 1000 // DAY_US - OLD_DAYS) * DAY_US
        self._log = _Log()

    def settings(self, cells: Sequence[Cell] = ()) -> Settings:
        """Patient without cells; with them, deadlines that leave room for a repetition, but where every request would hang."""
        endless = {cell.fault for cell in cells if cell.times == "always"} & {"hang", "slow"}
        cold = {
            "endpoint_url": self.front.url,
            "timeout_s": 0.3 * self._patience if cells else 10,
            "deadline_s": (0.9 if endless else 1.9) * self._patience if cells else 60,
            "purge_grace_s": 0,
            "compact_files_min": 2,
            "metadata_versions_max": 1,
        }
        one = {"threads": 1}
        return load(
            {
                "data_dir": str(self._folder),
                "redis_url": self._redis_url,
                "namespace": self.namespace,
                "cold_url": self._bucket.url,
                "hot": {"shards": 2, "buckets": 16, "durable_lag_s": 0},
                "warm": {"settle_events": 1, "purge_grace_s": 0, **one},
                "query": one,
                "worker": {"failures_red": 1},
                "cold": cold,
            },
            environ={},
        )

    @contextmanager
    def opened(self, cells: Sequence[Cell] = ()) -> Iterator[Store]:
        with open_tiers(self.settings(cells)) as tiers:
            deadline_s = tiers.settings.cold.deadline_s
            if deadline_s not in self._colds:  # a client takes long to make
                self._time_calls(tiers)
            tiers._cold = self._colds.setdefault(deadline_s, tiers.cold)
            if not cells:  # what is done while no fault lasts need not read again what it has read
                tiers._iceberg = self._iceberg = self._iceberg or tiers.iceberg
            store = Store(tiers)
            try:
                yield store
            finally:
                store.close()

    def _time_calls(self, tiers: Tiers) -> None:
        assert isinstance(tiers.cold, S3Cold)
        requests, deadline_s = tiers.cold._requests, tiers.settings.cold.deadline_s
        repeated = requests.repeated

        def timed(attempt: Callable[[Any], Any]) -> Any:
            begun_s = time.monotonic()
            try:
                return repeated(attempt)
            finally:
                self.calls.append(time.monotonic() - begun_s - deadline_s)

        requests.repeated = timed  # type: ignore[method-assign]

    def __enter__(self) -> Life:
        self.front.__enter__()
        self._log.thread = threading.get_ident()
        logging.getLogger("thermocline").addHandler(self._log)
        with self.opened() as store:  # something that must not change
            self.prepare(store)
            self.recover(store, "nothing yet")
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("thermocline").removeHandler(self._log)
        if self._iceberg is not None:
            self._iceberg.close()
        self.front.__exit__(None, None, None)

    def run(self, trial: Trial) -> bool:
        """Whether all went well; if not, begin another life: this one may be in a state that later cells would trip over."""
        before = len(self.problems)
        name = str(trial[0][0]) if len(trial) == 1 else trial[0][0].fault
        try:
            for group in trial:
                if not self._waiting and any(cell.request in OF_COMMITS for cell in group):
                    with self.opened() as store:
                        self.prepare(store)
                self.strike(group)
            with self.opened() as store:
                self.recover(store, name)
        except Exception as exc:
            self.problems.append(f"{name}: {type(exc).__name__}: {exc}")
            if not isinstance(exc, ThermoclineError):
                logging.getLogger("tests.s3_matrix").exception(name)
        finally:
            self.front.lift()
        return len(self.problems) == before

    def prepare(self, store: Store) -> None:
        """Events that are due, as warm segments; and what compaction replaced before can now be deleted."""
        batches = {row.batch_id for row in store.tiers.ledger.batches()}
        for kind in KINDS if batches else ():  # as if cold.snapshot_keep_days had passed
            store.tiers.iceberg.expire(kind, before_us=time.time_ns() // 1000, batches=batches)
        self._append(store, EVENTS, self._first_us)
        JobByJob(store.tiers).settle()
        self._waiting = True
        self._look("before")

    def _due(self, store: Store) -> list[str]:
        """Segments that wait for the archive."""
        before_us = self._first_us + DAY_US
        return [one.segment_id for one in store.tiers.ledger.view().segments if one.timestamp_min_us < before_us]

    def _append(self, store: Store, count: int, from_us: int) -> None:
        given = []
        for number in range(len(self.events), len(self.events) + count):
            conversation_id = f"c{number % CONVERSATIONS}"
            self._seqs[conversation_id] += 1
            self.events.append((conversation_id, self._seqs[conversation_id], f"event {number}", from_us + number))
            given.append(
                {
                    "conversation_id": conversation_id,
                    "event_type": "error",
                    "content": f"event {number}",
                    "timestamp": from_us + number,
                }
            )
        with Client(store.tiers.settings, tiers=store.tiers) as client:
            client.append_many(given)

    def strike(self, cells: Sequence[Cell]) -> None:
        """Do everything while the cells' faults last: until each was met."""
        outcomes = [self.outcomes.setdefault(cell, Outcome()) for cell in cells]
        by_request = {cell.request: cell for cell in cells}

        def plan(kind: str, number: int) -> Action:
            cell = by_request.get(kind)
            struck = cell is not None and (cell.times == "always" or number == 1 + TIMES.index(cell.times))
            return FAULTS[cell.fault] if cell is not None and struck else None

        lasting = any(cell.times == "always" for cell in cells)
        name = "; ".join(map(str, cells))
        met = Counter(self.front.met)
        self._litter()
        with self.opened(cells) as store:
            self._arm(plan)
            for said in (self._read(store, name), self._rehydrate(store)):
                if said:
                    outcomes[0].said.append(said)
            self._arm(plan)
            red = None
            for _ in range(self.rounds_max):
                self._append(store, YOUNG, time.time_ns() // 1000 - DAY_US)
                self._read_young(store, name)
                problem = JobByJob(store.tiers).work()
                red = red or problem
                for cell, outcome in zip(cells, outcomes, strict=True):
                    outcome.met = self.front.met[cell.request] - met[cell.request]
                if all(outcome.met for outcome in outcomes):
                    break
            self._arm(lambda kind, number: None)
            self._waiting = bool(self._due(store))
        if red:
            outcomes[0].said.append(red)
        if red and ("\n" in red or "Traceback" in red):
            self._note(name, f"health says {red!r}")
        if lasting and red is None and {(cell.fault, cell.request) for cell in cells} & RED:
            self._note(name, "nothing works, and health is green")
        for trace in self._log.traces:
            self._note(name, f"logged: {trace}")
        self._log.traces.clear()
        self._look(name)

    def try_never_met(self) -> None:
        """One round in which all that cannot occur is tried."""
        faults = {kind: [FAULTS[fault] for fault, one in NEVER_MET if one == kind] for kind in REQUESTS}
        met = self.front.met.total()
        with self.opened() as store:
            self.prepare(store)
            self._arm(lambda kind, number: faults[kind][number % len(faults[kind])] if faults.get(kind) else None)
            for _ in range(2):
                self._litter()
                self._note("what cannot occur", JobByJob(store.tiers).work())
            tried = Counter(self.front.count)
            for kind, each in faults.items():
                if tried[kind] < len(each):
                    self._note("what cannot occur", f"only {tried[kind]} requests {kind} for {len(each)} faults")
            if self.front.met.total() != met:
                self._note("what cannot occur", "did")
            self.recover(store, "what cannot occur")

    def _arm(self, plan: Callable[[str, int], Action]) -> None:
        self.requests.update(self.front.count)
        self.front.arm(plan)

    def _litter(self) -> None:
        """What crashes leave: two objects of a batch that was given up, two uploads that were never finished."""
        batch_id = uuid.uuid4().hex
        for number in (1, 2):
            key = f"{self.namespace}/events/day=2026-01-01/{batch_id}-{number}.parquet"
            self._client.put_object(Bucket=self._bucket.name, Key=key, Body=b"left")
            self._client.create_multipart_upload(Bucket=self._bucket.name, Key=key)

    def _read(self, store: Store, name: str) -> str | None:
        """Why the archive could not be read; None when the answer is right."""
        try:
            rows = store.sql(ROWS).fetchall()
            sums = [store.sql(query).fetchall()[0][0] for query in SUMS]
        except ThermoclineError as exc:
            return f"read: {exc}"
        if rows != sorted(self.events):
            odd = sorted(set(rows) ^ set(self.events))
            self._note(name, f"{len(rows)} rows for {len(self.events)} events; {len(odd)} differ: {odd[:3]}")
        if sums != [len(self.events)] * len(SUMS):
            self._note(name, f"sums are {sums}, not {len(self.events)}")
        return None

    def _rehydrate(self, store: Store) -> str | None:
        try:
            rehydrate(store.tiers, "c0", until_us=time.time_ns() // 1000)
        except ThermoclineError as exc:
            return f"rehydrate: {exc}"
        return None

    def _read_young(self, store: Store, name: str) -> None:
        """What is hot or warm needs no object store."""
        since_us = time.time_ns() // 1000 - 2 * DAY_US
        rows = store.sql(f"SELECT content FROM events WHERE timestamp >= make_timestamptz({since_us})").fetchall()
        wanted = [(content,) for _, _, content, at_us in self.events if at_us >= since_us]
        if sorted(rows) != sorted(wanted):
            self._note(name, f"{len(rows)} young events are read, {len(wanted)} were appended")

    def recover(self, store: Store, name: str) -> None:
        """Lift the fault, and let the worker work until nothing is left to do."""
        self.front.lift()
        for _ in range(3):
            problem = JobByJob(store.tiers).work()
            if problem is None:
                break
        self._waiting = False
        for said in (problem, *self.check(store)):
            self._note(f"after {name}", said)

    def check(self, store: Store) -> Iterator[str | None]:
        """What must hold when no fault lasts and the worker has nothing to do: all events are answered; verify is content; one
        snapshot in each table for each batch; ledger, tables and bucket have the same files; nothing else is in the bucket but
        what left the ledger and a snapshot still shows; no upload is open, nothing is staged or begun."""
        self._look("after")
        yield self._read(store, "after")
        yield from store.verify(deep=True).problems
        ledger = store.tiers.ledger
        view, batches = ledger.view(), ledger.batches()
        self.batches = len(batches)
        if waiting := self._due(store):
            yield f"{waiting} were not archived"
        if ledger.intents() or list(store.settings.namespace_dir.glob("staging/*")):
            yield f"begun or staged: {ledger.intents()}"
        trash = {row.path.removeprefix("cold://") for row in ledger.trash() if "://" in row.path}
        live = {file.key for file in view.files}
        stored = set(self._objects())
        described = {key_of(row.batch_id) for row in batches}
        data = {key for key in stored if not key.startswith("iceberg/")}
        if data - live - trash - described:
            yield f"orphans: {sorted(data - live - trash - described)}"
        if live - data:
            yield f"live and gone: {sorted(live - data)}"
        if described - data:
            yield f"descriptions that are gone: {sorted(described - data)}"
        if litter := [one.key for one in store.tiers.iceberg.unreferenced()]:
            yield f"litter {litter}"
        for kind in KINDS:
            if f"iceberg/{kind}/metadata/latest.metadata.json" in stored:
                yield from self._check_table(store.tiers, kind, {file.key for file in view.files if file.kind == kind})
            else:
                yield f"{kind}: the pointer to the table is gone"
        uploads = self._client.list_multipart_uploads(Bucket=self._bucket.name, Prefix=f"{self.namespace}/").get("Uploads", [])
        if uploads:
            yield f"{len(uploads)} uploads are open"

    def _check_table(self, tiers: Tiers, kind: str, live: set[str]) -> Iterator[str]:
        pointer = json.loads(self._get(f"iceberg/{kind}/metadata/latest.metadata.json"))
        marked = [one["summary"].get("thermocline.batch-id") for one in pointer["snapshots"]]
        twice = [batch for batch, count in Counter(marked).items() if count > 1]
        unknown = set(marked) - {row.batch_id for row in tiers.ledger.batches()} - {None}
        if twice or unknown:
            yield f"{kind}: committed twice {twice}, unknown to the ledger {sorted(map(str, unknown))}"
        if live or marked:
            shown = tiers.iceberg.keys(kind)
            if shown != live:
                yield f"{kind}: the table has {sorted(shown - live)} more and lacks {sorted(live - shown)}"

    def end(self) -> None:
        """Once all snapshots but the newest are forgotten the bucket has the live files alone, and every byte of them."""
        with self.opened() as store:
            batches = {row.batch_id for row in store.tiers.ledger.batches()}
            for kind in KINDS:
                store.tiers.iceberg.expire(kind, before_us=time.time_ns() // 1000, batches=batches)
            epoch = store.tiers.ledger.take_epoch("the end", time.time_ns() // 1000)
            Janitor(store.tiers, epoch).step()
            for problem in self.check(store):
                self._note("at the end", problem)
            live = {file.key for file in store.tiers.ledger.view().files} | {key_of(batch_id) for batch_id in batches}
            left = {key for key in self._objects() if not key.startswith("iceberg/")}
            if left != live:
                self._note("at the end", f"objects {sorted(left - live)} are left, {sorted(live - left)} are gone")
        for key, (tag, size) in self._objects().items():
            content = self._get(key)
            if (hashlib.md5(content).hexdigest(), len(content)) != (tag.strip('"'), size):
                self._note("at the end", f"{key} has other bytes than its tag says")

    def _objects(self) -> dict[str, tuple[str, int]]:
        """Key → tag and size of all objects there are, asked around the front."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket.name, Prefix=f"{self.namespace}/")
        items = [item for page in pages for item in page.get("Contents", ())]
        return {item["Key"].removeprefix(f"{self.namespace}/"): (item["ETag"], item["Size"]) for item in items}

    def _get(self, key: str) -> bytes:
        content: bytes = self._client.get_object(Bucket=self._bucket.name, Key=f"{self.namespace}/{key}")["Body"].read()
        return content

    def _look(self, name: str) -> None:
        """Compare what is stored with what was seen of it before: the servers' tags are sums of the bytes they hold."""
        for key, found in self._objects().items():
            if not key.endswith(POINTERS) and self._seen.setdefault(key, found) != found:
                self._note(name, f"{key} has changed")

    def _note(self, name: str, problem: str | None) -> None:
        if problem is not None:
            self.problems.append(f"{name}: {problem}")
