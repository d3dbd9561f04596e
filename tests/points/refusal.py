"""Let every write to a file fail in this process, from now on and for good: a seccomp filter, which needs no root.

Writes to stdin, stdout and stderr and what goes over sockets by send and recv go on, so that Redis answers and a last word can
be said. Memory maps are not stopped.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Mapping
from typing import Final

PR_SET_NO_NEW_PRIVS: Final = 38
SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_FILTER_FLAG_TSYNC: Final = 1
RET_ALLOW: Final = 0x7FFF0000
RET_ERRNO: Final = 0x00050000
LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
EQUALS: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
GREATER: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
RETURN: Final = 0x06  # BPF_RET | BPF_K
NUMBER_AT: Final = 0
ARCH_AT: Final = 4
FIRST_ARGUMENT_AT: Final = 16
"""Offsets in struct seccomp_data; the low half of the argument, as both machines are little-endian."""
LAST_STANDARD: Final = 2
_BY_DESCRIPTOR: Final = {"x86_64": (1, 20), "aarch64": (64, 66)}
"""write, writev: allowed to stdin, stdout and stderr."""
_ALWAYS: Final = {
    # pwrite64 fsync fdatasync ftruncate rename link sendfile renameat linkat fallocate pwritev renameat2 copy_file_range pwritev2
    "x86_64": (18, 74, 75, 77, 82, 86, 40, 264, 265, 285, 296, 316, 326, 328),
    # pwrite64 fsync fdatasync ftruncate sendfile renameat linkat fallocate pwritev renameat2 copy_file_range pwritev2
    "aarch64": (68, 82, 83, 46, 71, 38, 37, 47, 70, 276, 285, 287),
}
_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def refuse_writes(error: int = errno.EIO) -> None:
    """Every write to a file, fsync, rename and link fails with `error` from here on, in all threads. NotImplementedError on
    machines whose system call numbers are not known here."""
    machine = _known(platform.machine(), _SECCOMP)
    instructions = _filter(machine, error)
    code = (_Instruction * len(instructions))(*instructions)
    program = _Program(len(instructions), code)
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    number, flags = _SECCOMP[machine], SECCOMP_FILTER_FLAG_TSYNC
    _check(libc.syscall(number, SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(program)), "seccomp")


def _known(machine: str, known: Mapping[str, object]) -> str:
    if platform.system() != "Linux" or machine not in known:
        raise NotImplementedError(f"{platform.system()} on {machine}: its system call numbers are not in {__name__}")
    return machine


def _filter(machine: str, error: int) -> list[_Instruction]:
    refuse = _Instruction(RETURN, 0, 0, RET_ERRNO | error)
    allow = _Instruction(RETURN, 0, 0, RET_ALLOW)
    found = [_Instruction(LOAD, 0, 0, ARCH_AT), _Instruction(EQUALS, 1, 0, _ARCH[machine]), allow]
    found.append(_Instruction(LOAD, 0, 0, NUMBER_AT))
    for number in _ALWAYS[machine]:
        found += [_Instruction(EQUALS, 0, 1, number), refuse]
    for number in _BY_DESCRIPTOR[machine]:
        found += [_Instruction(EQUALS, 0, 4, number), _Instruction(LOAD, 0, 0, FIRST_ARGUMENT_AT)]
        found += [_Instruction(GREATER, 0, 1, LAST_STANDARD), refuse, allow]
    return [*found, allow]


def _check(result: int, call: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
