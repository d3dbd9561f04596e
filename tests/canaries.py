"""The whole suite with secrets of our own, at debug level: `python3 run.py test --canaries`.

Every Redis that a test starts asks for a password that nobody would write by chance; the keys of S3 are the tests' own. All is
logged from debug level on, here and in the processes of workers and servers. Whatever comes out is searched: records of the log,
what a test and the processes it starts say, our errors, answers over HTTP, and the files of logs that a test leaves. A test that
lets a secret out fails, and says where it was.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx
import pytest

from tests.s3_servers import SECRET_KEY
from tests.servers import DEFAULT_PASSWORD
from thermocline.errors import ThermoclineError
from thermocline.masking import TOKENS

PASSWORD: Final = "canary/redis@password"
AROUND: Final = 200
"""Characters shown on either side of a secret."""
LOGS: Final = ("*.log", "*.ndjson", "worker.json")
FILE_BYTES_MAX: Final = 64 << 20
TALKATIVE: Final = ("worker", "serve")
"""Commands whose processes log at debug level; what others say is compared to the letter by their tests."""


class Canaries:
    """A plugin of pytest. `found` has, for the test under way, where a secret was and what was around it."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def search(self, where: str, text: str, *, tokens: bool = True) -> None:
        """Look for secrets in what came out. tokens: also for whatever is a token."""
        places = [text.index(secret) for secret in (PASSWORD, quote(PASSWORD, safe=""), SECRET_KEY) if secret in text]
        places += [match.start() for match in TOKENS.finditer(text)] if tokens else []
        self.found += [f"{where}: …{text[max(0, place - AROUND) : place + AROUND]}…" for place in places]

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """What tests read in the log is what it has otherwise, unless they ask for more."""
        handler = session.config.pluginmanager.getplugin("logging-plugin").caplog_handler  # type: ignore[union-attr]
        handler.addFilter(lambda record: record.levelno >= logging.WARNING or handler.level > logging.NOTSET)

    def pytest_runtest_logstart(self) -> None:
        """A command that an earlier test ran in this process has masked what is logged from then on."""
        logging.setLogRecordFactory(logging.LogRecord)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.when != "teardown":
            return report
        for name, text in report.sections:
            self.search(name, text, tokens=False)
        folder = getattr(item, "funcargs", {}).get("tmp_path")
        for path in [path for pattern in LOGS for path in Path(folder).rglob(pattern)] if folder else []:
            if path.is_file() and path.stat().st_size <= FILE_BYTES_MAX:
                self.search(str(path), path.read_text(errors="replace"))
        found, self.found = self.found, []
        if found:
            report.outcome = "failed"
            report.longrepr = "a secret came out:\n" + "\n".join(found[:20])
        return report


class Searching(logging.Handler):
    """Searches every record of the log."""

    def __init__(self, canaries: Canaries) -> None:
        super().__init__(logging.DEBUG)
        self._canaries = canaries

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = logging.Formatter().format(record)
        except (TypeError, ValueError):
            return  # pytest fails the test for it
        self._canaries.search(f"log of {record.name}", text)


def begin(config: pytest.Config) -> None:
    """Make this process, and all that it starts, one with canaries."""
    os.environ[DEFAULT_PASSWORD] = PASSWORD
    canaries = Canaries()
    config.pluginmanager.register(canaries, "canaries")
    logging.getLogger().setLevel(logging.DEBUG)
    logging.getLogger().addHandler(Searching(canaries))
    _search_errors(canaries)
    _search_processes(canaries)
    _search_answers(canaries)


def _search_errors(canaries: Canaries) -> None:
    def init(self: ThermoclineError, *args: object) -> None:
        super(ThermoclineError, self).__init__(*args)
        canaries.search(type(self).__name__, " ".join(map(str, args)))

    ThermoclineError.__init__ = init  # type: ignore[method-assign]


def _search_processes(canaries: Canaries) -> None:
    start, communicate = subprocess.Popen.__init__, subprocess.Popen.communicate

    def started(self: subprocess.Popen[Any], args: Any, *rest: Any, **named: Any) -> None:
        if not isinstance(args, (str, bytes, os.PathLike)) and any(word in args for word in TALKATIVE):
            named["env"] = {**(named.get("env") or os.environ), "THERMOCLINE_LOG_LEVEL": "debug"}
        start(self, args, *rest, **named)

    def told(self: subprocess.Popen[Any], *args: Any, **named: Any) -> tuple[Any, Any]:
        outputs = communicate(self, *args, **named)
        for name, output in zip(("stdout", "stderr"), outputs, strict=True):
            text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
            canaries.search(f"{name} of {self.args!r}", text, tokens=False)
        return outputs

    subprocess.Popen.__init__ = started  # type: ignore[method-assign,assignment]
    subprocess.Popen.communicate = told  # type: ignore[method-assign]


def _search_answers(canaries: Canaries) -> None:
    send = httpx.Client.send

    def sent(self: httpx.Client, request: httpx.Request, **named: Any) -> httpx.Response:
        response = send(self, request, **named)
        if response.is_stream_consumed:
            where = f"{request.method} {request.url.path} {response.status_code}"
            canaries.search(where, f"{response.headers} {response.text}", tokens=False)
        return response

    httpx.Client.send = sent  # type: ignore[method-assign]
