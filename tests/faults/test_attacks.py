"""Attacks on the process of an untrusted query: nothing is told, nothing is changed, and others are served meanwhile.

All attacks run side by side in a sandbox of small limits, two at a time, while a third place asks the same question again and
again. Secrets are planted in files, in the environment, in settings and in variables of this process.
"""

from __future__ import annotations

import os
import resource
import secrets
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pytest

from tests.attacks import ATTACKS, LONG, SLOW, Attack
from thermocline.archiver.worker import Worker
from thermocline.config import Settings, load
from thermocline.errors import QueryRefused
from thermocline.ingest.append import Client
from thermocline.sample_import import events_of, load_runs
from thermocline.serve.sandbox import Sandbox
from thermocline.store import Store, connect
from thermocline.tiers import embedded

SECRET = f"canary-{secrets.token_hex(12)}"
canary_table = pa.table({"secret": [SECRET]})
MIB = 1 << 20
SERVER_GROWTH_MAX = 256 * MIB
"""Of this process, all attacks together: it reads the store, and buffers a part of each answer."""
PAUSE_S = 2
"""Between two questions of the one who is no attacker."""
CONTROL = "SELECT count(*) AS n, sum(strlen(content)) AS bytes, count(DISTINCT conversation_id) AS c FROM events"
LIMITS = {
    "children_max": 3,
    "spare": 2,
    "waiting_max": 1000,
    "wait_s": 600,
    "deadline_s": 600,
    "rows_max": 20_000,
    "answer_bytes_max": 4 * MIB,
    "row_bytes_max": MIB,
    "memory_bytes_max": 64 * MIB,
    "spill_bytes_max": 48 * MIB,
    "threads": 1,
}


class Outcome(NamedTuple):
    """What an attacker gets to see."""

    refusal: str
    text: str
    rows: int
    truncated: bool


class Ground(NamedTuple):
    """Where the attacks take place."""

    outcomes: dict[str, Future[Outcome]]
    wrong: list[object]
    """Answers to the control query that were not right."""
    asked: threading.Semaphore
    """Released once for every right one."""
    before_bytes: int
    places: dict[str, str]
    """What names in the text of an attack stand for."""
    files: list[Path]


