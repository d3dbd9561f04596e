"""Where a reader that follows is: a cursor, and the text that stands for it (docs/formats.md, "Position of a tail"). Pure.

A block's ingested_at, t, is later than that of every block before it in its shard, so (t, seq) is the order of a shard's events
in the log, in segments and in archived files alike: what was merged, archived or trimmed meanwhile changes no cursor.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from thermocline.errors import QueryRefused
from thermocline.tiers.block import ORIGIN, Position

TEXT_PREFIX: Final = "t1."
TEXT_BYTES_MAX: Final = 64 << 10
INCARNATION_CHARS: Final = 16


class Place(NamedTuple):
    """How far one shard was read: everything up to and including the block at `position`."""

    position: Position = ORIGIN
    us: int = 0
    """No block after it has an ingested_at up to this."""


class Key(NamedTuple):
    """The place of one event among those that have settled."""

    us: int
    conversation_id: str
    seq: int


class Part(NamedTuple):
    """A block of which the events up to `seq` were read."""

    shard: int
    us: int
    seq: int


class Span(NamedTuple):
    """What is read of one shard from segments and files: the blocks after its place up to `us`, which ends at `position`."""

    shard: int
    us: int
    position: Position


class CatchUp(msgspec.Struct, frozen=True, gc=False):
    """Events that left the logs are being read: those of all `spans` up to `after`, in the order of keys, were."""

    after: Key
    spans: tuple[Span, ...]


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """Everything up to here was read. Immutable."""

    incarnation: str
    era: int
    places: tuple[Place, ...]
    """One per shard; of one conversation that of its shard alone."""
    conversation_id: str | None = None
    seq: int = 0
    """Of one conversation the last seq that was read or told of as missing."""
    from_us: int = 0
    """Events ingested before it are left out."""
    part: Part | None = None
    catch_up: CatchUp | None = None
    told: tuple[str, int] | None = None
    """The end of a gap that was told of, when its next event was not read yet."""

    def text(self) -> str:
        """Printable ASCII: about 10 bytes a shard, 20 while it catches up, and the conversation's name."""
        base_ms = max(place.position.ms for place in self.places)
        places = [number for place in self.places for number in _packed(place.position, place.us, base_ms)]
        catch_up = None
        if self.catch_up is not None:
            spans = [number for span in self.catch_up.spans for number in (span.shard, *_packed(span.position, span.us, base_ms))]
            catch_up = [*self.catch_up.after, spans]
        parts = [
            self.incarnation[:INCARNATION_CHARS],
            self.era,
            self.conversation_id,
            self.seq,
            self.from_us,
            base_ms,
            places,
            self.part,
            catch_up,
            self.told,
        ]
        packed = msgspec.msgpack.encode(parts)
        packed += zlib.crc32(packed).to_bytes(4, "big")
        return TEXT_PREFIX + base64.urlsafe_b64encode(packed).rstrip(b"=").decode()

    def holds(self, incarnation: str) -> bool:
        """Whether it is of this incarnation; a cursor from a text knows only how that begins."""
        return incarnation.startswith(self.incarnation[:INCARNATION_CHARS])


def parse_cursor(text: str) -> Cursor:
    """The cursor that `text` stands for. QueryRefused when it is none."""
    try:
        if not text.startswith(TEXT_PREFIX) or len(text) > TEXT_BYTES_MAX:
            raise ValueError("it does not begin as one, or is too long")
        raw = text.removeprefix(TEXT_PREFIX).encode("ascii")
        packed = base64.b64decode(raw + b"=" * (-len(raw) % 4), altchars=b"-_", validate=True)
        if zlib.crc32(packed[:-4]) != int.from_bytes(packed[-4:], "big"):
            raise ValueError("it was changed or cut")
        return _unpacked(msgspec.msgpack.decode(packed[:-4]))
    except (ValueError, TypeError, IndexError, UnicodeError, binascii.Error, msgspec.MsgspecError) as exc:
        raise QueryRefused(f"{text[:40]!r} is not a position of a tail ({exc}): use `.position` of what a tail gave") from exc


def _packed(position: Position, us: int, base_ms: int) -> tuple[int, int, int]:
    return base_ms - position.ms, position.seq, us - 1000 * position.ms


def _position(ms_before: int, seq: int, us_more: int, base_ms: int) -> tuple[Position, int]:
    position = Position(base_ms - ms_before, seq)
    return position, us_more + 1000 * position.ms


def _unpacked(parts: Sequence[Any]) -> Cursor:
    incarnation, era, conversation_id, seq, from_us, base_ms, flat, part, catching, told = parts
    threes = [flat[start : start + 3] for start in range(0, len(flat), 3)]
    places = tuple(Place(*_position(before, place, more, base_ms)) for before, place, more in threes)
    catch_up = None
    if catching is not None:
        us, name, at, spans = catching
        fours = [spans[start : start + 4] for start in range(0, len(spans), 4)]
        found = [(shard, *_position(before, place, more, base_ms)) for shard, before, place, more in fours]
        catch_up = CatchUp(Key(us, name, at), tuple(Span(shard, upto, position) for shard, position, upto in found))
    return Cursor(
        incarnation=incarnation,
        era=era,
        places=places,
        conversation_id=conversation_id,
        seq=seq,
        from_us=from_us,
        part=Part(*part) if part else None,
        catch_up=catch_up,
        told=(told[0], told[1]) if told else None,
    )
