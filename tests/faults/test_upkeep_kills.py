"""kill -9 at steps of compact and purge: nothing is lost, doubled, changed or left over. The long ring takes every step on Swift;
`python -m tests.points` takes every step in a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.archiving import Crash
from tests.conftest import StartServer
from tests.killed import BATCH_STEPS, PURGE_STEPS, killed_at, purge
from tests.tidying import Archive, breaking_at

IN_SHORT = {"compact": ("publish done",), "purge": ("delete objects done",)}
"""Where something of the objects may be half done. The long ring takes every step."""


def stores(action: str, steps: Sequence[str]) -> list[object]:
    long = pytest.param("swift", steps, id="swift, every step", marks=pytest.mark.long)
    return [pytest.param("folder", IN_SHORT[action], id="folder"), long]


@pytest.fixture
def archive(tmp_path: Path, redis_server: StartServer, cold_url: str | None) -> Iterator[Archive]:
    server = redis_server(options={"appendfsync": "always"})
    restless = {"compact_files_min": 2}
    with Archive(tmp_path, server, cold_url=cold_url, cold=restless, warm={"purge_grace_s": 0}) as made:
        yield made


@pytest.mark.parametrize(("cold_url", "steps"), stores("compact", BATCH_STEPS), indirect=["cold_url"])
def test_compact_killed_at_a_step_is_done_exactly_once(archive: Archive, steps: Sequence[str]) -> None:
    for step in steps:
        archive.archive_rounds(2)
        before, objects = archive.contents(), archive.objects()
        kill(archive, step, "compact")
        assert archive.contents() == before, step
        assert archive.store.verify(deep=True).problems == (), step
        while archive.compact():
            pass
        assert archive.contents() == before, step
        assert objects.items() <= archive.objects().items(), step
        assert len(archive.files("rollup_hourly")) == 1, step
        archive.check()
    purge(archive.tiers, archive.epoch)
    archive.check_clean()


@pytest.mark.parametrize(("cold_url", "steps"), stores("purge", PURGE_STEPS), indirect=["cold_url"])
def test_purge_killed_at_a_step_removes_what_is_not_needed_and_nothing_else(archive: Archive, steps: Sequence[str]) -> None:
    for step in steps:
        make_work_for_purge(archive)
        before, needed, all_keys = archive.contents(), archive.objects(live=True), archive.keys()
        kill(archive, step, "purge")
        assert archive.contents() == before, step
        assert archive.objects(live=True) == needed, step
        assert archive.keys() <= all_keys, step
        purge(archive.tiers, archive.epoch)
        purge(archive.tiers, archive.epoch)  # orphans lie in trash/ for a grace
        assert archive.contents() == before, step
        assert archive.objects(live=True) == needed, step
        archive.check()
        archive.check_clean()
        assert list(archive.settings.namespace_dir.glob("trash/*")) == [], step


def kill(archive: Archive, step: str, action: str) -> None:
    """Let another process do it and die, and come back as a new worker does."""
    archive.close()
    killed_at(step, action, archive.settings)
    archive.open()


def make_work_for_purge(archive: Archive) -> None:
    """Leave something for each of its steps: segments, objects and snapshots nobody needs, and what a crash leaves."""
    with pytest.raises(Crash):
        archive.archive_round(reach=breaking_at("upload done"))
    archive.archive_rounds(2)  # gives up what crashed: its objects are orphans
    assert archive.compact() is not None
    segments = archive.settings.namespace_dir / "segments"
    unfinished = segments / "0123456789abcdef0123456789abcdef.tmp"
    unfinished.write_bytes(b"half a segment")
    assert len(archive.keys() - archive.live_keys()) >= 6, "neither orphans nor trash"
    paths = [row.path for row in archive.tiers.ledger.trash()]
    assert any("://" in path for path in paths)
    assert any("://" not in path for path in paths)
