"""The append path's end at Redis: one connection that sends blocks to the append script and reads its answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import xxhash

from thermocline.config import HotSettings
from thermocline.errors import ConfigError, TierCorrupt, TierUnavailable
from thermocline.event import CLOCK_AHEAD_MAX_US, FORMAT

from .block import Block, head_place
from .hot import OutcomeLost, Reply
from .hot_keys import Keys
from .redis_link import Command, CommandFailed, Link, Script, exchange

APPEND = Script("append")
LOSSES_TTL_S = 7 * 86_400
DURABILITY = {"always": "fsync", "everysec": "memory", "no": "memory"}


class RedisAppendSession:
    """AppendSession over one Redis connection."""

    def __init__(self, link: Link, keys: Keys, settings: HotSettings) -> None:
        self._link = link
        self._keys = keys
        self._settings = settings
        self._connection = link.connection()
        self.incarnation = ""
        self.durability = "memory"
        self._buckets = settings.buckets
        self._known = False

    def send(self, producer: str, requests: Sequence[tuple[Block, int, int | None]], *, deadline_s: float) -> list[Reply]:
        """One reply per (block, number, expected_seq). OutcomeLost: some of them may be stored."""
        if not self._known:
            self._learn()
        commands = [APPEND.command(*self._call(producer, *request)) for request in requests]
        timeout_s = max(0.05, min(deadline_s, self._settings.timeout_s))
        answers = self._exchange(commands, timeout_s)
        if any(isinstance(answer, CommandFailed) and answer.no_script for answer in answers):
            self._exchange([("SCRIPT", "LOAD", APPEND.text)])
            answers = self._exchange(commands, timeout_s)  # the numbers make a second sending harmless
        self._refuse_unless_known(answers)
        replies = [self._reply(answer) for answer in answers]
        if self._settings.replicas_min and any(reply.code in ("OK", "DUP") for reply in replies):
            self._await_replicas(deadline_s)
        return replies

    def _exchange(self, commands: Sequence[Command], timeout_s: float | None = None) -> list[Any]:
        return exchange(self._connection, commands, shown_url=self._link.shown_url, timeout_s=timeout_s)

    def _call(self, producer: str, block: Block, number: int, expected_seq: int | None) -> tuple[list[Any], list[Any]]:
        keys, shard, settings = self._keys, block.shard, self._settings
        bucket, field = head_place(block.conversation_id, self._buckets)
        names = [
            keys.meta(shard),
            keys.log(shard),
            keys.pointers(shard, block.conversation_id),
            keys.heads(shard, bucket),
            keys.producer(shard, producer),
            keys.ids(shard, "now"),
            keys.ids(shard, "prev"),
        ]
        args: list[Any] = [
            FORMAT,
            self.incarnation,
            block.conversation_id,
            field,
            number,
            "" if expected_seq is None else expected_seq,
            block.lines,
            block.timestamp_min_us,
            block.timestamp_max_us,
            block.block_id,
            block.sizes,
            block.checksum,
            block.payload,
            CLOCK_AHEAD_MAX_US,
            settings.unsettled_bytes_max,
            settings.unsettled_blocks_max,
            max(1, int(settings.cache_window_s * 1000)),
            int(settings.ids_window_s * 1e6),
            settings.ids_max,
        ]
        if block.event_ids:
            conversation = xxhash.xxh64_hexdigest(block.conversation_id.encode(), seed=0)
            for ordinal, event_id in block.event_ids:
                args += (ordinal, conversation + event_id.replace("-", ""))
        return names, args

    def _refuse_unless_known(self, answers: Sequence[Any]) -> None:
        """TierUnavailable when every request was refused for who we are; OutcomeLost when an error says too little."""
        failures = [answer for answer in answers if isinstance(answer, CommandFailed) and not _state(answer)]
        if not failures:
            return
        if len(failures) == len(answers) and all(str(failure).startswith(_NOT_ALLOWED) for failure in failures):
            raise self._link.refusal(failures[0]) from failures[0]
        raise OutcomeLost(f"Redis at {self._link.shown_url}: {failures[0]}") from failures[0]

    def _reply(self, answer: Any) -> Reply:
        if isinstance(answer, CommandFailed):
            return Reply(code=_state(answer))
        code = answer[0].decode()
        if code in ("OK", "DUP"):
            skipped = dict(_skip(pair) for pair in answer[5].split(b",")) if answer[5] else {}
            return Reply(
                code=code,
                seq_first=int(answer[1]),
                position=answer[2].decode(),
                events_total=int(answer[3]),
                era=int(answer[4]),
                skipped=skipped,
            )
        if code in ("OLD", "GAP", "CONFLICT", "CLOCK", "BUSY"):
            return Reply(code=code, detail=int(answer[1]), era=int(answer[2]))
        return Reply(code=code)

    def _await_replicas(self, deadline_s: float) -> None:
        wait_ms = max(1, int(min(deadline_s, self._settings.timeout_s) * 1000))
        (count,) = self._exchange([("WAIT", self._settings.replicas_min, wait_ms)], wait_ms / 1000 + 1)
        if isinstance(count, CommandFailed):
            raise OutcomeLost(f"Redis at {self._link.shown_url} does not say which replicas have the block: {count}") from count
        if count < self._settings.replicas_min:
            raise OutcomeLost(f"{count} of {self._settings.replicas_min} replicas (hot.replicas_min) have the block")

    def _learn(self) -> None:
        """Read what this Redis is: incarnation, buckets, durability. TierUnavailable if no store is there yet, or if the user may
        not do all that the append script does: a script that ends half-way would store a block and forget its number."""
        meta, persistence, config, *tried = self._exchange(
            [
                ("HMGET", self._keys.meta(0), "inc", "prev", "format", "buckets", "shards"),
                ("INFO", "persistence"),
                ("CONFIG", "GET", "appendfsync"),
                *_rights(self._keys.pointers(0, "")),  # of no conversation
            ]
        )
        for answer in (meta, persistence, *(each for each in tried if str(each).startswith("NOPERM"))):
            if isinstance(answer, CommandFailed):
                raise self._link.refusal(answer) from answer
        if meta[0] is None:
            raise TierUnavailable(
                f"Redis at {self._link.shown_url} has no namespace {self._keys.namespace!r} (new or wiped): "
                "start `thermocline worker`, or `thermocline namespaces create`"
            )
        if meta[2].decode() != FORMAT:
            raise TierCorrupt(f"namespace {self._keys.namespace!r} has format {meta[2].decode()!r}, this version knows {FORMAT}")
        if int(meta[4]) != self._settings.shards:
            raise ConfigError(
                f"hot.shards is {self._settings.shards}, but namespace {self._keys.namespace!r} was created with "
                f"{int(meta[4])}: set hot.shards = {int(meta[4])}"
            )
        incarnation, previous = meta[0].decode(), (meta[1] or b"").decode()
        if self.incarnation not in ("", incarnation, previous):
            raise TierCorrupt(
                f"Redis at {self._link.shown_url} now belongs to another store (incarnation {incarnation}, "
                f"was {self.incarnation}): check redis_url, then open the producer again"
            )
        self.incarnation, self._buckets, self._known = incarnation, int(meta[3]), True
        fsync = "no" if b"aof_enabled:0" in persistence else "everysec"
        if fsync != "no" and not isinstance(config, CommandFailed) and config:
            fsync = config[1].decode()
        self.durability = "replicated" if self._settings.replicas_min else DURABILITY.get(fsync, "memory")

    def last_numbers(self, producer: str, shards: Iterable[int]) -> dict[int, int]:
        asked = list(shards)
        answers = self._exchange([("HGET", self._keys.producer(shard, producer), "last") for shard in asked])
        for answer in answers:
            if isinstance(answer, CommandFailed):
                raise self._link.refusal(answer) from answer
        return {shard: int(answer or 0) for shard, answer in zip(asked, answers, strict=True)}

    def report_loss(self, producer: str, era: int, losses: Mapping[int, int]) -> None:
        commands: list[Command] = []
        for shard, events in losses.items():
            commands.append(("HSET", self._keys.losses(shard), f"{era}:{producer}", events))
            commands.append(("EXPIRE", self._keys.losses(shard), LOSSES_TTL_S))
        for answer in self._exchange(commands):
            if isinstance(answer, CommandFailed):
                raise self._link.refusal(answer) from answer

    def reconnect(self) -> None:
        self._connection.disconnect()
        self._known = False
        self._learn()

    def close(self) -> None:
        self._connection.disconnect()


_NOT_ALLOWED = ("NOPERM", "NOAUTH", "WRONGPASS", "NOREPLICAS")


def _rights(unused: str) -> list[Command]:
    """The commands of the append script, on a key that is not there; what they say beyond NOPERM does not matter."""
    return [
        ("TIME",),
        ("XLEN", unused),
        ("XADD", unused, "NOMKSTREAM", "*", "x", "x"),
        ("HGET", unused, "x"),
        ("HLEN", unused),
        ("EXPIRE", unused, 1),
        ("PEXPIRE", unused, 1),
        ("RENAME", unused, unused),
        ("HSET", unused, "x", "x"),
        ("UNLINK", unused),
    ]


def _state(failure: CommandFailed) -> str:
    """The answer that a refusal of the whole command amounts to; empty when it says too little."""
    if failure.out_of_memory or str(failure).startswith("MISCONF"):
        return "FULL"
    return "UNCONFIRMED" if str(failure).startswith(("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN")) else ""


def _skip(pair: bytes) -> tuple[int, int]:
    ordinal, _, seq = pair.partition(b":")
    return int(ordinal), int(seq)
