"""Tiered event storage for AI agents: append to Redis, settle into DuckDB, archive to Parquet, one SQL surface over all.

    import thermocline

    thermocline.append("chat-1", "output.chunk", "Hello")
    with thermocline.connect() as store:
        print(store.sql("SELECT event_type, count(*) FROM events GROUP BY ALL"))

Names are loaded at first use, so that `import thermocline` costs an agent next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thermocline.errors import (
        Backpressure,
        ConfigError,
        IncompleteAnswer,
        InvalidEvent,
        LeaseHeld,
        OutcomeUnknown,
        PartialAppend,
        QueryRefused,
        SequenceConflict,
        StoreReplaced,
        ThermoclineError,
        TierCorrupt,
        TierUnavailable,
    )
    from thermocline.event import Event, Receipt
    from thermocline.ingest.append import Client, append, append_many
    from thermocline.ingest.async_producer import AsyncProducer
    from thermocline.ingest.producer import Producer
    from thermocline.query.coverage import Coverage
    from thermocline.query.follow import Followed, Tail
    from thermocline.query.gaps import Gap
    from thermocline.query.matching import highlighted
    from thermocline.query.result import Result
    from thermocline.query.search import Found
    from thermocline.store import Store, connect

    __version__: str

_HOMES = {
    "AsyncProducer": "thermocline.ingest.async_producer",
    "Backpressure": "thermocline.errors",
    "Client": "thermocline.ingest.append",
    "ConfigError": "thermocline.errors",
    "Coverage": "thermocline.query.coverage",
    "Event": "thermocline.event",
    "Followed": "thermocline.query.follow",
    "Gap": "thermocline.query.gaps",
    "Found": "thermocline.query.search",
    "IncompleteAnswer": "thermocline.errors",
    "InvalidEvent": "thermocline.errors",
    "LeaseHeld": "thermocline.errors",
    "OutcomeUnknown": "thermocline.errors",
    "PartialAppend": "thermocline.errors",
    "Producer": "thermocline.ingest.producer",
    "QueryRefused": "thermocline.errors",
    "Receipt": "thermocline.event",
    "Result": "thermocline.query.result",
    "SequenceConflict": "thermocline.errors",
    "Store": "thermocline.store",
    "StoreReplaced": "thermocline.errors",
    "Tail": "thermocline.query.follow",
    "ThermoclineError": "thermocline.errors",
    "TierCorrupt": "thermocline.errors",
    "TierUnavailable": "thermocline.errors",
    "append": "thermocline.ingest.append",
    "append_many": "thermocline.ingest.append",
    "connect": "thermocline.store",
    "highlighted": "thermocline.query.matching",
}
"""Public name → the module it is in."""

__all__ = [
    "AsyncProducer",
    "Backpressure",
    "Client",
    "ConfigError",
    "Coverage",
    "Event",
    "Followed",
    "Found",
    "Gap",
    "IncompleteAnswer",
    "InvalidEvent",
    "LeaseHeld",
    "OutcomeUnknown",
    "PartialAppend",
    "Producer",
    "QueryRefused",
    "Receipt",
    "Result",
    "SequenceConflict",
    "Store",
    "StoreReplaced",
    "Tail",
    "ThermoclineError",
    "TierCorrupt",
    "TierUnavailable",
    "__version__",
    "append",
    "append_many",
    "connect",
    "highlighted",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("thermocline")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
