"""Real conversations through the whole of it, compared byte for byte: `python -m tests.roundtrip [FILE]`.

FILE is a JSON list of recorded runs (thermocline.sample_import says which shape); default: the shipped sample. They are appended
through the CLI, worked once, and read back: the count, the order by seq, and every column of every event.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec

from thermocline.sample_import import SAMPLE, events_of, load_runs, ndjson
from thermocline.store import connect

PLAIN = ("event_type", "agent_id", "task_id", "parent_id", "model", "tool_name", "status", "duration_ms")
READ_BACK = (
    f"SELECT conversation_id, content, metadata, epoch_us(timestamp) AS timestamp, {', '.join(PLAIN)} "
    "FROM events ORDER BY conversation_id, seq"
)


class Line(msgspec.Struct):
    """A line of NDJSON with its metadata as the bytes that were given."""

    conversation_id: str
    event_type: str
    timestamp: int
    content: str | None = ""
    metadata: msgspec.Raw = msgspec.Raw()
    agent_id: str | None = None
    task_id: str | None = None
    parent_id: str | None = None
    model: str | None = None
    tool_name: str | None = None
    status: str | None = None
    duration_ms: float | None = None


def expected(lines: list[bytes]) -> dict[str, list[dict[str, Any]]]:
    """Per conversation, what must come back, in order."""
    wanted: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for raw in lines:
        line = msgspec.json.decode(raw, type=Line)
        metadata = bytes(line.metadata).decode() or None
        if line.content is None:  # the null is kept as a first member of the metadata
            metadata = '{"content":null,' + metadata[1:] if metadata and metadata != "{}" else '{"content":null}'
        row = {"content": line.content or "", "metadata": metadata, "timestamp": line.timestamp}
        wanted[line.conversation_id].append(row | {name: getattr(line, name) for name in PLAIN})
    return wanted


def thermocline(data_dir: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "thermocline", "--data-dir", str(data_dir), *arguments]
    environ = {**os.environ, "THERMOCLINE_WARM__WINDOW_DAYS": "10000"}  # nothing is sampled: tests/archived.py is about that
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environ).stdout


def roundtrip(file: Path, folder: Path) -> int:
    """Append `file`'s events through the CLI, work once, compare; how many events came back as they were."""
    lines = list(ndjson(events_of(load_runs(file), end_us=time.time_ns() // 1000)))
    (folder / "events.ndjson").write_bytes(b"".join(lines))
    data_dir = folder / "data"
    with connect(data_dir=data_dir) as store:
        thermocline(data_dir, "append", str(folder / "events.ndjson"))
        thermocline(data_dir, "worker", "--once")
        rows = store.sql(READ_BACK).to_arrow().to_pylist()
        assert store.status().tiers[0].events == 0, "everything has settled"
        assert store.verify(deep=True).ok
    came: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        came[row.pop("conversation_id")].append(row)
    wanted = expected(lines)
    assert came.keys() == wanted.keys()
    for conversation, events in wanted.items():
        assert came[conversation] == events, conversation
    return len(rows)


def main() -> int:
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else SAMPLE
    with tempfile.TemporaryDirectory(prefix="thermocline-roundtrip-") as folder:
        begin = time.monotonic()
        count = roundtrip(file, Path(folder))
    sys.stdout.write(f"{count:,} events came back in order and byte for byte, {time.monotonic() - begin:.1f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
