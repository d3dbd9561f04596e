"""What a conversation's timeline shows: its events, the tier each is in, gaps where some are not there, sums. Plain data."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from thermocline.query.gaps import Gap, reason_of
from thermocline.query.whereabouts import tier_of
from thermocline.store import Store
from thermocline.tiers.block import shard_of

from .page_text import Shown, shown

PAGE_EVENTS: Final = 100
CONTENT_CHARS: Final = 20_000
"""Of one event on a page; the address of the whole stands beside it."""
METADATA_CHARS: Final = 20_000
NEW_S: Final = 5
STRIP_PARTS: Final = 200
MARKED_MAX: Final = 2000
"""Seqs from the first of a page on, of which it is told in which tier they are."""
_COLUMNS: Final = f"""
    seq, event_type, timestamp, ingested_at, agent_id, task_id, correlation_id, parent_id, model, tool_name, status,
    duration_ms, cost_usd, input_tokens, output_tokens, sample_rate,
    left(content, {CONTENT_CHARS}) AS content, length(content) AS content_chars,
    left(metadata, {METADATA_CHARS}) AS metadata, length(metadata) AS metadata_chars"""
_AFTER: Final = f"SELECT {_COLUMNS} FROM events WHERE conversation_id = $conversation AND seq >= $seq ORDER BY seq LIMIT $rows"
_BEFORE: Final = f"""
SELECT * FROM (SELECT {_COLUMNS} FROM events WHERE conversation_id = $conversation AND seq < $seq ORDER BY seq DESC LIMIT $rows)
ORDER BY seq"""
_SUMMARY: Final = "SELECT * FROM conversation_summary WHERE conversation_id = $conversation"
_GAPS: Final = {
    "sampled_out": "sampled out when archived: counted in the rollups, their content is gone",
    "expired": "expired: older than the archive keeps",
    "lost": "numbers that Redis lost; verify says more",
    "rejected": "could not be read, set aside in rejected/",
    "unknown": "not there: run thermocline verify",
}
_NAMES: Final = ("agent_id", "task_id", "model", "tool_name", "parent_id", "correlation_id")
_FACTS: Final = {"agent_id": "agent", "task_id": "task", "tool_name": "tool", "parent_id": "of", "correlation_id": "trace"}


class Part(NamedTuple):
    """A page of a timeline."""

    entries: list[dict[str, Any]]
    """Events and gaps, in order."""
    older: int | None
    """Give it as `before` for the page before; None when there is none."""
    newer: int | None
    """Give it as `seq` for the next page; None on the newest one."""
    first: int
    """The first seq of the page, be it there or not."""
    follow_from: int
    """The first seq that is not on the page."""
    coverage: str


def part(store: Store, conversation: str, *, seq: int | None = None, before: int | None = None) -> Part:
    """A page: from `seq` on, up to before `before`, or the newest one."""
    hot = store.tiers.hot
    head = hot.head(conversation)
    newest = seq is None and before is None
    sql = _AFTER if seq is not None else _BEFORE
    start = seq if seq is not None else before if before is not None else 1 << 62
    values = {"conversation": conversation, "seq": start, "rows": PAGE_EVENTS + 1}
    answer = store.sql(sql, values)
    rows = answer.to_arrow().to_pylist()
    more = len(rows) > PAGE_EVENTS
    rows = (rows[:PAGE_EVENTS] if seq is not None else rows[1:]) if more else rows
    reaches_end = newest or (seq is not None and not more)
    first = seq if seq is not None else rows[0]["seq"] if more else 1
    last_row = rows[-1]["seq"] if rows else first - 1
    end = max(head, last_row) if reaches_end else before - 1 if before is not None else last_row
    entries = list(_with_gaps(store, conversation, rows, first, end))
    return Part(
        entries,
        older=first if first > 1 and (more or seq is not None) else None,
        newer=None if reaches_end else end + 1,
        first=first,
        follow_from=end + 1,
        coverage=str(answer.coverage),
    )


def summary(store: Store, conversation: str) -> dict[str, Any] | None:
    """Sums over the whole conversation, from rollups; None when there is no such conversation."""
    rows = store.sql(_SUMMARY, {"conversation": conversation}).to_arrow().to_pylist()
    if not rows:
        return None
    found: dict[str, Any] = rows[0]
    used = store.usage(conversation).to_arrow().to_pylist()
    for name in ("input_tokens", "output_tokens", "cost_usd", "errors", "content_bytes"):
        found[name] = sum(row[name] for row in used)
    found["models"] = sorted({row["model"] for row in used if row["model"]})
    found["lasted_s"] = (found["ended_at"] - found["started_at"]).total_seconds()
    return found


def places(store: Store, conversation: str, from_seq: int) -> dict[str, Any]:
    """Which tier the events are in: of all of them how many, spread over the conversation; from a seq on, as many as a page may
    show, the runs of seqs."""
    head = max(1, store.tiers.hot.head(conversation))
    counts = dict.fromkeys(("hot", "warm", "cold"), 0)
    parts = min(STRIP_PARTS, head)
    strip = []
    for place, tier, events in store.spread(conversation, head, parts):
        counts[tier] += events
        strip.append((100 * place / parts, tier, min(1.0, max(0.3, events * parts / head))))
    runs = store.whereabouts(conversation, from_seq, from_seq + MARKED_MAX).fetchall()
    return {
        "runs": runs,
        "counts": counts,
        "gone": max(0, head - sum(counts.values())),
        "strip": strip,
        "width": 100 / parts,
    }


def entry(row: Mapping[str, Any], tier: str, since: dt.datetime | None = None) -> dict[str, Any]:
    """An event as it is shown. since: when the one before it happened. Pure."""
    kind = kind_of(row["event_type"], row["status"])
    content: Shown | None = shown(row["content"], row["content_chars"])
    facts = [(_FACTS.get(name, name), row[name]) for name in _NAMES if row[name] is not None]
    return {
        **row,
        "entry": "event",
        "kind": kind,
        "tier": tier,
        "failed": kind == "error" or row["status"] == "error",
        "text": content,
        "more": shown(row["metadata"], row["metadata_chars"]),
        "facts": facts,
        "since_s": None if since is None else (row["timestamp"] - since).total_seconds(),
    }


def followed(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event of a tail as it is shown. What was ingested just now is hot; of the others the page is told later."""
    new = dt.datetime.now(dt.UTC) - event["ingested_at"] < dt.timedelta(seconds=NEW_S)
    content, metadata = event["content"], event["metadata"]
    cut = {
        "content": content[:CONTENT_CHARS],
        "content_chars": len(content),
        "metadata": metadata and metadata[:METADATA_CHARS],
        "metadata_chars": len(metadata or ""),
    }
    return entry({**event, **cut}, "hot" if new else "")


