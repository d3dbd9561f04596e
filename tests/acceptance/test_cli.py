"""The command line as its users have it: a process, its exit code, data on stdout, talk on stderr."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pyarrow as pa
import pytest

from tests.conftest import StartServer
from tests.waiting import wait_until
from thermocline.archiver.lease import Lock
from thermocline.cli import main
from thermocline.config import load
from thermocline.sample_import import events_of, load_runs, ndjson
from thermocline.tiers import embedded

HEAVY = ("duckdb", "pyarrow", "polars", "pandas", "redis", "sqlalchemy", "sqlglot", "thermocline.config", "apscheduler")
END_US = 1_794_265_200_000_000
GOOD = b'{"conversation_id":"c","event_type":"t","content":"%d"}\n'


def environment(**variables: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("THERMOCLINE_")}
    return {**plain, **variables}


class Done(NamedTuple):
    """What a command came to."""

    returncode: int
    stdout: str
    stderr: str


def process(folder: Path, *arguments: str | Path, given: bytes = b"", **variables: str) -> Done:
    """One command as a process of its own, in `folder`."""
    command = [sys.executable, "-m", "thermocline", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, input=given, env=environment(**variables), capture_output=True, timeout=120)
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def thermocline(folder: Path, *arguments: str | Path, **variables: str) -> Done:
    """One command in this process, in `folder`: the same but for the two seconds that loading the drivers takes."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with (
        contextlib.chdir(folder),
        patch.dict(os.environ, environment(**variables), clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        main([str(argument) for argument in arguments])
    texts = []
    for stream in (out, err):
        stream.seek(0)
        texts.append(stream.read())
    return Done(int(end.value.code or 0), *texts)


def succeeded(folder: Path, *arguments: str | Path, **variables: str) -> str:
    done = thermocline(folder, *arguments, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def failed(folder: Path, *arguments: str | Path, code: int, **variables: str) -> str:
    """The one line on stderr of a command that fails."""
    done = thermocline(folder, *arguments, **variables)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stdout == ""
    line, *more = done.stderr.splitlines()
    assert more == []
    assert line.startswith("thermocline: ")
    return line


def appended(folder: Path, *lines: bytes, options: tuple[str, ...] = ()) -> None:
    (folder / "lines.ndjson").write_bytes(b"".join(lines))
    succeeded(folder, "append", "lines.ndjson", *options)


def counted(folder: Path, sql: str = "SELECT count(*) AS n FROM events", *options: str) -> int:
    found: int = json.loads(succeeded(folder, "query", sql, "-o", "json", *options))[0]["n"]
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A working directory without a store; what a test starts in it is stopped afterwards."""
    yield tmp_path
    embedded.stop(tmp_path / "thermocline-data")


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory whose store holds the sample, worked once. Its server is kept up; tests only read it."""
    folder = tmp_path_factory.mktemp("worked")
    (folder / "events.ndjson").write_bytes(b"".join(ndjson(events_of(load_runs(), end_us=END_US))))
    (folder / "thermocline.toml").write_text("[warm]\nwindow_days = 100_000  # nothing is archived\n")
    with embedded.ensure(folder / "thermocline-data", load(environ={}).hot):
        succeeded(folder, "append", "events.ndjson")
        succeeded(folder, "worker", "--once")
        yield folder
    embedded.stop(folder / "thermocline-data")


def events_in(folder: Path) -> int:
    return len((folder / "events.ndjson").read_bytes().splitlines())


def test_the_version_is_printed(tmp_path: Path) -> None:
    assert process(tmp_path, "--version") == (0, "thermocline 0.1.0\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["query", "--help"], ["namespaces", "--help"]])
def test_help_and_version_load_no_driver(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom thermocline.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        f"sys.stderr.write(repr(sorted(set({HEAVY!r}) & sys.modules.keys())))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "[]"


def test_a_second_pass_of_the_worker_changes_nothing(worked: Path) -> None:
    assert thermocline(worked, "worker", "--once").stderr == "nothing to do\n"


def test_query_as_json_is_one_array_of_row_objects_and_coverage_is_talk(worked: Path) -> None:
    done = thermocline(worked, "query", "SELECT event_type, count(*) AS n FROM events GROUP BY ALL ORDER BY ALL", "-o", "json")
    rows = json.loads(done.stdout)
    assert sum(row["n"] for row in rows) == events_in(worked)
    assert {"event_type": "run.finished", "n": 40} in rows
    assert done.stderr.count("\n") == 1
    assert f"{events_in(worked):,} events as of" in done.stderr
    assert done.stderr.endswith("Exact.\n")


def test_an_empty_answer_is_an_empty_array(worked: Path) -> None:
    assert json.loads(succeeded(worked, "query", "SELECT 1 AS a WHERE false", "-o", "json")) == []


def test_values_keep_their_meaning_in_json(worked: Path) -> None:
    sql = """
    SELECT 1.5 AS a, 12345678901234567890123::HUGEINT AS b, NULL AS c, true AS d, [1, 2] AS e, {'x': 'y'} AS f,
           'nan'::DOUBLE AS g, TIMESTAMPTZ '2026-11-20 10:00:00.25+01' AS h, DATE '2026-11-20' AS i,
           INTERVAL '1 month 90 seconds' AS j,
           1 AS a, 1.10::DECIMAL(9,2) AS k
    """
    text = succeeded(worked, "query", sql, "-o", "json")
    assert json.loads(text) == [
        {
            "a": 1.5,
            "b": 12345678901234567890123,
            "c": None,
            "d": True,
            "e": [1, 2],
            "f": {"x": "y"},
            "g": None,
            "h": "2026-11-20T09:00:00.250000Z",
            "i": "2026-11-20",
            "j": "1 month 00:01:30",
            "a_1": 1,
            "k": 1.1,
        }
    ]
    assert '"k":1.10}' in text


def test_query_as_csv_has_a_header_and_quotes_what_needs_it(worked: Path) -> None:
    text = succeeded(worked, "query", "SELECT 'a,\"b' AS x, NULL AS y, [1] AS z, 1.5 AS w", "-o", "csv")
    assert list(csv.reader(io.StringIO(text))) == [["x", "y", "z", "w"], ['a,"b', "", "[1]", "1.5"]]


def test_query_as_arrow_is_a_stream(worked: Path) -> None:
    command = [sys.executable, "-m", "thermocline", "query", "SELECT * FROM events", "-o", "arrow"]
    done = subprocess.run(command, cwd=worked, env=environment(), capture_output=True, check=True)
    table = pa.ipc.open_stream(done.stdout).read_all()
    assert table.num_rows == events_in(worked)


def test_query_as_a_table_shows_everything_in_a_pipe(worked: Path) -> None:
    text = succeeded(worked, "query", "SELECT 'a' AS first, repeat('x', 500) AS long, 1234567 AS number")
    assert text.splitlines() == [
        f"first  {'long':<500}     number",
        "─" * 518,
        f"a      {'x' * 500}  1,234,567",
    ]


def test_a_table_on_a_terminal_fits_and_shows_that_it_is_cut(worked: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "thermocline", "query", "SELECT conversation_id, content FROM events LIMIT 3"]
    variables = environment(COLUMNS="60", TERM="xterm")
    done = subprocess.run(command, cwd=worked, env=variables, stdout=theirs, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    os.close(theirs)
    lines = os.read(ours, 65536).decode().splitlines()
    os.close(ours)
    assert done.returncode == 0
    assert max(map(len, lines)) <= 60
    assert any(line.endswith("…") for line in lines)


def test_recent_shows_the_newest_events_oldest_first(worked: Path) -> None:
    rows = json.loads(succeeded(worked, "recent", "airline-7-0", "--limit", "3", "-o", "json"))
    assert [row["event_type"] for row in rows][-1] == "run.finished"
    assert [row["seq"] for row in rows] == sorted(row["seq"] for row in rows)
    assert len(rows) == 3
    assert "run.finished" in succeeded(worked, "recent", "airline-7-0").splitlines()[-1]


def test_what_an_answer_rests_on_is_a_line_of_talk_or_all_of_it(worked: Path) -> None:
    brief = process(worked, "recent", "airline-7-0", "--limit", "3")
    assert brief.stderr.endswith("Exact.\n") and brief.stderr.count("\n") == 1
    full = process(worked, "query", "SELECT count(*) AS n FROM events", "--coverage", "-o", "json")
    assert json.loads(full.stdout) == [{"n": events_in(worked)}]
    receipt = json.loads(full.stderr)
    assert [tier["tier"] for tier in receipt["tiers"]] == ["hot", "warm", "cold"]
    assert receipt["columns"] == [{"name": "n", "label": "exact"}]
    [row] = json.loads(succeeded(worked, "estimate", "count(*)", "--where", "content <> ''", "-o", "json"))
    assert row["basis"] == "exact" and row["low"] == row["high"] == row["kept"]
    assert "grouped by" in failed(worked, "estimate", "count(*)", "--by", "status", code=1)


def test_recent_of_a_conversation_that_is_not_there_is_empty(worked: Path) -> None:
    assert json.loads(succeeded(worked, "recent", "nobody", "-o", "json")) == []
    assert succeeded(worked, "recent", "nobody").splitlines()[0].split() == ["seq", "timestamp", "event_type", "content"]


def test_conversations_are_listed_newest_activity_first_and_since_a_time(worked: Path) -> None:
    rows = json.loads(succeeded(worked, "conversations", "--limit", "100", "-o", "json"))
    ends = [row["ended_at"] for row in rows]
    assert len(rows) == 40
    assert ends == sorted(ends, reverse=True)
    since = json.loads(succeeded(worked, "conversations", "--since", ends[4], "-o", "json"))
    assert since == rows[:5]
    assert len(succeeded(worked, "conversations", "--limit", "7").splitlines()) == 7 + 2


def test_status_and_verify_agree_on_where_events_are(worked: Path) -> None:
    status = json.loads(succeeded(worked, "status", "-o", "json"))
    verified = json.loads(succeeded(worked, "verify", "--deep", "-o", "json"))
    tiers = {tier["tier"]: tier for tier in status["tiers"]}
    assert status["health"] == "green"
    assert (tiers["hot"]["events"], tiers["warm"]["events"]) == (0, events_in(worked))
    assert verified["ok"] is True
    assert sum(shard["appended"] for shard in verified["shards"]) == verified["rows"] == events_in(worked)
    assert "Health of default: green." in succeeded(worked, "status")
    assert "Every sum closes" in succeeded(worked, "verify")


def test_global_options_may_follow_the_command(worked: Path, tmp_path: Path) -> None:
    data_dir = worked / "thermocline-data"
    assert counted(tmp_path, "SELECT count(*) AS n FROM events", "--data-dir", str(data_dir)) == events_in(worked)
    assert succeeded(tmp_path, "namespaces", "list", f"--data-dir={data_dir}") == "default\n"


def test_config_show_says_where_each_value_comes_from_and_masks_secrets(tmp_path: Path) -> None:
    (tmp_path / "thermocline.toml").write_text('namespace = "a"\n[hot]\ncache_window_s = 7\n')
    url = "rediss://me:geheim@example.org:6380/0"
    text = succeeded(tmp_path, "config", "show", "-o", "json", "--namespace", "b", THERMOCLINE_REDIS_URL=url)
    shown = json.loads(text)
    assert shown["namespace"] == {"value": "b", "from": "argument"}
    assert shown["hot.cache_window_s"] == {"value": 7.0, "from": "thermocline.toml"}
    assert shown["redis_url"] == {"value": "rediss://me:***@example.org:6380/0", "from": "environment"}
    assert shown["hot.shards"] == {"value": 16, "from": "default"}
    assert "geheim" not in text + succeeded(tmp_path, "config", "show", THERMOCLINE_REDIS_URL=url)


def test_a_bad_line_stops_append_and_is_named(folder: Path) -> None:
    lines = b"".join(GOOD % number for number in range(3)) + b"nope\n" + GOOD % 4
    (folder / "events.ndjson").write_bytes(lines)
    said = failed(folder, "append", "events.ndjson", code=1)
    assert said.startswith("thermocline: line 4: line: is not valid JSON")
    assert said.endswith("3 events are stored")
    assert counted(folder) == 3


def test_bad_lines_can_be_collected(folder: Path) -> None:
    lines = [GOOD % 0, b"nope\n", GOOD % 1, b'{"conversation_id":"#c","event_type":"t"}\n', b"\xff\n"]
    done = process(folder, "append", "--rejected", "bad.ndjson", given=b"".join(lines))
    assert done.returncode == 3
    assert "2 events appended" in done.stderr
    assert "3 lines rejected, see bad.ndjson" in done.stderr
    kept = sorted(map(json.loads, (folder / "bad.ndjson").read_text().splitlines()), key=lambda one: one["line_number"])
    assert [one["line_number"] for one in kept] == [2, 4, 5]
    assert [one.get("line") for one in kept] == ["nope", lines[3].decode().strip(), None]
    assert kept[2]["line_base64"] == "/w=="
    assert "starts with '#'" in kept[1]["reason"]


def test_events_appended_again_with_their_ids_are_there_once(folder: Path) -> None:
    line = b'{"conversation_id":"c","event_type":"t","event_id":"0197a000-0000-7000-8000-000000000001"}\n'
    assert process(folder, "append", "-", given=line).stderr.startswith("1 events appended")
    assert "1 were there already" in process(folder, "append", "-", given=line).stderr
    assert counted(folder) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nope"], 2, "No such command 'nope'"),
        (["recnt"], 2, "Did you mean 'recent'? See `thermocline --help`."),
        (["query"], 2, "Missing argument 'SQL'"),
        (["query", "SELECT 1", "-o", "xml"], 2, "Invalid value"),
        (["recent", "c", "--limit", "0"], 2, "Invalid value"),
        (["--data-dir"], 2, "requires an argument"),
        (["namespaces", "drop", "default"], 2, "repeat with --yes"),
        (["namespaces", "drop", "default", "--yes"], 1, "there is no namespace 'default'"),
        (["namespaces", "create", "Not/good"], 1, "namespace"),
        (["append", "not-there.ndjson"], 1, "not-there.ndjson: No such file or directory"),
        (["append", "."], 1, "Is a directory"),
        (["demo", "--input", "not-there.ndjson"], 1, "not-there.ndjson: No such file or directory"),
        (["query", "SELEC 1"], 1, "syntax error"),
        (["query", "SELECT * FROM nowhere"], 1, "nowhere"),
        (["conversations", "--since", "yesterday"], 2, "'yesterday' is no time like 2026-11-20"),
        (["status", "--config", "not-there.toml"], 1, "not-there.toml"),
        (["status", "--namespace", "Not good"], 1, "namespace"),
        (["recover"], 1, "no namespace"),
    ],
)
def test_what_goes_wrong_is_one_line_and_an_exit_code(arguments: list[str], code: int, said: str, folder: Path) -> None:
    assert said in failed(folder, *arguments, code=code)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"THERMOCLINE_HOT__SHARDS": "many"}, "hot.shards (from environment)"),
        ({"THERMOCLINE_COLOUR": "red"}, "no such setting"),
        ({"THERMOCLINE_REDIS_URL": "redis://me:geheim@127.0.0.1:1/0"}, "redis://me:***@127.0.0.1:1/0 does not answer"),
        ({"THERMOCLINE_DATA_DIR": "/proc/nope"}, "/proc/nope"),
    ],
)
def test_wrong_settings_are_one_line(variables: dict[str, str], said: str, folder: Path) -> None:
    line = failed(folder, "status", code=1, **variables)
    assert said in line
    assert "geheim" not in line


