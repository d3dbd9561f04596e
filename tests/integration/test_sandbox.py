"""Untrusted queries on a real store: answers are the library's, ends are clear, processes are shut in and then gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pyarrow as pa
import pytest

from tests.s3_servers import Bucket
from tests.waiting import wait_until
from thermocline.archiver.worker import Worker
from thermocline.config import SandboxSettings, Settings, load
from thermocline.errors import Backpressure, QueryRefused, TierCorrupt, TierUnavailable
from thermocline.ingest.append import Client
from thermocline.query.handed import Handover
from thermocline.sample_import import events_of, load_runs
from thermocline.serve import sandbox_guards
from thermocline.serve.sandbox import Sandbox
from thermocline.store import Store, connect
from thermocline.tiers import embedded

MIB = 1 << 20
WAIT_S = 120
ENDLESS = "SELECT count(*) FROM range(10000000000) a, range(10000000000) b WHERE a.range + b.range = -1"
ALIKE = (
    "SELECT event_type, count(*) AS n, sum(strlen(content)) AS bytes, sum(cost_usd) FROM events GROUP BY ALL ORDER BY ALL",
    "SELECT * FROM events ORDER BY conversation_id, seq",
    "SELECT * FROM hourly_stats ORDER BY ALL",
    "SELECT sum(event_count) AS n FROM hourly_stats WHERE hour > now() - INTERVAL 3 DAY",
    "SELECT hour, sum(event_count) AS n FROM hourly_stats GROUP BY ALL ORDER BY ALL",
    "SELECT * FROM conversation_summary ORDER BY conversation_id",
    "SELECT * FROM events WHERE conversation_id = 'fresh' ORDER BY seq",
    "SELECT count(*) FROM events WHERE event_type = 'message.user' AND timestamp > now() - INTERVAL 2 DAY",
    "SELECT count(*) FROM events e JOIN conversation_summary s USING (conversation_id) WHERE e.conversation_id LIKE 'a%'",
    "SELECT 99999999999999999999999999999999999999::HUGEINT AS wide, 1::HUGEINT AS narrow, [1, 2] AS l, {'a': 1} AS s",
    "SELECT 1 AS a, 2 AS a WHERE false",
    "WITH x AS (SELECT 1 AS i) FROM x",
    "FROM (VALUES ('ü', DATE '2026-11-22', 1.50)) t(a, b, c)",
)


def limits(**more: Any) -> SandboxSettings:
    """Generous in time, small in memory."""
    small = {"deadline_s": 500, "wait_s": 500, "memory_bytes_max": 128 * MIB, "spare": 0, "threads": 1}
    return load({"sandbox": {**small, **more}}, environ={}).sandbox


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Of a store with the sample in all tiers, and events that have not settled."""
    found = load({"data_dir": tmp_path_factory.mktemp("sandbox") / "data"}, environ={})
    with connect(found) as store, Client(found, tiers=store.tiers) as client:
        client.append_many(events_of(load_runs(), end_us=store.tiers.hot.facts().now_us))
        Worker(store.tiers).once()
        client.append_many([{"conversation_id": "fresh", "event_type": "note", "content": f"ü {n}"} for n in range(50)])
    yield found
    embedded.stop(found.data_dir)


@pytest.fixture(scope="module")
def store(settings: Settings) -> Iterator[Store]:
    with connect(settings) as opened:
        yield opened


@pytest.fixture
def sandbox(store: Store) -> Iterator[Sandbox]:
    with Sandbox(store, limits()) as opened:
        yield opened