def gap(conversation: str, first: int, last: int, reason: str) -> dict[str, Any]:
    """A gap as it is shown. Pure."""
    return {"entry": "gap", "from_seq": first, "to_seq": last, "count": last - first + 1, "reason": reason, "told": _GAPS[reason]}


def gap_of(item: Gap) -> dict[str, Any]:
    return gap(item.conversation_id, item.from_seq, item.to_seq, item.reason)


def kind_of(event_type: str, status: str | None) -> str:
    """What an event looks like: user, assistant, system, tool call or result, error, intervention, or just an event. Pure."""
    name = event_type.lower()
    if name == "error" or name.endswith(".error"):
        return "error"
    if name == "intervention" or name.startswith("intervention."):
        return "intervention"
    if name in ("tool.call", "tool_call"):
        return "call"
    if name in ("tool.result", "tool_result", "message.tool"):
        return "result"
    last = name.rpartition(".")[2]
    if name.startswith(("message", "prompt", "input", "output")):
        return (
            last if last in ("user", "assistant", "system") else "user" if name.startswith(("prompt", "input")) else "assistant"
        )
    return "event"


def _with_gaps(
    store: Store, conversation: str, rows: Sequence[Mapping[str, Any]], first: int, end: int
) -> Iterator[dict[str, Any]]:
    """Events and, where seqs from `first` to `end` are missing, gaps with their reasons."""
    runs = store.whereabouts(conversation, rows[0]["seq"], rows[-1]["seq"]).fetchall() if rows else []
    due, since = first, None
    view = store.tiers.ledger.view()
    shard = shard_of(conversation, store.settings.hot.shards)

    def missing(low: int, high: int) -> dict[str, Any]:
        return gap(conversation, low, high, reason_of(view, conversation, shard, low, high, first=low == 1))

    for row in rows:
        if row["seq"] > due:
            yield missing(due, row["seq"] - 1)
        yield entry(row, tier_of(runs, row["seq"]), since)
        due, since = row["seq"] + 1, row["timestamp"]
    if due <= end:
        yield missing(due, end)
