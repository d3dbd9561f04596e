"""What an answer that rests on a sample lacks, day by day: counted when somebody insists on a complete one, and then only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from thermocline.errors import IncompleteAnswer, TierCorrupt, TierUnavailable
from thermocline.tiers.duck import Connection, DuckError, quoted
from thermocline.tiers.ledger import ColdFile, View

from .archived import Archived
from .bounds import HOUR_US, Bounds, Texts, chosen
from .coverage import Coverage
from .relations import Place, Sources
from .view import Cut

SHOWN_MAX: Final = 5
"""Days and files that the message names; the error has all days."""
_HOUR: Final = f"epoch_us(timestamp) // {HOUR_US} * {HOUR_US}"


class DayMissing(msgspec.Struct, frozen=True, kw_only=True):
    """One UTC day of archived events that a query asks for, as far as its bounds were understood; whole hours."""

    day: str
    events: int
    kept: int


def incomplete(
    base: Connection,
    archived: Archived,
    cut: Cut,
    sources: Mapping[str, Sources],
    bounds: Mapping[str, Bounds],
    coverage: Coverage,
) -> IncompleteAnswer:
    """The error that names what an answer would lack."""
    rollups = tuple(file for file in cut.view.files if file.kind == "rollup_hourly")
    con = base.cursor()
    try:
        archived.prepare([*sources.values(), Sources(files=rollups)])
        days = missing_days(con, cut.view, sources, bounds, archived.place)
    except (TierUnavailable, TierCorrupt):
        days = []
    finally:
        con.close()
    files = [file for source in sources.values() for file in source.sampled_files(cut.view.whole_batches)]
    text = told(coverage.reason, days, files)
    return IncompleteAnswer(f"{text}. Ask without require, or for days that are still warm", missing=days)


def missing_days(
    con: Connection, view: View, sources: Mapping[str, Sources], bounds: Mapping[str, Bounds], place: Place
) -> list[DayMissing]:
    """The days of which something was sampled out, in order; [] when the rollups that know cannot be read.

    con  reads what `place` names; rollups and files of events were made readable
    """
    bound = bounds.get("events", Bounds())
    rolled = [file for file in chosen(view.files, bound) if file.kind == "rollup_hourly"]
    kept = list(sources["events"].files) if "events" in sources else []
    if not rolled:
        return []
    parts = [_by_day(rolled, "epoch_us(hour)", "sum(events)", "0", bound, place)]
    parts += [_by_day(kept, _HOUR, "0", "count(*)", bound, place)] if kept else []
    query = (
        "SELECT strftime(make_timestamp(us), '%Y-%m-%d') AS day, sum(events)::BIGINT AS events, sum(kept)::BIGINT AS kept"
        f" FROM ({' UNION ALL '.join(parts)}) GROUP BY day HAVING sum(events) > sum(kept) ORDER BY day"
    )
    try:
        return [DayMissing(day=day, events=events, kept=count) for day, events, count in con.execute(query).fetchall()]
    except (DuckError, TierCorrupt, TierUnavailable):
        return []  # the message then goes without numbers; that the answer is incomplete is certain


def told(reason: str, days: list[DayMissing], files: Iterable[ColdFile]) -> str:
    """The message of IncompleteAnswer."""
    text = reason
    if days:
        out, events = sum(one.events - one.kept for one in days), sum(one.events for one in days)
        named = [f"{one.day} ({one.events - one.kept:,} of {one.events:,})" for one in days]
        text += f". Sampled out are {out:,} of {events:,} archived events of {_listed(named, 'days')}"
    names = [file.key for file in files]
    if names:
        text += f"{';' if days else '. They are'} in {_listed(names, 'files')}"
    return text


def _listed(names: list[str], unit: str) -> str:
    more = len(names) - SHOWN_MAX
    return ", ".join(names[:SHOWN_MAX]) + (f" and {more:,} more {unit}" if more > 0 else "")


def _by_day(files: list[ColdFile], hour_us: str, events: str, kept: str, bound: Bounds, place: Place) -> str:
    places = ", ".join(quoted(place(file)) for file in files)
    tests = [*_of(bound.conversations, "conversation_id"), *_of(bound.event_types, "event_type")]
    if bound.time_min_us is not None:
        tests.append(f"{hour_us} >= {bound.time_min_us // HOUR_US * HOUR_US}")
    if bound.time_max_us is not None:
        tests.append(f"{hour_us} <= {bound.time_max_us}")
    day = f"{hour_us} // {24 * HOUR_US} * {24 * HOUR_US}"
    return (
        f"SELECT {day} AS us, {events} AS events, {kept} AS kept FROM read_parquet([{places}], hive_partitioning = false)"
        f" WHERE {' AND '.join(tests) or 'true'} GROUP BY us"
    )


def _of(texts: Texts, column: str) -> list[str]:
    if texts.values is not None:
        return [f"{column} IN ({', '.join(map(quoted, sorted(texts.values)))})"] if texts.values else ["false"]
    tests = [f"{column} >= {quoted(texts.low)}"] if texts.low is not None else []
    return tests + ([f"{column} <= {quoted(texts.high)}"] if texts.high is not None else [])
