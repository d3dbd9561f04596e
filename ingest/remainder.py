"""What is left of a block that the store refused for some of its events. Pure, but for the block id it draws."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from thermocline.errors import OutcomeUnknown
from thermocline.event import Event, Receipt
from thermocline.tiers.block import Block

from .encode import block_of, events_of, timestamps_of
from .line import line_of
from .sending import ClockAhead
from .validate import fields_of


def late_ordinals(block: Block, error: ClockAhead) -> list[int]:
    """The lines that are too far in the future; none when an earlier block of the conversation had them."""
    return [ordinal for ordinal, at_us in enumerate(timestamps_of(block)) if at_us > error.latest_us]


def without(block: Block, ordinals: Collection[int]) -> Block | None:
    """The block without these lines; None when nothing is left."""
    if not ordinals:
        return block
    lines = [
        line_of(fields_of(event), at_us)
        for ordinal, (event, at_us) in enumerate(zip(events_of(block), timestamps_of(block), strict=True))
        if ordinal not in ordinals
    ]
    return msgspec.structs.replace(block_of(block.conversation_id, lines, 1), shard=block.shard) if lines else None


def events_at(block: Block, ordinals: Sequence[int]) -> list[Event]:
    """The events on these lines."""
    events = events_of(block)
    return [events[ordinal] for ordinal in ordinals]


def never_known(reason: str) -> OutcomeUnknown:
    """Of events that may be stored, which cannot be found out any more: its retry says so again."""

    def retry() -> list[Receipt]:
        raise never_known(reason)

    def look() -> bool:
        raise never_known(reason)

    return OutcomeUnknown(reason, retry=retry, look=look)
