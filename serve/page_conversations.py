"""What the list of conversations shows: the latest first, found by name or by what was said in them. Plain data."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

from markupsafe import Markup

from thermocline.query.matching import highlighted
from thermocline.store import Store

from .page_text import readable
from .problems import Problem

PAGE_ROWS: Final = 50
FOUND_MAX: Final = 50
TEXT_CHARS_MAX: Final = 200
_LIST: Final = """
SELECT conversation_id, started_at, ended_at, total_events, task_count, interventions
FROM conversation_summary
WHERE ($named IS NULL OR contains(lower(conversation_id), lower($named)))
  AND ($before IS NULL OR ended_at < make_timestamptz($before)
       OR ended_at = make_timestamptz($before) AND conversation_id > $after)
ORDER BY ended_at DESC, conversation_id LIMIT $rows
"""


def listed(store: Store, named: str, before: str) -> dict[str, Any]:
    """A page of conversations by their last event; `more` goes on. before: `more` of the page before."""
    before_us, after = _place(before)
    values = {"named": named or None, "before": before_us, "after": after, "rows": PAGE_ROWS + 1}
    answer = store.sql(_LIST, values)
    rows = answer.to_arrow().to_pylist()
    more = None
    if len(rows) > PAGE_ROWS:
        rows = rows[:PAGE_ROWS]
        last = rows[-1]
        more = f"{_us(last['ended_at'])} {last['conversation_id']}"
    now = dt.datetime.now(dt.UTC)
    for row in rows:
        row["ago_s"] = max(0.0, (now - row["ended_at"]).total_seconds())
        row["lasted_s"] = (row["ended_at"] - row["started_at"]).total_seconds()
    return {"rows": rows, "more": more, "coverage": str(answer.coverage)}


def found(store: Store, text: str, before: str) -> dict[str, Any]:
    """Events that hold the text, the newest first, with what is found marked."""
    answer = store.search(text, limit=FOUND_MAX, before=before or None)
    hits = []
    for row in answer.to_arrow().to_pylist():
        marked = highlighted(row["snippet"], row["spans"], escape=lambda part: str(Markup.escape(readable(part))))
        hits.append({**row, "marked": Markup(marked)})  # highlighted escapes all but its own marks
    searched = answer.searched_from
    return {"hits": hits, "more": answer.more, "coverage": str(answer.coverage), "searched_from": searched}


def _place(before: str) -> tuple[int | None, str]:
    if not before:
        return None, ""
    us, _, after = before.partition(" ")
    if not us.isascii() or not us.isdigit() or len(us) > 18:
        raise Problem(400, "bad-request", "before is not what a list of conversations gave: begin at its start")
    return int(us), after


def _us(at: dt.datetime) -> int:
    return (at - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)
