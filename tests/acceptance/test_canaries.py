"""Secrets do not leave: commands and a server run at debug level with secrets of our own, and nothing that comes out has one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from tests.acceptance.test_cli import thermocline
from tests.canaries import PASSWORD, Canaries, Searching
from tests.conftest import StartServer
from tests.s3_servers import SECRET_KEY, Bucket
from tests.serve_process import serving
from tests.servers import RedisServer
from tests.serving import event
from thermocline.config import load
from thermocline.masking import MASK, Mask, mask_records, secrets_of, shown

REDIS = "canary/redis@password"
CATALOG = "canary-of-the-catalog"
SESSION = "canary-of-the-session"
WRONG = f"tc_{'0' * 16}_{'canaryCanary' * 3}canaryX"
SIGNED = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.Y2FuYXJ5LXNpZ25hdHVyZQ"
LINE = b'{"conversation_id":"c","event_type":"t","timestamp":"2026-01-01T00:00:00Z"}\n'


class Spoken:
    """All that came out, by where."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def add(self, where: str, text: str) -> None:
        self.texts[where] = self.texts.get(where, "") + text

    def holding(self, secrets: list[str]) -> dict[str, str]:
        """Where a secret is, with what is around it."""
        return {
            f"{where}: {secret}": text[max(0, text.index(secret) - 200) : text.index(secret) + 200]
            for where, text in self.texts.items()
            for secret in secrets
            if secret in text
        }


@pytest.fixture
def server(redis_server: StartServer) -> RedisServer:
    return redis_server(password=REDIS)


@pytest.fixture
def variables(server: RedisServer, moto_bucket: Bucket, tmp_path: Path) -> dict[str, str]:
    """Settings with secrets in every place that takes one."""
    (tmp_path / "thermocline.toml").write_text(f'[cold.catalog_properties]\n"token" = "{CATALOG}"\n')
    return {
        "THERMOCLINE_REDIS_URL": server.url,
        "THERMOCLINE_COLD_URL": moto_bucket.url,
        "THERMOCLINE_LOG_LEVEL": "debug",
        "THERMOCLINE_HOT__SHARDS": "2",
        "AWS_SESSION_TOKEN": SESSION,
    }


@pytest.fixture
def unmasked() -> Iterator[None]:
    """The log is as it was before, afterwards."""
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


