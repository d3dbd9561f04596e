"""Scrub on real tiers: every flipped bit is found and nothing else, what is gone is named, segments are mended."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.archiving import Crash, append, rows, settle_all
from tests.flips import files_of, fill, flip, flip_blocks, merged, write_log
from tests.shelf import Shelf
from tests.tidying import Archive
from thermocline.archiver.care import scrub_now
from thermocline.archiver.mend import Mender
from thermocline.archiver.purge import Purger
from thermocline.archiver.scrub import scrub
from thermocline.archiver.settle import Settler
from thermocline.archiver.verify import verify
from thermocline.errors import TierCorrupt
from thermocline.tiers.ledger import Segment
from thermocline.tiers.scrub_state import read_state
from thermocline.tiers.segment_sum import sum_path

FLIPS = 150
SEEDS = (20261121, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(9)))
BLOCKS_A_ROUND = 8


def settled(archive: Archive, count: int = 300, *, conversations: int = 7, start: int = 0) -> Segment:
    """One more segment."""
    append(archive.tiers, count, conversations=conversations, start=start)
    settle_all(Settler(archive.tiers, archive.epoch))
    return archive.tiers.ledger.view().segments[-1]


def path_of(archive: Archive, segment: Segment) -> Path:
    return Path(archive.tiers.warm.path(segment.segment_id))


def damage_rows(path: Path, word: bytes = b"") -> None:
    """Change a byte in the middle of the file, where the rows are."""
    content = bytearray(path.read_bytes())
    for place in range(3 * 4096 + 100, len(content), 512):
        content[place] ^= 1
    path.write_bytes(content)


def quarantined(archive: Archive) -> list[str]:
    folder = archive.settings.namespace_dir / "trash" / "quarantine"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("seed", SEEDS)
def test_of_150_single_bits_flipped_anywhere_150_are_found_and_nothing_else(archive: Archive, seed: int) -> None:
    fill(archive)
    assert scrub(archive.tiers).damages == ()
    files, chance = files_of(archive), random.Random(seed)
    kinds = {item.split("-")[0] for item in files}
    assert len(kinds) > 1
    flipped = found = 0
    while flipped < FLIPS:
        chosen = chance.sample(sorted(files), min(len(files), FLIPS - flipped - BLOCKS_A_ROUND))
        before = {item: files[item].read_bytes() for item in chosen}
        for item in chosen:
            flip(files[item], chance)
        places, logs = flip_blocks(archive.tiers, chance, BLOCKS_A_ROUND)
        flipped += len(chosen) + len(places)
        report = scrub(archive.tiers)
        assert report.unread == ()
        of_files = {one.item for one in report.damages if not one.item.startswith("log")}
        of_blocks = {one.place for one in report.damages if one.item.startswith("log")}
        assert (of_files, of_blocks) == (set(chosen), places)
        found += len(of_files) + len(of_blocks)
        for item, content in before.items():
            files[item].write_bytes(content)
        for shard, entries in logs.items():
            write_log(archive.tiers, shard, entries)
        assert scrub(archive.tiers).damages == ()
    assert (flipped, found) == (FLIPS, FLIPS)


def test_a_segment_without_a_sum_gets_one_when_its_rows_are_right_and_is_found_by_them_when_not(archive: Archive) -> None:
    sound, damaged = settled(archive), settled(archive, start=300)
    for segment in (sound, damaged):
        sum_path(path_of(archive, segment)).unlink()
    damage_rows(path_of(archive, damaged))
    [found] = scrub(archive.tiers).damages
    assert found.item == f"segment {damaged.segment_id}"
    assert sum_path(path_of(archive, sound)).exists()
    assert not sum_path(path_of(archive, damaged)).exists()


def test_a_damaged_sum_is_written_anew_and_the_segment_not_called_damaged(archive: Archive) -> None:
    path = sum_path(path_of(archive, settled(archive)))
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert scrub(archive.tiers).damages == ()
    assert path.read_bytes() == content


def test_a_segment_is_settled_again_from_the_log_while_redis_has_its_blocks(archive: Archive) -> None:
    segment = settled(archive)
    damage_rows(path_of(archive, segment))
    report, held = scrub_now(archive.tiers)
    [damage] = report.damages
    assert held == ""
    assert "settled again from Redis' log" in damage.mended
    assert quarantined(archive) == [f"{segment.segment_id}.duckdb"]
    assert rows(archive.tiers) == list(range(300))
    assert verify(archive.tiers, deep=True).problems == ()
    assert scrub(archive.tiers).damages == ()
    assert read_state(archive.settings.namespace_dir).damaged == ()


def test_a_merged_segment_is_settled_again_when_the_log_has_all_of_it(archive: Archive) -> None:
    settled(archive), settled(archive, start=300)
    merged(archive, 2)
    [segment] = archive.tiers.ledger.view().segments
    damage_rows(path_of(archive, segment))
    [damage] = scrub_now(archive.tiers)[0].damages
    assert "settled again from Redis' log" in damage.mended
    assert rows(archive.tiers) == list(range(600))
    assert verify(archive.tiers, deep=True).problems == ()


def test_a_segment_whose_rows_are_all_sound_is_written_again_from_them(archive: Archive) -> None:
    segment = settled(archive)
    path = path_of(archive, segment)
    content = path.read_bytes()
    for place in range(len(content) - 1, 0, -1):  # a byte that no row depends on: most of a small file is such
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        [damage] = scrub(archive.tiers).damages
        if not damage.events:
            break
    assert "its events are sound" in damage.problem
    mended = Mender(archive.tiers, archive.epoch).mend(damage)
    assert "all its rows were sound" in mended.mended
    assert quarantined(archive) == [path.name]
    assert rows(archive.tiers) == list(range(300))
    assert verify(archive.tiers, deep=True).problems == ()


def test_a_crash_while_mending_leaves_the_damaged_file_kept_and_the_next_try_mends(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = settled(archive)
    damage_rows(path_of(archive, segment))
    [damage] = scrub(archive.tiers).damages
    with monkeypatch.context() as patch:
        patch.setattr(archive.tiers.ledger, "rebuilt", raising(Crash))
        with pytest.raises(Crash):
            Mender(archive.tiers, archive.epoch).mend(damage)
    assert archive.tiers.ledger.view().segments == (segment,)
    assert quarantined(archive) == [f"{segment.segment_id}.duckdb"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", raising(Crash))
        with pytest.raises(Crash):
            Mender(archive.tiers, archive.epoch).mend(damage)
    assert path_of(archive, segment).exists()
    purger = Purger(archive.tiers, archive.epoch)
    for days in (1, 2, 3):
        purger.step(now_us=time.time_ns() // 1000 + days * 86_400_000_000)
    assert not path_of(archive, segment).exists()
    assert quarantined(archive) == [f"{segment.segment_id}.duckdb"]
    assert rows(archive.tiers) == list(range(300))
    assert verify(archive.tiers, deep=True).problems == ()
    assert scrub(archive.tiers).damages == ()


def test_what_is_not_the_same_rows_never_takes_the_place_of_a_segment(archive: Archive) -> None:
    first, second = settled(archive), settled(archive, start=300)
    with pytest.raises(TierCorrupt, match="does not hold what"):
        archive.tiers.ledger.rebuilt(archive.epoch, first.segment_id, second)
    archive.tiers.ledger.rebuilt(archive.epoch, "f" * 32, second)  # done already
    assert archive.tiers.ledger.view().segments == (first, second)


def raising(error: type[BaseException]) -> Callable[..., None]:
    def act(*_: object, **__: object) -> None:
        raise error

    return act


def test_what_cannot_be_mended_is_said_by_conversation_and_the_file_stays(archive: Archive) -> None:
    segment = settled(archive, 30_000, conversations=3)
    archive.trim()
    path = path_of(archive, segment)
    content = bytearray(path.read_bytes())
    content[len(content) * 9 // 10] ^= 1
    path.write_bytes(content)
    report, _ = scrub_now(archive.tiers)
    [damage] = report.damages
    assert not damage.mended
    assert "there is no mirror" in damage.hint
    assert "Redis has dropped blocks" in damage.hint
    assert path.exists()
    if damage.events:
        assert 0 < damage.events < 30_000
        assert sum(part.events for part in damage.parts) == damage.events
        assert {part.conversation_id for part in damage.parts} <= {"c0", "c1", "c2"}
    assert read_state(archive.settings.namespace_dir).damaged == (damage,)


def test_a_missing_segment_is_found_and_settled_again(archive: Archive) -> None:
    segment = settled(archive)
    path_of(archive, segment).unlink()
    [damage] = scrub_now(archive.tiers)[0].damages
    assert "the file is missing" in damage.problem
    assert "settled again" in damage.mended
    assert rows(archive.tiers) == list(range(300))
    assert verify(archive.tiers, deep=True).problems == ()


def test_a_damaged_page_is_named_with_its_rows_and_conversations(archive: Archive) -> None:
    archive.archive_rounds(1)
    file = archive.files("events")[0]
    path = archive.bucket / archive.settings.namespace / file.key
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)
    [damage] = scrub(archive.tiers).damages
    assert damage.place == file.url
    assert "row group 0" in damage.problem
    assert damage.events == file.rows
    assert "restore the object" in damage.hint
    assert damage.lines()[1].startswith(f"  gone unless it is restored: {file.rows:,} events")


def test_a_missing_object_is_named_and_a_store_that_is_away_is_not_called_damage(archive: Archive) -> None:
    archive.archive_rounds(1)
    file = archive.files("events")[0]
    path = archive.bucket / archive.settings.namespace / file.key
    content = path.read_bytes()
    path.unlink()
    [damage] = scrub(archive.tiers).damages
    assert "the object is missing" in damage.problem
    path.write_bytes(content)
    archive.bucket.rename(archive.bucket.with_name("away"))
    report = scrub(archive.tiers)
    assert report.damages == ()
    assert len(report.unread) == len(archive.view().files)
    archive.bucket.with_name("away").rename(archive.bucket)
    assert scrub(archive.tiers).damages == ()


def test_a_damaged_local_copy_is_set_aside_and_the_object_read_instead(shelf: Shelf) -> None:
    with shelf.fresh(bucket=True) as archive:
        archive.archive_rounds(1)
        wanted = archive.contents()
        [file] = archive.files("rollup_hourly")
        copy = archive.settings.namespace_dir / "cold" / file.key
        flip(copy, random.Random(1))
        [damage] = scrub(archive.tiers).damages
        assert damage.item == f"copy {file.key}"
        assert "set aside" in damage.mended or "the copy is now" in damage.mended
        assert quarantined(archive) == [copy.name]
        assert [one.equals(other) for one, other in zip(archive.contents(), wanted, strict=True)] == [True, True, True]


def test_a_ledger_that_says_of_a_segment_what_it_is_not_is_found(archive: Archive) -> None:
    segment = settled(archive)
    assert scrub(archive.tiers).damages == ()
    with closing(sqlite3.connect(archive.settings.namespace_dir / "ledger.db", isolation_level=None)) as con:
        con.execute("UPDATE segments SET content_bytes = content_bytes + 1")
    archive.close()
    archive.open()
    [damage] = scrub(archive.tiers).damages
    assert damage.item == "ledger ledger"
    assert segment.segment_id in damage.problem
    assert "content_bytes" in damage.problem


def test_a_ledger_whose_pages_are_damaged_is_found(archive: Archive) -> None:
    settled(archive)
    archive.tiers.ledger.checkpoint()
    archive.close()
    path = archive.settings.namespace_dir / "ledger.db"
    with closing(sqlite3.connect(path)) as con:
        [(page,)] = con.execute("SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_segments_1'").fetchall()
        [(size,)] = con.execute("PRAGMA page_size").fetchall()
    content = bytearray(path.read_bytes())
    content[page * size - 20] ^= 1
    path.write_bytes(content)
    archive.open()
    damage = next(one for one in scrub(archive.tiers).damages if one.item == "ledger ledger")
    assert "index" in damage.problem
    assert "recover --force" in damage.hint


def test_a_damaged_block_that_has_settled_is_no_loss_and_one_that_waits_is(archive: Archive) -> None:
    settled(archive, 10, conversations=1)
    flip_blocks(archive.tiers, random.Random(3), 1)
    [damage] = scrub(archive.tiers).damages
    assert "nothing is lost" in damage.mended
    append(archive.tiers, 5, conversations=1, start=10)
    [cut] = [one for one in archive.tiers.hot.cut() if one.entries]
    entries = archive.tiers.hot.link.call("XRANGE", archive.tiers.hot.keys.log(cut.shard), "-", "+")
    flat = entries[-1][1]
    place = flat.index(b"d") + 1
    flat[place] = flat[place].replace(b"output", b"0utput", 1)
    write_log(archive.tiers, cut.shard, entries)
    [_, damage] = scrub(archive.tiers).damages
    assert (damage.events, damage.mended) == (5, "")
    assert [(part.conversation_id, part.seq_min, part.seq_max) for part in damage.parts] == [("c0", 11, 15)]


def test_scrub_leaves_mending_to_a_worker_that_runs(archive: Archive) -> None:
    from thermocline.archiver.lease import Lock

    segment = settled(archive)
    damage_rows(path_of(archive, segment))
    with Lock(archive.settings.namespace_dir):
        report, held = scrub_now(archive.tiers)
    assert "it mends what can be mended" in held
    assert [one.item for one in report.damaged] == [f"segment {segment.segment_id}"]
    assert scrub_now(archive.tiers)[0].damaged == ()


@pytest.mark.parametrize("seed", range(3))
def test_what_left_the_ledger_meanwhile_is_not_missed(archive: Archive, seed: int) -> None:
    from thermocline.archiver.scrub import ScrubPass, items

    settled(archive), settled(archive, start=300)
    every, _ = items(archive.tiers)
    random.Random(seed).shuffle(every)
    work = ScrubPass(archive.tiers, every, every)
    work.step()
    old = archive.tiers.ledger.view().segments
    merged(archive, 2)
    for segment in old:
        path_of(archive, segment).unlink()
    while work.step():
        pass
    assert work.report.damages == ()
    assert time.time_ns() // 1000 - read_state(archive.settings.namespace_dir).passed_us < 60e6
