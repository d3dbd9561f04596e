"""The README and --help say what is so: blocks are run, names and numbers are compared with the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from thermocline import __all__ as public
from thermocline.archiver.worker import Worker
from thermocline.cli import main
from thermocline.cli.app import app
from thermocline.config import Settings, load
from thermocline.event import COLUMN_NAMES, EVENT_BYTES_MAX, METADATA_BYTES_MAX, Event, Receipt
from thermocline.ingest.append import Client
from thermocline.ndjson import parse_line
from thermocline.sample_import import events_of, load_runs
from thermocline.store import Store, connect
from thermocline.tiers import embedded

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


COLD = (ROOT / "docs" / "cold.md").read_text()


OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    embedded.stop(tmp_path / "thermocline-data")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store that holds the sample, unsettled."""
    settings = load({"data_dir": tmp_path_factory.mktemp("docs") / "data"}, environ={})
    with connect(settings) as opened, Client(settings, tiers=opened.tiers) as client:
        client.append_many(events_of(load_runs(), end_us=opened.tiers.hot.facts().now_us))
        yield opened
    embedded.stop(settings.data_dir)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory whose store has archived what is due of the sample."""
    folder = tmp_path_factory.mktemp("archive")
    with connect(data_dir=folder / "thermocline-data") as opened, Client(opened.settings, tiers=opened.tiers) as client:
        client.append_many(events_of(load_runs(), end_us=opened.tiers.hot.facts().now_us))
        Worker(opened.tiers).once()
        yield folder
    embedded.stop(folder / "thermocline-data")


def run(place: Path, *command: str, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("THERMOCLINE_")}
    environment |= variables
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_spool_keeps_and_stores_as_the_page_says(place: Path) -> None:
    [program] = blocks("python", OPERATIONS)
    assert run(place, sys.executable, "-c", program) == "0 None\n"
    assert [path.suffix for path in (place / "spool-of-agent-1").iterdir()] == [""]


def test_the_ten_lines_of_python_do_what_they_say(place: Path) -> None:
    program, *_ = blocks("python")
    assert len([line for line in program.splitlines() if line]) == 10
    said = run(place, sys.executable, "-W", "error", "-c", program)
    assert re.search(r"message\.user\s+┆ 1\b", said)
    assert re.search(r"output\.chunk\s+┆ 1000\b", said)
    assert "1002  output.chunk  word 999" in said
    assert said.splitlines()[-1] == "True"


def test_the_asyncio_block_stores_its_words_joined(place: Path) -> None:
    run(place, sys.executable, "-W", "error", "-c", blocks("python")[1])
    with connect(data_dir=place / "thermocline-data") as opened:
        assert "".join(row[0] for row in opened.sql("SELECT content FROM events ORDER BY seq")) == "Your parcel is on its way . "


def test_there_are_no_other_blocks_of_python() -> None:
    assert len(blocks("python")) == 2


@pytest.mark.parametrize("number", range(len(blocks("python", COLD))))
def test_the_archive_is_read_without_us_as_its_page_says(number: int, archive: Path) -> None:
    program = blocks("python", COLD)[number]
    assert "thermocline." not in program
    said = run(archive, sys.executable, "-W", "error", "-c", program, POLARS_ICEBERG_PLANNER="pyiceberg")
    assert len(said.splitlines()) >= 3


def test_polars_finds_in_the_archive_exactly_what_was_archived(archive: Path) -> None:
    program = blocks("python", COLD)[-1] + '\nprint("events:", per_day.collect()["events"].sum())\n'
    said = run(archive, sys.executable, "-c", program, POLARS_ICEBERG_PLANNER="pyiceberg")
    with connect(data_dir=archive / "thermocline-data") as opened:
        [batch] = opened.tiers.ledger.batches()
    assert said.splitlines()[-1] == f"events: {batch.events_in}"


ON_ANSWERS = [(ROOT / "docs" / name).read_text() for name in ("coverage.md", "estimates.md")]


@pytest.mark.parametrize("program", [block for page in ON_ANSWERS for block in blocks("python", page)])
def test_receipts_and_estimates_are_asked_for_as_their_pages_say(program: str, archive: Path) -> None:
    said = run(archive, sys.executable, "-W", "error", "-c", program)
    assert len(said.splitlines()) >= 1


@pytest.mark.parametrize("sql", [block for page in ON_ANSWERS for block in blocks("sql", page)])
def test_every_estimate_of_the_pages_has_an_answer(sql: str, archive: Path) -> None:
    with connect(data_dir=archive / "thermocline-data") as opened:
        answer = opened.sql(sql)
        assert len(answer) > 0
        assert {label for _, label in answer.coverage.columns} - {"exact"}


def test_the_settings_of_s3_are_settings() -> None:
    (text,) = blocks("toml", COLD)
    settings = load(tomllib.loads(text), environ={})
    assert settings.cold_url is not None
    assert settings.cold.endpoint_url is not None


@pytest.mark.parametrize("sql", blocks("sql"))
def test_every_block_of_sql_has_an_answer(sql: str, store: Store) -> None:
    answer = store.sql(sql)
    assert len(answer) > 0
    assert answer.coverage.exact


def test_the_relations_have_the_columns_named(store: Store) -> None:
    rows = dict(re.findall(r"^\| `(events|hourly_stats|conversation_summary)` \| (.*) \|$", README, flags=re.MULTILINE))
    assert tuple(rows["events"].split(", ")) == COLUMN_NAMES
    for relation, columns in rows.items():
        assert store.sql(f"SELECT * FROM {relation} LIMIT 0").columns == columns.split(", ")


def test_the_settings_shown_are_the_defaults() -> None:
    (text,) = blocks("toml")
    shown = tomllib.loads(text)
    assert load(shown, environ={}) == load(environ={})


def test_every_setting_named_in_a_page_exists() -> None:
    sections = {name: field.annotation for name, field in Settings.model_fields.items()}
    for page in PAGES:
        named = re.findall(r"\b(hot|warm|ingest|query|worker|cold|sandbox|serve)\.([a-z_]+[a-z])\b", page.read_text())
        for section, key in named:
            if key not in ("py", "toml", "json", "md", "sandbox"):
                assert key in sections[section].model_fields, f"{page.name}: {section}.{key}"  # type: ignore[union-attr]


def test_the_line_of_ndjson_is_an_event() -> None:
    (line,) = blocks("json")
    assert parse_line(line.strip().encode()).tool_name == "track"


def test_append_and_receipt_have_the_fields_named() -> None:
    signature = re.search(r"`append\((.*?)\)`", README)
    assert signature is not None
    named = {part.partition("=")[0].strip() for part in signature[1].split(",")} - {"*"}
    assert named == {*Event.__struct_fields__, "expected_seq"}
    assert "event_id, conversation_id, seq, durability, duplicate" in README
    assert Receipt.__struct_fields__ == ("event_id", "conversation_id", "seq", "durability", "duplicate")


def test_names_used_as_the_librarys_are_public() -> None:
    for name in re.findall(r"thermocline\.([A-Za-z_]+)\(", README):
        assert name in public, name
    for name in re.findall(r"`([A-Z][A-Za-z]+)`", README):
        assert name in (*public, "None"), name


def test_the_store_has_the_methods_named() -> None:
    (row,) = re.findall(r"^\| `connect\(…\)` \| (.*) \|$", README, flags=re.MULTILINE)
    names = re.findall(r"`([a-z]+)\(", row)
    assert len(names) >= 7
    assert [name for name in names if not callable(getattr(Store, name, None))] == []


def test_bounds_named_are_those_of_the_code() -> None:
    settings = load(environ={})
    assert f"An event is at most {EVENT_BYTES_MAX >> 20} MiB, metadata {METADATA_BYTES_MAX >> 10} KiB" in README
    assert f"reaches {settings.hot.unsettled_bytes_max >> 20} MiB" in README
    assert f"at least the last {settings.hot.ids_window_s / 60:.0f} minutes" in README
    assert f"more than {settings.hot.ids_max:,} such ids" in README
    assert f"within {settings.ingest.deadline_s:.0f} s" in README


def commands() -> dict[str, list[str]]:
    """Command → its long and short options, from the app itself."""
    found: dict[str, list[str]] = {}
    root = typer.main.get_group(app)

    def add(name: str, command: typer.core.TyperCommand | typer.core.TyperGroup) -> None:
        for inner, child in getattr(command, "commands", {}).items():
            add(f"{name} {inner}".strip(), child)
        if not hasattr(command, "commands"):
            found[name] = [option for parameter in command.params for option in getattr(parameter, "opts", [])]

    add("", root)
    return found


def test_every_command_is_in_the_readme_and_no_other() -> None:
    table = README[README.index("| command |") : README.index("A line of NDJSON")]
    named: set[str] = set()
    for words in re.findall(r"`thermocline ([^`]*)`", table):
        first, *rest = words.replace("\\|", "|").split()
        second = rest[0] if rest and re.fullmatch(r"[a-z|]+", rest[0]) else ""
        named |= {f"{first} {one}".strip() for one in second.split("|")}
    assert named == commands().keys()


def test_every_option_in_the_readme_is_one_of_its_command() -> None:
    known = commands()
    for words in re.findall(r"`thermocline ([^`]*)`", README):
        first = words.split()[0]
        options = {option for name, its in known.items() if name.split()[0] == first for option in its}
        for option in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", words):
            assert option in options, f"thermocline {words}: {option}"


def test_every_command_in_a_page_is_one_with_its_options() -> None:
    """In code of the pages: `thermocline archives list`, and lines of blocks that begin so."""
    known = commands()
    for page in PAGES:
        text = page.read_text()
        lines = re.findall(r"^(?:docker compose exec (?:-T )?worker )?thermocline ([a-z][^\n#]*)", text, flags=re.MULTILINE)
        for words in [*lines, *re.findall(r"(?<!`)`thermocline ([a-z][^`]*)`", text)]:
            first, *rest = words.replace("\\|", "|").split()
            names = [name for name in known if name.split()[0] == first]
            assert names, f"{page.name}: thermocline {words}"
            options = {option for name in names for option in known[name]} | {"--data-dir", "--namespace", "--config"}
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", " ".join(rest)):
                assert option in options, f"{page.name}: thermocline {words}: {option}"


@pytest.mark.parametrize("command", ["", *commands()])
def test_every_command_explains_itself_within_80_columns(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # as without a terminal
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*command.split(), "--help"])
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert "..." not in said.replace("[ARGS]...", "")


def test_the_two_commands_are_those_of_run_py(tmp_path: Path) -> None:
    named = [line.split()[2] for line in blocks("sh")[0].splitlines()]
    assert named == ["demo", "test"]
    said = run(tmp_path, sys.executable, str(ROOT / "run.py"), "--help")
    assert all(f"python3 run.py {name}" in said for name in [*named, "long"])


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_changelog_is_about_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_every_test_that_a_guarantee_names_exists() -> None:
    named = re.findall(r"`(tests/[a-z_/]+\.py)::(test_[a-z0-9_]+)`", (ROOT / "docs" / "guarantees.md").read_text())
    assert len(named) >= 40
    for file, name in named:
        assert f"\ndef {name}(" in (ROOT / file).read_text(), f"{file}::{name}"


def test_every_guarantee_names_a_test() -> None:
    rows = [row for row in (ROOT / "docs" / "guarantees.md").read_text().splitlines() if row.startswith("| ")]
    promises = [row for row in rows if not row.startswith("| promise ")]
    assert len(promises) >= 30
    assert [row for row in promises if "::test_" not in row.rsplit("|", 2)[1]] == []
