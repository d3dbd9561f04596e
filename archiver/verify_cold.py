"""Whether the cold tier is what the ledger says of it: sums, sizes, and, when asked, every page and row."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from thermocline.errors import ConfigError, TierCorrupt, TierUnavailable
from thermocline.tiers.batch_files import sha256_of
from thermocline.tiers.checksum import file_checksum, same_kind
from thermocline.tiers.cold_schema import DATA_PREFIXES
from thermocline.tiers.duck import Connection, connect, duckdb_errors, quoted
from thermocline.tiers.ledger import ColdFile, View
from thermocline.tiers.opening import Tiers
from thermocline.tiers.parquet_file import facts_of, page_problem


def cold_problems(tiers: Tiers, view: View, *, deep: bool) -> list[str]:
    """One line each, with a hint; [] when all is well or nothing is archived.

    deep  reads every file in full: page checksums, rows, and the checksum the ledger keeps
    """
    if not view.files:
        return []
    problems = _sum_problems(view)
    try:
        sizes = dict(_size_problems(tiers, view))
        problems += sizes.values()
        if deep:
            problems += _content_problems(tiers, [one for one in view.files if one.file_id not in sizes])
    except (TierUnavailable, ConfigError) as exc:
        problems.append(f"the archive was not looked at: {exc}")
    live = tiers.ledger.view().files
    return problems if problems and live == view.files else [one for one in problems if not _is_of_gone(one, view, live)]


def _is_of_gone(problem: str, view: View, live: tuple[ColdFile, ...]) -> bool:
    """Whether a problem is with a file that left the ledger meanwhile."""
    gone = {file.file_id for file in view.files} - {file.file_id for file in live}
    return any(file_id in problem for file_id in gone)


def _sum_problems(view: View) -> list[str]:
    rows = sum(file.rows for file in view.files if file.kind == "events")
    kept = sum(total.kept for total in view.totals)
    if rows == kept:
        return []
    return [f"the archive lists {rows} events, {kept} were kept: run `thermocline recover`"]


def _size_problems(tiers: Tiers, view: View) -> Iterator[tuple[str, str]]:
    """(file id, what is wrong) of objects that are missing or of another size, by what is listed."""
    sizes = {stored.key: stored.size_bytes for prefix in DATA_PREFIXES for stored in tiers.cold.objects(prefix)}
    if not sizes:  # a disk that is not mounted lists nothing either: then this raises TierUnavailable
        with suppress(TierCorrupt):
            tiers.cold.get(view.files[0].key, length=0)
    for file in view.files:
        size = sizes.get(file.key)
        if size != file.file_bytes:  # a listing may be late, or have come changed: the object itself is asked
            size = tiers.cold.size(file.key)
        if size is None:
            yield file.file_id, f"{file.url}: the object is missing; restore it from a copy"
        elif size != file.file_bytes:
            problem = f"it has {size} bytes, {file.file_bytes} were written; restore it from a copy"
            yield file.file_id, f"{file.url}: {problem}"


def _content_problems(tiers: Tiers, files: Sequence[ColdFile]) -> Iterator[str]:
    """Files whose pages, rows or checksum are not what was written, or that cannot be read to the end."""
    con = connect(memory_bytes=tiers.settings.warm.memory_bytes_max, threads=tiers.settings.warm.threads)
    with tempfile.TemporaryDirectory(dir=tiers.settings.namespace_dir, prefix=f"spill-{os.getpid()}-verify-") as folder:
        for file in files:
            key = file.key
            path = tiers.cold.path(key) if tiers.cold.is_local else Path(folder) / "object.parquet"
            try:
                if not tiers.cold.is_local:
                    tiers.cold.fetch(key, path)
                yield from _file_problems(con, file, path)
            except TierCorrupt as exc:
                yield str(exc)
            except OSError as exc:
                yield f"{file.url}: cannot be read ({exc.strerror or exc}); restore the object from a copy"
    con.close()


def _file_problems(con: Connection, file: ColdFile, path: Path) -> Iterator[str]:
    """What is wrong with the bytes, pages or rows of a file."""
    problem = page_problem(path)
    found = sha256_of(path)
    if problem or found != file.checksum:
        what = f"a page is damaged ({problem})" if problem else f"its SHA-256 is {found}, {file.checksum} was written"
        yield f"{file.url}: {what}; restore the object from a copy"
        return
    stated = facts_of(path).get("thermocline.checksum", "")
    with duckdb_errors(file.url, reading=True):
        query = f"SELECT count(*), {file_checksum(file.kind)} FROM read_parquet({quoted(str(path))}, hive_partitioning = false)"
        [(rows, checksum)] = con.execute(query).fetchall()
    if rows != file.rows or (checksum != stated and same_kind(checksum, stated)):
        yield f"{file.url}: its {rows} rows have the checksum {checksum}, {file.rows} with {stated} were written"
