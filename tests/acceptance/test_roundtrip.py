"""The shipped conversations through the CLI and back."""

from __future__ import annotations

from pathlib import Path

from tests.roundtrip import roundtrip
from thermocline.sample_import import SAMPLE, events_of, load_runs


def test_real_conversations_come_back_in_order_and_byte_for_byte(tmp_path: Path) -> None:
    assert roundtrip(SAMPLE, tmp_path) == len(list(events_of(load_runs(), end_us=10**15)))
