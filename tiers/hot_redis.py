"""The hot tier on Redis: cuts, pages, trim and the cache (contract: hot.py)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from thermocline.config import HotSettings
from thermocline.errors import TierCorrupt, TierUnavailable
from thermocline.event import Durability

from .append_session import RedisAppendSession
from .block import Position, head_place, parse_head, shard_of
from .hot import Newest, ServerFacts, ShardCut
from .hot_keys import CLEAN_KEY, Keys
from .log_page import EntryFault, UnreadableEntry, blocks_lists, blocks_table, entry_fault
from .redis_link import CommandFailed, Link, Script

CUT = Script("cut")
TRIM = Script("trim")
PUT_META = Script("put_meta")
RECENT = Script("recent")
PAGE_ENTRIES_FIRST = 4
"""As many of the largest blocks as a page of the default size holds."""
PAGE_ENTRY_BYTES = 64 << 10
"""For every so many bytes of a smaller page one block is asked for first."""
PAGE_ENTRIES_MAX = 5000
PAYLOAD_PLACE = 25
"""Of `d` among the names and values of an entry, as the append script orders them."""
RECENT_ENTRIES_FIRST = 8
"""Enough to tell how large a conversation's blocks are."""
RECENT_BYTES_FIRST = 64 << 10
"""Of them inside of one script: while it reads, everybody else waits."""
CUT_FIELDS = ("inc", "era", "N", "B", "L", "T", "tB", "t")
SCAN_COUNT = 1000
WAITAOF_SINCE = (7, 2)
"""Valkey, which began there, says 7.2 as its redis_version too."""


class ShardMeta(dict[str, str]):
    """`:m` of one shard as stored; empty when the shard is not there."""


