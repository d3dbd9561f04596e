"""What `verify` says of the archive: every object that is not what was written, by name, and no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.shelf import Shelf
from tests.tidying import Archive
from thermocline.archiver.verify_cold import cold_problems
from thermocline.tiers.cold import StoredObject
from thermocline.tiers.cold_folder import FolderCold
from thermocline.tiers.ledger import ColdFile, View


@pytest.fixture(params=["folder", "bucket"])
def archive(request: pytest.FixtureRequest, shelf: Shelf) -> Iterator[Archive]:
    """One batch."""
    with shelf.fresh(bucket=request.param == "bucket") as made:
        made.archive_rounds(1)
        yield made


in_a_folder = pytest.mark.parametrize("archive", ["folder"], indirect=True)


def object_of(archive: Archive, file: ColdFile) -> Path:
    return archive.bucket / archive.settings.namespace / file.key


def problems(archive: Archive, *, deep: bool) -> list[str]:
    return list(archive.store.verify(deep=deep).problems)


def test_a_missing_object_is_named_once_and_the_others_are_looked_at(archive: Archive) -> None:
    gone, damaged = archive.files("events")
    object_of(archive, gone).unlink()
    path = object_of(archive, damaged)
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    missing = f"{gone.url}: the object is missing; restore it from a copy"
    assert problems(archive, deep=False) == [missing]
    first, second = problems(archive, deep=True)
    assert (first, second.partition(": ")[0]) == (missing, damaged.url)


def test_objects_that_are_all_missing_are_all_named(archive: Archive) -> None:
    for file in archive.view().files:
        object_of(archive, file).unlink()
    named = {problem.partition(": ")[0] for problem in problems(archive, deep=True)}
    assert named == {file.url for file in archive.view().files}


@in_a_folder
def test_an_object_of_another_size_is_named_once(archive: Archive) -> None:
    [file] = archive.files("rollup_task")
    path = object_of(archive, file)
    path.write_bytes(path.read_bytes()[:-1])
    short = f"{file.url}: it has {file.file_bytes - 1} bytes, {file.file_bytes} were written; restore it from a copy"
    assert problems(archive, deep=False) == problems(archive, deep=True) == [short]


def test_an_object_that_goes_after_it_was_listed_is_named_and_the_others_are_looked_at(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, damaged = archive.files("events")
    path = object_of(archive, damaged)
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    listed = archive.tiers.cold.objects

    def then_gone(prefix: str = "") -> Iterator[StoredObject]:
        yield from listed(prefix)
        object_of(archive, gone).unlink(missing_ok=True)

    monkeypatch.setattr(archive.tiers.cold, "objects", then_gone)
    first, second = problems(archive, deep=True)
    assert gone.file_id in first
    assert "restore" in first
    assert damaged.url in second


@in_a_folder
def test_a_store_that_is_away_is_said_and_no_object_is_called_missing(archive: Archive) -> None:
    archive.bucket.rename(archive.bucket.with_name("away"))
    for deep in (False, True):
        [problem] = problems(archive, deep=deep)
        assert problem.startswith("the archive was not looked at: ")
        assert "is the disk mounted?" in problem
    archive.bucket.write_bytes(b"")
    [problem] = problems(archive, deep=False)
    assert problem.startswith("the archive was not looked at: ")
    archive.bucket.unlink()
    archive.bucket.with_name("away").rename(archive.bucket)
    assert problems(archive, deep=True) == []


@in_a_folder
def test_a_listing_that_is_late_or_came_changed_does_not_make_objects_missing(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, changed = (file.key for file in archive.files("events"))
    right = FolderCold.objects

    def wrong(self: FolderCold, prefix: str = "") -> Iterator[StoredObject]:
        for one in right(self, prefix):
            if one.key != late:
                yield msgspec.structs.replace(one, size_bytes=one.size_bytes ^ (one.key == changed))

    monkeypatch.setattr(FolderCold, "objects", wrong)
    assert problems(archive, deep=False) == []
    object_of(archive, archive.files("events")[0]).unlink()
    [problem] = problems(archive, deep=False)
    assert f"{late}: the object is missing" in problem


@in_a_folder
def test_what_left_the_ledger_while_it_was_looked_for_is_not_missed(archive: Archive) -> None:
    archive.archive_rounds(2)
    before = archive.tiers.ledger.view()
    archive.compact()
    archive.clean(days=40)
    archive.check_clean()
    assert cold_problems(archive.tiers, before, deep=True) == []
    left = archive.files("events")[0]
    object_of(archive, left).unlink()
    [problem] = cold_problems(archive.tiers, archive.tiers.ledger.view(), deep=True)
    assert left.url in problem


@in_a_folder
def test_files_whose_rows_are_not_those_of_the_ledger_are_named_and_so_is_the_sum(archive: Archive) -> None:
    view = archive.tiers.ledger.view()
    file = archive.files("events")[0]
    more = msgspec.structs.replace(file, rows=file.rows + 1)
    changed: View = msgspec.structs.replace(view, files=tuple(more if one == file else one for one in view.files))
    kept = sum(one.rows for one in archive.files("events"))
    total = f"the archive lists {kept + 1} events, {kept} were kept: run `thermocline recover`"
    assert cold_problems(archive.tiers, changed, deep=False) == [total]
    first, second = cold_problems(archive.tiers, changed, deep=True)
    assert first == total
    assert f"{file.url}: its {file.rows} rows have the checksum" in second
    assert f"{file.rows + 1} with" in second
