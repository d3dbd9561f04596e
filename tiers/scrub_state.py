"""What scrub remembers between passes, in <namespace>/scrub.json: when each object was read, and what is damaged.

The worker and `thermocline scrub` both write it: each change is made under a lock, and the file is replaced whole.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from .damage import Damage
from .whole_file import whole_file

FILE_NAME: Final = "scrub.json"
LOCK_NAME: Final = "scrub.lock"
DAMAGED_MAX: Final = 1000
"""Damages remembered."""


class ScrubState(msgspec.Struct, frozen=True, kw_only=True):
    format: str = "1"
    passed_us: int = 0
    """When the last pass ended."""
    oldest_us: int = 0
    """Everything there is was read, or written and read back, since then."""
    read: dict[str, int] = {}
    """Item → when it was last read, µs."""
    damaged: tuple[Damage, ...] = ()
    """What is damaged and was not mended."""

    def after(
        self,
        items: Mapping[str, int],
        read: Mapping[str, int],
        found: Sequence[Damage],
        *,
        now_us: int,
    ) -> ScrubState:
        """The state after a pass. Pure.

        items  every item there is now, and when it was written
        read   those the pass has read, and when
        found  what is wrong with them and was not mended
        """
        known = {key: at for key, at in {**self.read, **read}.items() if key in items}
        before = [one for one in self.damaged if one.item in items and one.item not in read]
        oldest = min((max(known.get(key, 0), created) for key, created in items.items()), default=now_us)
        damaged = (*before, *found)[:DAMAGED_MAX]
        return ScrubState(passed_us=now_us, oldest_us=oldest, read=known, damaged=damaged)


def read_state(folder: Path) -> ScrubState:
    """The state in a namespace's folder; an empty one when there is none, or none that can be read."""
    with suppress(OSError, msgspec.DecodeError, msgspec.ValidationError):
        return msgspec.json.decode((folder / FILE_NAME).read_bytes(), type=ScrubState)
    return ScrubState()


def change_state(folder: Path, change: Callable[[ScrubState], ScrubState]) -> ScrubState:
    """Replace the state by what `change` makes of it; the new one. OSError when that cannot be written."""
    with (folder / LOCK_NAME).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = change(read_state(folder))
        with whole_file(folder / FILE_NAME) as file:
            file.write(msgspec.json.format(msgspec.json.encode(state), indent=1))
    return state
