"""sdist → wheel → an environment of its own: everything is in it, and it works outside the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("ingest", "tiers", "archiver", "query", "serve")


def run(*command: str | Path, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that building leaves nothing behind here."""
    copy = tmp_path_factory.mktemp("build") / "source"
    left_out = shutil.ignore_patterns(".git", ".venv", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "thermocline-data")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=left_out)
    return copy


@pytest.fixture(scope="module")
def sdist(source_tree: Path) -> Path:
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", source_tree.parent, source_tree, cwd=source_tree)
    return next(source_tree.parent.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """Built from the sdist, as an installer without a wheel would."""
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent, filter="data")
    unpacked = sdist.parent / sdist.name.removesuffix(".tar.gz")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", sdist.parent, unpacked, cwd=unpacked)
    return next(sdist.parent.glob("*.whl"))


def test_the_wheel_holds_every_module_script_and_the_sample(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    expected = set()
    for folder in FOLDERS:
        files = [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.lua")]
        expected |= {f"thermocline/{path.relative_to(ROOT)}" for path in files}
    for part in ("static", "templates"):
        expected |= {f"thermocline/serve/{part}/{path.name}" for path in (ROOT / "serve" / part).iterdir()}
    home = ROOT / "src" / "thermocline"
    for pattern in ("*.py", "cli/*.py", "sample/*"):
        expected |= {f"thermocline/{path.relative_to(home)}" for path in home.glob(pattern)}
    expected.add("thermocline/py.typed")
    assert expected - packed == set()


def test_the_wheel_holds_no_top_level_names_but_its_own(wheel: Path) -> None:
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"thermocline"}


def test_the_wheel_carries_the_licences(wheel: Path) -> None:
    names = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if "/licenses/" in name}
    assert names == {"LICENSE", "NOTICE", "LICENSE.tau-bench"}


def test_an_installed_wheel_works_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import thermocline, thermocline.cli, thermocline.sample_import as s; "
        "assert thermocline.__file__.startswith(sys.path[0]), thermocline.__file__; "
        "import thermocline.ingest.append, thermocline.tiers.opening, thermocline.archiver.worker, thermocline.query.run; "
        "print(len(s.load_runs()))"
    )
    assert run(sys.executable, "-c", program, cwd=tmp_path) == "40\n"


def test_a_script_beside_a_clone_finds_the_package_and_not_the_folder(tmp_path: Path) -> None:
    """As in the folder that `git clone` was called in, with what run.py set up."""
    (tmp_path / "thermocline" / "ingest").mkdir(parents=True)
    script = tmp_path / "script.py"
    script.write_text("import thermocline\nfrom thermocline.ingest.append import Client\nprint(thermocline.connect, Client)\n")
    assert "connect" in run(sys.executable, script, cwd=tmp_path)
