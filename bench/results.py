"""What was measured, kept as one JSON file per case, so that a long run goes on where it ended."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from . import machine

ROOT = Path(__file__).parents[1]
PRODUCT = ("ingest", "tiers", "archiver", "query", "src/thermocline")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a table."""

    what: str
    value: str
    events: int = 0
    """The size it was measured at; 0 where size has no meaning."""
    against: str = ""
    """What it is read against, measured in the same run."""
    target: str = ""
    met: bool | None = None
    """None: no target, or not measured."""
    note: str = ""
    figures: dict[str, float] = {}
    """For machines and plots; names end in their unit."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A case that was measured."""

    table: str
    case: str
    events: int
    quick: bool
    identity: str
    """Of code and machine."""
    commit: str
    machine: str
    measured_at: str
    versions: dict[str, str]
    taken_s: float
    whole: bool
    """Whether it was measured: if not, its rows say why, and it is tried again the next time."""
    rows: tuple[Row, ...]


class Results:
    """The results in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, table: str, case: str, events: int, *, quick: bool, identity: str) -> Result | None:
        """What was measured by this code on this machine."""
        found = self._read(self._path(table, case, events, quick=quick))
        return found if found is not None and found.identity == identity and found.whole else None

    def put(self, result: Result) -> None:
        path = self._path(result.table, result.case, result.events, quick=result.quick)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
        new.replace(path)

    def all(self) -> list[Result]:
        """Everything there is, but for what the quick run gave of cases that were measured in full."""
        found = [one for path in sorted(self._folder.glob("*/*.json")) if (one := self._read(path)) is not None]
        full = {(one.table, one.case) for one in found if not one.quick}
        return [one for one in found if not one.quick or (one.table, one.case) not in full]

    def quick(self) -> list[Result]:
        """What the quick run gave."""
        found = [self._read(path) for path in sorted(self._folder.glob("*/*-quick.json"))]
        return [one for one in found if one is not None]

    def _path(self, table: str, case: str, events: int, *, quick: bool) -> Path:
        return self._folder / table / f"{case}-{events}{'-quick' if quick else ''}.json"

    def _read(self, path: Path) -> Result | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=Result)
        except (OSError, msgspec.DecodeError):
            return None


def identity_of(table: str, *, product: bool) -> str:
    """Changes with the machine and with the code a case runs: its table, the harness, and the product if that is measured."""
    bench = ROOT / "bench"
    files = [one for one in bench.glob("*.py") if one.name not in ("report.py", "plots.py", "__main__.py", "sizes.py")]
    files += [bench / "tables" / f"{table}.py", *(bench / "peers").glob("*.py")]
    if product:
        files += [path for folder in PRODUCT for suffix in ("*.py", "*.lua") for path in (ROOT / folder).rglob(suffix)]
    return f"{_digest(files)}-{hashlib.sha1(machine.described().encode(), usedforsecurity=False).hexdigest()[:6]}"


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    for path in sorted({one.resolve() for one in files}):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