def refused(sandbox: Sandbox, query: str, **how: Any) -> str:
    with pytest.raises(QueryRefused) as caught, sandbox.run(query, **how) as answer:
        answer.to_arrow()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    """`work` under way, and what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as exc:
            raised.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def timeless(coverage: dict[str, Any]) -> dict[str, Any]:
    """A receipt without what depends on when it was asked for."""
    bounds = {
        relation: {name: name.startswith("time") or value for name, value in found.items()}
        for relation, found in coverage["bounds"].items()
    }
    return {**coverage, "taken_at": None, "bounds": bounds}


def test_its_answers_and_receipts_are_those_of_the_library(store: Store) -> None:
    with Sandbox(store, limits(children_max=2, spare=2)) as sandbox, ThreadPoolExecutor(2) as pool:

        def ask(query: str) -> tuple[pa.Table, dict[str, Any], bool]:
            with sandbox.run(query) as answer:
                return answer.to_arrow(), answer.coverage.as_dict(), answer.truncated

        for query, (table, coverage, truncated) in zip(ALIKE, pool.map(ask, ALIKE), strict=True):
            wanted = store.sql(query)
            assert table.equals(wanted.to_arrow()), query
            assert not truncated
            assert timeless(coverage) == timeless(wanted.coverage.as_dict()), query


def test_an_event_is_seen_as_soon_as_it_is_acknowledged(store: Store, sandbox: Sandbox) -> None:
    with Client(store.settings, tiers=store.tiers) as client:
        receipt = client.append("just-now", "note", "here", metadata={"a": 1.00})
    with sandbox.run("SELECT event_id, content, metadata FROM events WHERE conversation_id = 'just-now'") as answer:
        [row] = answer.to_arrow().to_pylist()
    assert row == {"event_id": str(receipt.event_id), "content": "here", "metadata": '{"a":1.0}'}


def test_values_go_beside_the_text(sandbox: Sandbox) -> None:
    query = "SELECT count(*) AS n, $most AS most FROM events WHERE conversation_id = $name AND content != $odd"
    with sandbox.run(query, {"name": "fresh", "most": 2.5, "odd": "'; DROP"}) as answer:
        assert answer.to_arrow().to_pylist() == [{"n": 50, "most": 2.5}]
        assert answer.coverage.warm_rows == 0
    with sandbox.run("SELECT ? AS a, ? AS b", ["x", None]) as answer:
        assert answer.to_arrow().to_pylist() == [{"a": "x", "b": None}]


def test_a_long_answer_comes_in_pieces_and_is_cut_at_the_caps(store: Store) -> None:
    with Sandbox(store, limits(rows_max=300_000, answer_bytes_max=4 * MIB)) as sandbox:
        with sandbox.run("SELECT i FROM range(10000000) t(i)") as answer:
            sizes = [batch.nbytes for batch in answer.batches()]
            assert answer.rows == 300_000
            assert answer.truncated_by == "sandbox.rows_max"
            assert len(sizes) > 2
            assert max(sizes) <= 2 * MIB
        with sandbox.run("SELECT repeat('x', 5000) AS x FROM range(10000)") as answer:
            assert 3 * MIB < answer.to_arrow().nbytes <= 4 * MIB
            assert answer.truncated_by == "sandbox.answer_bytes_max"
        with sandbox.run("SELECT i FROM range(7) t(i)", rows_max=7) as answer:
            assert answer.to_arrow().num_rows == 7
            assert not answer.truncated
        with sandbox.run("SELECT i FROM range(7) t(i)", rows_max=6) as answer:
            assert answer.to_arrow().num_rows == 6
            assert answer.truncated


def test_a_refusal_names_the_limit_and_its_setting(store: Store) -> None:
    small = limits(row_bytes_max=MIB, columns_max=10, query_bytes_max=2000, memory_bytes_max=64 * MIB, spill_bytes_max=16 * MIB)
    with Sandbox(store, small) as sandbox:
        assert "sandbox.row_bytes_max (1024 KiB)" in refused(sandbox, "SELECT repeat('x', 3000000)")
        assert "11 columns, more than sandbox.columns_max (10)" in refused(sandbox, "SELECT 1,2,3,4,5,6,7,8,9,10,11")
        assert "sandbox.query_bytes_max (2000)" in refused(sandbox, "SELECT '" + "x" * 2000 + "'")
        assert "sandbox.query_bytes_max (2000)" in refused(sandbox, "SELECT ?", parameters=["x" * 2000])
        assert "sandbox.memory_bytes_max (64 MiB)" in refused(sandbox, "SELECT repeat('x', 1000000000)")
        spilling = "SELECT * FROM (SELECT repeat(i::VARCHAR, 40) AS s FROM range(3000000) t(i)) ORDER BY s OFFSET 2000000"
        assert "sandbox.spill_bytes_max (16 MiB)" in refused(sandbox, spilling)
        assert "sandbox.deadline_s (0.5 s)" in refused(sandbox, ENDLESS, deadline_s=0.5)
        assert "more than 38 digits" in refused(sandbox, "SELECT [170141183460469231731687303715884105727::HUGEINT]")
        assert "must be positive" in refused(sandbox, "SELECT 1", rows_max=0)
        assert "a list (for ? and $1) or a dict" in refused(sandbox, "SELECT 1", parameters="x")
    assert list(store.settings.namespace_dir.glob("spill-*sandbox*")) == []


def test_what_is_not_one_select_says_how_to_write_it(sandbox: Sandbox) -> None:
    assert "ON column IN" in refused(sandbox, "PIVOT events ON event_type USING count(*)")
    assert "one by one" in refused(sandbox, "SELECT 1; SELECT 2")
    assert 'Did you mean "events"' in refused(sandbox, "SELECT * FROM evnts")
    assert "without comments" in refused(sandbox, "/* why */ EXPLAIN SELECT 1")
    assert "not COPY" in refused(sandbox, "EXPLAIN (FORMAT json, ANALYZE) COPY (SELECT 1) TO 'x'")
    with sandbox.run("EXPLAIN (ANALYZE, FORMAT json) SELECT count(*) FROM events") as answer:
        assert answer.to_arrow().num_rows == 1


def test_a_query_that_is_cancelled_or_left_ends(store: Store) -> None:
    with Sandbox(store, limits(children_max=1)) as sandbox:
        over = threading.Event()
        thread, raised = in_thread(lambda: sandbox.run(ENDLESS, cancelled=over))
        wait_until(lambda: sandbox.pids, WAIT_S, "the query runs")
        over.set()
        thread.join()
        assert [str(exc) for exc in raised] == ["the query was cancelled"]
        with sandbox.run("SELECT i FROM range(1000000) t(i)") as answer:
            next(iter(answer.batches()))
        assert sandbox.running == 0
        assert sandbox.pids == []
        assert refused(sandbox, "SELECT 1", cancelled=over) == "the query was cancelled"


def test_a_reader_that_stops_reading_loses_its_query_at_the_deadline(store: Store) -> None:
    with Sandbox(store, limits(answer_bytes_max=64 * MIB)) as sandbox:
        answer = sandbox.run("SELECT repeat('x', 1000) AS x, i FROM range(10000000) t(i)")
        batches = answer.batches()
        next(batches)
        [pid] = sandbox.pids
        answer._running._child.deadline_s = 0.0  # as if all its time were over by now
        wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie", WAIT_S, "it is killed")
        with pytest.raises(QueryRefused, match=r"sandbox.deadline_s"):
            list(batches)
        assert sandbox.running == 0


def test_too_many_queries_are_sent_away_and_say_when_to_come_back(store: Store) -> None:
    with Sandbox(store, limits(children_max=1, waiting_max=0)) as sandbox:
        thread, raised = in_thread(lambda: sandbox.run(ENDLESS))
        wait_until(lambda: sandbox.running == 1, WAIT_S, "the first one runs")
        with pytest.raises(Backpressure, match=r"sandbox\.waiting_max") as caught:
            sandbox.run("SELECT 1")
        assert caught.value.retry_after_s > 0
        sandbox.close()
        thread.join()
        assert [type(exc) for exc in raised] == [TierUnavailable]
    with Sandbox(store, limits(children_max=1, wait_s=0.2)) as sandbox:
        thread, raised = in_thread(lambda: sandbox.run(ENDLESS))
        wait_until(lambda: sandbox.running == 1, WAIT_S, "the first one runs")
        with pytest.raises(Backpressure, match=r"sandbox\.children_max .* sandbox\.wait_s"):
            sandbox.run("SELECT 1")
        sandbox.close()
        thread.join()
        with pytest.raises(TierUnavailable, match="closed"):
            sandbox.run("SELECT 1")


def test_a_process_that_is_killed_from_outside_is_a_clear_error_and_the_next_query_works(store: Store) -> None:
    with Sandbox(store, limits()) as sandbox:
        thread, raised = in_thread(lambda: sandbox.run(ENDLESS))
        wait_until(lambda: sandbox.pids, WAIT_S, "it runs")
        os.kill(sandbox.pids[0], signal.SIGSEGV)
        thread.join()
        [exc] = raised
        assert isinstance(exc, QueryRefused)
        assert "SIGSEGV" in str(exc)
        with sandbox.run("SELECT 1 AS i") as answer:
            assert answer.to_arrow().to_pylist() == [{"i": 1}]


def test_a_process_knows_nothing_of_the_server_and_gives_way_to_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with (store.settings.namespace_dir / "ledger.db").open("rb"), Sandbox(store, limits()) as sandbox:
        answer = sandbox.run("SELECT repeat('x', 1000) AS x, i FROM range(10000000) t(i)")
        [pid] = sandbox.pids
        process = psutil.Process(pid)
        assert "AWS_SECRET_ACCESS_KEY" not in process.environ()
        assert os.getsid(pid) == os.getpgid(pid) == pid
        assert process.nice() > psutil.Process().nice() or psutil.Process().nice() > 14
        assert process.cwd() == "/"
        opened = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
        assert [path for path in opened if "ledger" in path or "socket" in path] == []
        assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert process.rlimit(psutil.RLIMIT_DATA)[1] < 1024 * MIB
        answer.close()
        assert not psutil.pid_exists(pid)


def test_the_guards_of_the_kernel_hold() -> None:
    """In a process of its own: what was denied once stays so."""
    program = f"""
