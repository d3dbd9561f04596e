"""The simulated disk: what it must keep, what it may lose, and what it must be able to lose."""

from __future__ import annotations

from random import Random

import pytest

from tests.crash_disk import (
    Allocate,
    Change,
    Disk,
    Link,
    Loss,
    MakeFolder,
    Mark,
    Open,
    Rename,
    Resize,
    Sync,
    Tree,
    Unlink,
    Write,
)

ROOT = Open(99, "")
LONG = b"".join(bytes([number]) * 512 for number in range(1, 41))
"""40 sectors, 5 pages, each sector unlike the others."""


def disk_after(*changes: Change) -> Disk:
    disk = Disk()
    for change in changes:
        disk.apply(change)
    return disk


def synced(handle: int) -> Sync:
    """An fsync that covers everything before it."""
    return Sync(handle, 1 << 30)


def seen(disk: Disk, loss: Loss, *, times: int = 300) -> list[Tree]:
    """Every tree found there may be, of so many."""
    found: list[Tree] = []
    for seed in range(times):
        tree = disk.after_power_loss(loss, Random(seed))
        if tree not in found:
            found.append(tree)
    return found


def test_a_dead_process_leaves_everything_it_changed() -> None:
    disk = disk_after(
        MakeFolder("f"),
        Open(1, "f/a"),
        Write(1, 0, b"hello"),
        Write(1, None, b" all"),
        Resize(1, 7),
        Allocate(1, 9),
        Link("f/a", "b"),
    )
    assert disk.tree() == {"f": None, "f/a": b"hello a\0\0", "b": b"hello a\0\0"}
    for change in (Rename("b", "f/a"), Open(2, "f/a", truncate=True), Write(2, 2, b"x"), Unlink("f/a")):
        disk.apply(change)
    assert disk.tree() == {"f": None}


@pytest.mark.parametrize("loss", list(Loss))
def test_what_is_synced_with_its_name_survives_every_loss_of_power(loss: Loss) -> None:
    disk = disk_after(Open(1, "a"), Write(1, 0, LONG), synced(1), ROOT, synced(99))
    assert seen(disk, loss) == [{"a": LONG}]


def test_a_synced_file_whose_folder_is_not_synced_has_no_name() -> None:
    disk = disk_after(Open(1, "a"), Write(1, 0, b"hello"), synced(1))
    assert seen(disk, Loss.CUT) == [{}]
    assert {"a": b"hello"} in seen(disk, Loss.ORDERED)


def test_a_name_without_bytes_is_an_empty_file() -> None:
    disk = disk_after(Open(1, "a"), Write(1, 0, b"hello"), ROOT, synced(99))
    assert seen(disk, Loss.CUT) == [{"a": b""}]


def test_a_file_in_a_folder_whose_name_is_lost_is_lost_too() -> None:
    disk = disk_after(MakeFolder("f"), Open(1, "f/a"), Write(1, 0, b"x"), synced(1), Open(2, "f"), synced(2))
    assert seen(disk, Loss.CUT) == [{}]


def test_an_fsync_covers_only_what_was_finished_when_it_began() -> None:
    disk = disk_after(Open(1, "a"), ROOT, synced(99), Write(1, 0, b"old"), Write(1, 0, b"new"), Sync(1, since=4))
    assert seen(disk, Loss.CUT) == [{"a": b"old"}]


def test_a_rename_is_there_as_one_or_not_at_all() -> None:
    disk = disk_after(
        Open(1, "tmp"), Write(1, 0, b"new"), synced(1), Open(2, "a"), Write(2, 0, b"old"), synced(2), ROOT, synced(99)
    )
    disk.apply(Rename("tmp", "a"))
    before, after = {"a": b"old", "tmp": b"new"}, {"a": b"new"}
    assert seen(disk, Loss.CUT) == [before]
    for loss in (Loss.ORDERED, Loss.REORDERED):
        found = seen(disk, loss)
        assert before in found and after in found and len(found) == 2
    disk.apply(synced(99))
    assert seen(disk, Loss.REORDERED) == [after]


def test_an_unlinked_file_comes_back_with_what_was_synced_of_it() -> None:
    disk = disk_after(Open(1, "journal"), Write(1, 0, b"undo"), synced(1), ROOT, synced(99), Unlink("journal"))
    assert disk.tree() == {}
    assert seen(disk, Loss.CUT) == [{"journal": b"undo"}]


