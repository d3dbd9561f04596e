"""What the kernel holds a child to, so that a hole in DuckDB is not a hole in the machine. Nothing here needs a privilege.

Every guard is asked for; those that this kernel or platform has are named in the answer, none is relied on alone.

limits    memory, CPU time, file size, open files, no core dumps; and a wall clock that ends the process by itself
seccomp   no sockets, no new processes, no look into other processes (Linux on x86-64 and 64-bit ARM)
landlock  no file but those named (Linux from 5.13 on). It holds for the calling thread and those it starts; threads that
          libraries started before run no SQL
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

MEMORY_SLACK_BYTES: Final = 256 << 20
"""What Python, Arrow and DuckDB need beside the memory DuckDB counts."""
ADDRESSES_SLACK_BYTES: Final = 4 << 30
"""Allocators reserve addresses that they never use."""
LATE_S: Final = 5
"""The server kills at the deadline; should it be gone, the process ends itself so much later."""
UNLIMITED: Final = resource.RLIM_INFINITY


def limit_process(*, memory_bytes: int, cpu_s: float, wall_s: float, file_bytes: int, open_files: int) -> None:
    """Lower the limits of this process for good; memory is what it may take beyond what it has now."""
    have = _memory()
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: int(cpu_s) + LATE_S,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: open_files,
        resource.RLIMIT_DATA: have["VmData"] + memory_bytes + MEMORY_SLACK_BYTES if have else UNLIMITED,
        resource.RLIMIT_AS: have["VmSize"] + memory_bytes + ADDRESSES_SLACK_BYTES if have else UNLIMITED,
    }
    for which, wanted in limits.items():
        _, hard = resource.getrlimit(which)
        value = wanted if hard == UNLIMITED else min(wanted, hard) if wanted != UNLIMITED else hard
        with suppress(OSError, ValueError):
            resource.setrlimit(which, (value, value))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, wall_s + LATE_S)


def step_back() -> None:
    """Give way to everyone else: to their CPU time, and when memory is short."""
    with suppress(OSError):
        os.nice(5)
    for path, value in (("/proc/self/autogroup", "5"), ("/proc/self/oom_score_adj", "1000")):
        with suppress(OSError):
            Path(path).write_text(value)


def _memory() -> dict[str, int]:
    """VmSize and VmData of this process in bytes; empty where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    rows = (line.split() for line in lines if line.startswith(("VmSize:", "VmData:")))
    return {row[0].rstrip(":"): int(row[1]) << 10 for row in rows}


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _no_new_privileges(libc: ctypes.CDLL) -> bool:
    return bool(libc.prctl(38, 1, 0, 0, 0) == 0)  # PR_SET_NO_NEW_PRIVS