import os, socket, sys, threading
from thermocline.serve.sandbox_guards import confine, deny_calls
folder = sys.argv[1]
open(folder + "/allowed", "w").write("x"); open(folder + "/denied", "w").write("x"); os.mkdir(folder + "/spill")
def tried(name, work):
    try: work()
    except OSError: print(name)
there = {{"seccomp": deny_calls(), "landlock": confine([folder + "/allowed"], [folder + "/spill"])}}
guards = [name for name in there if there[name]]
open(folder + "/allowed").read(); open(folder + "/spill/x", "w").write("x")
thread = threading.Thread(target=lambda: tried("read", lambda: open(folder + "/denied"))); thread.start(); thread.join()
tried("write", lambda: open(folder + "/allowed", "r+"))
tried("list", lambda: os.listdir(folder))
tried("socket", socket.socket)
tried("fork", os.fork)
tried("exec", lambda: os.execv(sys.executable, [sys.executable, "-c", ""]))
tried("kill", lambda: os.kill({os.getpid()}, 0))
print(*guards)
"""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *denied, guards = done.stdout.splitlines()
    by = {"landlock": ["read", "write", "list"], "seccomp": ["socket", "fork", "exec", "kill"]}
    assert sandbox_guards.has_landlock() == ("landlock" in guards)
    assert {*denied} >= {name for guard in guards.split() for name in by[guard]}


def test_a_file_that_leaves_meanwhile_means_another_cut(store: Store, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first handover names a segment that was purged."""
    real, given = store.lender.lend, []

    def lend(reading: Any, use: Any, **how: Any) -> Any:
        def first_wrong(handover: Handover, tail: pa.RecordBatchReader, coverage: Any) -> Any:
            given.append(handover)
            if len(given) == 1:
                gone = {name: f"{path}.gone" for name, path in handover.segments.items()}
                handover = msgspec.structs.replace(handover, segments=gone)
            return use(handover, tail, coverage)

        return real(reading, first_wrong, **how)

    monkeypatch.setattr(store.lender, "lend", lend)
    query = "SELECT count(*) AS n FROM events WHERE event_type = 'message.user'"
    with sandbox.run(query) as answer:
        assert answer.to_arrow().to_pylist() == [{"n": store.sql(query).fetchall()[0][0]}]
        assert answer.coverage.retries == 1
    assert len(given) == 2


