"""Records of strace, read: every change, in the order of the ends of the calls, and nothing that is not understood."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash_disk import Allocate, Change, Link, MakeFolder, Mark, Open, Rename, Resize, Sync, Unlink, Write
from tests.traced import Unreadable, read_trace, run_traced

LINE = "one\n"


def hexed(text: str | bytes) -> str:
    data = text.encode() if isinstance(text, str) else text
    return "".join(f"\\x{byte:02x}" for byte in data)


def opened(path: str, descriptor: int, flags: str = "O_WRONLY|O_CREAT|O_CLOEXEC", pid: int = 7) -> str:
    return f'{pid}  openat(AT_FDCWD<{hexed("/cwd")}>, "{hexed(path)}", {flags}, 0666) = {descriptor}<{hexed(path)}>'


def on(descriptor: int, path: str) -> str:
    return f"{descriptor}<{hexed(path)}>"


def changes(tmp_path: Path, *lines: str) -> list[Change]:
    record = tmp_path / "record"
    record.write_text("".join(f"{line}\n" for line in lines))
    return read_trace(record, Path("/d"), Path("/marks"))


def test_every_sort_of_change_is_read(tmp_path: Path) -> None:
    a = on(3, "/d/a")
    found = changes(
        tmp_path,
        f'7  mkdir("{hexed("/d/f")}", 0777) = 0',
        opened("/d/a", 3, "O_RDWR|O_CREAT|O_TRUNC"),
        f'7  write({a}, "{hexed("he")}", 2) = 2',
        f'7  write({a}, "{hexed("llo")}", 3) = 1',
        f'7  pwrite64({a}, "{hexed(b"x")}", 1, 9) = 1',
        f'7  writev({a}, [{{iov_base="{hexed("a")}", iov_len=1}}, {{iov_base="{hexed("b")}", iov_len=1}}], 2) = 2',
        f"7  lseek({a}, 1, SEEK_SET) = 1",
        f'7  write({a}, "{hexed("z")}", 1) = 1',
        f"7  ftruncate({a}, 4) = 0",
        f"7  fallocate({a}, 0, 4, 10) = 0",
        f"7  fsync({a}) = 0",
        f"7  close({a}) = 0",
        f'7  rename("{hexed("/d/a")}", "{hexed("/d/f/b")}") = 0',
        f'7  linkat(AT_FDCWD<{hexed("/cwd")}>, "{hexed("/d/f/b")}", {on(4, "/d/f")}, "{hexed("c")}", 0) = 0',
        f'7  unlinkat({on(4, "/d/f")}, "{hexed("b")}", 0) = 0',
    )
    assert found == [
        MakeFolder("f"),
        Open(1, "a", True),
        Write(1, 0, b"he"),
        Write(1, 2, b"l"),
        Write(1, 9, b"x"),
        Write(1, 3, b"ab"),
        Write(1, 1, b"z"),
        Resize(1, 4),
        Allocate(1, 14),
        Sync(1, 9),
        Rename("a", "f/b"),
        Link("f/b", "f/c"),
        Unlink("f/b"),
    ]


def test_what_is_elsewhere_or_failed_or_is_sqlites_shared_memory_is_left_out(tmp_path: Path) -> None:
    assert not changes(
        tmp_path,
        opened("/elsewhere", 3),
        f'7  write({on(3, "/elsewhere")}, "{hexed("x")}", 1) = 1',
        f'7  mkdir("{hexed("/d/f")}", 0777) = -1 EEXIST (File exists)',
        opened("/d/ledger.db-shm", 4),
        f'7  pwrite64({on(4, "/d/ledger.db-shm")}, "{hexed("x")}", 1, 0) = 1',
        "7  +++ exited with 0 +++",
    )


def test_an_append_goes_to_the_end_and_a_mark_is_a_line(tmp_path: Path) -> None:
    found = changes(
        tmp_path,
        opened("/d/a", 3, "O_WRONLY|O_CREAT|O_APPEND"),
        f'7  write({on(3, "/d/a")}, "{hexed("x")}", 1) = 1',
        opened("/marks", 5),
        f'7  write({on(5, "/marks")}, "{hexed(LINE)}", 4) = 4',
    )
    assert found == [Open(1, "a", False), Write(1, None, b"x"), Mark("one")]


def test_an_fsync_covers_what_had_ended_when_it_began(tmp_path: Path) -> None:
    a = on(3, "/d/a")
    found = changes(
        tmp_path,
        opened("/d/a", 3),
        f'7  pwrite64({a}, "{hexed("1")}", 1, 0) = 1',
        f'8  pwrite64({a}, "{hexed("2")}", 1, 1 <unfinished ...>',
        f"9  fdatasync({a} <unfinished ...>",
        "8  <... pwrite64 resumed>) = 1",
        f'7  pwrite64({a}, "{hexed("3")}", 1, 2) = 1',
        "9  <... fdatasync resumed>) = 0",
    )
    assert found == [Open(1, "a", False), Write(1, 0, b"1"), Write(1, 1, b"2"), Write(1, 2, b"3"), Sync(1, since=2)]


def test_descriptors_that_are_the_same_file_share_their_place(tmp_path: Path) -> None:
    found = changes(
        tmp_path,
        opened("/d/a", 3),
        f"7  dup({on(3, '/d/a')}) = {on(4, '/d/a')}",
        f'7  write({on(3, "/d/a")}, "{hexed("x")}", 1) = 1',
        f'7  write({on(4, "/d/a")}, "{hexed("y")}", 1) = 1',
    )
    assert found[1:] == [Write(1, 0, b"x"), Write(1, 1, b"y")]


def test_the_number_of_a_file_that_is_being_closed_may_be_given_anew(tmp_path: Path) -> None:
    found = changes(
        tmp_path,
        opened("/d/a", 3),
        f"8  close({on(3, '/d/a')} <unfinished ...>",
        opened("/d/b", 3),
        "8  <... close resumed>) = 0",
        f'7  write({on(3, "/d/b")}, "{hexed("x")}", 1) = 1',
    )
    assert found == [Open(1, "a", False), Open(2, "b", False), Write(2, 0, b"x")]


@pytest.mark.parametrize(
    "line",
    [
        f'7  write({on(9, "/d/a")}, "{hexed("x")}", 1) = 1',
        f"7  mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, {on(3, '/d/a')}, 0) = 0x7f00",
        f"7  sendfile({on(3, '/d/a')}, {on(5, '/x')}, NULL, 10) = 10",
        f'7  write({on(3, "/d/a")}, "{hexed("x")}"..., 1) = 1',
        f'7  rename("{hexed("/d/a")}", "{hexed("/x")}") = 0',
        f'7  renameat2(AT_FDCWD, "{hexed("/d/a")}", AT_FDCWD, "{hexed("/d/b")}", RENAME_EXCHANGE) = 0',
        f'7  symlink("{hexed("/d/a")}", "{hexed("/d/b")}") = 0',
        f"7  fallocate({on(3, '/d/a')}, FALLOC_FL_PUNCH_HOLE, 0, 1) = 0",
        opened("/d/b", 4, "O_WRONLY|O_CREAT|O_DSYNC"),
        "7  sync() = 0",
        "7  io_uring_setup(8, 0x7ffe) = 5",
        "not a line of strace",
    ],
)
def test_what_is_not_understood_is_an_error(tmp_path: Path, line: str) -> None:
    with pytest.raises(Unreadable):
        changes(tmp_path, opened("/d/a", 3), line)


def test_another_process_that_writes_there_is_an_error(tmp_path: Path) -> None:
    lines = [opened("/d/a", 3), "7  vfork() = 8"]
    assert changes(tmp_path, *lines, f"8  close({on(3, '/d/a')}) = 0", f'7  write({on(3, "/d/a")}, "{hexed("x")}", 1) = 1')
    with pytest.raises(Unreadable):
        changes(tmp_path, *lines, f'8  write({on(3, "/d/a")}, "{hexed("x")}", 1) = 1')


def test_a_thread_is_not_another_process(tmp_path: Path) -> None:
    thread = "7  clone3({flags=CLONE_VM|CLONE_FS|CLONE_FILES|CLONE_THREAD, exit_signal=0}, 88) = 8"
    assert len(changes(tmp_path, opened("/d/a", 3), thread, f'8  write({on(3, "/d/a")}, "{hexed("x")}", 1) = 1')) == 2


def test_without_strace_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="apt-get install strace"):
        run_traced(["true"], tmp_path / "record")
