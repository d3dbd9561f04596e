"""Rehydrate: local copies of archived events, of a day or of a conversation, so that queries do not wait for S3.

Copies are made and kept by tiers/cold_copies.py. A crash leaves copies that are not kept on purpose; asking again finds them.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import msgspec

from thermocline.tiers.duck import quoted
from thermocline.tiers.ledger import ColdFile
from thermocline.tiers.opening import Tiers
from thermocline.tiers.steps import Reach, named, unheard

from .archive_plan import DAY_US


class Rehydrated(msgspec.Struct, frozen=True, kw_only=True):
    """What can now be read here."""

    files: int
    bytes: int
    is_local: bool
    """The cold tier is a folder: there was nothing to copy, and nothing has to be kept."""


class KeptCopy(msgspec.Struct, frozen=True, kw_only=True):
    """A local copy that is kept until a time."""

    key: str
    day: str
    rows: int
    bytes: int
    until_us: int


def rehydrate(tiers: Tiers, day_or_conversation: str, *, until_us: int, reach: Reach = unheard) -> Rehydrated:
    """Copy the event files of a UTC day (YYYY-MM-DD), or those a conversation is in, and keep the copies until then.

    until_us  µs since the epoch; a copy that is kept for longer already stays so
    reach     told the name of every step before and after it

    Safe to repeat. Errors are those of the cold tier; what was copied before stays a copy.
    """
    day = _day(day_or_conversation)
    events = [file for file in tiers.ledger.view().files if file.kind == "events"]
    with named(reach, "look up"):
        found = [file for file in events if file.day == day] if day else _of_conversation(tiers, events, day_or_conversation)
    size = tiers.copies.keep([file.key for file in found], until_us=until_us, reach=reach) if found else 0
    return Rehydrated(files=len(found), bytes=size, is_local=bool(found) and tiers.cold.is_local)


def kept_copies(tiers: Tiers, *, now_us: int) -> list[KeptCopy]:
    """Copies whose time is not over, by day."""
    kept = tiers.copies.kept()
    if not kept:
        return []
    live = {file.key: file for file in tiers.ledger.view().files}
    found = [
        KeptCopy(key=key, day=live[key].day, rows=live[key].rows, bytes=live[key].file_bytes, until_us=until)
        for key, until in kept.items()
        if until > now_us and key in live
    ]
    return sorted(found, key=lambda one: (one.day, one.key))


def _day(text: str) -> str | None:
    """The text, when it is a day."""
    try:
        return text if len(text) == 10 and dt.date.fromisoformat(text).isoformat() == text else None
    except ValueError:
        return None


def _of_conversation(tiers: Tiers, events: Sequence[ColdFile], conversation_id: str) -> list[ColdFile]:
    """The event files that may hold events of a conversation: by the time it had in each rollup, and by their bounds."""
    index = [file for file in tiers.ledger.view().files if file.kind == "rollup_conversation" and _spans(file, conversation_id)]
    if not index:
        return []
    keys = [file.key for file in index]
    tiers.copies.ensure(keys)
    places = ", ".join(quoted(tiers.copies.place(key)) for key in keys)
    with tiers.warm.reading((), task=f"looking for {conversation_id} in the archive") as (con, _):
        times = con.execute(
            "SELECT epoch_us(started_at), epoch_us(ended_at)"
            f" FROM read_parquet([{places}], hive_partitioning = false) WHERE conversation_id = ?",
            [conversation_id],
        ).fetchall()
    days = {day for start, end in times for day in range(start // DAY_US, end // DAY_US + 1)}
    return [
        file
        for file in events
        if _spans(file, conversation_id)
        and not days.isdisjoint(range(file.timestamp_min_us // DAY_US, file.timestamp_max_us // DAY_US + 1))
    ]


def _spans(file: ColdFile, conversation_id: str) -> bool:
    return file.conversation_min <= conversation_id <= file.conversation_max
