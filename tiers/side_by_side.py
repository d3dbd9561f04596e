"""Tasks in threads of their own, a few at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor


def side_by_side(tasks: Sequence[Callable[[], None]], *, at_once: int) -> None:
    """Run all tasks, begun in their order. After an error those under way come to their end, no more begin, and it is raised."""
    failed = threading.Event()

    def run(task: Callable[[], None]) -> None:
        try:
            if not failed.is_set():
                task()
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(at_once, "thermocline-beside") as pool:
        try:
            for one in [pool.submit(run, task) for task in tasks]:
                one.result()
        except BaseException:
            failed.set()
            raise
