"""States of projections, kept in a SQLite file of their own: `states.db` in the namespace's folder.

They are a cache: each can be made again from events, as long as those are there, and is only used when its checksum is right.
What cannot be read counts as not there, what cannot be written is not kept; a warning says so, and nobody waits for either.

    snapshots   projection, version, conversation_id, seq, identity (of the store's hot data), gaps (JSON), state (JSON),
                checksum (SHA-256 of all of these), made_us
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.pool import NullPool

FILE_NAME: Final = "states.db"
BUSY_S: Final = 5
KEPT_MAX: Final = 64
"""Snapshots of one conversation and projection; the lowest seqs go first."""
log = logging.getLogger("thermocline.states")

_meta: Final = sa.MetaData()
_snapshots: Final = sa.Table(
    "snapshots",
    _meta,
    sa.Column("projection", sa.Text, primary_key=True),
    sa.Column("conversation_id", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("identity", sa.Text, nullable=False),
    sa.Column("gaps", sa.Text, nullable=False),
    sa.Column("state", sa.LargeBinary, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("checksum", sa.Text, nullable=False),
    sa.Column("made_us", sa.BigInteger, nullable=False),
)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A state as it is kept."""

    projection: str
    conversation_id: str
    version: str
    seq: int
    """It is the state after the event of this number."""
    identity: str
    """Of the store's hot data: changes when acknowledged events may have been lost."""
    gaps: str
    state: bytes
    checksum: str
    made_us: int

    @classmethod
    def of(cls, **fields: Any) -> Snapshot:
        """With its checksum."""
        made = cls(checksum="", **fields)
        return msgspec.structs.replace(made, checksum=made.sum)

    @property
    def sum(self) -> str:
        """What `checksum` has to be."""
        parts = (self.projection, self.conversation_id, self.version, str(self.seq), self.identity, self.gaps)
        found = hashlib.sha256()
        for part in (*(text.encode() for text in parts), self.state):
            found.update(b"%d:" % len(part) + part)
        return found.hexdigest()

    @property
    def sound(self) -> bool:
        return self.checksum == self.sum


class StateFile:
    """Thread-safe, and safe with other processes. Nothing is made before the first state is kept."""

    def __init__(self, folder: Path, *, bytes_max: int) -> None:
        """bytes_max  of all states together, but for the newest: what was made longest ago goes first"""
        self._path = folder / FILE_NAME
        self._bytes_max = bytes_max
        self._engine = sa.create_engine(sa.URL.create("sqlite", database=str(self._path)), poolclass=NullPool)
        event.listen(self._engine, "connect", _prepare)
        event.listen(self._engine, "begin", lambda con: con.exec_driver_sql("BEGIN IMMEDIATE"))

    def latest(
        self, projection: str, version: str, conversation_id: str, *, identity: str, seq_max: int | None
    ) -> Snapshot | None:
        """The one with the highest seq, up to `seq_max`, that is sound and of this version and identity."""
        own = _snapshots.c
        asked = sa.select(_snapshots).where(
            own.projection == projection,
            own.version == version,
            own.conversation_id == conversation_id,
            own.identity == identity,
        )
        asked = asked if seq_max is None else asked.where(own.seq <= seq_max)
        for one in self._found(asked.order_by(own.seq.desc())):
            if one.sound:
                return one
            log.warning("%s: the state of %s at %d is damaged and not used", self._path, conversation_id, one.seq)
        return None

    def listed(self, conversation_id: str, projection: str | None = None) -> list[Snapshot]:
        """All that are kept of a conversation, by projection, version and seq."""
        own = _snapshots.c
        asked = sa.select(_snapshots).where(own.conversation_id == conversation_id)
        asked = asked if projection is None else asked.where(own.projection == projection)
        return list(self._found(asked.order_by(own.projection, own.version, own.seq)))

    def keep(self, snapshots: list[Snapshot]) -> None:
        """Keep these, of one projection and conversation, in place of those with the same seqs; let go what is too much."""
        if not snapshots:
            return
        own, first = _snapshots.c, snapshots[0]
        same = sa.and_(
            own.projection == first.projection, own.version == first.version, own.conversation_id == first.conversation_id
        )
        with self._warned("kept"), self._engine.begin() as con:
            _meta.create_all(con)
            con.execute(sa.delete(_snapshots).where(same, own.identity != first.identity))
            con.execute(sa.delete(_snapshots).where(same, own.seq.in_([one.seq for one in snapshots])))
            con.execute(sa.insert(_snapshots), [{**msgspec.structs.asdict(one), "bytes": len(one.state)} for one in snapshots])
            newest = sa.select(own.seq).where(same).order_by(own.seq.desc()).limit(KEPT_MAX)
            con.execute(sa.delete(_snapshots).where(same, own.seq.not_in(newest)))
            self._shrink(con)

    def _shrink(self, con: sa.Connection) -> None:
        own = _snapshots.c
        total = con.execute(sa.select(sa.func.coalesce(sa.func.sum(own.bytes), 0))).scalar_one()
        if total <= self._bytes_max:
            return
        key = (own.projection, own.conversation_id, own.version, own.seq)
        oldest_first = con.execute(sa.select(*key, own.bytes).order_by(own.made_us, own.seq)).all()
        for *place, size in oldest_first[:-1]:
            con.execute(sa.delete(_snapshots).where(*(column == value for column, value in zip(key, place, strict=True))))
            total -= size
            if total <= self._bytes_max * 3 // 4:
                return

    def _found(self, asked: sa.Select[Any]) -> Iterator[Snapshot]:
        rows: list[Any] = []
        if self._path.exists():
            reading = self._engine.execution_options(isolation_level="AUTOCOMMIT")  # one statement, no lock
            with self._warned("read"), reading.connect() as con:
                rows = list(con.execute(asked).mappings().all())
        for row in rows:
            yield Snapshot(**{name: row[name] for name in Snapshot.__struct_fields__})

    @contextmanager
    def _warned(self, done: str) -> Iterator[None]:
        try:
            yield
        except exc.SQLAlchemyError as error:
            text = str(error).split("\n", 1)[0][:200]
            log.warning("%s: states are not %s (%s); it is a cache, and may be removed", self._path, done, text)


def _prepare(con: Any, _: object) -> None:
    con.isolation_level = None  # BEGIN is ours
    con.execute(f"PRAGMA busy_timeout = {BUSY_S * 1000}")
