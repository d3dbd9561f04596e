"""Every table of the benchmarks measured small, with the peers that the tests' packages bring: each row has a figure."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import loader, stores
from bench.__main__ import main
from bench.tables import TABLES
from bench.workload import Workload
from thermocline.store import connect
from thermocline.tiers import embedded

PEERS = "redis_py,sqlite,duckdb,naive"
LEFT_OUT = "left out of this run"


READS = ("history", "statistics", "aggregate")
"""They share what they load."""
WITH_OTHERS = {"append", "producer", *READS}
"""Tables with peers that do not come with the tests' packages."""


RARELY = ("estimates", "append", "producer", "recent", "archive", "visible", "memory", "stress", "shards", "limits")
"""They take longest, and are measured small by the long ring."""
ALONE = [table.name for table in TABLES if table.name not in READS]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(READS, marks=pytest.mark.long),
        *(pytest.param((one,), marks=[pytest.mark.long] * (one in RARELY)) for one in ALONE),
    ],
    ids="+".join,
)
def test_a_quick_run_prints_every_row_of(names: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--results", str(tmp_path / "results"), "--scratch", str(tmp_path)]
    code = main([*names, "--quick", "--events", "2k", "--peers", PEERS, *folders])
    shown = capsys.readouterr()
    rows = [line for line in shown.out.splitlines() if line.startswith("| ") and not line.startswith(("| what", "| ---"))]
    assert code == 0, shown.err
    assert len(rows) >= sum(len(table.cases(2_000, True)) for table in TABLES if table.name in names)
    assert "failed" not in shown.out
    assert (LEFT_OUT in shown.out) == (not WITH_OTHERS.isdisjoint(names))
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.mark.long
def test_a_loaded_store_holds_every_event_and_is_proved_whole(tmp_path: Path) -> None:
    config = stores.settings(tmp_path / "data", warm={**stores.WARM_ONLY, "segment_rows_max": 1_000})
    load = loader.workload(10_000, config, end_us=Workload(1, end_us=0).start_us + 20_500 * 86_400_000_000)
    loader.load(load, config)
    try:
        with connect(config) as store:
            assert store.verify(deep=True).problems == ()
            segments = store.tiers.ledger.view().segments
            levels = [one.level for one in segments]
            assert (levels.count(0), levels.count(3)) == (loader.BACKLOG_SEGMENTS, 7 * 2)
            assert all(one.rows <= 1_000 and one.has_rollups == (one.level == 3) for one in segments)
            hot = load.names(load.of_day(0)[0][:1])[0]
            answer = store.sql("SELECT max(seq), count(*) FROM events WHERE conversation_id = ?", [hot]).fetchall()
            assert answer == [(load.hot_events, load.hot_events)]
    finally:
        embedded.stop(config.data_dir)
