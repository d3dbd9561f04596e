"""Whatever settles, merges, is archived or trimmed at whatever moment: who follows gets every event once, in order, or a gap."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.following import World, play
from tests.servers import RedisServer


@pytest.mark.parametrize("seed", [1, 4])
def test_readers_get_the_plain_list_whatever_moves_meanwhile(server: RedisServer, tmp_path: Path, seed: int) -> None:
    world = World(tmp_path, server, seed)
    try:
        readers = play(world, 30)
        assert world.count > 40
        assert any(reader.gaps for reader in readers if reader.name == "late")
    finally:
        world.close()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 112))
def test_readers_get_the_plain_list_in_long_histories(server: RedisServer, tmp_path: Path, seed: int) -> None:
    world = World(tmp_path, server, seed)
    try:
        play(world, 80)
    finally:
        world.close()
