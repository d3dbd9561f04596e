"""The ledger in SQL: SQLite in the namespace folder, or PostgreSQL (contract: ledger.py).

A move checks everything it states against what the ledger already holds before it changes a row: the worker's epoch, the files,
that every shard goes on exactly where it was, and that as many events come out as went in. So a bug or a stale worker stops here,
with nothing changed.

Repeating a move whose commit raised is safe: `settled` and `merged` do nothing when the very same move is already in the ledger.
Told apart are *the same again* (all stated states and segments are there) and *something else at the same place* (TierCorrupt).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from thermocline.errors import ConfigError, LeaseHeld, TierCorrupt, TierUnavailable
from thermocline.event import FORMAT

from . import ledger_rows as rows
from . import ledger_schema as schema
from .block import Position
from .ledger import Batch, BatchRow, ColdFile, Intent, Loss, Segment, ShardState, Trash, View
from .ledger_checks import check_batch, check_merge, check_rebuilt, check_settle, progress
from .ledger_engine import LedgerEngine

EPOCHS_KEPT = 100


class SqlLedger:
    """Ledger of one namespace. Thread-safe.

    url     SQLAlchemy URL; the database is made by `create` or `rebuild`, never by reading
    folder  the namespace folder, which holds segments/
    """

    def __init__(self, url: str, *, folder: Path) -> None:
        self._engine = LedgerEngine(url)
        self._folder = folder
        self._segments: Mapping[str, Segment] = {}
        self._files: Mapping[str, ColdFile] = {}
        self._latest: tuple[object, View] | None = None
        """The ledger's version before the last view was taken, and that view."""

    def create(self, *, incarnation: str, shards: int, buckets: int, now_us: int) -> None:
        """Make tables and identity in one transaction; nothing happens if they are there."""
        with self._engine.write(create=True) as con:
            schema.metadata.create_all(con)
            if not self._identity(con):
                states = [ShardState(shard=shard) for shard in range(shards)]
                self._fill(con, incarnation=incarnation, states=states, buckets=buckets, now_us=now_us)

    def identity(self) -> Mapping[str, str] | None:
        """format, namespace, incarnation, previous and run (if any), shards, buckets, created_us; None when not created yet."""
        if not self._engine.exists():
            return None
        with self._engine.read() as con:
            return self._identity(con) or None

    def view(self) -> View:
        """Everything a reader needs, from one snapshot. What never changes is fetched once per process, and nothing when nobody
        has committed since."""
        version, latest = self._engine.version(), self._latest
        if version is not None and latest is not None and latest[0] == version:
            return latest[1]
        view = self._read_view()
        self._latest = version, view
        return view

    def _read_view(self) -> View:
        with self._engine.read() as con:
            identity = self._known_identity(con)
            epoch = con.execute(_EPOCH).scalar_one()
            states = rows.read_shards(con)
            segments = rows.read_segments(con, self._segments)
            files = rows.read_files(con, self._files)
            totals, losses = rows.read_totals(con), rows.read_losses(con)
            whole = rows.read_whole_batches(con) if files else frozenset()
        self._segments, self._files = segments, files
        return View(
            format=identity["format"],
            incarnation=identity["incarnation"],
            epoch=epoch,
            shards=tuple(states.values()),
            segments=tuple(segments.values()),
            files=tuple(files.values()),
            totals=totals,
            losses=losses,
            whole_batches=whole,
        )

    def take_epoch(self, owner: str, now_us: int) -> int:
        with self._engine.write() as con:
            self._known_identity(con)
            _complete(con)
            epoch: int = con.execute(_EPOCH).scalar_one() + 1
            con.execute(sa.insert(schema.epochs), {"epoch": epoch, "owner": owner, "taken_us": now_us})
            con.execute(sa.delete(schema.epochs).where(schema.epochs.c.epoch <= epoch - EPOCHS_KEPT))
            return epoch

    def owner(self) -> str | None:
        with self._engine.read() as con:
            return con.execute(_OWNER).scalars().first()

    def settled(self, epoch: int, segment: Segment | None, shards: Sequence[ShardState], *, now_us: int) -> None:
        """TierUnavailable when a shard was confirmed anew meanwhile: read it again. TierCorrupt when a shard does not go on
        where it was, or the file is not there as stated."""
        with self._engine.write() as con:
            self._check_epoch(con, epoch)
            old = rows.read_shards(con)
            if self._is_settled(con, segment, shards, old):
                return
            check_settle(segment, shards, old)
            if segment is not None:
                self._list(con, [segment])
            moved = [rows.shard_row(_with_observed(new, old[new.shard])) for new in shards]
            con.execute(_PUT_SHARD, [{**row, "of_shard": row["shard"]} for row in moved])

    def merged(self, epoch: int, inputs: Sequence[str], outputs: Sequence[Segment], *, now_us: int) -> None:
        """TierCorrupt when an input is not live, the outputs hold other events than the inputs, or a file is not as stated."""
        with self._engine.write() as con:
            self._check_epoch(con, epoch)
            live = rows.read_segments(con, self._segments)
            if all(live.get(output.segment_id) == output for output in outputs) and not live.keys() & set(inputs):
                return
            check_merge(inputs, outputs, live)
            self._drop_segments(con, inputs, {"left_us": now_us, "move_id": outputs[0].move_id})
            self._list(con, outputs)

    def rebuilt(self, epoch: int, damaged: str, segment: Segment) -> None:
        """TierCorrupt when the damaged one is not live, the new one holds other events, or its file is not as stated."""
        with self._engine.write() as con:
            self._check_epoch(con, epoch)
            live = rows.read_segments(con, self._segments)
            if live.get(segment.segment_id) == segment and damaged not in live:
                return
            check_rebuilt(damaged, segment, live)
            self._unlist(con, [damaged])
            self._list(con, [segment])

    def intend(self, epoch: int, intent: Intent) -> None:
        """TierCorrupt when another batch that was begun has an input of it."""
        with self._engine.write() as con:
            self._check_epoch(con, epoch)
            for other in rows.read_intents(con):
                if other.batch_id != intent.batch_id and set(other.inputs) & set(intent.inputs):
                    raise TierCorrupt(f"batch {other.batch_id} was begun with inputs of {intent.batch_id}: it must end first")
            con.execute(sa.delete(schema.intents).where(schema.intents.c.batch_id == intent.batch_id))
            con.execute(sa.insert(schema.intents), rows.intent_row(intent))

    def intents(self) -> list[Intent]:
        with self._engine.read() as con:
            self._known_identity(con)
            return rows.read_intents(con)

    def give_up(self, epoch: int, batch_id: str) -> None:
        with self._engine.write() as con:
            self._check_epoch(con, epoch)
            con.execute(sa.delete(schema.intents).where(schema.intents.c.batch_id == batch_id))

    def committed(self, epoch: int, batch: Batch, *, snapshot_id: str | None, now_us: int) -> None:
        """TierCorrupt when something it replaces is not live, a file is not as stated, or events would appear or vanish."""
        with self._engine.write() as con:
            self._check_epoch(con, epoch)
            if con.execute(sa.select(schema.batches.c.batch_id).where(schema.batches.c.batch_id == batch.batch_id)).first():
                return
            files = rows.read_files(con, self._files)
            check_batch(batch, rows.read_segments(con, self._segments), files)
            left = {"left_us": now_us, "move_id": batch.batch_id}
            self._drop_segments(con, batch.inputs, left)
            if batch.removed:
                con.execute(sa.delete(schema.cold_files).where(schema.cold_files.c.file_id.in_(batch.removed)))
                paths = [f"cold://{files[file_id].key}" for file_id in batch.removed]
                con.execute(sa.insert(schema.trash), [{"path": path, **left} for path in paths])
            self._list(con, batch.rest)
            self._list_batch(con, batch, batch.files, snapshot_id=snapshot_id, now_us=now_us)
            con.execute(sa.delete(schema.intents).where(schema.intents.c.batch_id == batch.batch_id))

    def batches(self) -> list[BatchRow]:
        with self._engine.read() as con:
            return rows.read_batches(con)

    def observed(self, shards: Mapping[int, tuple[int, Position]], *, eras: Mapping[int, int] | None = None, now_us: int) -> None:
        """`eras` is what the shards were in when they were seen: a shard confirmed anew since then is left alone."""
        table = schema.shards
        with self._engine.write() as con:
            for shard, (events, position) in shards.items():
                same = [table.c.shard == shard, table.c.observed_events < events]
                if eras is not None:
                    same.append(table.c.era == eras[shard])
                seen = {"observed_events": events, "observed_ms": position.ms, "observed_seq": position.seq}
                con.execute(sa.update(table).where(*same).values(seen))

    def confirmed(
        self, *, incarnation: str, eras: Mapping[int, int], losses: Sequence[Loss], now_us: int, run_id: str = ""
    ) -> None:
        """A loss told again for the same shard and era keeps the larger figure; an era never goes back."""
        table = schema.shards
        with self._engine.write() as con:
            old = self._known_identity(con)["incarnation"]
            if old != incarnation:
                _put_identity(con, {"incarnation": incarnation, "previous": old})
            _put_identity(con, {"run": run_id})
            settled = {
                "observed_events": table.c.events,
                "observed_ms": table.c.position_ms,
                "observed_seq": table.c.position_seq,
            }
            con.execute(sa.update(table).values(settled))
            for shard, era in eras.items():
                con.execute(sa.update(table).where(table.c.shard == shard, table.c.era < era).values(era=era))
            for loss in losses:
                _put_loss(con, loss)

    def losses_reported(self, reported: Mapping[tuple[int, int], int]) -> None:
        with self._engine.write() as con:
            for (shard, era), events in reported.items():
                loss = Loss(shard=shard, era=era, observed=0, reported=events, at_us=0, reason="reported by producers")
                _put_loss(con, loss)

    def trash(self) -> list[Trash]:
        with self._engine.read() as con:
            found = con.execute(sa.select(schema.trash).order_by(schema.trash.c.left_us, schema.trash.c.path))
            return [Trash(path=row[0], left_us=row[1], move_id=row[2]) for row in found]

    def purged(self, epoch: int, paths: Iterable[str]) -> None:
        with self._engine.write() as con:
            self._check_epoch(con, epoch)
            con.execute(sa.delete(schema.trash).where(schema.trash.c.path.in_(list(paths))))

    def rebuild(
        self,
        *,
        incarnation: str,
        shards: Sequence[ShardState],
        segments: Sequence[Segment],
        batches: Sequence[Batch] = (),
        buckets: int,
        now_us: int,
    ) -> None:
        """TierCorrupt when there is a ledger already: move it aside first."""
        removed = {file_id for batch in batches for file_id in batch.removed}
        with self._engine.write(create=True) as con:
            schema.metadata.create_all(con)
            if self._identity(con):
                raise TierCorrupt(f"ledger {self._engine.shown_url} is not empty: move it aside before it is rebuilt")
            self._fill(con, incarnation=incarnation, states=shards, buckets=buckets, now_us=now_us)
            self._list(con, segments)
            for batch in batches:
                live = [file for file in batch.files if file.file_id not in removed]
                self._list_batch(con, batch, live, snapshot_id=None, now_us=batch.created_us)

    def problem(self) -> str:
        """What is wrong with the structure of the database; empty when nothing is, or when it is PostgreSQL's to say."""
        return self._engine.problem()

    def bytes_used(self) -> int:
        return self._engine.bytes_used()

    def copy_to(self, target: Path) -> bool:
        """Write a consistent snapshot to a new file; False when the ledger is in PostgreSQL."""
        return self._engine.copy_to(target)

    def move_aside(self, mark: str) -> str | None:
        """Make room for `rebuild`: the old ledger keeps its contents under the name returned; None when there was none."""
        return self._engine.move_aside(mark)

    def checkpoint(self) -> int:
        return self._engine.checkpoint()

    def close(self) -> None:
        self._engine.close()

    def _fill(self, con: sa.Connection, *, incarnation: str, states: Sequence[ShardState], buckets: int, now_us: int) -> None:
        facts = {"format": FORMAT, "namespace": self._folder.name, "incarnation": incarnation, "shards": str(len(states))}
        _put_identity(con, {**facts, "buckets": str(buckets), "created_us": str(now_us)})
        con.execute(sa.insert(schema.shards), [rows.shard_row(state) for state in states])
        zero = {"kept": 0, "sampled_out": 0, "erased": 0}
        con.execute(sa.insert(schema.totals), [{"shard": state.shard, **zero} for state in states])

    def _identity(self, con: sa.Connection) -> dict[str, str]:
        return {row[0]: row[1] for row in con.execute(_IDENTITY).all()}

    def _known_identity(self, con: sa.Connection) -> dict[str, str]:
        """The identity, or why this is not a ledger to work with."""
        identity, shown = self._identity(con), self._engine.shown_url
        if not identity:
            raise TierUnavailable(f"ledger {shown} is not created yet; append once, or run `thermocline recover`")
        if identity["format"] != FORMAT:
            raise TierCorrupt(
                f"ledger {shown} has format {identity['format']!r}, this version knows {FORMAT}: use the version that wrote it"
            )
        if identity["namespace"] != self._folder.name:
            raise ConfigError(
                f"ledger_url: {shown} is the ledger of namespace {identity['namespace']!r}, not {self._folder.name!r}: "
                "every namespace needs its own"
            )
        return identity

    def _check_epoch(self, con: sa.Connection, epoch: int) -> None:
        self._known_identity(con)
        if con.execute(_EPOCH).scalar_one() != epoch:
            raise LeaseHeld(con.execute(_OWNER).scalars().first() or "unknown")

    def _is_settled(
        self, con: sa.Connection, segment: Segment | None, shards: Sequence[ShardState], old: Mapping[int, ShardState]
    ) -> bool:
        """Whether this very settle is in the ledger: a repeat after a commit whose outcome was unknown."""
        same = all(progress(new) == progress(old[new.shard]) for new in shards)
        if not same or segment is None:
            return same
        return segment.segment_id in rows.read_segments(con, self._segments)

    def _drop_segments(self, con: sa.Connection, ids: Sequence[str], left: Mapping[str, Any]) -> None:
        """Move segments from the ledger to the trash."""
        self._unlist(con, ids)
        if ids:
            con.execute(sa.insert(schema.trash), [{"path": _file_name(segment_id), **left} for segment_id in ids])

    def _unlist(self, con: sa.Connection, ids: Sequence[str]) -> None:
        for table in (schema.segments, schema.segment_ranges):
            con.execute(sa.delete(table).where(table.c.segment_id.in_(ids)))

    def _list_batch(
        self, con: sa.Connection, batch: Batch, files: Sequence[ColdFile], *, snapshot_id: str | None, now_us: int
    ) -> None:
        """Add a batch, these of its files, and its totals."""
        con.execute(sa.insert(schema.batches), rows.batch_row(batch, snapshot_id=snapshot_id, now_us=now_us))
        if files:
            con.execute(sa.insert(schema.cold_files), [rows.file_row(file) for file in files])
        table = schema.totals
        for one in batch.totals:
            added = {name: table.c[name] + getattr(one, name) for name in ("kept", "sampled_out", "erased")}
            con.execute(sa.update(table).where(table.c.shard == one.shard).values(added))

    def _list(self, con: sa.Connection, segments: Sequence[Segment]) -> None:
        """Add segments whose files are there with the size they state."""
        for segment in segments:
            path = self._folder / _file_name(segment.segment_id)
            size = path.stat().st_size if path.exists() else None
            if size != segment.file_bytes:
                found = "is missing" if size is None else f"has {size} bytes"
                raise TierCorrupt(f"segment {path} {found}, {segment.file_bytes} were written: the move is not recorded")
        if segments:
            con.execute(sa.insert(schema.segments), [rows.segment_row(segment) for segment in segments])
            ranges = [row for segment in segments for row in rows.range_rows(segment)]
            con.execute(sa.insert(schema.segment_ranges), ranges)


