"""Mend: put a sound segment in the place of a damaged one, from the first of these that has it.

mirror    the very file, under the same name: fetched, compared, and put in its place by one rename
rows      its own rows, when every one of them is sound and something else in the file is not: written again, as a merge of one
log       the blocks it was made of, while Redis still has all of them: settled again, and swapped in by one ledger transaction

What is put in place has the checksum of rows that the ledger keeps, or it is not put there. The damaged file is never deleted: it
gets a name in trash/quarantine/ before anything takes its place, so a crash in between leaves it there and the segment as it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pyarrow as pa
import uuid_utils

from thermocline.errors import LeaseHeld, ThermoclineError
from thermocline.tiers.checksum import same_kind
from thermocline.tiers.damage import Damage
from thermocline.tiers.ledger import Segment, ShardRange, ShardState
from thermocline.tiers.opening import Tiers
from thermocline.tiers.quarantine import keep_aside
from thermocline.tiers.segment_sum import sum_path, write_sum
from thermocline.tiers.whole_file import file_errors, sync

from .scrub_plan import SEGMENT
from .scrub_segment import has_rows

Fetch = Callable[[Segment, Path], str]
"""Fetch a segment's file from the mirror to a path and give its sum. ThermoclineError when it is not there, or not sound."""


class NotMended(Exception):
    """Internal: this way is not open, and why."""


class Mender:
    """Mends the segments of one namespace for who holds `epoch`.

    fetch  None without a mirror
    """

    def __init__(self, tiers: Tiers, epoch: int, *, fetch: Fetch | None = None) -> None:
        self._tiers = tiers
        self._epoch = epoch
        self._fetch = fetch
        self._folder = tiers.settings.namespace_dir

    def mend(self, damage: Damage) -> Damage:
        """The damage with how it was mended, or with why it could not be. LeaseHeld when another worker took over."""
        kind, _, name = damage.item.partition(" ")
        segment = next((one for one in self._tiers.ledger.view().segments if one.segment_id == name), None)
        if kind != SEGMENT or segment is None:
            return damage
        reasons = []
        for way in (self._from_mirror, self._from_rows, self._from_log):
            try:
                with file_errors(damage.place, setting="data_dir"):
                    return msgspec.structs.replace(damage, mended=way(segment))
            except LeaseHeld:
                raise
            except (NotMended, ThermoclineError) as exc:
                reasons.append(str(exc))
        return msgspec.structs.replace(damage, hint=f"not mended: {'; '.join(reasons)}")

    def _from_mirror(self, segment: Segment) -> str:
        if self._fetch is None:
            raise NotMended("there is no mirror (warm.mirror)")
        path = self._path(segment)
        fetched = path.with_name(f"{uuid_utils.uuid7().hex}.tmp")
        try:
            found = self._fetch(segment, fetched)
            aside = self._keep_aside(segment)
            write_sum(path, found)
            fetched.replace(path)
            sync(path.parent)
        finally:
            fetched.unlink(missing_ok=True)
        return f"from the mirror, byte for byte{aside}"

    def _from_rows(self, segment: Segment) -> str:
        if not has_rows(self._tiers, segment, self._path(segment)):
            raise NotMended("its rows are not all sound")
        self._require_free(segment)
        aside = self._keep_aside(segment)
        now_us = time.time_ns() // 1000
        made = self._tiers.warm.write_merged(
            [segment], level=max(1, segment.level), move_id=uuid_utils.uuid7().hex, created_us=now_us
        )
        self._tiers.ledger.merged(self._epoch, [segment.segment_id], made, now_us=now_us)
        self._path(segment).unlink(missing_ok=True)
        return f"all its rows were sound and were written again, into {', '.join(one.segment_id for one in made)}{aside}"

    def _from_log(self, segment: Segment) -> str:
        self._require_free(segment)
        made = self._settled_again(segment)
        try:
            aside = self._keep_aside(segment)
            self._tiers.ledger.rebuilt(self._epoch, segment.segment_id, made)
        except BaseException:
            self._remove(made.segment_id)
            raise
        self._remove(segment.segment_id)
        return f"settled again from Redis' log, into {made.segment_id}{aside}"

    def _settled_again(self, segment: Segment) -> Segment:
        """A new file with the same rows, made of the blocks in the log. NotMended when they are not all there."""
        tables, before = [], []
        room = self._tiers.settings.warm.memory_bytes_max // 6
        for part in segment.ranges:
            blocks, state = self._blocks(part, room)
            tables.append(blocks)
            before.append(state)
            room -= blocks["payload"].nbytes
        move_id = segment.move_id if not segment.inputs else uuid_utils.uuid7().hex
        settled = self._tiers.warm.write_settled(
            pa.concat_tables(tables), before, move_id=move_id, created_us=time.time_ns() // 1000
        )
        made = settled.segment
        if made is None or not _same_rows(made, segment):
            if made is not None:
                self._remove(made.segment_id)
            raise NotMended("the blocks in Redis' log are not those it was made of, or not those alone")
        return made

    def _blocks(self, part: ShardRange, room: int) -> tuple[pa.Table, ShardState]:
        """The blocks of a range, and the shard's state before them."""
        hot = self._tiers.hot
        if hot.trimmed()[part.shard] > part.after:
            raise NotMended(f"Redis has dropped blocks of shard {part.shard} that it was made of")
        pages, after, size = [], part.after, 0
        while after < part.upto:
            page = hot.page(part.shard, after, part.upto, bytes_max=self._tiers.settings.hot.page_bytes_max)
            if page.num_rows == 0 or page["fault"].null_count < page.num_rows:
                raise NotMended(f"blocks of shard {part.shard} that it was made of are damaged or missing in Redis too")
            pages.append(page)
            size += page["payload"].nbytes
            if size > room:
                raise NotMended("the blocks it was made of do not fit in warm.memory_bytes_max")
            after = type(after)(page["position_ms"][-1].as_py(), page["position_seq"][-1].as_py())
        if hot.trimmed()[part.shard] > part.after or not pages:
            raise NotMended(f"Redis has dropped blocks of shard {part.shard} that it was made of")
        blocks = pa.concat_tables(pages)
        first = blocks["events_total"][0].as_py() - blocks["events"][0].as_py()
        unusable = part.events_upto - first - part.events
        return blocks, ShardState(
            shard=part.shard, position=part.after, events=first, rejected=max(0, part.rejected_upto - unusable)
        )

    def _require_free(self, segment: Segment) -> None:
        if any(segment.segment_id in intent.inputs for intent in self._tiers.ledger.intents()):
            raise NotMended("a batch of the archive that was begun needs it as it is; it is looked at again afterwards")

    def _keep_aside(self, segment: Segment) -> str:
        path = self._path(segment)
        return f"; the damaged file is kept as {keep_aside(self._folder, path)}" if path.exists() else ""

    def _path(self, segment: Segment) -> Path:
        return Path(self._tiers.warm.path(segment.segment_id))

    def _remove(self, segment_id: str) -> None:
        path = Path(self._tiers.warm.path(segment_id))
        path.unlink(missing_ok=True)
        sum_path(path).unlink(missing_ok=True)


def _same_rows(made: Segment, segment: Segment) -> bool:
    """Whether a segment holds just the rows of another, from the same part of the logs."""
    if made.ranges != segment.ranges or made.rows != segment.rows:
        return False
    if same_kind(made.checksum, segment.checksum):
        return made.checksum == segment.checksum
    facts = ("content_bytes", "timestamp_min_us", "timestamp_max_us", "conversation_min", "conversation_max")
    return all(getattr(made, name) == getattr(segment, name) for name in facts)
