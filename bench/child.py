"""Processes beside the one that measures: `python -m bench.child ROLE JSON`. Each says when it is ready, reads orders from stdin,
one a line, and answers each with one line of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import IO, Any

import msgspec
import pyarrow as pa
import pyarrow.feather

from thermocline.config import Settings, load
from thermocline.errors import Backpressure
from thermocline.ingest.append import Client
from thermocline.ingest.producer import Producer
from thermocline.store import connect

from . import stores
from .measure import forget_peak, peak_bytes
from .workload import Workload, as_strings, kwargs_of

ROOT = Path(__file__).parents[1]
MARKER = "marker"
TICK_S = 0.005
Answer = dict[str, Any]


class Child:
    """A process in a role, seen from the one that measures. A context manager."""

    def __init__(self, role: str, config: Settings | None = None, **arguments: Any) -> None:
        given = {"config": portable(config) if config is not None else None, **arguments}
        environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        command = [sys.executable, "-m", "bench.child", role, json.dumps(given)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)
        self.pid = self._process.pid
        assert self._process.stdin is not None and self._process.stdout is not None
        self._orders: IO[str] = self._process.stdin
        self._answers: IO[str] = self._process.stdout

    def ready(self) -> Child:
        """Wait until it can take orders."""
        self.answer()
        return self

    def order(self, text: str) -> None:
        self._orders.write(text + "\n")
        self._orders.flush()

    def answer(self) -> Answer:
        """What it says next; RuntimeError when it ended instead."""
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"a process of the benchmark ended with {self._process.wait()}")
        found: Answer = json.loads(line)
        return found

    def ask(self, text: str) -> Answer:
        self.order(text)
        return self.answer()

    def close(self) -> None:
        """Let it end; it ends when there are no more orders."""
        with suppress(OSError):  # it may have ended before
            self._orders.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def portable(config: Settings) -> Answer:
    """Settings as another process can load them."""
    return {key: value for key, value in config.model_dump(mode="json", exclude_unset=True).items() if value is not None}


def _say(answer: Answer) -> None:
    print(json.dumps(answer), flush=True)


def _orders() -> Iterator[str]:
    return (line.strip() for line in sys.stdin)


def work() -> None:
    """For the first order, the settings of a store: a worker that settles, merges or archives when told to, and says what it took
    and how much memory it ever had."""
    _say({})
    given = next(_orders(), None)
    if given is None:  # it was not needed
        return
    with stores.working(load(json.loads(given), environ={})) as steps:
        orders: dict[str, Callable[[], stores.Spent]] = {
            "settle": steps.settle,
            "merge what is due": partial(steps.merge, force=False),
            "merge everything": partial(steps.merge, force=True),
            "archive": steps.archive,
        }
        _say({})
        for order in _orders():
            spent = orders[order]()
            steps.tidy()
            view = steps.tiers.ledger.view()
            counts = {"segments": len(view.segments), "files": len(view.files)}
            _say({**msgspec.structs.asdict(spent), **counts, "peak_bytes": peak_bytes()})


def run_worker(config: Settings) -> None:
    """The worker as it always runs, until stdin ends."""
    from thermocline.archiver.worker import Worker
    from thermocline.tiers.opening import open_tiers

    with open_tiers(config) as tiers:
        worker = Worker(tiers)
        worker.start()
        _say({})
        for _ in _orders():
            _say({"peak_bytes": peak_bytes(), "problem": worker.problem})
        worker.stop()


def write(config: Settings, events: str, per_s: int, duration_s: float) -> None:
    """Append at a steady rate; the times (µs) at which each marker was appended."""
    given = given_events(events)
    for event in given:
        del event["timestamp"]  # it happens when it is appended
    with Producer(config) as producer:
        producer.append(MARKER, "marker")
        producer.flush()
        _say({})
        next(_orders())
        stamps: list[int] = []
        endless = cycle(given)
        each = int(per_s * TICK_S) - 1
        begin = time.perf_counter()
        for tick in range(int(duration_s / TICK_S)):
            for event in islice(endless, each):
                producer.append(**event)
            stamps.append(time.time_ns() // 1000)
            producer.append(MARKER, "marker")
            pause_s = begin + (tick + 1) * TICK_S - time.perf_counter()
            if pause_s > 0:
                time.sleep(pause_s)
        taken_s = time.perf_counter() - begin
        producer.flush()
    _say({"stamps": stamps, "events": len(stamps) * (each + 1), "taken_s": taken_s})
    next(_orders(), None)


def write_events(path: Path, load_: Workload) -> str:
    """A file of events as they come in, for a process to append; its path."""
    table = pa.concat_tables(as_strings(one) for one in load_.arrivals())
    pyarrow.feather.write_feather(table, path, compression="uncompressed")
    return str(path)


def given_events(path: str) -> list[dict[str, Any]]:
    """The events of such a file as Python values."""
    return kwargs_of(pyarrow.feather.read_table(path))


def read(config: Settings, pause_s: float) -> None:
    """Ask again and again for the newest marker until told to stop; (µs at the begin and end of a query, the marker) of each."""
    query = f"SELECT max(seq) FROM events WHERE conversation_id = '{MARKER}'"
    seen: list[tuple[int, int, int]] = []
    with connect(config) as store, ThreadPoolExecutor(1) as pool:
        store.sql(query).fetchall()
        _say({})
        ended = pool.submit(next, _orders(), None)
        while not ended.done():
            begin_us = time.time_ns() // 1000
            [(seq,)] = store.sql(query).fetchall()
            seen.append((begin_us, time.time_ns() // 1000, seq or 0))
            time.sleep(pause_s)
    _say({"seen": seen})


def produce(events: str, name: str) -> None:
    """For each order, the settings of a store: append the events to it through a Producer; when that began and ended."""
    given = given_events(events)
    for event in given:
        event["conversation_id"] += f"-{name}"
    _say({})
    for order in _orders():
        with Producer(load(json.loads(order), environ={})) as producer:
            producer.append(**given[0])
            producer.flush()
            begin = time.time()
            for event in given:
                producer.append(**event)
            producer.flush()
            _say({"events": len(given), "begin_s": begin, "end_s": time.time()})


def agents(config: Settings, threads: int) -> None:
    """For each order `NAME FIRST COUNT CONCURRENT APPENDS`: so many agents, each with so many appends under way at any moment.

    Latencies, and how many were refused: an event that is refused with `retry_after_s` is appended again after that time, as
    often as it takes.
    """
    with Client(config) as client, ThreadPoolExecutor(threads) as pool:
        client.append("agent", "agent.started")
        _say({})
        for order in _orders():
            name, *numbers = order.split()
            forget_peak()
            begin = time.time()
            tally = _Agents(client, name, *map(int, numbers)).run(pool, threads)
            _say({**tally, "begin_s": begin, "end_s": time.time(), "peak_bytes": peak_bytes()})


class _Agents:
    """Streams of appends, each one after the other. Those whose turn it is not wait in a queue, as calls of a busy process do."""

    def __init__(self, client: Client, name: str, first: int, count: int, concurrent: int, appends: int) -> None:
        each, more = divmod(appends, count * concurrent)
        streams = [(f"{name}-{first + number % count}", each + (number < more)) for number in range(count * concurrent)]
        begin = time.perf_counter()
        self._client = client
        self._calls = deque([(begin, agent, left) for agent, left in streams if left])
        """When the call was made, by which agent, and how many more its stream makes, this one included."""

    def run(self, pool: ThreadPoolExecutor, threads: int) -> Answer:
        """Make all calls with so many threads of the pool."""
        told = list(pool.map(lambda _: self._work(), range(threads)))
        return {"latencies_s": [one for latencies, _ in told for one in latencies], "refused": sum(one for _, one in told)}

    def _work(self) -> tuple[list[float], int]:
        """Until no call waits: then there are at least as many threads as streams that are not at their end."""
        latencies: list[float] = []
        refused = 0
        while self._calls:
            try:
                begin, agent, left = self._calls.popleft()
            except IndexError:  # another thread was quicker
                break
            while not self._appended(agent, left):
                refused += 1
            end = time.perf_counter()
            latencies.append(end - begin)
            if left > 1:
                self._calls.append((end, agent, left - 1))
        return latencies, refused

    def _appended(self, agent: str, number: int) -> bool:
        """False when it was refused, and the time to wait is over."""
        text = f"step {number} of {agent}: looked up the order and told the customer when it will arrive"
        try:
            self._client.append(agent, "message.assistant", text, agent_id=agent, model="gpt-4o", output_tokens=19)
        except Backpressure as exc:
            time.sleep(exc.retry_after_s)
            return False
        return True


ROLES: dict[str, Callable[..., None]] = {
    "work": work, "worker": run_worker, "write": write, "read": read, "produce": produce, "agents": agents,
}  # fmt: skip


def main() -> None:
    given = json.loads(sys.argv[2])
    overrides = given.pop("config")
    ROLES[sys.argv[1]](**({"config": load(overrides, environ={})} if overrides else {}), **given)


if __name__ == "__main__":
    main()
