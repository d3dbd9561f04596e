"""Restore again and again while events are appended, and compare: `python -m tests.restored [--seconds S] [--events N]`.

First N events are appended, settled, merged and mirrored, and restored once with nothing else going on: the recovery time. Then a
producer appends and a worker works for S seconds, while the mirror is restored into one empty directory after another, each with
an empty Redis of its own. What is restored must be, of every conversation, its first events, each once and as appended; verify
must close. The recovery point is how long ago the newest event that came back was acknowledged, when the restore began.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from tests.reporting import reported
from thermocline.archiver.restore import restore
from thermocline.archiver.worker import Worker
from thermocline.config import Settings, load
from thermocline.ingest.append import Client
from thermocline.store import connect
from thermocline.tiers import embedded
from thermocline.tiers.opening import Tiers, open_tiers

CONVERSATIONS = 20
TEXT_SQL = "concat(conversation_id, ' ', seq, ' ', md5(concat(conversation_id, seq)), md5(concat(seq, conversation_id)))"
"""What an event says, so that a query can tell whether it is the one that was appended; half of it does not compress."""
BATCH = 2000
EAGER = {"settle_after_s": 0, "settle_after_events": 1, "settle_latest_s": 1}


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a run."""

    events: int
    """Appended before the first restore."""
    mirror_s: float
    """How long copying them took."""
    restore_s: float
    answer_s: float
    """From the beginning of the restore to the answer of a query over all events, an empty Redis started in between."""
    mirrored_bytes: int
    events_under_load: int
    restores: int
    """Under load."""
    point_s: Sequence[float]
    """Recovery point: median and largest, in seconds."""
    time_s: Sequence[float]
    """A restore under load: median and longest, in seconds."""
    problems: list[str]

    @property
    def restore_s_per_million(self) -> float:
        return self.restore_s * 1e6 / self.events


def run(folder: Path, *, events: int, seconds: float, pause_s: float = 0.05) -> Restored:
    """See above. `pause_s` between two appends of the load."""
    settings = settings_in(folder / "store", folder / "mirror")
    load_ = Load()
    problems: list[str] = []
    with open_tiers(settings) as tiers:
        load_.append(tiers, events)
        without = settings.model_copy(update={"warm": settings.warm.model_copy(update={"mirror": None})})
        with open_tiers(without) as plain:
            Worker(plain).once()
        started_s = time.monotonic()
        report = Worker(tiers).once()
        mirror_s = time.monotonic() - started_s
        problems += [report.problem] if report.problem else []
        first = _restored(settings, folder / "first", load_, problems)
        worker = Worker(tiers)
        worker.start()
        producer = threading.Thread(target=load_.run, args=(tiers, pause_s))
        producer.start()
        under_load = []
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            under_load.append(_restored(settings, folder / f"again-{len(under_load)}", load_, problems))
        load_.stopped.set()
        producer.join()
        worker.stop(60)
    embedded.stop(settings.data_dir)
    points, times = sorted(one[1] for one in under_load), sorted(one[0] for one in under_load)
    return Restored(
        events=events,
        mirror_s=round(mirror_s, 2),
        restore_s=round(first[0], 2),
        answer_s=round(first[3], 2),
        mirrored_bytes=first[2],
        events_under_load=sum(load_.acked.values()) - events,
        restores=len(under_load),
        point_s=(round(median(points), 1), round(points[-1], 1)),
        time_s=(round(median(times), 2), round(times[-1], 2)),
        problems=problems,
    )


class Load:
    """A producer whose events say what they are: the conversation and the seq it must be given."""

    def __init__(self) -> None:
        self.acked: dict[str, int] = {}
        self.log: list[tuple[float, dict[str, int]]] = []
        self.stopped = threading.Event()

    def append(self, tiers: Tiers, count: int) -> None:
        with Client(tiers.settings, tiers=tiers) as client:
            for start in range(0, count, BATCH):
                self._batch(client, min(BATCH, count - start))

    def run(self, tiers: Tiers, pause_s: float) -> None:
        with Client(tiers.settings, tiers=tiers) as client:
            while not self.stopped.wait(pause_s):
                self._batch(client, 100)

    def _batch(self, client: Client, count: int) -> None:
        given: list[dict[str, Any]] = []
        last = dict(self.acked)
        for number in range(count):
            conversation_id = f"c{number % CONVERSATIONS}"
            last[conversation_id] = last.get(conversation_id, 0) + 1
            content = text(conversation_id, last[conversation_id])
            given.append({"conversation_id": conversation_id, "event_type": "output.chunk", "content": content})
        client.append_many(given)
        self.acked = last
        self.log.append((time.monotonic(), last))

    def age_s(self, found: dict[str, int], at_s: float) -> float:
        """How long before `at_s` the first event that is not in `found` was acknowledged; 0 when all are in it."""
        for when_s, counts in self.log:
            if any(found.get(name, 0) < count for name, count in counts.items()):
                return max(0.0, at_s - when_s)
        return 0.0


def text(conversation_id: str, seq: int) -> str:
    """TEXT_SQL in Python."""
    sums = (hashlib.md5(part.encode()).hexdigest() for part in (f"{conversation_id}{seq}", f"{seq}{conversation_id}"))
    return f"{conversation_id} {seq} {''.join(sums)}"


def settings_in(data_dir: Path, mirror: Path) -> Settings:
    warm = {**EAGER, "mirror": f"file://{mirror}"}
    worker = {"mirror_every_s": 1, "settle_every_s": 0.5}
    return load({"data_dir": str(data_dir), "hot": {"shards": 4, "buckets": 64}, "warm": warm, "worker": worker}, environ={})


def _restored(settings: Settings, data_dir: Path, load_: Load, problems: list[str]) -> tuple[float, float, int, float]:
    """(how long the restore took, the recovery point, bytes fetched, how long until the first answer, with Redis started)."""
    again = settings.model_copy(update={"data_dir": data_dir})
    started_s = time.monotonic()
    found = restore(again, str(settings.warm.mirror))
    took_s = time.monotonic() - started_s
    problems += [*found.missing, *found.passed_over]
    with connect(again) as store:
        query = (
            "SELECT conversation_id, count(*), count(DISTINCT seq), max(seq),"
            f" count(*) FILTER (content <> {TEXT_SQL}) FROM events GROUP BY ALL"
        )
        rows = store.sql(query).fetchall()
        answered_s = time.monotonic() - started_s
        problems += [
            f"{row} is not the first events of a conversation" for row in rows if not row[1] == row[2] == row[3] or row[4]
        ]
        problems += store.verify(deep=True).problems
    embedded.stop(data_dir)
    shutil.rmtree(data_dir, ignore_errors=True)  # its server may be removing its socket just now
    return took_s, load_.age_s({row[0]: row[3] for row in rows}, started_s), found.bytes, answered_s


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.restored", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="thermocline-restored-") as folder:
        found = run(Path(folder), events=options.events, seconds=options.seconds)
    code = reported(found)
    print(f"restore: {found.restore_s_per_million:.2f} s per million events")  # noqa: T201
    sys.exit(code)


if __name__ == "__main__":
    main()
