"""The lock of a namespace on a disk that takes nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from thermocline.archiver.lease import Lock
from thermocline.errors import LeaseHeld


def test_a_full_disk_keeps_nobody_from_taking_the_lock_and_letting_it_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", full)
    monkeypatch.setattr(os, "pwrite", full)
    with Lock(tmp_path), pytest.raises(LeaseHeld):
        Lock(tmp_path)
    Lock(tmp_path).release()