_DENIED: Final[dict[str, tuple[int, ...]]] = {
    # socket, socketpair, connect, bind, listen, accept, accept4, sendto, sendmsg; execve, execveat; ptrace, process_vm_readv,
    # process_vm_writev, kill, tkill, pidfd_open, pidfd_getfd, pidfd_send_signal; open_by_handle_at, mount, umount2, pivot_root,
    # chroot, unshare, setns; bpf, io_uring_setup, keyctl, add_key, request_key, perf_event_open, userfaultfd
    "x86_64": (
        *(41, 53, 42, 49, 50, 43, 288, 44, 46, 59, 322, 101, 310, 311, 62, 200, 434, 438, 424, 304, 165, 166, 155, 161, 272, 308),
        *(321, 425, 250, 248, 249, 298, 323, 57, 58),  # and fork, vfork
    ),
    "aarch64": (
        *(198, 199, 203, 200, 201, 202, 242, 206, 211, 221, 281, 117, 270, 271, 129, 130, 434, 438, 424, 265, 40, 39, 41, 51, 97),
        *(268, 280, 425, 219, 217, 218, 241, 282),
    ),
}
_AUDIT: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE: Final = {"x86_64": 56, "aarch64": 220}
_CLONE3: Final = 435
_CLONE_THREAD: Final = 0x10000
_X32: Final = 0x40000000
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _GIVE = 0x20, 0x15, 0x35, 0x45, 0x06


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def deny_calls() -> bool:
    """Deny this process and all its threads the system calls of _DENIED, for good; whether that is so."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _DENIED:
        return False
    libc = _libc()
    program = _filter(machine)
    told = _Program(len(program) // 8, program)
    # seccomp(SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC): for threads that are there already too
    number = {"x86_64": 317, "aarch64": 277}[machine]
    return _no_new_privileges(libc) and libc.syscall(number, 1, 1, ctypes.byref(told)) == 0


def _filter(machine: str) -> bytes:
    """The filter as classic BPF; each jump is relative to the next instruction."""

    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    steps = [
        step(_LOAD, 4),  # the architecture
        step(_EQUAL, _AUDIT[machine], yes=1),
        step(_GIVE, _KILL),
        step(_LOAD, 0),  # the number of the call
        step(_AT_LEAST, _X32, no=1),
        step(_GIVE, _ERRNO | _EPERM),
        step(_EQUAL, _CLONE3, no=1),
        step(_GIVE, _ERRNO | _ENOSYS),  # its flags cannot be seen; libraries then take clone
        step(_EQUAL, _CLONE[machine], no=4),
        step(_LOAD, 16),  # the flags of clone: threads are fine, processes are not
        step(_ANY_BIT, _CLONE_THREAD, yes=1),
        step(_GIVE, _ERRNO | _EPERM),
        step(_GIVE, _ALLOW),
    ]
    for number in _DENIED[machine]:
        steps += [step(_EQUAL, number, no=1), step(_GIVE, _ERRNO | _EPERM)]
    return b"".join([*steps, step(_GIVE, _ALLOW)])


_READ_FILE, _WRITE_FILE, _READ_DIR, _TRUNCATE = 1 << 2, 1 << 1, 1 << 3, 1 << 14
_MAKE_AND_REMOVE: Final = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8  # remove folder, remove file, make folder, make file
_IOCTL_DEVICE = 1 << 15
_FILE_RIGHTS_BY_ABI: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_NET_RIGHTS: Final = 0b11  # bind, connect: from ABI 4 on
_SCOPES: Final = 0b11  # abstract sockets, signals: from ABI 6 on


def _landlock_abi(libc: ctypes.CDLL) -> int:
    return int(libc.syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint(1)))


def has_landlock() -> bool:
    """Whether `confine` will hold."""
    return sys.platform == "linux" and _landlock_abi(_libc()) >= 1


def confine(readable: Iterable[str], writable: Iterable[str]) -> bool:
    """Deny this thread, and those it starts, every file but these, for good; whether that is so.

    readable  files; writable  folders
    """
    if sys.platform != "linux":
        return False
    libc = _libc()
    abi = _landlock_abi(libc)
    if abi < 1:
        return False
    handled = _FILE_RIGHTS_BY_ABI[min(abi, 5)]
    told = struct.pack("QQQ", handled, _NET_RIGHTS if abi >= 4 else 0, _SCOPES if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    rules = libc.syscall(444, told, ctypes.c_size_t(size), ctypes.c_uint(0))
    if rules < 0:
        return False
    try:
        _allow(libc, rules, readable, _READ_FILE)
        _allow(libc, rules, writable, (_READ_FILE | _WRITE_FILE | _READ_DIR | _TRUNCATE | _MAKE_AND_REMOVE) & handled)
        return _no_new_privileges(libc) and libc.syscall(446, ctypes.c_int(rules), ctypes.c_uint(0)) == 0
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, paths: Iterable[str], rights: int) -> None:
    for path in paths:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            rule = struct.pack("=Qi", rights, place)
            if libc.syscall(445, ctypes.c_int(rules), ctypes.c_uint(1), rule, ctypes.c_uint(0)) != 0:
                raise OSError(ctypes.get_errno(), "landlock_add_rule", path)
        finally:
            os.close(place)