def test_what_is_on_s3_is_copied_before_within_a_limit(moto_bucket: Bucket, tmp_path: Path) -> None:
    found = load({"data_dir": tmp_path / "data", "cold_url": moto_bucket.url}, environ={})
    query = "SELECT count(*) AS n, sum(strlen(content)) AS bytes, min(sample_rate) AS rate FROM events"
    try:
        with connect(found) as store, Client(found, tiers=store.tiers) as client:
            client.append_many(events_of(load_runs(), end_us=store.tiers.hot.facts().now_us))
            Worker(store.tiers).once()
            files = [file for file in store.tiers.ledger.view().files if file.kind == "events"]
            assert len(files) > 1
            with Sandbox(store, limits(copied_bytes_max=0)) as sandbox:
                assert "more than sandbox.copied_bytes_max (0)" in refused(sandbox, query)
            assert all(store.tiers.copies.place(file.key).startswith("cold://") for file in files)
            with Sandbox(store, limits()) as sandbox, sandbox.run(query) as answer:
                assert answer.to_arrow().to_pylist() == store.sql(query).to_arrow().to_pylist()
                assert answer.coverage.files_read == len(files)
            assert all(Path(store.tiers.copies.place(file.key)).exists() for file in files)
    finally:
        embedded.stop(found.data_dir)


