"""How the worker is doing: failures per job, health green or red with the reason, all in <namespace>/worker.json for `status`."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

FILE_NAME = "worker.json"
PROBLEM_CHARS_MAX = 1000
"""Of what is kept of a job's last failure."""
_NAMES = re.compile(r"[0-9a-f]{32}")
"""Names of segments: a settle that fails the same way does so under a new one every time."""


class Health:
    """Failures in a row of every job, and what the worker last did. Written whole and renamed, so never read half."""

    def __init__(self, folder: Path, *, failures_red: int, epoch: int) -> None:
        self._path = folder / FILE_NAME
        self._failures_red = failures_red
        self._failures: dict[str, int] = {}
        self._problems: dict[str, str] = {}
        self._lasting: set[str] = set()
        self._final: dict[str, str] = {}
        self._ran: dict[str, dict[str, Any]] = {}
        self._facts: dict[str, Any] = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "epoch": epoch,
            "started_us": _now_us(),
            "running": True,
        }

    @property
    def problem(self) -> str | None:
        """Why health is red, the gravest reason first; None when it is green."""
        reasons = [*self._final.values()]
        for job, problem in self._problems.items():
            if job in self._lasting or self._failures[job] >= self._failures_red:
                reasons.append(problem)
        return "; ".join(dict.fromkeys(reasons)) or None

    def failures(self, *jobs: str) -> int:
        """In a row until now, of the job that has most."""
        return max(self._failures.get(job, 0) for job in jobs)

    def worked(self, job: str) -> bool:
        """Whether it had failed before."""
        self._ran.setdefault(job, {})["worked_us"] = _now_us()
        self._problems.pop(job, None)
        self._lasting.discard(job)
        return self._failures.pop(job, None) is not None

    def failed(self, job: str, problem: str, *, lasting: bool = False) -> bool:
        """Whether this is news: it did not fail the same way just before.

        lasting  red at once: only a change of settings will mend it
        """
        text = f"{job}: {problem}"
        self._ran.setdefault(job, {}).update(failed_us=_now_us(), problem=problem[:PROBLEM_CHARS_MAX])
        news = _NAMES.sub("", self._problems.get(job, "")) != _NAMES.sub("", text)
        self._failures[job] = self._failures.get(job, 0) + 1
        self._problems[job] = text
        (self._lasting.add if lasting else self._lasting.discard)(job)
        return news

    def stuck(self, job: str, problem: str) -> None:
        """Red at once, until `freed` or the worker starts again."""
        self._ran.setdefault(job, {}).update(failed_us=_now_us(), problem=problem[:PROBLEM_CHARS_MAX])
        self._final[job] = f"{job}: {problem}"

    def freed(self, job: str) -> None:
        self._final.pop(job, None)

    def note(self, **facts: Any) -> None:
        """Things `status` shows."""
        self._facts.update(facts)

    def write(self) -> None:
        """Best effort: a full disk must not stop the worker from saying so elsewhere."""
        said = {
            **self._facts,
            "health": "green" if self.problem is None else "red",
            "problem": self.problem,
            "failures": self._failures,
            "jobs": self._ran,
            "written_us": _now_us(),
        }
        temporary = self._path.with_name(f"{FILE_NAME}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(said, indent=1))
            temporary.replace(self._path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()


def _now_us() -> int:
    return time.time_ns() // 1000
