"""The bytes of the append command against what hiredis makes of the same arguments."""

from __future__ import annotations

import hiredis
import pytest
import xxhash

from thermocline.config import HotSettings
from thermocline.ingest.encode import block_of
from thermocline.ingest.line import line_of
from thermocline.tiers import append_command
from thermocline.tiers.append_command import APPEND, AppendCommand
from thermocline.tiers.block import Block, head_place
from thermocline.tiers.hot_keys import Keys

NOW_US = 1_763_000_000_000_000
BUCKETS = 8192


def command() -> AppendCommand:
    return AppendCommand(Keys("tests"), HotSettings(), producer="p" * 32, incarnation="i" * 32, buckets=BUCKETS)


def block(conversation_id: str, *event_ids: str | None) -> Block:
    fields = ("tool.call", NOW_US, "agent", None, None, None, None, None, None, None, None, None, None)
    lines = [line_of((event_id, *fields, "Zürich\n", {"größe": 1}), NOW_US) for event_id in event_ids]
    return block_of(conversation_id, lines, 16)


def arguments(one: Block, number: int, expected: str, ids: tuple[str | int, ...]) -> tuple[str | int | bytes, ...]:
    """As the head of append.lua lists them."""
    bucket, field = head_place(one.conversation_id, BUCKETS)
    tag = f"{{tc:tests:{one.shard}}}"
    names = (f"c:{one.conversation_id}", f"h:{bucket}", f"p:{'p' * 32}", "i:now", "i:prev")
    keys = tuple(f"{tag}:{name}" for name in ("m", "log", *names))
    facts = (one.lines, one.timestamp_min_us, one.timestamp_max_us, one.block_id, one.sizes, one.checksum, one.payload)
    limits = (300_000_000, 536_870_912, HotSettings().unsettled_blocks_max, 3_600_000, 600_000_000, 100_000)
    return ("EVALSHA", APPEND.sha, 7, *keys, "1", "i" * 32, one.conversation_id, field, number, expected, *facts, *limits, *ids)


@pytest.mark.parametrize("conversation_id", ["c", "unterhaltung-ä-漢字", "x" * 200])
@pytest.mark.parametrize(("expected_seq", "shown"), [(None, ""), (0, "0"), (1234, "1234")])
def test_a_block_is_packed_as_hiredis_packs_its_arguments(conversation_id: str, expected_seq: int | None, shown: str) -> None:
    packer, one = command(), block(conversation_id, None, None)
    for number in (1, 2, 123_456):
        packed = packer.packed(one, number, expected_seq)
        assert packed == hiredis.pack_command(arguments(one, number, shown, ()))


def test_ids_of_the_caller_come_last_in_pairs() -> None:
    own, other = "0190aaaa-bbbb-7ccc-8ddd-eeeeffff0000", "0190aaaa-bbbb-7ccc-8ddd-eeeeffff0001"
    one = block("c", own, None, other)
    conversation = xxhash.xxh64_hexdigest(b"c", seed=0)
    ids = (0, conversation + own.replace("-", ""), 2, conversation + other.replace("-", ""))
    assert command().packed(one, 7, None) == hiredis.pack_command(arguments(one, 7, "", ids))


def test_what_is_kept_of_conversations_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(append_command, "CONVERSATIONS_MAX", 3)
    packer = command()
    for name in ("a", "b", "c", "d", "a", "e"):
        one = block(name, None)
        assert packer.packed(one, 1, None) == hiredis.pack_command(arguments(one, 1, "", ()))
        assert len(packer._shared) <= 3
