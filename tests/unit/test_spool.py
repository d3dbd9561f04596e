"""A Producer with a spool over a model store: what waits, what comes back, and every instant at which it may die."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.model_store import NOW_US, ModelStore, ModelTiers
from tests.spool_images import Image, Images, cloned
from tests.waiting import wait_until
from thermocline.config import Settings
from thermocline.errors import (
    Backpressure,
    ConfigError,
    InvalidEvent,
    OutcomeUnknown,
    PartialAppend,
    TierCorrupt,
    TierUnavailable,
)
from thermocline.ingest import delivery, drain
from thermocline.ingest.async_producer import AsyncProducer
from thermocline.ingest.producer import Producer
from thermocline.ingest.spool_file import FIRST_BLOCK, SpoolFile, read_contents
from thermocline.ingest.spool_record import scan

LATE_US = NOW_US + 400 * 1_000_000
CONVERSATIONS = 3
IMAGES_MAX = 100
"""Opened of those a run takes, which are about 300; in the long ring all are."""
SEEDS = 2
SEEDS_LONG = 60


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "TRY_S", 0.02)
    monkeypatch.setattr(delivery, "PAUSE_MAX_S", 0.02)
    monkeypatch.setattr(drain, "PAUSE_MAX_S", 0.02)


@pytest.fixture
def store() -> ModelStore:
    return ModelStore()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


Make = Callable[..., Producer]


@pytest.fixture
def make(store: ModelStore, folder: Path) -> Iterator[Make]:
    """A function that makes a Producer over the store and the folder; what is left open is closed."""
    made: list[Producer] = []

    def producer(over: ModelStore | None = None, *, deadline_s: float = 5, **given: Any) -> Producer:
        settings = Settings(
            ingest={"deadline_s": deadline_s},  # type: ignore[arg-type]
            hot={"connect_timeout_s": 0.01, "shards": 2},  # type: ignore[arg-type]
            namespace=given.pop("namespace", "default"),
        )
        tiers = ModelTiers(over or store)
        made.append(Producer(settings, tiers=tiers, spool_dir=given.pop("spool_dir", folder), linger_ms=0, **given))
        return made[-1]

    yield producer
    for one in made:
        try:
            one.close(0.5)
        except PartialAppend:
            pass


def append(producer: Producer, conversation: str, content: str, **more: Any) -> None:
    producer.append(conversation, "t", content, timestamp=more.pop("timestamp", NOW_US), **more)


def numbers(count: int, first: int = 0) -> list[str]:
    return [str(number) for number in range(first, count)]


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name not in ("LOCK", "reserve"))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        threading.Event().wait(0.002)


def test_nothing_is_spooled_while_the_store_is_there(make: Make, store: ModelStore, folder: Path) -> None:
    with make() as producer:
        for number in numbers(100):
            append(producer, "a", number)
        producer.flush()
        assert files_in(folder) == []
        assert producer.spooled_events == 0
        assert producer.trouble is None
    assert store.contents("a") == numbers(100)


@pytest.mark.parametrize("trouble", ["down", "BUSY", "FULL", "unconfirmed", "lost before", "lost after"])
def test_whatever_is_in_the_way_flush_returns_and_all_is_stored_later(make: Make, store: ModelStore, trouble: str) -> None:
    producer = make()
    producer._source._tiers.confirming = False  # type: ignore[union-attr]
    append(producer, "a", "0")
    producer.flush()
    if trouble == "down":
        store.down = True
    elif trouble == "unconfirmed":
        store.restart()
    elif trouble.isupper():
        store.refusing = trouble
    else:
        store.lasting_fault = trouble
    for number in numbers(50, 1):
        append(producer, "ab"[int(number) % 2], number)
        if number == "10":
            producer.flush()
    producer.flush()
    assert producer.spooled_events == 49
    until(lambda: producer.trouble)
    store.down, store.refusing, store.lasting_fault = False, "", ""
    store.confirm()
    producer.drain(10)
    assert producer.spooled_events == 0
    assert producer.trouble is None
    for number in numbers(60, 50):
        append(producer, "ab"[int(number) % 2], number)
    producer.flush()
    assert store.contents("a") == [number for number in numbers(60) if int(number) % 2 == 0]
    assert store.contents("b") == [number for number in numbers(60) if int(number) % 2 == 1]


def test_close_leaves_what_waits_to_the_next_producer(make: Make, store: ModelStore, folder: Path) -> None:
    store.down = True
    with make() as producer:
        for number in numbers(20):
            append(producer, "a", number)
    assert (files_in(folder)[0].stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    second = make()
    assert second.spooled_events == 20
    append(second, "a", "20")
    with pytest.raises(TierUnavailable):
        second.drain(0.2)
    store.down = False
    second.drain(10)
    assert store.contents("a") == numbers(21)


def test_a_spool_is_one_producers_and_one_namespaces(make: Make, store: ModelStore) -> None:
    store.down = True
    producer = make()
    append(producer, "a", "1")
    producer.flush()
    with pytest.raises(TierUnavailable, match=r"spool_dir: .* is in use by process \d+: give each Producer a folder of its own"):
        make()
    producer.close()
    with pytest.raises(ConfigError, match="holds events of namespace 'default', this Producer's is 'other'"):
        make(namespace="other")


def test_a_folder_that_cannot_be_made_is_named(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TierUnavailable, match=r"spool_dir: .*/file/spool cannot be used \(Not a directory\)"):
        make(spool_dir=tmp_path / "file" / "spool")
    with pytest.raises(ConfigError, match="spool_bytes_max"):
        make(spool_bytes_max=1)


def test_a_full_disk_is_backpressure_and_tears_no_record(
    make: Make, store: ModelStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.down = True
    producer = make(deadline_s=2, buffer_events_max=10)
    for number in numbers(10):
        append(producer, "a", number)
    producer.flush()
    write = os.write

    def full(fd: int, data: Any) -> int:
        if len(data) > 20:
            return write(fd, data[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for number in numbers(20, 10):
            append(producer, "a", number)
        with pytest.raises(Backpressure, match=r"spool in .* cannot be written \(No space left on device\): free space"):
            producer.flush()
        with pytest.raises(Backpressure, match="No space left"):
            append(producer, "a", "20")
    for path in files_in(folder):
        contents = read_contents(path, 16)
        assert (contents.damages, contents.end) == ([], path.stat().st_size)
    producer.flush(5)
    append(producer, "a", "20")
    store.down = False
    producer.drain(10)
    assert store.contents("a") == numbers(21)


def test_a_disk_that_the_spool_has_filled_is_emptied_all_the_same(
    make: Make, store: ModelStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.down = True
    producer = make()
    for number in numbers(10):
        append(producer, "a", number)
    producer.flush()
    write = os.write

    def full(fd: int, data: Any) -> int:
        if (folder / "reserve").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    store.down = False
    producer.drain(10)
    assert store.contents("a") == numbers(10)


def test_close_with_a_full_spool_hands_back_what_fits_nowhere(make: Make, store: ModelStore) -> None:
    store.down = True
    producer = make(deadline_s=2, spool_bytes_max=16 << 20)
    given = 0
    with pytest.raises(Backpressure):
        for given in range(1000):
            append(producer, "a", f"{given}" + " " * 500_000)
            producer.flush()
    with pytest.raises(PartialAppend) as caught:
        producer.close()
    assert [(event.content or "").strip() for event in caught.value.rest] == [str(given)]
    store.down = False
    make().drain(10)
    assert [content.strip() for content in store.contents("a")] == numbers(given)


def test_notes_that_cannot_be_written_keep_blocks_from_being_sent(
    make: Make, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.down = True
    producer = make()
    append(producer, "a", "0")
    producer.flush()

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(SpoolFile, "note_round", fail)
        store.down = False
        until(lambda: "cannot be written" in str(producer.trouble))
        assert store.stored == []
    producer.drain(10)
    assert store.contents("a") == ["0"]


def test_late_events_are_handed_back_and_again_by_the_next_process_if_nobody_was_told(
    make: Make, store: ModelStore, folder: Path
) -> None:
    store.down = True
    producer = make()
    for number in numbers(6):
        append(producer, "a", number, timestamp=LATE_US if number in ("2", "4") else NOW_US)
    producer.flush()
    store.down = False
    until(lambda: producer._buffer.failing and producer.spooled_events == 0)
    assert store.contents("a") == ["0", "1", "3", "5"]
    left = {path.name: path.read_bytes() for path in files_in(folder)}
    with pytest.raises(PartialAppend) as caught:
        producer.close()
    assert isinstance(caught.value.cause, InvalidEvent)
    assert [event.content for event in caught.value.rest] == ["2", "4"]
    assert files_in(folder) == []
    for name, data in left.items():  # as if it had died before anyone was told
        (folder / name).write_bytes(data)
    with pytest.raises(PartialAppend) as again:
        make().close()
    assert [event.content for event in again.value.rest] == ["2", "4"]
    make().close()
    assert store.contents("a") == ["0", "1", "3", "5"]


def test_a_damaged_block_is_named_and_the_rest_is_sent(make: Make, store: ModelStore, folder: Path) -> None:
    store.down = True
    with make(block_events_max=5) as producer:
        for number in numbers(20):
            append(producer, "a", number)
        producer.flush()
    [path] = files_in(folder)
    blocks = scan(path.read_bytes()).records[FIRST_BLOCK:]
    hit = blocks[len(blocks) // 2]
    data = bytearray(path.read_bytes())
    data[hit.offset + 60] ^= 4
    path.write_bytes(data)
    store.down = False
    second = make()
    with pytest.raises(PartialAppend, match=rf"a block of {hit.events} events at byte {hit.offset} of .* is damaged") as caught:
        second.drain(10)
    assert isinstance(caught.value.cause, TierCorrupt)
    assert caught.value.rest == []
    second.drain(10)
    assert len(store.contents("a")) == 20 - hit.events
    assert [path.suffix for path in files_in(folder)] == [".damaged"]


def spooled_in_doubt(make: Make, store: ModelStore) -> None:
    """A process died with a block in its spool that is stored, and whose reply never came."""
    producer = make()
    append(producer, "a", "0")
    producer.flush()
    store.lasting_fault = "lost after"
    append(producer, "a", "1")
    producer.flush()
    append(producer, "a", "2")
    producer.close(0.1)
    store.heal()


def test_what_may_be_stored_is_sent_under_its_number(make: Make, store: ModelStore) -> None:
    spooled_in_doubt(make, store)
    assert store.contents("a") == ["0", "1"]
    make().drain(10)
    assert store.contents("a") == ["0", "1", "2"]


def test_what_may_be_stored_is_handed_back_after_seven_days(
    make: Make, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled_in_doubt(make, store)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 7 * 86_400)
    producer = make()
    with pytest.raises(PartialAppend, match="sent more than 7 days ago") as caught:
        producer.drain(10)
        producer.flush()
    assert isinstance(caught.value.cause, OutcomeUnknown)
    assert [event.content for event in caught.value.rest] == ["1"]
    with pytest.raises(OutcomeUnknown, match="look for them"):
        caught.value.cause.retry()
    wait_until(lambda: store.contents("a") == ["0", "1", "2"], 30, "what came after it is stored")


def test_what_was_never_sent_is_stored_however_old_it_is(make: Make, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.down = True
    with make() as producer:
        append(producer, "a", "0")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 100 * 86_400)
    store.down = False
    make().drain(10)
    assert store.contents("a") == ["0"]


def test_another_store_gets_nothing_in_doubt_and_nothing_is_given_up(make: Make, store: ModelStore) -> None:
    spooled_in_doubt(make, store)
    other = ModelStore()
    producer = make(other)
    until(lambda: producer.trouble)
    with pytest.raises(Exception, match="another store"):
        producer.drain()
    producer.close(0.1)
    assert other.stored == []
    make().drain(10)
    assert store.contents("a") == ["0", "1", "2"]


def test_a_fault_of_ours_while_draining_is_survived(make: Make, store: ModelStore) -> None:
    store.down = True
    producer = make()
    for number in numbers(10):
        append(producer, "a", number)
    producer.flush()

    def fault() -> None:
        store.on_send = None
        raise ZeroDivisionError

    store.on_send = fault
    store.down = False
    producer.drain(10)
    assert store.contents("a") == numbers(10)


def test_more_than_one_file_is_sent_in_order(
    make: Make, store: ModelStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thermocline.ingest.spool.FILE_BYTES", 2000)
    store.down = True
    producer = make(block_events_max=3)
    for number in numbers(100):
        append(producer, "a", number)
        producer.flush()
    assert len(files_in(folder)) > 3
    store.down = False
    producer.drain(20)
    assert store.contents("a") == numbers(100)
    assert files_in(folder) == []


@pytest.mark.parametrize(
    ("seed", "images_max"),
    [
        *((seed, IMAGES_MAX) for seed in range(SEEDS)),
        *(pytest.param(seed, 1 << 20, marks=pytest.mark.long) for seed in range(SEEDS_LONG)),
    ],
)
def test_a_crash_at_any_step_loses_and_doubles_nothing(
    seed: int, images_max: int, make: Make, store: ModelStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(seed)
    images = Images(folder, store, seed)
    producer = make(block_events_max=3)
    given = 0
    with images.recording(monkeypatch):
        for _ in range(30):
            _change(store, dice)
            for _ in range(dice.randint(1, 40)):
                append(producer, f"c{given % CONVERSATIONS}", str(given))
                given += 1
            producer.flush(10)
            images.acknowledged = given
        _mend(store)
        producer.drain(20)
        images.take("at the end")
    producer.close()
    assert [store.contents(f"c{name}") for name in range(CONVERSATIONS)] == [
        numbers(given)[name::3] for name in range(CONVERSATIONS)
    ]
    for number, image in enumerate(images.some(images_max)):
        _resurrect(make, image, tmp_path / str(number))


def _change(store: ModelStore, dice: random.Random) -> None:
    """Something else is in the way from now on, or nothing."""
    _mend(store)
    match dice.randrange(6):
        case 0 | 1:
            store.down = True
        case 2:
            store.refusing = "BUSY"
        case 3:
            store.faults.extend(dice.choices(["lost after", "lost before", "down", "lost after 1", ""], k=20))
        case 4:
            store.lasting_fault = dice.choice(["lost after", "lost after 2"])
        case _:
            pass


def _mend(store: ModelStore) -> None:
    store.heal()
    store.down, store.refusing = False, ""


def _resurrect(make: Make, image: Image, folder: Path) -> None:
    """Open what a crash left, send it, and compare with what was acknowledged."""
    folder.mkdir()
    for name, data in image.files.items():
        (folder / name).write_bytes(data)
    store = cloned(image.store)
    store.confirm()
    producer = make(store, spool_dir=folder)
    producer.drain(10)
    producer.close()
    stored = [content for _, _, content in store.stored]
    assert len(stored) == len(set(stored)), image.what
    assert set(numbers(image.acknowledged)) <= set(stored), image.what
    for name in range(CONVERSATIONS):
        found = [int(content) for content in store.contents(f"c{name}")]
        assert found == sorted(found), image.what
    assert files_in(folder) == []


@pytest.mark.parametrize("conversations", [1, 3])
def test_a_crash_at_any_step_hands_every_late_event_back_and_stores_the_others_once(
    conversations: int, make: Make, store: ModelStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = {number for number in numbers(40) if int(number) % 7 in (2, 3)}
    images = Images(folder, store, 3)
    store.down = True
    producer = make(block_events_max=5)
    with images.recording(monkeypatch):
        for number in numbers(40):
            append(producer, f"c{int(number) % conversations}", number, timestamp=LATE_US if number in late else NOW_US)
        producer.flush()
        images.acknowledged = 40
        store.faults.extend(["", "lost after", "", "lost before", "lost after 1"])
        store.down = False
        until(lambda: producer._drain.spool.empty and producer._buffer.failing)  # type: ignore[union-attr]
        images.take("at the end")
    told: set[str] = set()
    _collect(producer, told)
    assert told == late
    for place, image in enumerate(image for image in images.taken if image.acknowledged):
        copy = tmp_path / str(place)
        copy.mkdir()
        for name, data in image.files.items():
            (copy / name).write_bytes(data)
        second = make(again := cloned(image.store), spool_dir=copy)
        again_told: set[str] = set()
        _collect(second, again_told)
        stored = [content for _, _, content in again.stored]
        assert sorted(stored, key=int) == [number for number in numbers(40) if number not in late], image.what
        assert again_told == late, image.what
        assert files_in(copy) == []


def _collect(producer: Producer, told: set[str]) -> None:
    """Close a producer once all of its spool is sent; the contents it hands back."""
    producer._drain.wait_empty(10, patient=True)  # type: ignore[union-attr]
    try:
        producer.close()
    except PartialAppend as exc:
        told.update(event.content or "" for event in exc.rest)


def test_the_async_producer_has_the_same_spool(store: ModelStore, folder: Path) -> None:
    async def run() -> None:
        settings = Settings(hot={"connect_timeout_s": 0.01, "shards": 2})  # type: ignore[arg-type]
        async with AsyncProducer(settings, tiers=ModelTiers(store), spool_dir=folder, spool_bytes_max=16 << 20) as producer:
            store.down = True
            for number in numbers(10):
                await producer.append("a", "t", number, timestamp=NOW_US)
            await producer.flush()
            assert producer.spooled_events == 10
            store.down = False
            await producer.drain(10)
            assert (producer.spooled_events, producer.trouble) == (0, None)

    asyncio.run(run())
    assert store.contents("a") == numbers(10)