class RedisHot:
    """Hot over one Redis. Thread-safe."""

    def __init__(self, link: Link, namespace: str, settings: HotSettings) -> None:
        self.link = link
        self.keys = Keys(namespace)
        self.shards = settings.shards
        self._settings = settings

    def facts(self) -> ServerFacts:
        """What the server says of itself. CONFIG may be forbidden (managed Redis): INFO has what matters but fsync."""
        info_text, found = self.link.replies([("INFO",), ("CONFIG", "GET", "*appendfsync*")])
        if isinstance(info_text, CommandFailed):
            raise self.link.refusal(info_text) from info_text
        info = dict(line.partition(":")[::2] for line in info_text.decode().split("\r\n") if ":" in line)
        if info.get("loading", "0") != "0":  # meanwhile it says aof_enabled:0, whatever its settings are
            raise TierUnavailable(f"Redis at {self.link.shown_url} is loading its data; try again")
        now = self.link.call("TIME")
        append_only = info.get("aof_enabled") == "1"
        write_ok = info.get("aof_last_write_status", "ok") == "ok"
        fsync = [] if isinstance(found, CommandFailed) else [item.decode() for item in found]
        configured = dict(zip(fsync[::2], fsync[1::2], strict=True))
        rewriting = "1" in (info.get("aof_rewrite_in_progress"), info.get("rdb_bgsave_in_progress"))
        paused = rewriting and configured.get("no-appendfsync-on-rewrite") == "yes"
        return ServerFacts(
            version=info["redis_version"],
            run_id=info["run_id"],
            maxmemory_policy=info.get("maxmemory_policy", "unknown"),
            maxmemory=int(info.get("maxmemory", 0)),
            used_memory=int(info.get("used_memory", 0)),
            append_only=append_only,
            append_fsync=configured.get("appendfsync", "everysec") if append_only else "no",
            disk_ok=write_ok and not paused and info.get("aof_pending_bio_fsync", "0") == "0",
            write_ok=write_ok,
            waits_for_disk=append_only and _version(info["redis_version"]) >= WAITAOF_SINCE,
            replicas=int(info.get("connected_slaves", 0)),
            now_us=int(now[0]) * 1_000_000 + int(now[1]),
        )

    def cut(self) -> tuple[ShardCut, ...]:
        """All shards at one instant. TierUnavailable when a shard has no counters: the namespace is new, or Redis was wiped."""
        names = [name for shard in range(self.shards) for name in (self.keys.meta(shard), self.keys.log(shard))]
        cuts = []
        for shard, fields in enumerate(self.link.script(CUT, names, CUT_FIELDS)):
            inc, era, events, size, last, trimmed, trimmed_bytes, newest_us, entries = fields
            if inc is None:
                raise TierUnavailable(
                    f"Redis at {self.link.shown_url} has no shard {shard} of namespace {self.keys.namespace!r}: "
                    "new or wiped; start `thermocline worker`, which confirms it"
                )
            cuts.append(
                ShardCut(
                    shard=shard,
                    incarnation=inc.decode(),
                    era=int(era),
                    events_total=int(events),
                    bytes_total=int(size),
                    last=Position.parse(last),
                    trimmed=Position.parse(trimmed),
                    trimmed_bytes=int(trimmed_bytes),
                    entries=entries,
                    newest_us=int(newest_us or 0),
                )
            )
        return tuple(cuts)

    def trimmed(self) -> tuple[Position, ...]:
        answers = self.link.pipeline([("HGET", self.keys.meta(shard), "T") for shard in range(self.shards)])
        return tuple(Position.parse(answer or b"0-0") for answer in answers)

    def page(self, shard: int, after: Position, upto: Position, *, bytes_max: int) -> pa.Table:
        """Blocks in (after, upto], about `bytes_max` of payload: Redis is asked for few first, then for as many as fit."""
        entries: list[Any] = []
        size, count = 0, max(1, min(PAGE_ENTRIES_FIRST, bytes_max // PAGE_ENTRY_BYTES))
        while size < bytes_max and after < upto:
            got = self.link.call("XRANGE", self.keys.log(shard), str(after.next()), str(upto), "COUNT", count)
            entries += got
            if len(got) < count:
                break
            sizes = list(map(_payload_bytes, got))
            size += sum(sizes)
            after = Position.parse(got[-1][0])
            likely = max(size // len(entries), *sizes[-1:], 1)
            count = max(1, min(PAGE_ENTRIES_MAX, 4 * count, (bytes_max - size) // likely))
        return self._table(shard, entries)

    def first_us(self, shard: int, after: Position) -> int | None:
        """ingested_at of the first block after `after`; None when there is none."""
        got = self.link.call("XRANGE", self.keys.log(shard), str(after.next()), "+", "COUNT", 1)
        return int(blocks_lists([(shard, got[0])])["ingested_us"][0]) if got else None

    def head(self, conversation_id: str) -> int:
        """The conversation's last seq; 0 when it has none."""
        bucket, field = head_place(conversation_id, self._settings.buckets)
        found = self.link.call("HGET", self.keys.heads(shard_of(conversation_id, self.shards), bucket), field)
        return parse_head(found)[0] if found else 0

    def faults(self, shard: int, after: Position, upto: Position, *, entries_max: int) -> tuple[list[EntryFault], Position, int]:
        """(damaged entries among the next ones in (after, upto], the last of them, how many were read); 0 at the end."""
        got = self.link.call("XRANGE", self.keys.log(shard), str(after.next()), str(upto), "COUNT", entries_max)
        found = [fault for entry in got if (fault := entry_fault(shard, entry)) is not None]
        return found, Position.parse(got[-1][0]) if got else upto, len(got)

    def _table(self, shard: int, entries: list[Any]) -> pa.Table:
        with self._readable():
            return blocks_table([(shard, entry) for entry in entries])

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except UnreadableEntry as exc:
            raise TierCorrupt(f"Redis at {self.link.shown_url}: {exc}: settle stops here; see docs/operations.md") from exc

    def trim(self, shard: int, upto: Position | None, *, settled_events: int, settled_bytes: int, others_bytes: int) -> int:
        """Entries dropped. Runs on a full Redis too."""
        inc = self.link.call("HGET", self.keys.meta(shard), "inc")
        if inc is None:
            return 0
        drop, keep = ("", "") if upto is None else (str(upto), str(upto.next()))
        args = [inc, drop, keep, settled_events, settled_bytes, others_bytes]
        (dropped,) = self.link.script(TRIM, [self.keys.meta(shard), self.keys.log(shard)], args)
        return max(0, int(dropped))

    def reported_losses(self) -> dict[tuple[int, int, str], int]:
        answers = self.link.pipeline([("HGETALL", self.keys.losses(shard)) for shard in range(self.shards)])
        found = {}
        for shard, flat in enumerate(answers):
            for field, value in zip(flat[0::2], flat[1::2], strict=True):
                era, _, producer = field.decode().partition(":")
                found[shard, int(era), producer] = int(value)
        return found

    def recent(self, conversation_id: str, limit: int, after: Position | None = None) -> Newest:
        shard = shard_of(conversation_id, self.shards)
        bucket, field = head_place(conversation_id, self._settings.buckets)
        known = b"-" if after is None else str(after).encode()
        pointers = self.keys.pointers(shard, conversation_id)
        names = [self.keys.heads(shard, bucket), self.keys.meta(shard), pointers, self.keys.log(shard)]
        found = self.link.script(RECENT, names, [field, known, limit, RECENT_ENTRIES_FIRST, RECENT_BYTES_FIRST])
        head, (inc, era, trimmed), joined, positions, first = found
        entries = self._entries(shard, positions, first)
        with self._readable():
            blocks = blocks_lists([(shard, entry) for entry in entries[::-1]])
        seq = parse_head(head)[0] if head else 0
        whole = len(entries) == len(positions)
        return Newest(seq, (inc, era), Position.parse(trimmed or b"0-0"), blocks, bool(joined) and whole)

    def _entries(self, shard: int, positions: Sequence[bytes], first: Sequence[Any]) -> list[Any]:
        """The log's entries there, in that order, up to the first that is trimmed away, or to about a page of them.

        first  the first of them, or none
        """
        log, bytes_max = self.keys.log(shard), self._settings.page_bytes_max
        entries, size = list(first), sum(map(_payload_bytes, first))
        while len(entries) < len(positions) and size < bytes_max:
            count = max(1, (bytes_max - size) * len(entries) // size) if size else RECENT_ENTRIES_FIRST
            asked = positions[len(entries) : len(entries) + count]
            for got in self.link.pipeline([("XRANGE", log, position, position) for position in asked]):
                if not got:
                    return entries
                entries += got
                size += _payload_bytes(got[0])
        return entries

    def session(self, durability: Durability = "memory") -> RedisAppendSession:
        return RedisAppendSession(self.link, self.keys, self._settings, durability)

    # What follows is for confirm.py alone.

    def metas(self) -> list[ShardMeta]:
        """`:m` of every shard; empty without an incarnation: what is left of one that was dropped while somebody confirmed it."""
        answers = self.link.pipeline([("HGETALL", self.keys.meta(shard)) for shard in range(self.shards)])
        found = [ShardMeta((flat[i].decode(), flat[i + 1].decode()) for i in range(0, len(flat), 2)) for flat in answers]
        return [meta if "inc" in meta else ShardMeta() for meta in found]

    def shut_down_in_order(self, run_id: str) -> bool:
        """Whether the server that was `run_id` was shut down by Thermocline, so that nothing is missing."""
        return bool(run_id) and bool(self.link.call("GET", CLEAN_KEY) == run_id.encode())

    def rewrite_file(self) -> None:
        """Let Redis write its append-only file anew from memory, unless it does so already or we may not ask.

        A crash may leave half of an append script's transaction at the end of the file. Redis does not apply it, but leaves its
        beginning there (`MULTI` without `EXEC`) when it cuts off the rest, goes on writing behind it, and the next start takes
        that for one transaction: an event that was never acknowledged comes back beside the one that got its numbers.
        """
        self.link.replies([("BGREWRITEAOF",)])

    def put_meta(self, shard: int, fields: Mapping[str, str | int]) -> None:
        """Runs on a full Redis too: unconfirmed, it would stay full."""
        flat: list[str | int] = [part for pair in fields.items() for part in pair]
        self.link.script(PUT_META, [self.keys.meta(shard), self.keys.log(shard)], flat)

    def raise_last_id(self, shard: int, last: Position) -> None:
        """Make the log's last id at least `last`, so that no position is given twice. Creates the log if it is not there."""
        log = self.keys.log(shard)
        if last == Position(0, 0):
            return
        newest = self.link.call("XREVRANGE", log, "+", "-", "COUNT", 1)
        if newest and Position.parse(newest[0][0]) >= last:
            return
        if not self.link.call("EXISTS", log):
            self.link.pipeline([("XADD", log, str(last), "x", "x"), ("XDEL", log, str(last))], transaction=True)
        else:
            self.link.call("XSETID", log, str(last))

    def put_heads(self, heads: Iterable[tuple[str, int, int]]) -> int:
        """Store (conversation_id, seq, era) heads; how many. For rebuilding: replaces what is there."""
        grouped: dict[str, list[str]] = {}
        count = 0
        for conversation_id, seq, era in heads:
            bucket, field = head_place(conversation_id, self._settings.buckets)
            name = self.keys.heads(shard_of(conversation_id, self.shards), bucket)
            grouped.setdefault(name, []).extend((field, f"{seq}.{era}" if era else str(seq)))
            count += 1
        self.link.pipeline([("HSET", name, *flat) for name, flat in grouped.items()])
        return count

    def drop(self) -> int:
        cursor, dropped = b"0", 0
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", self.keys.pattern()[:-1]) + "*"
        while True:
            cursor, names = self.link.call("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
            if names:
                dropped += sum(self.link.pipeline([("UNLINK", name) for name in names]))
            if cursor == b"0":
                return dropped

    def close(self) -> None:
        self.link.close()


def _payload_bytes(entry: Any) -> int:
    """0 of an entry that is not one of ours."""
    fields = entry[1]
    return len(fields[PAYLOAD_PLACE]) if len(fields) > PAYLOAD_PLACE else 0


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())