def test_a_name_that_is_safe_is_not_changed_by_what_came_before_it() -> None:
    disk = disk_after(MakeFolder("f"), MakeFolder("g"), ROOT, synced(99))
    for change in (Open(1, "f/a"), Rename("f/a", "g/a"), Open(2, "g"), synced(2)):
        disk.apply(change)
    for loss in Loss:
        assert seen(disk, loss) == [{"f": None, "g": None, "g/a": b""}]


def test_ordered_names_are_those_of_one_moment_and_reordered_ones_are_not() -> None:
    disk = disk_after(Open(1, "a"), Open(2, "b"))
    assert {frozenset(tree) for tree in seen(disk, Loss.ORDERED)} == {frozenset(), frozenset("a"), frozenset("ab")}
    assert frozenset("b") in {frozenset(tree) for tree in seen(disk, Loss.REORDERED)}


def test_the_last_write_is_torn_between_sectors_and_never_within_one() -> None:
    disk = disk_after(Open(1, "a"), ROOT, synced(99), Write(1, 0, LONG))
    found = [tree["a"] or b"" for tree in seen(disk, Loss.ORDERED)]
    assert all(LONG.startswith(content) and len(content) % 512 == 0 for content in found)
    assert any(0 < len(content) < len(LONG) and len(content) % 4096 for content in found)
    for content in [tree["a"] or b"" for tree in seen(disk, Loss.REORDERED)]:
        sectors = {content[start : start + 512] for start in range(0, len(content), 512)}
        assert sectors <= {bytes(512), *(LONG[start : start + 512] for start in range(0, len(LONG), 512))}


def test_sectors_are_those_of_the_file_not_of_the_write() -> None:
    disk = disk_after(Open(1, "a"), ROOT, synced(99), Write(1, 0, b"x" * 100), synced(1), Write(1, 100, b"y" * 1000))
    assert {len(tree["a"] or b"") for tree in seen(disk, Loss.ORDERED)} == {100, 512, 1024, 1100}


def test_reordered_writes_of_one_file_come_in_any_choice() -> None:
    disk = disk_after(Open(1, "a"), ROOT, synced(99), Write(1, 0, b"A"), Write(1, 1, b"B"))
    assert {tree["a"] for tree in seen(disk, Loss.REORDERED)} == {b"", b"A", b"\0B", b"AB"}
    assert {tree["a"] for tree in seen(disk, Loss.ORDERED)} == {b"", b"A", b"AB"}


def test_a_length_may_come_without_its_bytes() -> None:
    disk = disk_after(Open(1, "a"), Write(1, 0, b"kept"), synced(1), Write(1, 4, b"lost"))
    assert {"a": b"kept\0\0\0\0"} in seen(disk, Loss.ZEROS)


def test_two_names_of_a_file_have_the_same_bytes() -> None:
    disk = disk_after(Open(1, "a"), Link("a", "b"), ROOT, synced(99), *(Write(1, at, b"x") for at in range(9)))
    for loss in Loss:
        assert all(tree["a"] == tree["b"] for tree in seen(disk, loss, times=50))


def test_a_process_that_dies_within_a_write_leaves_whole_pages_of_it() -> None:
    disk = disk_after(Open(1, "a"), Write(1, 0, b"x" * 100))
    change = Write(1, None, LONG)
    found = {disk.within(change, Random(seed))["a"] for seed in range(100)}
    assert found == {b"x" * 100 + LONG[: pages * 4096 - 100] for pages in range(1, 6)}
    assert disk.within(Unlink("a"), Random(0)) == disk.tree()


def test_changes_say_whether_anything_is_different() -> None:
    disk = Disk()
    told = [
        (Open(1, "a"), True),
        (Open(2, "a"), False),
        (Open(2, "a", truncate=True), False),
        (Write(1, 0, b"x"), True),
        (synced(1), True),
        (synced(1), False),
        (Mark("x"), False),
        (Allocate(1, 1), False),
        (Open(2, "a", truncate=True), True),
        (ROOT, False),
        (synced(99), True),
        (Unlink("a"), True),
    ]
    assert [disk.apply(change) for change, _ in told] == [different for _, different in told]
    with pytest.raises(KeyError):
        disk.apply(Unlink("a"))
