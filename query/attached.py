"""Segments attached read-only to one in-memory DuckDB, once each, for as long as a cut uses them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from thermocline.errors import TierCorrupt, TierUnavailable
from thermocline.tiers.duck import Connection, duckdb_errors, quoted
from thermocline.tiers.ledger import Segment
from thermocline.tiers.rollups import TOTAL
from thermocline.tiers.user_rollups import TABLE, made_in
from thermocline.tiers.warm import Warm

ALIAS: Final = "s_"


class SegmentGone(Exception):
    """Internal: a segment's file is not there. It left the ledger and was purged, or it is lost."""


class Attached:
    """Not thread-safe: the reader's lock covers it. A file that is attached may be unlinked; it stays readable."""

    def __init__(self, con: Connection, warm: Warm) -> None:
        self._con = con
        self._warm = warm
        self._ids: set[str] = set()
        self.with_totals: frozenset[str] = frozenset()
        """Those of them that carry rollups.TOTAL: all but the ones an older version wrote."""
        self.user_rollups: dict[str, frozenset[tuple[str, str]]] = {}
        """Those that carry rollups of the user: (name, hash) of each."""

    def add(self, segments: Iterable[Segment]) -> None:
        """Attach those that are not yet. SegmentGone when a file is missing; TierCorrupt when one cannot be read."""
        new = [segment for segment in segments if segment.segment_id not in self._ids]
        for segment in new:
            self._attach(segment)
            self._ids.add(segment.segment_id)
        if new:
            found = self._con.execute(f"SELECT database_name FROM duckdb_tables() WHERE table_name = '{TOTAL}'").fetchall()
            self.with_totals = frozenset(name.removeprefix(ALIAS) for (name,) in found)
            found = self._con.execute(f"SELECT database_name FROM duckdb_tables() WHERE table_name = '{TABLE}'").fetchall()
            for name in {name for (name,) in found if name.removeprefix(ALIAS) not in self.user_rollups}:
                self.user_rollups[name.removeprefix(ALIAS)] = made_in(self._con, f"{name}.{TABLE}")

    def keep_only(self, segment_ids: Iterable[str]) -> None:
        """Detach all others. A query that is reading one of them finishes undisturbed."""
        for segment_id in self._ids - set(segment_ids):
            self._con.execute(f"DETACH DATABASE IF EXISTS {alias(segment_id)}")
            self._ids.discard(segment_id)
            self.user_rollups.pop(segment_id, None)

    def _attach(self, segment: Segment) -> None:
        path = self._warm.path(segment.segment_id)
        try:
            with duckdb_errors(path, reading=True):
                self._con.execute(f"ATTACH IF NOT EXISTS {quoted(path)} AS {alias(segment.segment_id)} (READ_ONLY)")
        except (TierCorrupt, TierUnavailable) as exc:
            if Path(path).exists():
                raise
            raise SegmentGone(path) from exc


def alias(segment_id: str) -> str:
    """The name a segment is attached under."""
    return f"{ALIAS}{segment_id}"
