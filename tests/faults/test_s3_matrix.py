"""Every fault at every kind of request to an object store: nothing changes, is lost or doubled, waits too long or is left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.s3_cells import CELLS, FAULTS, NEVER_MET, REQUESTS, TIMES, Cell
from tests.s3_matrix import Report, judge, lives_in, run
from tests.s3_servers import S3Server

SEED = 1
PARTS = tuple(tuple(FAULTS)[start::4] for start in range(4))
"""The faults, in parts that the workers of pytest can share."""
MARGIN_S = 60
"""How much longer than its deadline a call may take here, where tests share the machine: none waits for ever."""


def test_the_parts_of_the_matrix_are_all_of_it() -> None:
    assert sorted(cell for part in PARTS for cell in cells_of(part)) == sorted(CELLS)
    assert sorted(fault for part in PARTS for fault in part) == sorted(FAULTS)


@pytest.mark.lengthy
@pytest.mark.parametrize("part", PARTS, ids=", ".join)
def test_every_fault_at_every_kind_of_request_is_overcome(
    part: Sequence[str], moto_server: S3Server, aws_environ: None, server: Any, tmp_path: Path
) -> None:
    cells = cells_of(part)
    report = Report(store="moto", seed=SEED + PARTS.index(part), shared=True, margin_s=MARGIN_S)
    begin = lives_in(tmp_path, server.url, moto_server, report)
    run(begin, cells, report, lives=1, tries_never_met=part == PARTS[0])
    check(report, cells)


@pytest.mark.long
@pytest.mark.parametrize("store", ["moto", "swift"])
def test_every_fault_at_every_kind_of_request_is_overcome_by_itself(
    store: str, request: pytest.FixtureRequest, aws_environ: None, server: Any, tmp_path: Path
) -> None:
    s3_server: S3Server = request.getfixturevalue(f"{store}_server")
    report = Report(store=store, seed=SEED, shared=False, margin_s=MARGIN_S)
    run(lives_in(tmp_path, server.url, s3_server, report), CELLS, report)
    check(report, CELLS)


def cells_of(faults: Sequence[str]) -> list[Cell]:
    return [cell for cell in CELLS if cell.fault in faults]


def check(report: Report, cells: Sequence[Cell]) -> None:
    assert report.problems == []
    assert report.not_met == []
    assert report.cells == len(cells)


def test_the_cells_whose_fault_cannot_occur_are_those_of_bodies_that_there_are_not() -> None:
    bodiless = {
        "cut request": {"GET", "HEAD", "DELETE", "LIST", "UPLOADS", "ABORT"},
        "cut reply": {"PUT", "HEAD", "DELETE", "ABORT"},
    }
    bodiless |= {"flip request": bodiless["cut request"], "flip reply": bodiless["cut reply"]}
    assert set(NEVER_MET) == {(fault, kind) for fault, kinds in bodiless.items() for kind in kinds}
    assert len(CELLS) == 11 * len(REQUESTS) * len(TIMES) - len(NEVER_MET) * len(TIMES)


def test_what_changes_stays_behind_is_wrong_or_does_not_occur_is_a_problem_of_the_matrix(
    moto_server: S3Server, aws_environ: None, server: Any, tmp_path: Path
) -> None:
    report = Report(store="moto", seed=SEED, shared=True)
    with lives_in(tmp_path, server.url, moto_server, report)(0) as life:
        assert life.problems == []

        life.rounds_max = 1
        never = Cell("500", "COMPLETE", "always")
        assert life.run([[never]])
        judge(report, [never], life.outcomes)
        assert (report.not_met, report.problems) == ([str(never)], ["1 cells whose fault never occurred"])

        life.events[0], right = ("c0", 1, "something else", life.events[0][3]), life.events[0]
        with life.opened() as store:
            assert life._read(store, "now") is None
        assert life.problems.pop().startswith(f"now: {len(life.events)} rows for {len(life.events)} events; 2 differ")
        life.events[0] = right

        key = next(key for key in life._objects() if key.startswith("events/"))
        where = {"Bucket": life._bucket.name}
        life._client.put_object(**where, Key=f"{life.namespace}/batches/{'0' * 32}.json", Body=b"left")
        life._client.create_multipart_upload(**where, Key=f"{life.namespace}/{key}")
        with life.opened() as store:
            left = [f"orphans: ['batches/{'0' * 32}.json']", "1 uploads are open"]
            assert [said for said in life.check(store) if said] == left
            life._client.put_object(**where, Key=f"{life.namespace}/{key}", Body=b"of another")
            found = [said for said in life.check(store) if said]
        assert life.problems == [f"after: {key} has changed"]
        assert any(f"{key}: it has 10 bytes" in said for said in found)