def peak_bytes() -> int:
    """The most memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def plant(folder: Path) -> None:
    """Files that hold the secret, of every kind that DuckDB reads."""
    folder.mkdir()
    (folder / "secret.txt").write_text(SECRET)
    (folder / "secret.csv").write_text(f"name,value\nkey,{SECRET}\n")
    (folder / "secret.json").write_text(f'{{"key": "{SECRET}"}}\n')
    (folder / "schema.sql").write_text(f"CREATE TABLE x AS SELECT '{SECRET}' AS s;")
    (folder / "load.sql").write_text("")
    (folder / "secret.duckdb_extension").write_text(SECRET)
    with duckdb.connect(folder / "secret.duckdb") as con:
        con.execute(f"CREATE TABLE secret AS SELECT '{SECRET}' AS s")
        con.execute(f"COPY secret TO '{folder}/secret.parquet' (KV_METADATA {{key: '{SECRET}'}})")


def filled(settings: Settings) -> Store:
    """A store with the sample in all three tiers."""
    with connect(settings) as store, Client(settings, tiers=store.tiers) as client:
        client.append_many(events_of(load_runs(), end_us=store.tiers.hot.facts().now_us))
        Worker(store.tiers).once()
        client.append_many([{"conversation_id": "new", "event_type": "message.user", "content": f"word {n}"} for n in range(100)])
    return connect(settings)


def other_segment(data_dir: Path) -> str:
    """A segment of another namespace, with the secret in it."""
    settings = load({"data_dir": data_dir, "namespace": "other"}, environ={})
    with connect(settings) as store, Client(settings, tiers=store.tiers) as client:
        client.append("c", "message.user", SECRET)
        Worker(store.tiers).once()
        [segment] = store.tiers.ledger.view().segments
        return store.tiers.warm.path(segment.segment_id)


def attacked(sandbox: Sandbox, attack: Attack, places: dict[str, str]) -> Outcome:
    sql = attack.sql
    for name, value in places.items():
        sql = sql.replace(f"{{{name}}}", value)
    in_a_frame = SECRET  # what a scan of Python variables could find
    assert in_a_frame
    try:
        with sandbox.run(sql, deadline_s=attack.deadline_s) as answer:
            rows, seen = 0, set()
            for batch in answer.batches():
                rows += batch.num_rows
                seen.add(SECRET in str(batch.slice(0, 2000).to_pylist()))
            return Outcome("", SECRET if True in seen else "", rows, answer.truncated)
    except QueryRefused as exc:
        return Outcome(str(exc), "", 0, False)


@contextmanager
def attacking(folder: Path, names: Sequence[str]) -> Iterator[Ground]:
    """The attacks of these names under way."""
    data = folder / "data"
    plant(folder / "secrets")
    given: dict[str, Any] = {"data_dir": data, "sandbox": LIMITS, "cold": {"catalog_properties": {"password": SECRET}}}
    settings = load(given, environ={})
    places = {"secrets": str(folder / "secrets"), "data": str(data), "copy": str(folder / "copied"), "pid": str(os.getpid())}
    try:
        places["other"] = other_segment(data)
        with filled(settings) as store:
            (data / "default" / "cold" / "link").symlink_to(folder / "secrets")
            (folder / "secrets" / "link-in-the-store").symlink_to(folder / "secrets")
            expected = store.sql(CONTROL).fetchall()
            wrong: list[object] = []
            asked = threading.Semaphore(0)
            over = threading.Event()
            files = secret_files(folder)
            with Sandbox(store, settings.sandbox) as sandbox:

                def ask() -> None:
                    while not over.is_set():
                        with sandbox.run(CONTROL) as answer:
                            found = [tuple(row.values()) for row in answer.to_arrow().to_pylist()]
                        wrong.extend([] if found == expected else [found])
                        asked.release()
                        over.wait(PAUSE_S)

                before_bytes = peak_bytes()
                with ThreadPoolExecutor(3) as pool:
                    control = pool.submit(ask)
                    outcomes = {name: pool.submit(attacked, sandbox, ATTACKS[name], places) for name in names}
                    yield Ground(outcomes, wrong, asked, before_bytes, places, files)
                    over.set()
                    control.result()
    finally:
        embedded.stop(data)


def secret_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if "secrets" in path.parts)


def problems_of(name: str, outcome: Outcome) -> Iterator[str]:
    """What an attack should not have come to."""
    if SECRET in outcome.refusal or SECRET in outcome.text:
        yield "it was told the secret"
    if len(outcome.refusal.splitlines()) > 1:
        yield f"a refusal of several lines: {outcome.refusal}"
    if ATTACKS[name].refused and not outcome.refusal:
        yield f"it was answered with {outcome.rows} rows"
    if name.startswith("cut: ") and not outcome.truncated:
        yield "its answer was not cut"
    if name.removeprefix("slow: ") in SLOW and "sandbox.deadline_s" not in outcome.refusal:
        yield f"the deadline is not named: {outcome.refusal}"


@pytest.mark.parametrize(
    "names",
    [pytest.param(ATTACKS.keys() - LONG, id="of every change"), pytest.param(LONG, id="long ones", marks=pytest.mark.long)],
)
def test_attacks_tell_and_change_nothing_and_others_are_served_meanwhile(
    names: Collection[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One test, so that they run side by side and once."""
    for variable in ("AWS_SECRET_ACCESS_KEY", "THERMOCLINE_REDIS_PASSWORD", "s3_secret_access_key"):
        monkeypatch.setenv(variable, SECRET)
    with attacking(tmp_path.resolve(), [name for name in ATTACKS if name in names]) as ground:
        found = {name: list(problems_of(name, outcome.result())) for name, outcome in ground.outcomes.items()}
        assert {name: problems for name, problems in found.items() if problems} == {}
        assert len(found) == len(names)
        for _ in range(2):
            assert ground.asked.acquire(timeout=120)
        assert ground.wrong == []
        assert not Path(ground.places["copy"]).exists()
        assert secret_files(Path(ground.places["secrets"]).parent) == ground.files
        assert peak_bytes() - ground.before_bytes < SERVER_GROWTH_MAX


def test_there_are_at_least_sixty_attacks_on_every_change() -> None:
    assert len(ATTACKS.keys() - LONG) >= 60
    assert ATTACKS.keys() >= LONG
