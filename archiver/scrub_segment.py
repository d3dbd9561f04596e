"""Whether a segment's file is, bit for bit, what was written; and if not, which rows and whose events are hit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from thermocline.errors import TierCorrupt
from thermocline.tiers.checksum import HASH_KIND, ROW_HASH, SEGMENT_CHECKSUM, hash_sum
from thermocline.tiers.damage import CONVERSATIONS_SHOWN_MAX, Damage, Part, Rows, joined
from thermocline.tiers.duck import Connection, DuckError, connect
from thermocline.tiers.ledger import Segment
from thermocline.tiers.opening import Tiers
from thermocline.tiers.segment_file import SETTLED_GROUP_ROWS, attached
from thermocline.tiers.segment_sum import read_sum, sum_of, write_sum

from .scrub_plan import SEGMENT


def segment_damage(tiers: Tiers, segment: Segment) -> Damage | None:
    """What is wrong with a live segment's file; None when nothing is, or when it left the ledger meanwhile.

    A file that has no sum, or a damaged one, gets one when its rows, rollups and facts are found right.
    """
    path = Path(tiers.warm.path(segment.segment_id))
    try:
        problem = _problem(tiers, segment, path)
        if problem is None:
            return None
    except FileNotFoundError:
        problem = "the file is missing"
    except OSError as exc:
        problem = f"it cannot be read ({exc.strerror or exc})"
    if segment not in tiers.ledger.view().segments:
        return None
    return _damage(tiers, segment, path, problem)


def has_rows(tiers: Tiers, segment: Segment, path: Path) -> bool:
    """Whether a file has all rows of a segment, and just as they were written, whatever else is in it."""
    con = connect(memory_bytes=tiers.settings.warm.memory_bytes_max, threads=tiers.settings.warm.threads)
    try:
        with attached(con, path) as alias:
            found = con.execute(f"SELECT count(*), {SEGMENT_CHECKSUM} FROM {alias}.events").fetchall()
            return bool(found == [(segment.rows, segment.checksum)])
    except (DuckError, OSError):
        return False
    finally:
        con.close()


def _problem(tiers: Tiers, segment: Segment, path: Path) -> str | None:
    size = path.stat().st_size
    found = sum_of(path, from_disk=True)
    if size != segment.file_bytes:
        return f"it has {size:,} bytes, {segment.file_bytes:,} were written"
    stated: str | None = None
    with suppress(TierCorrupt):
        stated = read_sum(path)
    if stated is not None:
        return None if stated == found else f"its sum is {found}, {stated} was written"
    problems = tiers.warm.check(segment, deep=True)
    if problems:
        return "; ".join(one.partition(f"{path}: ")[2] or one for one in problems)
    write_sum(path, found)
    return None


def _damage(tiers: Tiers, segment: Segment, path: Path, problem: str) -> Damage:
    item = f"{SEGMENT} {segment.segment_id}"
    con = connect(memory_bytes=tiers.settings.warm.memory_bytes_max, threads=tiers.settings.warm.threads)
    try:
        with attached(con, path) as alias:
            rows = _unreadable(con, alias, segment)
            if rows is None:
                return Damage(item=item, place=str(path), problem=f"{problem}; its events are sound", events=0)
            parts, conversations = _parts(con, alias, rows)
    except (DuckError, OSError):
        rows, parts, conversations = (Rows(start=0, end=segment.rows),), (), 0
        problem += (
            f"; nothing of it can be read: conversations {segment.conversation_min!r} to {segment.conversation_max!r}, "
            f"in shards {', '.join(str(one.shard) for one in segment.ranges if one.events)}"
        )
    finally:
        con.close()
    events = sum(one.end - one.start for one in rows)
    return Damage(item=item, place=str(path), problem=problem, events=events, rows=rows, parts=parts, conversations=conversations)


def _unreadable(con: Connection, alias: str, segment: Segment) -> tuple[Rows, ...] | None:
    """Row groups that cannot be read; all of them when each can be and their sum is not what was written. None: all is well."""
    found: list[Rows] = []
    total = 0
    [(kind,)] = con.execute(f"SELECT {HASH_KIND}").fetchall()
    for start in range(0, segment.rows, SETTLED_GROUP_ROWS):
        rows = Rows(start=start, end=min(start + SETTLED_GROUP_ROWS, segment.rows))
        try:
            [(count, hashes)] = con.execute(f"SELECT count(*), {ROW_HASH} FROM {alias}.events WHERE {_within(rows)}").fetchall()
        except DuckError:
            found.append(rows)
            continue
        if count != rows.end - rows.start:
            found.append(rows)
        total += int(hashes)
    if found:
        return joined(found)
    comparable = segment.checksum.partition(":")[0] == kind
    if comparable and total != hash_sum(segment.checksum):
        return (Rows(start=0, end=segment.rows),)
    return None


def _within(rows: Rows) -> str:
    return f"rowid >= {rows.start} AND rowid < {rows.end}"


def _parts(con: Connection, alias: str, rows: Sequence[Rows]) -> tuple[tuple[Part, ...], int]:
    """The conversations of rows that cannot be read as a whole: by their columns that can be, else by the rollups."""
    condition = " OR ".join(f"({_within(one)})" for one in rows)
    of_events = (
        f"SELECT conversation_id, min(seq), max(seq), count(*) FROM {alias}.events WHERE {condition} GROUP BY conversation_id"
    )
    overlaps = " OR ".join(f"(upto > {one.start} AND upto - events < {one.end})" for one in rows)
    of_rollups = (
        "SELECT conversation_id, 1::BIGINT, seq_max, events FROM (SELECT conversation_id, seq_max, events,"
        f" sum(events) OVER (ORDER BY conversation_id) AS upto FROM {alias}.rollup_conversation) WHERE {overlaps}"
    )
    for query in (of_events, of_rollups):
        try:
            found = con.execute(
                f"SELECT *, count(*) OVER () FROM ({query}) ORDER BY 1 LIMIT {CONVERSATIONS_SHOWN_MAX}"
            ).fetchall()
        except DuckError:
            continue
        parts = tuple(Part(conversation_id=row[0], seq_min=row[1], seq_max=row[2], events=row[3]) for row in found)
        return parts, found[0][4] if found else 0
    return (), 0