@pytest.fixture
def logged(unmasked: None, caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level(logging.DEBUG)
    yield caplog


def secrets_in(variables: dict[str, str]) -> list[str]:
    return [REDIS, quote(REDIS, safe=""), CATALOG, SESSION, SECRET_KEY]


COMMANDS = (
    ["worker", "--once"],
    ["status"],
    ["config", "show"],
    ["config", "show", "-o", "json"],
    ["query", "SELECT count(*) FROM events"],
    ["query", "SELEC"],
    ["doctor"],
    ["archives", "list"],
    ["tokens", "list"],
    ["nonsense"],
)


def test_no_command_tells_a_secret(
    tmp_path: Path, server: RedisServer, variables: dict[str, str], logged: pytest.LogCaptureFixture
) -> None:
    spoken = Spoken()
    (tmp_path / "events.ndjson").write_bytes(LINE * 3)
    for command in (["append", "events.ndjson"], *COMMANDS):
        done = thermocline(tmp_path, *command, **variables)
        spoken.add(" ".join(command), done.stdout + done.stderr)
    server.stop()
    for command in (["status"], ["query", "SELECT 1"], ["doctor"], ["append", "events.ndjson"]):
        done = thermocline(tmp_path, *command, **variables, THERMOCLINE_INGEST__DEADLINE_S="3")
        spoken.add(f"without Redis: {' '.join(command)}", done.stdout + done.stderr)
    for path in (tmp_path / "thermocline-data").rglob("*"):
        if path.suffix in (".json", ".ndjson") or path.name == "LOCK":
            spoken.add(str(path), path.read_text())
    spoken.add("log", logged.text)
    assert len(spoken.texts) > 15
    assert "DEBUG" in logged.text
    assert spoken.holding(secrets_in(variables)) == {}


def test_a_server_at_debug_level_tells_no_secret(tmp_path: Path, variables: dict[str, str]) -> None:
    spoken = Spoken()
    token = thermocline(tmp_path, "tokens", "create", "admin", "--scope", "admin", **variables).stdout.strip()
    with serving(tmp_path, **variables) as running, httpx.Client(base_url=running.url, timeout=600) as client:
        for given in (token, WRONG, SIGNED):
            client.headers["Authorization"] = f"Bearer {given}"
            for answer in (
                client.post("/v1/events", json=[event(), event("c", "")]),
                client.post("/v1/query", json={"sql": f"SELECT '{REDIS}' = '{token}' AS same"}),
                client.post("/v1/query", json={"sql": "SELECT getenv('AWS_SECRET_ACCESS_KEY')"}),
                client.get("/v1/status"),
                client.get("/metrics"),
                client.get("/v1/conversations/c/events"),
                client.get(f"/{given}"),
            ):
                spoken.add(
                    f"{answer.request.method} {answer.request.url.path[:20]} {answer.status_code}",
                    answer.text + str(answer.headers),
                )
        assert running.stop() == 0
        spoken.add("stderr", running.said)
    spoken.add("audit", (tmp_path / "thermocline-data/default/audit.ndjson").read_text())
    assert "DEBUG" in spoken.texts["stderr"]
    assert MASK in spoken.texts["audit"]
    assert spoken.holding([*secrets_in(variables), token, WRONG, SIGNED]) == {}


def test_what_searches_everything_finds_secrets_in_logs_and_texts(unmasked: None) -> None:
    logging.setLogRecordFactory(logging.LogRecord)  # a command that ran in this process may have masked what it logs from then on
    found = Canaries()
    logger = logging.Logger("one of its own")
    logger.addHandler(Searching(found))
    logger.debug("nothing of ours: %s", "unix:///a.sock")
    assert found.found == []
    logger.debug("to %s", f"redis://:{quote(PASSWORD, safe='')}@host")
    found.search("stdout", f"{PASSWORD} and {SECRET_KEY}")
    found.search("a file", f"Bearer {WRONG}")
    found.search("an answer", f"Bearer {WRONG}", tokens=False)
    assert [one.partition(":")[0] for one in found.found] == ["log of one of its own", "stdout", "stdout", "a file"]


def test_what_is_masked_is_every_secret_that_settings_take() -> None:
    settings = load(
        {
            "redis_url": "redis://user:p%40ss-word@h/0",
            "ledger_url": "postgresql://u:other-secret@h/d",
            "cold": {
                "catalog_url": "http://u:third-secret@h",
                "catalog_properties": {"token": "fourth-secret", "warehouse": "w"},
            },
        },
        environ={},
    )
    found = secrets_of(settings, {"AWS_SECRET_ACCESS_KEY": "fifth-secret", "AWS_REGION": "us-east-1"})
    assert set(found) == {"p%40ss-word", "p@ss-word", "other-secret", "third-secret", "fourth-secret", "fifth-secret"}
    text = Mask(found).text(f"{' '.join(found)} {WRONG} {SIGNED} warehouse us-east-1 tc_short")
    assert text == f"{' '.join([MASK] * (len(found) + 2))} warehouse us-east-1 tc_short"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("redis_url", "redis://:secret@h/0", "redis://:***@h/0"),
        ("cold.catalog_properties.token", "secret", MASK),
        ("cold.catalog_properties.s3.secret-access-key", "secret", MASK),
        ("cold.catalog_properties.warehouse", "w", "w"),
        ("hot.shards", 16, 16),
    ],
)
def test_settings_are_shown_without_their_secrets(key: str, value: object, expected: object) -> None:
    assert shown(key, value) == expected


def test_a_stack_trace_in_the_log_is_masked_too(unmasked: None, caplog: pytest.LogCaptureFixture) -> None:
    mask_records(load({"redis_url": "redis://:a-secret-word@h/0"}, environ={}))
    try:
        raise ValueError("a-secret-word")
    except ValueError:
        logging.getLogger("x").exception("it was %s", "a-secret-word")
    assert "a-secret-word" not in caplog.text
    assert f"it was {MASK}" in caplog.text
    assert f"ValueError: {MASK}" in caplog.text
