"""The audit log: one JSON object a line, for whatever was read and every act of an administrator; rotated, so many and no more.

`<data dir>/<namespace>/audit.ndjson`, then `.1` (newest) to `.n`. Lines of several processes do not mix.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import logging
import os
from pathlib import Path
from typing import Any, Final

import orjson

from thermocline.config import Settings
from thermocline.masking import mask_of

log = logging.getLogger("thermocline.serve")
FILE_NAME: Final = "audit.ndjson"
TEXT_MAX: Final = 4096
"""Characters of one value; the length of what is longer is told."""


class Audit:
    """Writes to the log of one namespace. Thread-safe; a full disk is told once in the server's log and stops nothing."""

    def __init__(self, settings: Settings) -> None:
        self.path = settings.namespace_dir / FILE_NAME
        self._bytes_max = settings.serve.audit_bytes_max
        self._files_max = settings.serve.audit_files_max
        self._mask = mask_of(settings)
        self.lines = 0
        self.failures = 0

    def write(self, **facts: Any) -> None:
        """Keep one line: the time, and these."""
        record = {"at": f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%S.%fZ}"}
        record |= {name: self._shown(value) for name, value in facts.items() if value is not None}
        line = orjson.dumps(record) + b"\n"
        try:
            self._append(line)
            self.lines += 1
        except OSError as exc:
            if not self.failures:
                log.error("%s: %s: what is asked is not recorded", self.path, exc.strerror)
            self.failures += 1

    def _append(self, line: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path.with_name(f"{FILE_NAME}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.path.exists() and self.path.stat().st_size + len(line) > self._bytes_max:
                self._rotate()
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(file, line)
            finally:
                os.close(file)
        finally:
            os.close(lock)

    def _rotate(self) -> None:
        for number in range(self._files_max, 0, -1):
            older = self._numbered(number)
            newer = self._numbered(number - 1) if number > 1 else self.path
            if newer.exists():
                newer.replace(older)

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{FILE_NAME}.{number}")

    def _shown(self, value: Any) -> Any:
        """The value without secrets, cut when it is long, and always UTF-8."""
        if not isinstance(value, str):
            return value
        text = self._mask.text(value).encode(errors="backslashreplace").decode()
        return text if len(text) <= TEXT_MAX else f"{text[:TEXT_MAX]}… ({len(text):,} characters)"
