"""How a command of the tests ends: its report as JSON on stdout, exit code 1 when that has problems."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec


def reported(report: Any, problems: list[str] | None = None) -> int:
    """The exit code. problems: where they are, if not in `report.problems`."""
    print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode(), flush=True)  # noqa: T201
    return 1 if (report.problems if problems is None else problems) else 0


def reported_with(folder: Path, report: Any) -> int:
    """The exit code; the folder of the run is removed unless there is something to look for in it."""
    code = reported(report)
    if code:
        print(f"everything is kept in {folder}", file=sys.stderr)  # noqa: T201
    else:
        shutil.rmtree(folder)
    return code