def test_a_segment_that_is_lost_is_said_to_be(settings: Settings, tmp_path: Path) -> None:
    found = load({"data_dir": tmp_path / "data"}, environ={})
    try:
        with connect(found) as store, Client(found, tiers=store.tiers) as client:
            client.append("c", "note", "x")
            Worker(store.tiers).once()
            [segment] = store.tiers.ledger.view().segments
            Path(store.tiers.warm.path(segment.segment_id)).unlink()
            with Sandbox(store, limits()) as sandbox, pytest.raises(TierCorrupt, match="thermocline verify"):
                sandbox.run("SELECT count(*) FROM events")
    finally:
        embedded.stop(found.data_dir)


def test_spare_processes_wait_ready_in_the_number_asked_for_and_go_with_the_sandbox(store: Store) -> None:
    sandbox = Sandbox(store, limits(spare=2))
    wait_until(lambda: len(sandbox.pids) == 2, WAIT_S, "two wait")
    before = set(sandbox.pids)
    with sandbox.run("SELECT 1 AS i") as answer:
        assert before & {answer._running._child.pid}
        answer.to_arrow()
    wait_until(lambda: len(sandbox.pids) == 2, WAIT_S, "there are two again")
    pids = sandbox.pids
    os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: sandbox._children._spare[0].has_ended, WAIT_S, "one of them is dead, with all its threads")
    with sandbox.run("SELECT 2 AS i") as answer:
        assert answer.to_arrow().to_pylist() == [{"i": 2}]
    sandbox.close()
    sandbox.close()
    assert [pid for pid in {*before, *pids} if psutil.pid_exists(pid)] == []


def test_a_process_whose_server_is_gone_ends_by_itself() -> None:
    """One that waits sees its pipe end; one that runs has a clock of its own."""
    from thermocline.serve.sandbox_children import Child

    child = Child()
    child.input.close()
    wait_until(lambda: child.has_ended, WAIT_S, "it has ended")
    assert child.close() == 0
    program = "from thermocline.serve import sandbox_guards as g; g.LATE_S = 0; g.limit_process(memory_bytes=1 << 30, cpu_s=500, wall_s=0.1, file_bytes=0, open_files=64)\nwhile True: pass"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", program])
    assert done.returncode == -signal.SIGALRM


def test_what_a_process_says_is_not_believed(store: Store, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was taken over: frames too large, of the wrong kind, or no Arrow."""
    from thermocline.serve import sandbox_children

    for said in (
        "b'z' + b'\\xff' * 4",
        "b'b' + (5).to_bytes(4, 'big') + b'wrong'",
        "b'e' + (1).to_bytes(4, 'big') + b'\\xc1'",
        "b'r' + (3).to_bytes(4, 'big') + b'\\x93\\x01\\x02'",
    ):
        monkeypatch.setattr(sandbox_children, "_START", f"import os; os.write(1, {said})\nwhile os.read(0, 4096): pass")
        with pytest.raises(TierUnavailable, match="said what it should not"):
            sandbox.run("SELECT 1")
    monkeypatch.setattr(sandbox_children, "_START", "import sys; sys.exit(3)")
    with pytest.raises(TierUnavailable, match="ended with code 3"):
        sandbox.run("SELECT 1")
    assert sandbox.running == 0


def test_a_thousand_events_pass_while_the_worker_moves_them(tmp_path: Path) -> None:
    """Counts are right whatever settles and merges meanwhile."""
    found = load({"data_dir": tmp_path / "data", "warm": {"fan_in": 2, "purge_grace_s": 0}}, environ={})
    try:
        with connect(found) as store, Client(found, tiers=store.tiers) as client, Sandbox(store, limits(spare=1)) as sandbox:
            worker = Worker(store.tiers)
            for rounds in range(1, 5):
                client.append_many([{"conversation_id": f"c{n % 7}", "event_type": "note", "content": "x"} for n in range(250)])
                thread, raised = in_thread(worker.once)
                with sandbox.run("SELECT count(*) AS n, count(DISTINCT (conversation_id, seq)) AS d FROM events") as answer:
                    assert answer.to_arrow().to_pylist() == [{"n": 250 * rounds, "d": 250 * rounds}]
                thread.join()
                assert raised == []
    finally:
        embedded.stop(found.data_dir)
