"""Synthetic events: about 400 bytes each, conversations of 200 events, five types, a week of time. Pure, seeded.

Half of the contents are one of 500, as prompts and tool outputs repeat; half are text of their own, so that no store looks better
than it is by finding everything in a dictionary.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

TYPES = ("output.chunk", "output.chunk", "output.chunk", "tool.call", "message.user", "error")
CONVERSATION_EVENTS = 200
WEEK_US = 7 * 86_400 * 1_000_000
VOCABULARY_WORDS = 3_000
TEXT_WORDS = 500_000
CONTENT_BYTES = 210
REPEATED_CONTENTS = 500


def events(count: int, *, end_us: int, seed: int = 1, all_repeated: bool = False) -> Iterator[dict[str, Any]]:
    """`count` events in order of conversation, times spread over the week before `end_us`.

    all_repeated  no content is text of its own
    """
    dice = random.Random(seed)
    text = _text(dice)
    places = len(text) - CONTENT_BYTES
    repeated = [dice.randrange(places) for _ in range(REPEATED_CONTENTS)]
    for number in range(count):
        kind = TYPES[number % len(TYPES)]
        start = repeated[dice.randrange(REPEATED_CONTENTS)] if number % 2 or all_repeated else dice.randrange(places)
        yield {
            "conversation_id": f"conversation-{number // CONVERSATION_EVENTS:07d}",
            "event_type": kind,
            "content": text[start : start + CONTENT_BYTES],
            "timestamp": end_us - WEEK_US + WEEK_US * number // count,
            "agent_id": f"agent-{number % 7}",
            "task_id": f"task-{number // 50}",
            "model": "model-a" if number % 3 else "model-b",
            "tool_name": "search" if kind == "tool.call" else None,
            "duration_ms": float(number % 900) if kind == "tool.call" else None,
            "input_tokens": number % 4000,
            "output_tokens": number % 300,
            "metadata": {"step": number, "temperature": 0.5},
        }


def _text(dice: random.Random) -> str:
    """Words of a made-up language, the frequent ones short, as often as in a real one (rank times frequency is constant)."""
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(dice.choices(letters, k=2 + rank.bit_length() // 2)) for rank in range(VOCABULARY_WORDS)]
    weights = [1 / (rank + 1) for rank in range(VOCABULARY_WORDS)]
    return " ".join(dice.choices(words, weights, k=TEXT_WORDS))
