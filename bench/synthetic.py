"""Synthetic events: about 400 bytes each, conversations of 200 events, five types, a week of time. Pure, seeded."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

TYPES = ("output.chunk", "output.chunk", "output.chunk", "tool.call", "message.user", "error")
WORDS = [
    "the",
    "agent",
    "looks",
    "up",
    "the",
    "reservation",
    "then",
    "asks",
    "the",
    "user",
    "whether",
    "to",
    "change",
    "the",
    "flight",
    "or",
    "cancel",
    "it",
]
CONVERSATION_EVENTS = 200
WEEK_US = 7 * 86_400 * 1_000_000


def events(count: int, *, end_us: int, seed: int = 1) -> Iterator[dict[str, Any]]:
    """`count` events in order of conversation, times spread over the week before `end_us`."""
    dice = random.Random(seed)
    contents = [" ".join(dice.choices(WORDS, k=40)) for _ in range(500)]
    for number in range(count):
        kind = TYPES[number % len(TYPES)]
        yield {
            "conversation_id": f"conversation-{number // CONVERSATION_EVENTS:07d}",
            "event_type": kind,
            "content": contents[dice.randrange(500)],
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
