"""The append path's end at Redis: one connection that sends blocks to the append script and reads its answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from thermocline.config import HotSettings
from thermocline.errors import ConfigError, TierCorrupt, TierUnavailable
from thermocline.event import FORMAT, Durability

from .append_command import APPEND, AppendCommand
from .block import Block
from .hot import OutcomeLost, Reply
from .hot_keys import Keys
from .redis_link import Command, CommandFailed, Link, Script, exchange, exchange_packed

LOSSES_TTL_S = 7 * 86_400
PRODUCER_TTL_MS = 665_280_000
"""As the append script has it."""
VOID = Script("void")
DURABILITY = {"always": "fsync", "everysec": "memory", "no": "memory"}


class RedisAppendSession:
    """AppendSession over one Redis connection."""

    def __init__(self, link: Link, keys: Keys, settings: HotSettings, wanted: Durability = "memory") -> None:
        self._link = link
        self._keys = keys
        self._settings = settings
        self._wanted = wanted
        self._replicas = settings.replicas_min or int(wanted == "replicated")
        self._waits_for_disk = False
        self._connection = link.connection()
        self.incarnation = ""
        self.durability = "memory"
        self._buckets = settings.buckets
        self._known = False
        self._command: AppendCommand | None = None

    def send(self, producer: str, requests: Sequence[tuple[Block, int, int | None]], *, deadline_s: float) -> list[Reply]:
        """One reply per (block, number, expected_seq). OutcomeLost: some of them may be stored."""
        if not self._known:
            self._learn()
        if self._command is None or self._command.producer != producer:
            self._command = AppendCommand(
                self._keys, self._settings, producer=producer, incarnation=self.incarnation, buckets=self._buckets
            )
        pack = self._command.packed
        packed = b"".join([pack(*request) for request in requests])
        timeout_s = None if deadline_s >= self._settings.timeout_s else max(0.05, deadline_s)
        answers = self._exchange_packed(packed, len(requests), timeout_s)
        failures = [answer for answer in answers if type(answer) is CommandFailed]
        if any(failure.no_script for failure in failures):
            self._exchange([("SCRIPT", "LOAD", APPEND.text)])
            answers = self._exchange_packed(packed, len(requests), timeout_s)  # the numbers make a second sending harmless
            failures = [answer for answer in answers if type(answer) is CommandFailed]
        if failures:
            self._refuse_unless_known(failures, len(answers))
        replies = [self._reply(answer) for answer in answers]
        if self._replicas or self._waits_for_disk:
            codes = [reply.code for reply in replies]
            known = [block.shard for (block, _, _), code in zip(requests, codes, strict=True) if code == "DUP"]
            if known or "OK" in codes:
                self._await_copies(producer, known, deadline_s)
        return replies

    def _exchange(self, commands: Sequence[Command], timeout_s: float | None = None) -> list[Any]:
        return exchange(self._connection, commands, shown_url=self._link.shown_url, timeout_s=timeout_s)

    def _exchange_packed(self, packed: bytes, count: int, timeout_s: float | None) -> list[Any]:
        return exchange_packed(self._connection, packed, count, shown_url=self._link.shown_url, timeout_s=timeout_s)

    def _refuse_unless_known(self, refused: Sequence[CommandFailed], count: int) -> None:
        """TierUnavailable when all of `count` requests were refused for who we are; OutcomeLost when an error says too little."""
        failures = [failure for failure in refused if not _state(failure)]
        if not failures:
            return
        if len(failures) == count and all(str(failure).startswith(_NOT_ALLOWED) for failure in failures):
            raise self._link.refusal(failures[0]) from failures[0]
        raise OutcomeLost(f"Redis at {self._link.shown_url}: {failures[0]}") from failures[0]

    def _reply(self, answer: Any) -> Reply:
        if isinstance(answer, CommandFailed):
            return Reply(_state(answer))
        code = answer[0].decode()
        if code in ("OK", "DUP"):
            _, first, position, events_total, era, skips = answer
            skipped = dict(_skip(pair) for pair in skips.split(b",")) if skips else {}
            return Reply(code, int(first), position.decode(), int(events_total), int(era), skipped)
        if code in ("OLD", "GAP", "CONFLICT", "CLOCK", "BUSY", "VOID"):
            return Reply(code, detail=int(answer[1]), era=int(answer[2]))
        return Reply(code)

    def _await_copies(self, producer: str, known: Sequence[int], deadline_s: float) -> None:
        """Return when everything this connection has stored is where it was wanted, once for all blocks of a round.

        known  shards of blocks that were stored before, by another connection perhaps
        """
        where = f"Redis at {self._link.shown_url}"
        wait_ms = max(1, int(min(deadline_s, self._settings.timeout_s) * 1000))
        # WAIT and WAITAOF wait for what their own connection wrote last: for a block that another one wrote, write after it.
        commands: list[Command] = [("PEXPIRE", self._keys.producer(shard, producer), PRODUCER_TTL_MS) for shard in known[-1:]]
        commands += [("WAIT", self._replicas, wait_ms)] if self._replicas else []
        commands += [("WAITAOF", 1, 0, wait_ms)] if self._waits_for_disk else []
        answers = self._exchange(commands, len(commands) * wait_ms / 1000 + 1)
        failure = next((answer for answer in answers if isinstance(answer, CommandFailed)), None)
        if failure is not None:
            raise OutcomeLost(f"{where} does not say who has the block: {failure}") from failure
        if self._waits_for_disk and answers.pop()[0] < 1:
            raise OutcomeLost(f"{where} has not synced its file within {wait_ms / 1000:g} s (hot.timeout_s)")
        if self._replicas and answers[-1] < self._replicas:
            raise OutcomeLost(f"{answers[-1]} of {self._replicas} replicas (hot.replicas_min) have the block")

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
        self._command = None
        fsync = "no" if b"aof_enabled:0" in persistence else "everysec"
        if fsync != "no" and not isinstance(config, CommandFailed) and config:
            fsync = config[1].decode()
        self._waits_for_disk = self._wanted == "fsync" and fsync != "always"
        if self._waits_for_disk:
            self._require_waitaof(fsync)
        self.durability = "replicated" if self._replicas else "fsync" if self._waits_for_disk else DURABILITY.get(fsync, "memory")

    def _require_waitaof(self, fsync: str) -> None:
        """ConfigError when this server cannot be waited for."""
        (answer,) = self._exchange([("WAITAOF", 0, 0, 1)])
        if fsync != "no" and not isinstance(answer, CommandFailed):
            return
        if fsync != "no" and str(answer).startswith("NOPERM"):
            raise self._link.refusal(answer) from answer
        now = {"no": "appendonly or appendfsync is no", "everysec": "appendfsync is everysec"}[fsync]
        raise ConfigError(
            f'ingest.durability is "fsync", but of Redis at {self._link.shown_url} {now}, and it has no WAITAOF '
            '(Redis 7.2, Valkey) to wait with: set appendfsync always (of the embedded Redis: hot.append_fsync = "always"), or '
            'ingest.durability = "memory"'
        )

    def void(self, producer: str, sent: Sequence[tuple[Block, int]], *, deadline_s: float) -> list[Reply]:
        if not self._known:
            self._learn()
        numbers: dict[int, list[int]] = {}
        for block, number in sent:
            numbers.setdefault(block.shard, []).append(number)
        commands: list[Command] = [("SCRIPT", "LOAD", VOID.text)]
        for shard, its in numbers.items():
            keys = (self._keys.meta(shard), self._keys.producer(shard, producer))
            commands.append(VOID.command(keys, (FORMAT, self.incarnation, *its)))
        _, *answers = self._exchange(commands, max(0.05, min(deadline_s, self._settings.timeout_s)))
        found: dict[tuple[int, int], Reply] = {}
        for (shard, its), answer in zip(numbers.items(), answers, strict=True):
            if isinstance(answer, CommandFailed):
                raise OutcomeLost(f"Redis at {self._link.shown_url}: {answer}") from answer
            replies = [self._reply(each) for each in answer]
            found.update(((shard, number), reply) for number, reply in zip(its, replies * len(its), strict=False))
        return [found[block.shard, number] for block, number in sent]

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
        ("PTTL", unused),
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
