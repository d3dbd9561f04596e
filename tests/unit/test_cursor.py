"""Positions of tails: what comes out of a text is what went in, and the text stays small."""

from __future__ import annotations

import random

import pytest

from thermocline.errors import QueryRefused
from thermocline.query.cursor import CatchUp, Cursor, Key, Part, Place, Span, parse_cursor
from thermocline.tiers.block import Position

NOW_MS = 1_795_318_195_237
NAME = "ü" * 128


def cursor(shards: int, seed: int, **parts: object) -> Cursor:
    dice = random.Random(seed)

    def position() -> Position:
        return Position(NOW_MS - dice.randrange(30 * 86_400_000), dice.randrange(100))

    def place() -> Place:
        at = position()
        return Place(at, 1000 * at.ms + dice.randrange(1000))

    spans = tuple(Span(shard, *reversed(place())) for shard in range(shards))
    return Cursor(
        incarnation="5f" * 8,
        era=3,
        places=tuple(place() for _ in range(shards)),
        catch_up=CatchUp(Key(1000 * NOW_MS, NAME, 1 << 40), spans),
        part=Part(shards - 1, 1000 * NOW_MS, 77),
        told=(NAME, 9),
        **parts,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_text_stands_for_all_of_a_cursor(seed: int) -> None:
    for made in (cursor(16, seed), cursor(1, seed, conversation_id=NAME, seq=12, from_us=1000 * NOW_MS)):
        text = made.text()
        assert text.isascii() and text.isprintable() and " " not in text
        assert parse_cursor(text) == made


def test_a_position_fits_in_a_header_also_with_many_shards_and_the_longest_name() -> None:
    assert len(cursor(16, 1).text()) < 2048
    assert len(cursor(200, 1).text()) < 8192


def test_no_part_of_a_text_and_no_text_with_a_change_is_a_position() -> None:
    text = cursor(4, 1).text()
    for number in range(len(text)):
        with pytest.raises(QueryRefused):
            parse_cursor(text[:number])
        with pytest.raises(QueryRefused):
            parse_cursor(text[:number] + ("A" if text[number] != "A" else "B") + text[number + 1 :])
