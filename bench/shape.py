"""The shape of real agent conversations, as constants.

Measured on 200 recorded runs of a customer-service agent with tools, 6,672 events, of which the shipped sample has 40 runs.
Lengths are bytes at the quantiles of QUANTILES.
"""

from __future__ import annotations

from typing import Final, NamedTuple

QUANTILES: Final = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


class Kind(NamedTuple):
    """One event type."""

    name: str
    weight: float
    """Share among the events that are neither a conversation's first nor its last."""
    content: tuple[int, ...]
    metadata: tuple[int, ...]
    """Empty: no metadata."""


NO_METADATA: Final = ()
SYSTEM: Final = Kind("message.system", 0, (6155,) * 9, NO_METADATA)
FINISHED: Final = Kind("run.finished", 0, (0,) * 9, (462, 700, 1100, 1582, 2000, 2419, 3200, 4800, 5669))
USER: Final = Kind("message.user", 0.2375, (10, 43, 63, 92, 130, 165, 189, 247, 318), NO_METADATA)
ASSISTANT: Final = Kind(
    "message.assistant", 0.3913, (0, 0, 0, 127, 273, 450, 581, 838, 1256), (0, 0, 0, 0, 300, 330, 420, 700, 1143)
)
CALL: Final = Kind("tool.call", 0.1856, (2, 27, 27, 31, 139, 279, 406, 542, 1008), (71,) * 9)
RESULT: Final = Kind("tool.result", 0.1856, (0, 2, 51, 667, 810, 959, 1252, 4723, 8117), (66, 72, 78, 82, 85, 87, 88, 89, 90))
KINDS: Final = (SYSTEM, FINISHED, USER, ASSISTANT, CALL, RESULT)

CONVERSATION_EVENTS: Final = (7, 15, 19, 31, 44, 53, 68, 86, 90)
"""Events of a conversation."""
TOOLS: Final = (
    ("get_reservation_details", 754),
    ("search_direct_flight", 282),
    ("get_user_details", 240),
    ("update_reservation_flights", 208),
    ("calculate", 192),
    ("think", 184),
    ("cancel_reservation", 138),
    ("book_reservation", 106),
    ("transfer_to_human_agents", 96),
    ("search_onestop_flight", 76),
)
"""Tools and how often they were called; the four rarest are left out."""
ERROR_SHARE: Final = 0.06
"""Of tool results."""

REPEATED_SHARE: Final = 0.2
"""Of texts other than system prompts, those that are one of REPEATED_TEXTS. With the system prompts, which all come from a few,
about half of all bytes of text are unique, so that no store looks better than it is by finding everything in a dictionary."""
REPEATED_TEXTS: Final = 500
SYSTEM_PROMPTS: Final = 20

HOT_SHARE: Final = 0.2
"""Of events, those of agents that never end: the recorded runs have none, so this is ours."""
HOT_EVENTS: Final = 5000
"""Events of such a conversation over the whole period."""
