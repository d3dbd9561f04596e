"""`python -m bench`: run the benchmarks in a temporary data directory and print a Markdown table."""

from __future__ import annotations

import argparse
import platform
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from thermocline.config import load

from .appending import append_figures
from .archiving import archive_figures
from .querying import query_figures
from .settling import settle_figures
from .timing import Figure, table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--only", choices=["append", "settle", "query", "archive"])
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="thermocline-bench-"))
    settings = load({"data_dir": folder / "data"}, environ={})
    figures: list[Figure] = []
    try:
        if options.only in (None, "append"):
            figures += append_figures(
                load({"data_dir": folder / "data", "namespace": "append"}, environ={}), options.events, folder
            )
        if options.only in (None, "settle", "query"):
            settled = settle_figures(settings, options.events, folder)
            figures += settled if options.only != "query" else []
        if options.only in (None, "settle"):
            repeated = load({"data_dir": folder / "data", "namespace": "repeated"}, environ={})
            figures += settle_figures(repeated, options.events, folder, all_repeated=True)
        if options.only in (None, "query"):
            figures += query_figures(settings)
        if options.only in (None, "archive"):
            figures += archive_figures(options.events, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{options.events:,} events, {datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {platform.machine()}\n")
    print(table(figures))


if __name__ == "__main__":
    main()
