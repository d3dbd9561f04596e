"""The benchmarks' results: kept, found again while they hold, and reported with nothing left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

import bench.__main__ as command
from bench import machine, report
from bench.case import Bench, Case, Table
from bench.markdown import markdown
from bench.measure import middle_ratio, percentile
from bench.peers import PEERS
from bench.results import Result, Results, Row, identity_of
from bench.tables import TABLES
from bench.tables.visible import delays_s, lags_s

LOST = Row(what="ours", value="3 s", against="theirs: 1 s | ratio 3", target="≤ 1×", met=False)


def result(
    table: str = "append",
    case: str = "unix",
    *,
    quick: bool = False,
    events: int = 0,
    rows: Sequence[Row] = (LOST,),
    whole: bool = True,
) -> Result:
    return Result(
        table=table,
        case=case,
        events=events,
        quick=quick,
        identity="now",
        commit="c0ffee",
        machine="a machine",
        measured_at="2026-11-21 12:00",
        versions={"SQLite (WAL)": "3.40"},
        taken_s=1.0,
        whole=whole,
        rows=tuple(rows),
    )


def test_a_result_is_found_again_only_by_the_same_identity_and_kind_of_run(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.put(result())
    assert results.find("append", "unix", 0, quick=False, identity="now") == result()
    results.put(result(case="nats", whole=False))
    assert results.find("append", "nats", 0, quick=False, identity="now") is None
    assert results.find("append", "unix", 0, quick=False, identity="other code") is None
    assert results.find("append", "unix", 0, quick=True, identity="now") is None
    assert results.find("append", "tcp", 0, quick=False, identity="now") is None


def test_what_was_measured_in_full_takes_the_place_of_the_quick_run(tmp_path: Path) -> None:
    results = Results(tmp_path)
    kept = [result(quick=True, case="tcp"), result()]
    for one in [*kept, result(quick=True)]:
        results.put(one)
    assert sorted(results.all(), key=lambda one: one.case) == kept
    assert [(one.case, one.quick) for one in results.quick()] == [("tcp", True), ("unix", True)]


def test_a_damaged_result_is_measured_again(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.put(result())
    (tmp_path / "append" / "unix-0.json").write_text("{")
    assert results.all() == []


def test_a_change_of_the_product_makes_only_results_with_it_old() -> None:
    assert identity_of("append", product=True) != identity_of("append", product=False)
    assert identity_of("append", product=True) != identity_of("producer", product=True)


def fake(runs: list[str], *, broken: str = "") -> Table:
    def run(name: str) -> Sequence[Row]:
        runs.append(name)
        if name == broken:
            raise ValueError("no such luck")
        return [Row(what=name, value="1 s")]

    def cases(size: int, quick: bool) -> list[Case]:
        return [Case(name, size, lambda bench, name=name: run(name)) for name in ("one", "two")]

    return Table(name="append", title="A table", about="", sizes=(5,), cases=cases)


def test_a_run_that_was_cut_short_goes_on_and_a_failure_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: list[str] = []
    asked = ["append", "--results", str(tmp_path), "--scratch", str(tmp_path)]
    for broken, code, expected in (("two", 1, ["one", "two"]), ("", 0, ["two"]), ("", 0, [])):
        runs.clear()
        table = fake(runs, broken=broken)
        monkeypatch.setattr(command, "TABLES", (table,))
        monkeypatch.setattr(report, "TABLES", (table,))
        assert command.main(asked) == code
        assert runs == expected
        shown = capsys.readouterr().out
        assert "| one |" in shown and "| two |" in shown
        assert ("failed: ValueError: no such luck" in shown) == bool(broken)
    assert command.main([*asked, "--again"]) == 0
    assert runs == ["one", "two"]


def test_an_unknown_table_is_told_and_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as told:
        command.main(["appendd"])
    assert told.value.code == 2 and "appendd" in capsys.readouterr().err


def test_a_table_shows_rows_that_lost_and_escapes_what_would_end_a_cell() -> None:
    assert markdown([LOST]).splitlines() == [
        "| what | figure | against | target |  |",
        "| --- | --- | --- | --- | --- |",
        "| ours | 3 s | theirs: 1 s \\| ratio 3 | ≤ 1× | **missed** |",
    ]


def test_the_report_names_every_table_every_peer_and_every_missed_target(tmp_path: Path) -> None:
    won = msgspec.structs.replace(LOST, what="won", met=True, figures={"p50_s": 1e-4, "bare_p50_s": 1e-4})
    report.write([result(rows=[won, LOST])], tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert msgspec.json.decode((tmp_path / "benchmarks" / "results.json").read_bytes(), type=list[Result])[0].rows == (won, LOST)
    assert all(f"## {table.title}\n" in page for table in TABLES)
    assert all(f"| {peer.title} |" in page and peer.configuration in page for peer in PEERS)
    assert "| won |" in page and "* append(): one event, acknowledged: ours: 3 s; target ≤ 1×" in page
    assert "1 of 2 rows that have one meet it" in page
    assert page.count("There is no result here.") == len(TABLES) - 1
    assert "Not measured: tcp, sqlite, postgres, nats." in page
    for part in ("a machine", "2026-11-21", "c0ffee", "SQLite (WAL) 3.40", "## Bytes per event"):
        assert part in page


def test_cases_have_keys_of_their_own_in_every_table_at_every_size() -> None:
    for table in TABLES:
        for size in (2_000, 1_000_000, 10_000_000, 100_000_000):
            keys = [(case.key, case.events) for case in table.cases(size, False)]
            assert len(set(keys)) == len(keys) > 0


def test_small_sizes_come_first_and_one_peer_after_the_other() -> None:
    cases = [case for _, case in command.chosen_cases(TABLES, quick=False, events=None)]
    assert [case.events for case in cases] == sorted(case.events for case in cases)
    groups = [case.group for case in cases if case.events == 100_000_000]
    assert groups == sorted(groups) and {"reads/clickhouse", "reads/duckdb"} <= set(groups)
    assert not {"reads/sqlite", "reads/postgres"} & set(groups)


class Thing:
    def __init__(self) -> None:
        self.open = True

    def close(self) -> None:
        self.open = False


def test_what_cases_share_ends_with_its_group_and_size_and_a_case_leaves_no_folder(tmp_path: Path) -> None:
    bench = Bench(tmp_path, quick=True)
    bench.begin(5, "reads")
    ours = bench.shared(("reads", 1), lambda: [bench.folder("ours"), Thing()][1])
    assert bench.shared(("reads", 1), Thing) is ours
    bench.folder("alone")
    bench.begin(5, "reads/sqlite")
    theirs = bench.shared(("reads/sqlite", 1), Thing)
    assert [path.name for path in tmp_path.iterdir()] == ["1-ours"]
    bench.begin(5, "reads/postgres")
    assert ours.open and not theirs.open
    bench.begin(6, "reads")
    assert not ours.open and list(tmp_path.iterdir()) == []


def test_a_marker_is_visible_when_the_first_query_that_has_it_ends() -> None:
    seen = [(0, 1_000_000, 1), (1_500_000, 2_000_000, 3), (2_600_000, 3_000_000, 3), (3_900_000, 4_000_000, 4)]
    assert delays_s([500_000, 900_000, 2_500_000, 3_900_000], seen, first=0) == [1.5, 1.1, 1.5]
    assert delays_s([500_000, 900_000, 2_500_000], seen, first=2) == [1.5]


def test_an_answer_lags_by_the_oldest_marker_it_should_have_had() -> None:
    stamps = [500_000, 900_000, 2_500_000, 3_800_000]
    seen = [
        (0, 1_000_000, 1),
        (1_500_000, 2_000_000, 2),
        (2_600_000, 3_000_000, 3),
        (3_700_000, 4_000_000, 4),
        (9_000_000, 9_100_000, 5),
    ]
    assert lags_s(stamps, seen, first=0) == [0.6, 0.1, 0.0, 0.0]


def test_percentiles_and_ratios() -> None:
    assert [percentile(range(1, 101), part) for part in (0.5, 0.99, 1.0)] == [51, 100, 100]
    assert middle_ratio([2, 4, 30], [1, 4, 10]) == 2


def test_the_machine_and_the_versions_of_what_is_there_are_known() -> None:
    assert "cores" in machine.described() and "Python 3" in machine.described()
    assert {"redis", "duckdb", "sqlite"} <= machine.packages().keys()


def test_the_quick_run_has_a_page_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    Results(folder).put(result(quick=True, rows=[LOST]))
    Results(folder).put(result())
    assert command.main(["report", "--quick", "--results", str(folder), "--docs", str(tmp_path / "docs")]) == 0
    page = (tmp_path / "docs" / "benchmarks-quick.md").read_text()
    assert "| ours | 3 s |" in page and "0 of 1 rows that have one meet it" in page and "1 of 1 results are of older code" in page
    with pytest.raises(SystemExit, match="nothing was measured yet"):
        command.main(["report", "--quick", "--results", str(tmp_path / "none")])
