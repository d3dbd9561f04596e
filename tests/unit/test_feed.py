"""Feeding NDJSON: batches as they come, the line where it stops, bad lines apart, patience with a store that sheds load."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path

import pytest

from thermocline import feed as feeding
from thermocline.errors import Backpressure, InvalidEvent, OutcomeUnknown, PartialAppend, SequenceConflict, ThermoclineError
from thermocline.event import Event, Receipt
from thermocline.feed import Rejected, StoppedAt, batches, feed
from thermocline.ingest.line import line_of
from thermocline.ingest.validate import check_conversation_id, fields_of
from thermocline.ndjson import LINE_BYTES_MAX


def receipt(event: Event) -> Receipt:
    return Receipt(
        event_id="i", conversation_id=event.conversation_id, seq=1, durability="memory", duplicate=event.content == "again"
    )


class Store:
    """append_many as the library has it: everything is checked first; `faults` say what each call then ends with."""

    def __init__(self, *faults: ThermoclineError | None) -> None:
        self.faults: Iterator[ThermoclineError | None] = iter(faults)
        self.contents: list[str | None] = []
        self.calls = 0

    def append_many(self, events: Sequence[Event]) -> list[Receipt]:
        self.calls += 1
        for index, event in enumerate(events):
            try:
                check_conversation_id(event.conversation_id)
                line_of(fields_of(event), 1)
            except InvalidEvent as exc:
                raise InvalidEvent(exc.field, exc.problem, index=index) from exc
        fault = next(self.faults, None)
        if fault is None:
            self.contents += [event.content for event in events]
            return [receipt(event) for event in events]
        stored = range(0, len(events) - 1, 2)
        self.contents += [events[index].content for index in stored]
        receipts = [receipt(event) if index in stored else None for index, event in enumerate(events)]
        rest = [index for index in range(len(events)) if index not in stored]
        raise PartialAppend("half", receipts=receipts, rest=[events[index] for index in rest], rest_indices=rest, cause=fault)


def line(content: str, conversation: str = "c") -> bytes:
    return b'{"conversation_id":"%s","event_type":"t","content":"%s"}' % (conversation.encode(), content.encode())


def opened(folder: Path, *lines: bytes) -> FileIO:
    file = folder / "events.ndjson"
    file.write_bytes(b"\n".join(lines))
    return FileIO(file)


def test_every_line_is_appended_in_order_and_empty_ones_are_passed_over(tmp_path: Path) -> None:
    store = Store()
    with opened(tmp_path, line("a"), b"", line("b"), b"  ", line("again"), b"") as stream:
        fed = feed(store, stream)
    assert store.contents == ["a", "b", "again"]
    assert (fed.appended, fed.duplicates, fed.rejected, fed.lines) == (3, 1, 0, 5)
    assert fed.bytes_read == (tmp_path / "events.ndjson").stat().st_size


@pytest.mark.parametrize("bad", [b"nope", line("x", "#c"), b'{"conversation_id":"c","event_type":"no good"}'])
def test_the_first_bad_line_stops_it_and_what_stands_before_is_stored(bad: bytes, tmp_path: Path) -> None:
    store = Store()
    with opened(tmp_path, line("a"), b"", line("b"), bad, line("c")) as stream, pytest.raises(StoppedAt) as caught:
        feed(store, stream)
    assert caught.value.number == 4
    assert str(caught.value).startswith("line 4: ")
    assert str(caught.value).endswith("; 2 events are stored")
    assert store.contents == ["a", "b"]


def test_bad_lines_can_be_kept_apart_with_their_reasons(tmp_path: Path) -> None:
    store, kept = Store(), list[Rejected]()
    lines = [b"nope", line("a"), line("x", "#1"), line("b"), line("y", "#2"), b"\xff"]
    with opened(tmp_path, *lines) as stream:
        fed = feed(store, stream, reject=kept.append)
    assert store.contents == ["a", "b"]
    assert sorted(rejected.number for rejected in kept) == [1, 3, 5, 6]
    assert {rejected.line for rejected in kept} == {lines[0], lines[2], lines[4], lines[5]}
    assert all(rejected.reason for rejected in kept)
    assert (fed.appended, fed.rejected) == (2, 4)


def test_many_bad_lines_cost_two_calls_not_one_each(tmp_path: Path) -> None:
    store, kept = Store(), list[Rejected]()
    with opened(tmp_path, *(line(str(number), "#bad" if number % 2 else "good") for number in range(1000))) as stream:
        feed(store, stream, reject=kept.append)
    assert len(store.contents) == len(kept) == 500
    assert store.calls == 2


@pytest.mark.parametrize("cause", [Backpressure("full", retry_after_s=0), None])
def test_a_store_that_sheds_load_is_asked_again_for_what_is_left(cause: ThermoclineError | None, tmp_path: Path) -> None:
    store, waits = Store(cause, cause), list[str]()
    with opened(tmp_path, *(line(str(number)) for number in range(8))) as stream:
        fed = feed(store, stream, progress=lambda fed: waits.append(fed.waiting))
    assert sorted(store.contents, key=str) == [str(number) for number in range(8)]
    assert fed.appended == 8
    assert waits[-1] == ""
    assert ("full; retry after 0 s" in waits) == (cause is not None)


def test_a_lost_reply_is_resolved_and_not_sent_afresh(tmp_path: Path) -> None:
    store = Store()
    retried = []

    def retry() -> list[Receipt]:
        retried.append(True)
        store.contents += ["b", "d"]
        return [receipt(Event(conversation_id="c", event_type="t"))] * 2

    store.faults = iter([OutcomeUnknown("lost", retry=retry, look=lambda: False)])
    with opened(tmp_path, *(line(content) for content in "abcd")) as stream:
        fed = feed(store, stream)
    assert (store.calls, retried, fed.appended) == (1, [True], 4)


def test_a_store_that_takes_nothing_any_more_ends_it_at_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "STALLED_S_MAX", 0)
    store = Store(*[Backpressure("full", retry_after_s=0)] * 20)
    said = "line 2: full; retry after 0 s; 1 event is stored"
    with opened(tmp_path, line("a"), line("b")) as stream, pytest.raises(StoppedAt, match=said):
        feed(store, stream)


def test_what_waiting_cannot_mend_ends_it_at_once(tmp_path: Path) -> None:
    store = Store(SequenceConflict("c", expected_seq=1, last_seq=2))
    with opened(tmp_path, line("a"), line("b")) as stream, pytest.raises(StoppedAt, match="line 2: conversation 'c' is at seq 2"):
        feed(store, stream)
    assert store.calls == 1


@pytest.mark.parametrize("skipping", [False, True])
def test_an_event_the_store_finds_wrong_is_named_by_its_line(skipping: bool, tmp_path: Path) -> None:
    store, kept = Store(InvalidEvent("timestamp", "is ahead", index=1)), list[Rejected]()
    with opened(tmp_path, *(line(content) for content in "abcdef")) as stream:
        if skipping:
            feed(store, stream, reject=kept.append)
            assert [(rejected.number, rejected.reason) for rejected in kept] == [(4, "timestamp: is ahead")]
            assert sorted(map(str, store.contents)) == ["a", "b", "c", "e", "f"]
        else:
            with pytest.raises(StoppedAt, match="line 4: timestamp: is ahead"):
                feed(store, stream)


def test_a_live_pipe_is_appended_as_it_comes() -> None:
    read_end, write_end = os.pipe()
    with FileIO(read_end) as stream, FileIO(write_end, "w") as sink:
        incoming = batches(stream)
        sink.write(b"one\ntwo\nthr")
        assert [numbered.line for numbered in next(incoming)] == [b"one", b"two"]
        sink.write(b"ee\nfour")
        sink.close()
        assert [tuple(numbered) for batch in incoming for numbered in batch] == [(3, b"three"), (4, b"four")]


def test_batches_are_bounded_in_lines_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "BATCH_LINES_MAX", 10)
    monkeypatch.setattr(feeding, "BATCH_BYTES_MAX", 1000)
    with opened(tmp_path, *[b"x"] * 25, *[b"y" * 600] * 4) as stream:
        sizes = [len(batch) for batch in batches(stream)]
    assert sizes == [10, 10, 6, 2, 1] or sizes == [10, 10, 7, 2]
    assert sum(sizes) == 29


def test_a_line_without_end_is_not_kept_whole(tmp_path: Path) -> None:
    with opened(tmp_path, b"x" * (3 * LINE_BYTES_MAX), line("a")) as stream:
        (bad, good) = (numbered for batch in batches(stream) for numbered in batch)
    assert LINE_BYTES_MAX < len(bad.line) <= LINE_BYTES_MAX + feeding.READ_BYTES
    assert good.line == line("a")
