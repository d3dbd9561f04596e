"""The shape of the source: layers, one driver in one file, small modules, the folders where tools look for them."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("ingest", "tiers", "archiver", "query", "serve")
DRIVERS = {
    "redis": ("tiers/redis_link.py",),
    "duckdb": ("tiers/duck.py",),
    "sqlalchemy": (
        "tiers/ledger_engine.py",
        "tiers/ledger_rows.py",
        "tiers/ledger_schema.py",
        "tiers/ledger_sql.py",
        "tiers/iceberg_errors.py",
        "tiers/iceberg_row.py",
        "tiers/state_file.py",
    ),
    "pyiceberg": ("tiers/iceberg_catalog.py", "tiers/iceberg_errors.py", "tiers/iceberg_io.py", "tiers/iceberg_table.py"),
    "sqlglot": (
        "query/label_rows.py",
        "query/labels.py",
        "query/measure.py",
        "query/named.py",
        "query/prune.py",
        "query/sums.py",
    ),
    "apscheduler": ("archiver/schedule.py",),
    "boto3": ("tiers/s3_requests.py",),
    "botocore": ("tiers/s3_requests.py",),
    "mcp": ("serve/mcp.py",),
    "uvicorn": ("serve/server.py", "serve/protocol.py"),
    "h11": ("serve/protocol.py",),
    "sse_starlette": ("serve/tail.py",),
    "prometheus_client": ("serve/metrics.py",),
    "jwt": ("serve/jwt_tokens.py",),
    "cryptography": ("serve/jwt_tokens.py",),
    "httpx": ("serve/jwks.py", "src/thermocline/remote.py", "src/thermocline/remote_tail.py"),
    "starlette": tuple(sorted(str(path.relative_to(ROOT)) for path in (ROOT / "serve").glob("*.py"))),
    "jinja2": ("serve/page_view.py",),
    "markupsafe": ("serve/page_conversations.py",),
}
LINES_MAX = 400


def sources() -> Iterator[Path]:
    """Every module of the product, once."""
    for folder in FOLDERS:
        yield from (ROOT / folder).rglob("*.py")
    links = tuple(ROOT / "src" / "thermocline" / folder for folder in FOLDERS)
    for path in (ROOT / "src").rglob("*.py"):
        if not any(path.is_relative_to(link) for link in links):
            yield path


def imported(path: Path) -> set[str]:
    """Top-level packages a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_layers_go_one_way() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_driver_is_imported_in_its_own_files_only() -> None:
    strays = [
        f"{path.relative_to(ROOT)} imports {driver}"
        for path in sources()
        for driver in imported(path) & DRIVERS.keys()
        if str(path.relative_to(ROOT)) not in DRIVERS[driver]
    ]
    assert strays == []


def test_rows_leave_duckdb_as_arrow_by_the_call_that_suits_its_version() -> None:
    """con.execute(…).to_arrow_table() works and warns in DuckDB 2, which the tests do not run on every time."""
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith(("to_arrow", "fetch_arrow", "arrow", "pl", "df")):
                made_by = node.value.func if isinstance(node.value, ast.Call) else None
                executed = isinstance(made_by, ast.Attribute) and made_by.attr in ("execute", "executemany")
                assert not executed, f"{path.relative_to(ROOT)}:{node.lineno}: use tiers.duck.asked"


def test_every_driver_rule_is_about_a_file_that_is_there() -> None:
    assert [path for paths in DRIVERS.values() for path in paths if not (ROOT / path).is_file()] == []


def test_no_module_is_longer_than_a_reader_can_hold() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources()}
    assert {name: length for name, length in lengths.items() if length > LINES_MAX} == {}


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in sources()
        if path.stat().st_size and ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert silent == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [path.name for path in sources() if path.stem in ("utils", "helpers", "common", "manager", "misc")] == []


def test_editors_and_type_checkers_find_the_four_folders_by_relative_links() -> None:
    for folder in FOLDERS:
        link = ROOT / "src" / "thermocline" / folder
        assert link.is_symlink(), f"{link} is not a link: ln -s ../../{folder} {link}"
        assert str(link.readlink()) == f"../../{folder}"


def test_every_package_is_in_the_map_that_builds_use() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {f"thermocline.{folder}": folder for folder in FOLDERS}
    assert setup["package-dir"] == {"thermocline": "src/thermocline", **folders}
    assert set(setup["packages"]) == {f"thermocline.{name}".removesuffix(".") for name in ("", "cli", *FOLDERS)}
    inner = [path.parent for folder in FOLDERS for path in (ROOT / folder).glob("*/**/__init__.py")]
    assert inner == [], "a package inside a folder has to be added to the map"


def test_locks_pin_everything_with_hashes_and_record_no_address() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text()
        assert "://" not in text
        assert "--index-url" not in text
        assert "--find-links" not in text
        pins = [block for block in text.replace("\\\n", " ").splitlines() if block and not block.startswith("#")]
        assert all("==" in pin and "--hash=sha256:" in pin for pin in pins), name


def test_the_development_lock_has_what_the_runtime_lock_has() -> None:
    def pinned(name: str) -> set[str]:
        return {line.split(" \\")[0] for line in (ROOT / name).read_text().splitlines() if "==" in line}

    assert pinned("requirements.lock") <= pinned("requirements-dev.lock")


def test_the_locks_hold_every_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {line.partition("==")[0] for line in (ROOT / "requirements-dev.lock").read_text().splitlines() if "==" in line}
    declared = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {text.partition(">")[0].partition("[")[0].strip() for text in declared}
    assert names <= pinned
