"""The end of a worker process that is told to stop: in time, whatever its threads are doing.

Python calls a signal's handler between two steps of the main thread, which may wait for half a minute inside SQLite. So the
signal also wakes a thread, by a byte that the system's own handler writes: it says that the worker should stop, and when the
process is still there after a while, it ends it. Every step can be cut short anywhere, and is repeated by the next start.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("thermocline.worker")
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def ending(tell: Callable[[], object], *, within_s: float) -> Iterator[None]:
    """Meanwhile SIGTERM and SIGINT call `tell`, in any thread, and end the process with code 0 unless the block is left within
    that time. Main thread only."""
    awake, wake = socket.socketpair()
    wake.setblocking(False)
    left = threading.Event()
    thread = threading.Thread(target=_watch, args=(awake, tell, left, within_s), name="thermocline-termination", daemon=True)
    thread.start()
    fd_before = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)  # first: no signal is missed that has a handler
    before = {number: signal.signal(number, lambda *_: tell()) for number in SIGNALS}
    try:
        yield
    finally:
        left.set()
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(fd_before)
        wake.close()
        thread.join()
        awake.close()


def _watch(awake: socket.socket, tell: Callable[[], object], left: threading.Event, within_s: float) -> None:
    """Wait for a signal, then for the end."""
    while number := awake.recv(1):
        if number[0] in SIGNALS:
            tell()
            if not left.wait(within_s):
                log.warning("the step in hand takes too long: it is left, and repeated at the next start")
                logging.shutdown()
                sys.stderr.flush()
                os._exit(0)
            return


__all__ = ["ending"]
