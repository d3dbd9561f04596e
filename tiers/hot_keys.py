"""Names of the keys in Redis (docs/formats.md, "Redis"). Pure."""

from __future__ import annotations

CLEAN_KEY = "tc:clean"
"""Holds the run_id of a server Thermocline shut down in order."""


class Keys:
    """Key names of one namespace."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def of(self, shard: int, name: str) -> str:
        return f"{{tc:{self.namespace}:{shard}}}:{name}"

    def meta(self, shard: int) -> str:
        return self.of(shard, "m")

    def log(self, shard: int) -> str:
        return self.of(shard, "log")

    def pointers(self, shard: int, conversation_id: str) -> str:
        return self.of(shard, f"c:{conversation_id}")

    def heads(self, shard: int, bucket: int) -> str:
        return self.of(shard, f"h:{bucket}")

    def producer(self, shard: int, producer: str) -> str:
        return self.of(shard, f"p:{producer}")

    def ids(self, shard: int, half: str) -> str:
        return self.of(shard, f"i:{half}")

    def losses(self, shard: int) -> str:
        return self.of(shard, "x")

    def pattern(self) -> str:
        """Matches every key of the namespace, for SCAN. Namespaces hold no glob characters."""
        return f"{{tc:{self.namespace}:*"
