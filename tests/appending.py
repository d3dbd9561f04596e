"""What tests of append and Producer share: settings for a server, numbered events, and what is stored of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.servers import RedisServer
from thermocline.config import Settings, load
from thermocline.store import connect

Configure = Callable[..., Settings]


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """A function that gives settings for a server, in one data directory."""

    def settings(server: RedisServer, **sections: Any) -> Settings:
        hot = {"shards": 4, "timeout_s": 1, "connect_timeout_s": 1, **sections.pop("hot", {})}
        return load({"data_dir": tmp_path / "data", "redis_url": server.url, "hot": hot, **sections}, environ={})

    return settings


def contents(settings: Settings) -> dict[str, list[str]]:
    """Contents by conversation, in the order of seq."""
    found: dict[str, list[str]] = defaultdict(list)
    with connect(settings) as store:
        for conversation, content in store.sql("SELECT conversation_id, content FROM events ORDER BY seq").fetchall():
            found[conversation].append(content)
    return dict(found)


def expected(count: int, conversations: int) -> dict[str, list[str]]:
    """What `contents` gives for events 0 to count - 1, dealt to the conversations c0, c1, … in turns."""
    return {
        f"c{name}": [str(number) for number in range(count) if number % conversations == name] for name in range(conversations)
    }
