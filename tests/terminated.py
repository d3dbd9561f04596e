"""A worker that is told to end at random moments: `python -m tests.terminated --times 100 --seed S`.

Events are appended all the time, old and new, so that the worker has everything to do at once: settle, trim, merge, archive,
compact, purge, checkpoint, verify, mirror, scrub. Each worker gets SIGTERM at a random moment: most after it said that it works,
some before. It must end within 5 s: with code 0, or by the signal itself while it still starts. The next one goes on. At the end
every acknowledged event is there once.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from tests.reporting import reported
from tests.servers import RedisServer, redis_binaries
from tests.tidying import DAY_US
from tests.waiting import wait_until
from thermocline.archiver.worker import Worker
from thermocline.config import Settings, load
from thermocline.errors import Backpressure
from thermocline.ingest.append import Client
from thermocline.store import Store
from thermocline.tiers.opening import open_tiers

ROOT = Path(__file__).parents[1]
STARTED = "worker of namespace"
EARLY_SHARE = 0.15
"""Of the signals: before that."""
BATCH = 40
PAUSE_S = 0.1
SECTIONS: dict[str, dict[str, Any]] = {
    "hot": {"shards": 4, "buckets": 64, "durable_lag_s": 0, "log_grace_s": 0.2, "cache_window_s": 1},
    "warm": {
        "settle_events": 50,
        "settle_after_s": 0.1,
        "settle_after_events": 1,
        "settle_latest_s": 0.2,
        "fan_in": 3,
        "purge_grace_s": 0.5,
        "day_rows_min": 500,
        "rollup_rows_min": 200,
    },
    "cold": {"compact_files_min": 3, "purge_grace_s": 1},
    "worker": {
        "settle_every_s": 0.1,
        "merge_every_s": 0.2,
        "purge_every_s": 0.3,
        "checkpoint_every_s": 0.5,
        "verify_every_s": 0.7,
        "archive_every_s": 0.5,
        "mirror_every_s": 0.5,
        "scrub_every_s": 0.6,
    },
    "sampling": {"rules": [{"name": "all", "keep": True}]},
}


class Verdict(msgspec.Struct, kw_only=True):
    """What came of a run."""

    seed: int
    times: int = 0
    exit_s_max: float = 0
    exit_s_median: float = 0
    codes: dict[str, int] = {}
    """Exit code → how often; that of a signal is negative."""
    left: int = 0
    """Ended without the step in hand, which took too long."""
    events: int = 0
    """Acknowledged."""
    archived: int = 0
    lost: int = 0
    doubled: int = 0
    seconds: float = 0
    problems: list[str] = []


class Load:
    """Appends in a thread until told to stop."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.acknowledged: dict[tuple[str, int], str] = {}
        self._settings = settings
        self._dice = random.Random(seed)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        with Client(self._settings) as client:
            while not self._stopped.wait(PAUSE_S):
                now_us = time.time_ns() // 1000
                events = [
                    {
                        "conversation_id": f"c{self._dice.randrange(30)}",
                        "event_type": "output.chunk",
                        "content": str(number + one),
                        "timestamp": now_us - self._dice.choice((14, 13, 2, 1)) * DAY_US,
                    }
                    for one in range(BATCH)
                ]
                number += BATCH
                try:
                    receipts = client.append_many(events)
                except Backpressure:
                    continue
                for event, receipt in zip(events, receipts, strict=True):
                    self.acknowledged[receipt.conversation_id, receipt.seq] = str(event["content"])


