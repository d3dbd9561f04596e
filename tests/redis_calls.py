"""What a test asks Redis itself: a command, and how often clients have called one."""

from __future__ import annotations

from typing import Any

from tests.servers import RedisServer
from thermocline.tiers.redis_link import Link


def ask(server: RedisServer, *command: str | int) -> Any:
    link = Link(server.url, connect_timeout_s=1, timeout_s=5)
    try:
        return link.call(*command)
    finally:
        link.close()


def calls(server: RedisServer, command: str) -> int:
    """How often clients have called it."""
    lines = ask(server, "INFO", "commandstats").decode().splitlines()
    found = [line for line in lines if line.startswith(f"cmdstat_{command}:")]
    return int(found[0].partition("calls=")[2].partition(",")[0]) if found else 0
