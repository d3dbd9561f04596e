"""`thermocline serve` and `thermocline tokens` as their users have them."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.test_cli import failed, process, succeeded, thermocline
from tests.serve_process import serving
from tests.serving import event
from tests.waiting import wait_until
from thermocline.tiers import embedded


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    embedded.stop(tmp_path / "thermocline-data")


def test_it_serves_settles_and_ends_in_order(folder: Path) -> None:
    quick = {"THERMOCLINE_WARM__SETTLE_LATEST_S": "0.1", "THERMOCLINE_WARM__SETTLE_AFTER_S": "0.1"}
    with serving(folder, **quick) as running, httpx.Client(base_url=running.url, timeout=600) as client:
        client.post("/v1/events", json=[event(content=str(number)) for number in range(10)]).raise_for_status()

        def settled() -> bool:
            tiers = {tier["tier"]: tier["events"] for tier in client.get("/v1/status").json()["tiers"]}
            return bool(tiers == {"hot": 0, "warm": 10, "cold": 0})

        wait_until(settled, 600, "the worker beside it settles")
        with client.stream("GET", "/v1/tail") as stream:
            lines = stream.iter_lines()
            next(lines)
            assert running.stop() == 0
            assert any("the server ends" in line for line in lines)
        assert "worker stopped" in running.said
        assert "Traceback" not in running.said
    assert json.loads(succeeded(folder, "query", "SELECT count(*) AS n FROM events", "-o", "json")) == [{"n": 10}]


def test_where_another_works_it_serves_without_a_worker(folder: Path) -> None:
    with serving(folder) as first, serving(folder) as second:
        wait_until(lambda: "another worker has this namespace" in second.said, 600, "the second says so")
        assert httpx.get(f"{second.url}/readyz", timeout=600).status_code == 200
        assert (first.stop(), second.stop()) == (0, 0)


def test_a_port_that_is_taken_is_named(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = failed(folder, "serve", "--port", str(taken.getsockname()[1]), code=1)
    assert "serve.port" in said
    assert "choose another" in said


def test_without_tokens_it_refuses_to_be_reached_by_others(folder: Path) -> None:
    said = failed(folder, "serve", "--host", "0.0.0.0", code=1)
    assert "thermocline tokens create" in said
    assert not (folder / "thermocline-data").exists()


def test_settings_that_do_not_fit_are_named(folder: Path) -> None:
    assert "serve.jwt_audience" in failed(folder, "serve", code=1, THERMOCLINE_SERVE__JWT_ISSUER="https://issuer.example.org")


def test_tokens_are_made_listed_and_revoked(folder: Path) -> None:
    made = thermocline(
        folder, "tokens", "create", "agent", "--scope", "append", "--scope", "query", "--days", "1", "--only", "default"
    )
    assert made.returncode == 0
    token = made.stdout.strip()
    assert token.startswith("tc_")
    assert "the only time" in made.stderr
    assert token not in made.stderr
    [row] = json.loads(succeeded(folder, "tokens", "list", "-o", "json"))
    assert (row["name"], row["scopes"], row["namespaces"], row["state"]) == ("agent", ["append", "query"], ["default"], "good")
    assert "agent" in succeeded(folder, "tokens", "list")
    assert "tokens list" in failed(folder, "tokens", "revoke", "nobody", code=1)
    succeeded(folder, "tokens", "revoke", "agent")
    assert json.loads(succeeded(folder, "tokens", "list", "-o", "json"))[0]["state"] == "revoked"
    assert failed(folder, "tokens", "create", "x", "--scope", "all", code=1).startswith("thermocline: scope: all")
    log = [json.loads(line) for line in (folder / "thermocline-data/default/audit.ndjson").read_text().splitlines()]
    assert [(line["action"], line["name"]) for line in log] == [("tokens create", "agent"), ("tokens revoke", "agent")]
    assert token.split("_", 2)[2] not in json.dumps(log)


def test_a_store_can_be_made_where_there_are_tokens_already(folder: Path) -> None:
    succeeded(folder, "tokens", "create", "agent", "--scope", "append")
    assert process(folder, "append", "-", given=b'{"conversation_id":"c","event_type":"t"}\n').returncode == 0