def test_no_command_is_help_and_wrong_usage(tmp_path: Path) -> None:
    for arguments in ((), ("tokens",)):
        done = thermocline(tmp_path, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Commands:" in done.stderr.splitlines()  # laid out, not in one line


def test_a_second_worker_names_the_first_and_fails(folder: Path) -> None:
    with Lock(folder / "thermocline-data" / "default"):
        assert f"another worker has this namespace: worker {os.getpid()} on " in failed(folder, "worker", "--once", code=1)
        assert "another worker has this namespace" in failed(folder, "worker", code=1)


def test_a_worker_runs_until_it_is_told_to_stop(folder: Path) -> None:
    appended(folder, *(GOOD % number for number in range(10)))
    variables = environment(THERMOCLINE_WARM__SETTLE_LATEST_S="0", THERMOCLINE_WARM__SETTLE_AFTER_S="0")
    command = [sys.executable, "-m", "thermocline", "worker"]
    with subprocess.Popen(command, cwd=folder, env=variables, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as worker:
        segments = folder / "thermocline-data" / "default" / "segments"
        wait_until(lambda: any(segments.glob("*.duckdb")), 30, "the worker settles")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(10) == 0
    assert counted(folder) == 10


def test_ctrl_c_is_exit_code_130_and_silent(folder: Path) -> None:
    command = [sys.executable, "-m", "thermocline", "append", "-"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # A shell that starts the tests in the background has them ignore SIGINT, and their children with them.
    heeded = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
    command = [sys.executable, "-c", heeded, *command]
    with subprocess.Popen(command, cwd=folder, env=environment(), **pipes) as process:  # type: ignore[call-overload]
        process.stdin.write(GOOD % 1)
        process.stdin.flush()
        wait_until(lambda: counted(folder) == 1, 30, "the line is appended")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in errors


def test_a_reader_that_has_seen_enough_is_no_error_message(worked: Path) -> None:
    command = [sys.executable, "-m", "thermocline", "query", "SELECT * FROM events", "-o", "json"]
    with subprocess.Popen(command, cwd=worked, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        errors = process.stderr.read()
    assert b"Traceback" not in errors
    assert b"Broken" not in errors
    assert process.returncode == 1


def test_a_namespace_can_be_made_listed_and_dropped_with_keys_and_files(folder: Path) -> None:
    data_dir = folder / "thermocline-data"
    assert succeeded(folder, "namespaces", "list") == ""
    with embedded.ensure(data_dir, load(environ={}).hot):
        assert thermocline(folder, "namespaces", "create", "one").stderr == "one is made\n"
        assert thermocline(folder, "namespaces", "create", "one").stderr == "one was there already\n"
        appended(folder, GOOD % 1, options=("--namespace", "one"))
        appended(folder, GOOD % 1, options=("--namespace", "two"))
        assert succeeded(folder, "namespaces", "list") == "one\ntwo\n"
        assert "one is gone" in thermocline(folder, "namespaces", "drop", "one", "--yes").stderr
        assert succeeded(folder, "namespaces", "list") == "two\n"
        assert not [path for path in data_dir.iterdir() if path.name.startswith("one")]
        assert counted(folder, "SELECT count(*) AS n FROM events", "--namespace", "one") == 0
        assert counted(folder, "SELECT count(*) AS n FROM events", "--namespace", "two") == 1


def test_a_namespace_with_a_worker_is_not_dropped(folder: Path) -> None:
    appended(folder, GOOD % 1)
    with Lock(folder / "thermocline-data" / "default"):
        assert "another worker has this namespace" in failed(folder, "namespaces", "drop", "default", "--yes", code=1)
    assert counted(folder) == 1


def test_a_lost_ledger_is_made_again_from_the_segments(folder: Path) -> None:
    appended(folder, *(GOOD % number for number in range(10)))
    succeeded(folder, "worker", "--once")
    assert "--force" in failed(folder, "recover", code=1)
    for file in (folder / "thermocline-data" / "default").glob("ledger.db*"):
        file.unlink()
    assert "1 segment with 10 events" in succeeded(folder, "recover")
    assert counted(folder) == 10
    assert "Every sum closes" in succeeded(folder, "verify", "--deep")


def test_stop_ends_the_embedded_server_and_its_next_user_starts_it_again(folder: Path) -> None:
    assert thermocline(folder, "stop").stderr == "no embedded Redis was running\n"
    appended(folder, GOOD % 1)
    with embedded.ensure(folder / "thermocline-data", load(environ={}).hot):
        assert thermocline(folder, "stop").stderr == "the embedded Redis is stopped\n"
        assert embedded.running(folder / "thermocline-data") is None
    assert counted(folder) == 1


def test_doctor_finds_a_healthy_place_in_order(folder: Path) -> None:
    before = json.loads(succeeded(folder, "doctor", "-o", "json"))
    assert not (folder / "thermocline-data").exists()
    appended(folder, GOOD % 1)
    with embedded.ensure(folder / "thermocline-data", load(environ={}).hot):
        after = json.loads(succeeded(folder, "doctor", "-o", "json"))
    assert {one["subject"] for one in before} < {one["subject"] for one in after}
    assert {"clock", "ledger", "redis settings", "free space", "file system", "python"} <= {one["subject"] for one in after}
    assert all(one["verdict"] in ("ok", "warn") for one in before + after)


def test_doctor_names_the_setting_that_would_lose_events(folder: Path, redis_server: StartServer) -> None:
    server = redis_server(options={"maxmemory-policy": "allkeys-lru"})
    done = thermocline(folder, "doctor", "-o", "json", THERMOCLINE_REDIS_URL=server.url)
    assert done.returncode == 1
    findings = {one["subject"]: one for one in json.loads(done.stdout)}
    assert findings["redis settings"]["verdict"] == "fail"
    assert "maxmemory-policy noeviction" in findings["redis settings"]["found"]


def test_the_demo_takes_the_sample_through_the_tiers(folder: Path) -> None:
    done = process(folder, "demo")
    assert done.returncode == 0, done.stderr
    assert "40 recorded runs of an airline agent: 1,516 events" in done.stderr
    assert "merged" in done.stderr
    assert "archived" in done.stderr
    assert done.stdout.count("Exact.") == 2
    assert "An estimate: " in done.stdout
    assert "hourly_stats counts 1,516 events, all that were appended, although" in " ".join(done.stdout.split())
    assert "Every sum closes" in done.stdout
    assert "--namespace demo recent airline-39-0" in done.stdout
    assert counted(folder, "SELECT sum(event_count)::INT AS n FROM hourly_stats", "--namespace", "demo") == 1516
    assert counted(folder, "SELECT count(*) AS n FROM events WHERE sample_rate < 1", "--namespace", "demo") > 0
    shown, _, commands = done.stdout.partition("\nNext\n")
    assert max(map(len, shown.splitlines())) <= 80
    assert "verify --deep" in commands
    assert succeeded(folder, "namespaces", "list") == "demo\n"


def test_the_demo_takes_events_of_ones_own_and_can_be_run_again(folder: Path) -> None:
    (folder / "own.ndjson").write_bytes(b"".join(GOOD % number for number in range(100)))
    for _ in range(2):
        done = thermocline(folder, "demo", "--input", "own.ndjson", THERMOCLINE_HOT__APPEND_FSYNC="always")
        assert done.returncode == 0, done.stderr
    spread = "SELECT (max(hour) - min(hour) > INTERVAL 9 DAY)::INT * sum(event_count)::INT AS n FROM hourly_stats"
    assert counted(folder, spread, "--namespace", "demo") == 100


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (GOOD % 1 + b'\n{"conversation_id":"c","event_type":"no good"}\n', 1, "line 3: event_type: "),
        (b"\n", 2, "own.ndjson holds no events"),
    ],
)
def test_the_demo_says_what_is_wrong_with_events_of_ones_own(text: bytes, code: int, said: str, folder: Path) -> None:
    (folder / "own.ndjson").write_bytes(text)
    assert said in failed(folder, "demo", "--input", "own.ndjson", code=code)
    assert not (folder / "thermocline-data").exists()
