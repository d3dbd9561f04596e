"""compose.yml and the Dockerfile fit together, and fit the code: settings, health checks, versions, files that are there."""

from __future__ import annotations

import ast
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from thermocline.cli.app import app
from thermocline.config import ENV_PREFIX, Settings, load

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
STEPS = [
    (words[0], words[1].strip())
    for line in (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
    for words in [line.split(maxsplit=1)]
]


def steps(name: str) -> list[str]:
    return [rest for step, rest in STEPS if step == name]


def images() -> list[str]:
    return [*steps("FROM"), *(service["image"] for service in SERVICES.values())]


def test_there_are_the_three_tiers_the_worker_and_the_server() -> None:
    assert SERVICES.keys() == {"redis", "objects", "bucket", "worker", "serve"}
    assert [name for name, service in SERVICES.items() if "build" in service] == ["bucket", "worker", "serve"]


def test_the_server_starts_when_asked_for_as_it_needs_a_token_first() -> None:
    assert [name for name, service in SERVICES.items() if "profiles" in service] == ["serve"]
    assert SERVICES["serve"]["command"][:3] == ["thermocline", "serve", "--no-worker"]
    port = load(environ={}).serve.port
    assert SERVICES["serve"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f"127.0.0.1:{port}/readyz" in SERVICES["serve"]["healthcheck"]["test"][-1]


@pytest.mark.parametrize("image", images())
def test_every_image_has_a_version_and_none_is_minio(image: str) -> None:
    name, colon, tag = image.partition(":")
    assert colon
    assert re.search(r"\d+\.\d+\.\d+", tag), image
    assert "minio" not in name


def test_what_keeps_running_is_watched_and_starts_again() -> None:
    for name in ("redis", "objects", "serve"):
        check = SERVICES[name]["healthcheck"]
        assert check["test"][0] in ("CMD", "CMD-SHELL")
        assert {"interval", "timeout", "retries"} <= check.keys()
    assert "healthcheck" not in SERVICES["worker"], "the image has one"
    assert {name for name, service in SERVICES.items() if service["restart"] == "unless-stopped"} == {
        "redis",
        "objects",
        "worker",
        "serve",
    }


def test_nobody_starts_before_what_he_needs_is_healthy() -> None:
    conditions = {
        name: {on: how["condition"] for on, how in SERVICES[name]["depends_on"].items()} for name in ("bucket", "worker", "serve")
    }
    assert conditions["bucket"] == {"objects": "service_healthy"}
    assert conditions["serve"] == conditions["worker"] == {"redis": "service_healthy", "bucket": "service_completed_successfully"}


def test_what_has_to_stay_is_in_volumes_that_are_declared() -> None:
    mounted = {name: dict(one.split(":") for one in service.get("volumes", [])) for name, service in SERVICES.items()}
    ours = {"bucket": {}, "worker": {"data": "/data"}, "serve": {"data": "/data"}}
    assert mounted == {"redis": {"redis": "/data"}, "objects": {"objects": "/objects"}, **ours}
    assert COMPOSE["volumes"].keys() == {volume for places in mounted.values() for volume in places}
    assert SERVICES["objects"]["command"][-1] == mounted["objects"]["objects"]
    assert steps("VOLUME") == [mounted["worker"]["data"]]


def test_ports_are_open_to_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_redis_is_as_it_has_to_be() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    hot = load(environ={}).hot
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert int(options["--maxmemory"].removesuffix("gb")) << 30 >= hot.log_bytes_max + (1 << 30)


def filled(value: str) -> str:
    """The value with every variable at its default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


@pytest.mark.parametrize("name", ["bucket", "worker", "serve"])
def test_the_settings_named_are_settings(name: str) -> None:
    variables = {key: filled(value) for key, value in SERVICES[name]["environment"].items()}
    image = dict(shlex.split(one)[0].split("=", 1) for one in steps("ENV") if one.startswith(ENV_PREFIX))
    settings = load(environ={**image, **variables})
    assert isinstance(settings, Settings)
    assert str(settings.data_dir) == "/data"
    assert settings.redis_url == "redis://redis:6379/0"
    assert settings.cold_url == "s3://thermocline"
    assert settings.cold.endpoint_url == "http://objects:7070"
    assert {key for key in variables if not key.startswith(ENV_PREFIX)} == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def test_worker_and_objects_have_the_same_keys() -> None:
    ours, theirs = SERVICES["worker"]["environment"], SERVICES["objects"]["environment"]
    assert (ours["AWS_ACCESS_KEY_ID"], ours["AWS_SECRET_ACCESS_KEY"]) == (theirs["ROOT_ACCESS_KEY"], theirs["ROOT_SECRET_KEY"])


def copied() -> list[str]:
    return [source for step in steps("COPY") for source in step.split()[:-1]]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert [source for source in copied() if not (ROOT / source).exists()] == []
    assert {source.removeprefix("./") for source in copied()} == allowed
    assert not any(fnmatch(source, "tests*") for source in copied())


def test_everything_that_a_build_needs_is_copied() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    folders = re.findall(r'^"thermocline(?:\.\w+)?" = "([^"]+)"', project, flags=re.MULTILINE)
    assert {folder.split("/")[0] for folder in folders} <= set(copied())
    assert {"README.md", "LICENSE", "NOTICE", "pyproject.toml"} <= set(copied())


def test_packages_are_installed_by_hash_before_the_project_and_without_others() -> None:
    locked, project = [step for step in steps("RUN") if "pip install" in step]
    assert "--require-hashes -r requirements.lock" in locked
    assert all("--no-deps" in step for step in (locked, project))


def test_the_image_runs_as_a_user_of_its_own() -> None:
    [user] = steps("USER")
    assert user not in ("root", "0")
    last_root = max(place for place, (step, rest) in enumerate(STEPS) if step == "RUN")
    assert last_root < STEPS.index(("USER", user))
    assert any(f"useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin {user}" in step for step in steps("RUN"))


@pytest.mark.parametrize(
    "line",
    [*steps("CMD"), *(step.partition("CMD ")[2] for step in steps("HEALTHCHECK")), repr(SERVICES["serve"]["command"])],
)
def test_the_commands_are_ours(line: str) -> None:
    program, command, *options = ast.literal_eval(line)
    known = typer.main.get_group(app).commands
    assert program == "thermocline"
    assert {option for option in options if option.startswith("-")} <= {
        option for parameter in known[command].params for option in parameter.opts
    }


def test_the_script_that_makes_the_bucket_is_in_the_image() -> None:
    program, script = SERVICES["bucket"]["command"]
    assert program == "python"
    assert (ROOT / script.removeprefix("/app/")).is_file()
    assert steps("WORKDIR")[0] == "/app"


def test_the_version_of_the_image_is_that_of_the_project() -> None:
    project = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert project is not None
    assert SERVICES["worker"]["image"] == f"thermocline:{project[1]}"
