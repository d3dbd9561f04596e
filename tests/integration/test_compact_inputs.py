"""Compacting replaces nothing unless all that goes in is what was written, and all that comes out is the same."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.shelf import Shelf
from tests.tidying import Archive
from thermocline.archiver import compact
from thermocline.archiver.compact import Compactor
from thermocline.config import WarmSettings
from thermocline.errors import TierCorrupt
from thermocline.tiers.duck import Connection


@pytest.fixture
def archive(shelf: Shelf) -> Iterator[Archive]:
    with shelf.fresh() as made:
        made.archive_rounds()
        yield made


def test_an_input_whose_place_a_sound_but_other_file_has_taken_is_refused(archive: Archive) -> None:
    file = archive.files("rollup_task")[0]
    path, view = archive.tiers.cold.path(file.key), archive.view()
    sound, rows = path.read_bytes(), pq.read_table(path)
    for other, words in (
        (rows.slice(1), f"it has {file.rows - 1} rows, {file.rows} were written"),
        (rows, "its bytes are not those that were written"),
        (pa.table({}), "cannot be read"),
    ):
        pq.write_table(other, path)
        with pytest.raises(TierCorrupt, match=f"{re.escape(file.url)}: .*{words}.*; nothing was changed, restore the object"):
            archive.compact()
        assert archive.view() == view
        assert archive.tiers.ledger.intents() == []
    path.write_bytes(sound)
    assert archive.compact() is not None
    archive.check()


def test_rows_that_get_lost_in_the_writing_stop_it_and_the_files_are_set_aside(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, view, keys = archive.contents(), archive.view(), archive.keys()
    original = compact.selects

    def lossy(con: Connection, kind: str, rows: str, settings: WarmSettings) -> Sequence[str]:
        return [f"SELECT * FROM ({select}) LIMIT 1" for select in original(con, kind, rows, settings)]

    compactor = Compactor(archive.tiers, archive.epoch)
    with monkeypatch.context() as patch:
        patch.setattr(compact, "selects", lossy)
        with pytest.raises(
            TierCorrupt, match=r"compacting \d+ files of \w+: .* went in, .* came out; nothing was changed: check"
        ):
            compactor.step()
    assert (archive.view(), archive.contents(), archive.keys()) == (view, before, keys)
    assert archive.tiers.ledger.intents() == []
    assert compactor.step() is None, "they are set aside until the worker starts again"
    assert archive.compact() is not None
    assert archive.contents() == before
    archive.check()
