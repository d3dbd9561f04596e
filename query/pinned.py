"""One view for as many queries as the caller likes: a DuckDB of its own whose relations stay put until `refresh`."""

from __future__ import annotations

import threading
from typing import Final

import msgspec

from thermocline.errors import TierCorrupt
from thermocline.tiers.duck import Connection
from thermocline.tiers.opening import Tiers

from .archived import Archived
from .bounds import ANY_ROW
from .relations import NAMES, relation_sql, tail_sql
from .run import open_memory, sources_of
from .tail import SCHEMA
from .view import Cut, Reader, SegmentGone

TAIL: Final = f"{SCHEMA}.events"


class Pinned:
    """Connections pinned to one view. Thread-safe.

    The relations are plain views of the database, so all its connections see the same, tables made there stay, and views made
    over them follow. Files that leave the ledger stay readable until `refresh`; their space is freed then.
    """

    def __init__(self, tiers: Tiers) -> None:
        self._settings = tiers.settings.query
        self._definitions = {one.relation: one for one in tiers.rollups}
        self._base = open_memory(tiers.settings)
        self._archived = Archived(tiers, self._base)
        self._reader = Reader(tiers, self._base.cursor())
        self._lock = threading.Lock()
        self._cut: Cut | None = None

    def connection(self) -> Connection:
        """A new connection; the caller closes it."""
        if self._cut is None:
            self.refresh()
        return self._base.cursor()

    def refresh(self) -> None:
        """Move every connection to a fresh view, at once. If it raises, they stay where they are."""
        with self._lock:
            gone: SegmentGone | None = None
            for _ in range(self._settings.view_retries_max):
                cut = self._reader.take()
                try:
                    self._reader.attach(cut.view.segments)
                    self._define(cut)
                except BaseException as exc:
                    self._reader.release(cut)
                    if not isinstance(exc, SegmentGone):
                        raise
                    gone = exc
                    continue
                old, self._cut = self._cut, cut
                if old is not None:
                    self._reader.release(old)
                return
            raise TierCorrupt(f"{gone} is missing, but the ledger lists it: run `thermocline verify`") from gone

    def close(self) -> None:
        self._base.close()

    def _define(self, cut: Cut) -> None:
        views = {TAIL: tail_sql(cut.tail.chunks)}
        sources = sources_of(cut, dict.fromkeys([*NAMES, *self._definitions], ANY_ROW))
        for relation, definition in self._definitions.items():
            sources[relation] = msgspec.structs.replace(sources[relation], rolled=self._reader.rolled(definition))
        self._archived.prepare(sources.values())
        for relation, source in sources.items():
            views[f"memory.main.{relation}"] = relation_sql(
                relation, source, tail=TAIL, place=self._archived.place, definitions=self._definitions
            )
        con = self._base.cursor()
        try:
            con.execute("BEGIN")
            for name, select in views.items():
                con.execute(f"CREATE OR REPLACE VIEW {name} AS {select}")
            con.execute("COMMIT")
        finally:
            con.close()
