"""Files of the archive as local copies that were checked in full: pages, rows and bytes. Nothing is replaced unchecked."""

from __future__ import annotations

from pathlib import Path

from thermocline.errors import TierCorrupt
from thermocline.tiers.batch_files import sha256_of
from thermocline.tiers.duck import Connection, duckdb_errors, quoted
from thermocline.tiers.ledger import ColdFile
from thermocline.tiers.opening import Tiers
from thermocline.tiers.parquet_file import page_problem


class DamagedFile(TierCorrupt):
    """An archived file is not what was written."""

    def __init__(self, file: ColdFile, problem: str) -> None:
        super().__init__(f"{file.url}: {problem}; nothing was changed, restore the object from a copy")
        self.file_id = file.file_id


def relation(*paths: Path) -> str:
    """The files as SQL."""
    return f"read_parquet([{', '.join(quoted(str(path)) for path in paths)}], hive_partitioning = false)"


def fetched(tiers: Tiers, con: Connection, file: ColdFile, folder: Path) -> Path:
    """A local copy of the file in `folder`. DamagedFile unless it is what the ledger says; TierUnavailable when it is away."""
    path = folder / f"{file.file_id}.parquet"
    try:
        tiers.cold.fetch(file.key, path)
    except TierCorrupt as exc:
        raise DamagedFile(file, str(exc)) from exc
    problem = page_problem(path)
    if problem:
        raise DamagedFile(file, f"a page is damaged ({problem})")
    try:
        with duckdb_errors(file.url, reading=True):
            [(rows,)] = con.execute(f"SELECT count(*) FROM {relation(path)}").fetchall()
    except TierCorrupt as exc:
        raise DamagedFile(file, str(exc)) from exc
    if rows != file.rows:
        raise DamagedFile(file, f"it has {rows} rows, {file.rows} were written")
    if sha256_of(path) != file.checksum:
        raise DamagedFile(file, "its bytes are not those that were written")
    return path
