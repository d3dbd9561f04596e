"""The format of spool files: every prefix gives a prefix of the blocks, every changed bit is found, and nothing else is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from thermocline.errors import TierCorrupt
from thermocline.event import Event
from thermocline.ingest.encode import blocks_of
from thermocline.ingest.line import line_of
from thermocline.ingest.spool_file import FIRST_BLOCK, SpoolFile, contents_of
from thermocline.ingest.spool_record import (
    BLOCK,
    FILE_MARK,
    RECORD_BYTES,
    SPOOL_FORMAT,
    Header,
    Returned,
    Round,
    record,
    scan,
)
from thermocline.ingest.validate import fields_of
from thermocline.tiers.block import Block

SHARDS = 4
COUNT = 4
ROUND = Round("p" * 32, "i" * 32, 1_800_000_000_000_000, {2: 7, 3: 8})
EVENT_ID = "01a1fb68-3a43-7654-b3c4-4b98cde469b0"


def made_block(number: int) -> Block:
    conversation = f"対話 {number % 2}"
    events = [
        Event(conversation_id=conversation, event_type="t", content=f"{number}\x00 {ordinal}", event_id=EVENT_ID)
        for ordinal in range(2)
    ]
    lines = [line_of(fields_of(event), 1_800_000_000_000_000) for event in events]
    (block,) = blocks_of(conversation, lines, shards=SHARDS, events_max=500, bytes_max=1 << 20)
    return block


BLOCKS = [made_block(number) for number in range(COUNT)]
EVERY = {FIRST_BLOCK + index: block for index, block in enumerate(BLOCKS)}


@pytest.fixture
def file(tmp_path: Path) -> SpoolFile:
    """A file that nobody has begun to send."""
    made = SpoolFile.create(tmp_path / "0000000000000001.spool", Header(SPOOL_FORMAT, "default"), BLOCKS[:2])
    made.append(BLOCKS[2:])
    return made


def with_notes(file: SpoolFile) -> SpoolFile:
    """As it is when of two blocks sent one was stored, and a line of another was returned."""
    file.note_round(ROUND)
    file.note_done([2])
    file.note_returned(Returned(4, [0], "is too far ahead"))
    return file


def test_blocks_and_notes_come_back_as_they_were_written(file: SpoolFile) -> None:
    assert file.load(SHARDS).blocks == EVERY
    contents = with_notes(file).load(SHARDS)
    assert contents.namespace == "default"
    assert contents.blocks == {number: block for number, block in EVERY.items() if number != 2}
    assert contents.round == Round(ROUND.producer, ROUND.incarnation, ROUND.at_us, {3: 8})
    assert contents.returned == {4: Returned(4, [0], "is too far ahead")}
    assert contents.originals == {4: EVERY[4]}
    assert contents.damages == []
    assert contents.end == file.size


def test_every_prefix_opens_and_gives_a_prefix_of_the_blocks(file: SpoolFile) -> None:
    data = file.path.read_bytes()
    seen = set()
    for end in range(len(data)):
        contents = contents_of(data[:end], SHARDS, file.path)
        blocks = list(contents.blocks.values())
        assert blocks == BLOCKS[: len(blocks)]
        assert contents.damages == []
        assert contents.end <= end
        seen.add(len(blocks))
    assert seen == set(range(COUNT))


def test_every_prefix_with_zeros_after_it_is_an_unfinished_end(file: SpoolFile) -> None:
    data = file.path.read_bytes()
    for end in range(len(data) - 1):
        contents = contents_of(data[:end] + bytes(max(64, len(data) - end)), SHARDS, file.path)
        blocks = list(contents.blocks.values())
        assert blocks == BLOCKS[: len(blocks)]
        assert all(damage.offset < len(FILE_MARK) for damage in contents.damages)


def test_an_end_that_was_never_finished_is_cut_off_and_written_over(file: SpoolFile) -> None:
    whole = file.size
    with file.path.open("ab") as stream:
        stream.write(record(BLOCK, 99, b"x" * 100)[:-1])
    found = SpoolFile(file.path)
    assert len(found.load(SHARDS).blocks) == COUNT
    assert file.path.stat().st_size == whole
    found.note_done([2])
    assert len(found.load(SHARDS).blocks) == COUNT - 1


def test_every_changed_bit_is_found_and_no_other_block_is_lost(file: SpoolFile) -> None:
    data = file.path.read_bytes()
    places = {item.offset: item for item in scan(data).records}
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        contents = contents_of(bytes(changed), SHARDS, file.path)
        assert len(contents.damages) == 1, bit
        (damage,) = contents.damages
        assert damage.offset <= bit // 8 < damage.offset + damage.size
        hit = places.get(damage.offset)
        lost = {hit.number} if hit is not None and hit.kind == BLOCK else set()
        assert contents.blocks == {number: block for number, block in EVERY.items() if number not in lost}
        assert damage.events == (2 if lost else 0)
        assert not contents.notes_damaged
        assert contents.namespace == "default"


def test_a_changed_bit_in_a_note_is_found_and_leaves_no_block_to_be_sent_blindly(file: SpoolFile) -> None:
    start = file.size
    data = with_notes(file).path.read_bytes()
    for bit in range(8 * start, 8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        contents = contents_of(bytes(changed), SHARDS, file.path)
        assert len(contents.damages) == 1, bit
        assert contents.notes_damaged, bit


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    made = SpoolFile.create(tmp_path / "0000000000000001.spool", Header("2", "default"), BLOCKS)
    with pytest.raises(TierCorrupt, match="has spool format '2', this version knows '1'"):
        made.load(SHARDS)
    made = SpoolFile.create(tmp_path / "0000000000000002.spool", Header(SPOOL_FORMAT, "default"), BLOCKS)
    made._append(record(ord("Z"), 50, b""), 1)
    with pytest.raises(TierCorrupt, match="record of kind 'Z'"):
        made.load(SHARDS)


def test_the_size_of_a_record_is_known_beforehand() -> None:
    assert len(record(BLOCK, 1, b"x" * 10)) == RECORD_BYTES + 10
