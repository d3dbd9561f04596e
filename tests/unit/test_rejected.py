"""rejected/<day>.ndjson: each line once, whatever a crash left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from thermocline.archiver.rejected import RejectedLog
from thermocline.errors import TierUnavailable
from thermocline.tiers.block import ORIGIN, Position
from thermocline.tiers.ledger import ShardState
from thermocline.tiers.warm import Rejected

DAY_US = 1_794_614_400_000_000  # 2026-11-14T00:00:00Z
NEW = {0: ShardState(shard=0), 1: ShardState(shard=1)}


def line(position: int, ordinal: int = 0, *, shard: int = 0, events: int = 1) -> Rejected:
    return Rejected(
        shard=shard,
        position=f"{position}-0",
        ordinal=ordinal,
        conversation_id="c",
        reason="no such \n thing",
        line='{"a":"\u2028"',
        events=events,
    )


def stored(folder: Path) -> list[tuple[str, int]]:
    return [
        (one["position"], one["ordinal"])
        for path in sorted(folder.glob("*"))
        for one in map(json.loads, path.read_bytes().split(b"\n")[:-1])
    ]


def test_lines_are_kept_by_utc_day_with_everything_that_is_known(tmp_path: Path) -> None:
    log = RejectedLog(tmp_path / "rejected")
    log.append([line(1)], NEW, now_us=DAY_US - 1)
    log.append([line(2, -1, events=7)], NEW, now_us=DAY_US)
    assert sorted(path.name for path in (tmp_path / "rejected").iterdir()) == ["2026-11-13.ndjson", "2026-11-14.ndjson"]
    assert json.loads((tmp_path / "rejected" / "2026-11-14.ndjson").read_text()) == {
        "shard": 0,
        "position": "2-0",
        "ordinal": -1,
        "conversation_id": "c",
        "reason": "no such \n thing",
        "line": '{"a":"\u2028"',
        "events": 7,
    }


def test_nothing_rejected_leaves_no_file(tmp_path: Path) -> None:
    RejectedLog(tmp_path / "rejected").append([], NEW, now_us=DAY_US)
    assert not (tmp_path / "rejected").exists()


@pytest.mark.parametrize("later_us", [0, 3600 * 1_000_000])
def test_lines_a_crash_left_are_not_written_again_when_their_block_settles_again(tmp_path: Path, later_us: int) -> None:
    """Even when the crash was just before midnight."""
    log = RejectedLog(tmp_path)
    log.append([line(1), line(2)], NEW, now_us=DAY_US - 1)
    log.append([line(1), line(2), line(2, 1), line(2, shard=1)], NEW, now_us=DAY_US - 1 + later_us)
    assert stored(tmp_path) == [("1-0", 0), ("2-0", 0), ("2-0", 1), ("2-0", 0)]


def test_a_line_of_a_settled_block_does_not_hide_a_new_one_at_a_later_position(tmp_path: Path) -> None:
    log = RejectedLog(tmp_path)
    log.append([line(1)], NEW, now_us=DAY_US)
    settled = {0: ShardState(shard=0, position=Position(1, 0))}
    log.append([line(2)], settled, now_us=DAY_US)
    assert stored(tmp_path) == [("1-0", 0), ("2-0", 0)]


def test_a_line_cut_short_by_a_crash_is_ended_and_its_block_written_whole(tmp_path: Path) -> None:
    log = RejectedLog(tmp_path)
    log.append([line(1), line(2)], NEW, now_us=DAY_US)
    path = tmp_path / "2026-11-14.ndjson"
    path.write_bytes(path.read_bytes()[:-20])
    log.append([line(1), line(2)], NEW, now_us=DAY_US)
    rows = path.read_bytes().split(b"\n")
    assert json.loads(rows[0])["position"] == "1-0"
    assert rows[1].startswith(b"{")
    assert json.loads(rows[2])["position"] == "2-0"
    assert rows[3:] == [b""]


def test_events_rejected_in_a_part_of_a_log_are_counted_once_over_all_days(tmp_path: Path) -> None:
    log = RejectedLog(tmp_path)
    log.append([line(1), line(2, -1, events=5), line(3), line(2, shard=1)], NEW, now_us=DAY_US)
    (tmp_path / "2026-11-15.ndjson").write_bytes((tmp_path / "2026-11-14.ndjson").read_bytes() + b"{torn")
    assert log.counted(0, ORIGIN, Position(9, 0)) == 7
    assert log.counted(0, Position(1, 0), Position(2, 0)) == 5
    assert log.counted(2, ORIGIN, Position(9, 0)) == 0


def test_a_disk_that_does_not_take_them_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "rejected").write_text("in the way")
    with pytest.raises(TierUnavailable, match="rejected lines must be kept"):
        RejectedLog(tmp_path / "rejected").append([line(1)], NEW, now_us=DAY_US)