def run(folder: Path, *, times: int, seed: int, lives_s_max: float = 3, exit_s_max: float = 5) -> Verdict:
    """See above. A worker lives up to `lives_s_max` after it said that it works; most of the early ones do not live so long."""
    began_s = time.monotonic()
    verdict, dice = Verdict(seed=seed, times=times), random.Random(seed)
    server = RedisServer(redis_binaries()[-1], folder / "redis", options={"appendfsync": "always"})
    server.start()
    try:
        base = {"data_dir": str(folder / "data"), "redis_url": server.url}
        warm = {**SECTIONS["warm"], "mirror": f"file://{folder / 'mirror'}"}
        settings = load({**base, **SECTIONS, "warm": warm}, environ={})
        (folder / "thermocline.toml").write_text(_toml({**SECTIONS, "warm": warm}, base))
        with open_tiers(settings):
            pass  # the namespace is there before anybody appends
        exits_s: list[float] = []
        with Load(settings, seed) as load_:
            for number in range(times):
                exits_s.append(_terminate(folder, number, lives_s_max * dice.random(), dice.random() < EARLY_SHARE, verdict))
        late = [round(took_s, 2) for took_s in exits_s if took_s > exit_s_max]
        verdict.problems += [f"ends that took longer than {exit_s_max:g} s: {late}"] * bool(late)
        verdict.exit_s_max, verdict.exit_s_median = round(max(exits_s), 2), round(median(exits_s), 2)
        _judge(settings, load_.acknowledged, verdict)
    finally:
        server.stop()
    verdict.seconds = round(time.monotonic() - began_s, 1)
    return verdict


def _toml(sections: dict[str, dict[str, Any]], base: dict[str, str]) -> str:
    """The settings as a file."""
    lines = [f"{name} = {msgspec.json.encode(value).decode()}" for name, value in base.items()]
    for section, values in sections.items():
        lines.append(f"[{section}]")
        for name, value in values.items():
            shown = '[{name = "all", keep = true}]' if name == "rules" else msgspec.json.encode(value).decode()
            lines.append(f"{name} = {shown}")
    return "\n".join(lines) + "\n"


def _terminate(folder: Path, number: int, after_s: float, early: bool, verdict: Verdict) -> float:
    """Start a worker, end it some time after it said that it works, or after its start when `early`; how long that took."""
    path = folder / f"worker-{number}.log"
    environ = {**os.environ, "THERMOCLINE_CONFIG": str(folder / "thermocline.toml")}
    with path.open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "thermocline", "worker"], cwd=ROOT, env=environ, stdout=log, stderr=log)
    if not early:
        wait_until(lambda: STARTED in path.read_text() or process.poll() is not None, 120, "the worker is at work")
    _let_pass(after_s, lambda: process.poll() is not None)
    started = STARTED in path.read_text()
    process.send_signal(signal.SIGTERM)
    sent_s = time.monotonic()
    code = process.wait(60)
    took_s = time.monotonic() - sent_s
    said = path.read_text()
    where = f"seed {verdict.seed}, worker {number}"
    verdict.codes[str(code)] = verdict.codes.get(str(code), 0) + 1
    verdict.left += "takes too long" in said
    if code != 0 and (started or code != -signal.SIGTERM):
        verdict.problems.append(f"{where}: it ended with {code}: {said[-500:]}")
    verdict.problems += [f"{where}: {line}" for line in said.splitlines() if " ERROR " in line or "Traceback" in line]
    return took_s


def _let_pass(seconds: float, unless: Callable[[], bool]) -> None:
    end_s = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= end_s or unless(), seconds + 30, f"{seconds:g} s are over")


def _judge(settings: Settings, acknowledged: dict[tuple[str, int], str], verdict: Verdict) -> None:
    with Store(open_tiers(settings)) as store:
        report = Worker(store.tiers).once()
        found: Counter[tuple[str, int, str]] = Counter(store.sql("SELECT conversation_id, seq, content FROM events").fetchall())
        wanted = {(*place, content) for place, content in acknowledged.items()}
        verdict.events = len(wanted)
        verdict.archived = sum(total.kept for total in store.tiers.ledger.view().totals)
        verdict.lost = len(wanted - found.keys())
        verdict.doubled = sum(times > 1 for times in found.values())
        verdict.problems += [f"{verdict.lost} events lost"] * bool(verdict.lost)
        verdict.problems += [f"{verdict.doubled} events doubled"] * bool(verdict.doubled)
        verdict.problems += [f"{row} was never appended" for row in sorted(found.keys() - wanted)[:3]]
        verdict.problems += [*store.verify(deep=True).problems, *([report.problem] if report.problem else [])]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.terminated", description="End workers at random moments.")
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="thermocline-terminated-") as folder:
        verdict = run(Path(folder), times=options.times, seed=options.seed)
    return reported(verdict)


if __name__ == "__main__":
    sys.exit(main())