def _with_observed(new: ShardState, old: ShardState) -> ShardState:
    """`new`, observed at least as far as it has settled."""
    if old.observed_events > new.events:
        return msgspec.structs.replace(new, observed_events=old.observed_events, observed_position=old.observed_position)
    return msgspec.structs.replace(new, observed_events=new.events, observed_position=new.position)


def _put_identity(con: sa.Connection, facts: Mapping[str, str]) -> None:
    con.execute(sa.delete(schema.identity).where(schema.identity.c.key.in_(list(facts))))
    con.execute(sa.insert(schema.identity), [{"key": key, "value": value} for key, value in facts.items()])


def _put_loss(con: sa.Connection, loss: Loss) -> None:
    table = schema.losses
    here = [table.c.shard == loss.shard, table.c.era == loss.era]
    old = con.execute(sa.select(table.c.observed, table.c.reported).where(*here)).first()
    if old is None:
        values = {"observed": loss.observed, "reported": loss.reported, "at_us": loss.at_us, "reason": loss.reason}
        con.execute(sa.insert(table), {"shard": loss.shard, "era": loss.era, **values})
    elif loss.observed > old[0] or loss.reported > old[1]:
        larger = {"observed": max(loss.observed, old[0]), "reported": max(loss.reported, old[1])}
        con.execute(sa.update(table).where(*here).values(larger))


def _file_name(segment_id: str) -> str:
    return f"segments/{segment_id}.duckdb"


_IDENTITY = sa.select(schema.identity.c.key, schema.identity.c.value)
_EPOCH = sa.select(sa.func.coalesce(sa.func.max(schema.epochs.c.epoch), 0))
_PUT_SHARD = sa.update(schema.shards).where(schema.shards.c.shard == sa.bindparam("of_shard"))
_OWNER = sa.select(schema.epochs.c.owner).order_by(schema.epochs.c.epoch.desc()).limit(1)


def _complete(con: sa.Connection) -> None:
    """Add the tables and columns that the version which made this ledger did not have."""
    schema.metadata.create_all(con)
    for table in schema.metadata.sorted_tables:
        there = {one["name"] for one in sa.inspect(con).get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                con.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {column.type.compile(con.dialect)}"))


__all__ = ["SqlLedger"]
