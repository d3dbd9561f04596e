"""Turn recorded agent runs into events, and print them as NDJSON: `python -m thermocline.sample_import FILE > events.ndjson`.

FILE is a JSON list of runs as tau-bench records them: `task_id`, `trial`, `reward`, `info`, and `traj`, OpenAI-style messages
with `role`, `content`, `tool_calls`, `tool_call_id`, `name`. Nothing of a run is dropped: what has no column is in `metadata`.

One event per message, one `tool.call` per call in it, a last `run.finished`. The runs carry no times, so they are given some:
plausible, and the same for the same run, period and end.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]

SAMPLE: Final = Path(__file__).parent / "sample" / "airline-40.json.gz"
"""40 of the runs, shipped with the package; their licence is beside them."""

AGENT: Final = "airline-agent"
MODEL: Final = "gpt-4o"
DAY_US: Final = 86_400_000_000
RUN_US_MAX: Final = 3_600_000_000
"""Longer than any run becomes: the last run starts this long before the end."""

MESSAGE_TYPES: Final = {
    "system": "message.system",
    "user": "message.user",
    "assistant": "message.assistant",
    "tool": "tool.result",
}


def load_runs(path: Path = SAMPLE) -> list[Json]:
    """The runs of a JSON file, gzipped or not. ValueError if it is not a list of runs."""
    raw = path.read_bytes()
    runs = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    if not isinstance(runs, list) or not all(isinstance(run, dict) and "traj" in run for run in runs):
        raise ValueError(f"{path}: not a list of runs with a 'traj' each")
    return runs


def events_of(runs: Sequence[Mapping[str, Any]], *, end_us: int, days: float = 10) -> Iterator[Json]:
    """Events of all runs, run by run, ready for `append_many`; the first run starts `days` before `end_us`."""
    period_us = int(days * DAY_US)
    step_us = max(0, period_us - RUN_US_MAX) / max(1, len(runs) - 1)
    for number, run in enumerate(runs):
        yield from run_events(run, start_us=end_us - period_us + int(number * step_us))


def run_events(run: Mapping[str, Any], *, start_us: int) -> Iterator[Json]:
    """Events of one run, oldest first: its messages, each call after the message that makes it, and `run.finished`."""
    conversation_id = f"airline-{run['task_id']}-{run['trial']}"
    clock = _Clock(conversation_id, start_us)
    frame = {"conversation_id": conversation_id, "task_id": f"airline-{run['task_id']}"}
    for message in run["traj"]:
        yield frame | _message(message, clock)
        for index, call in enumerate(message.get("tool_calls") or ()):
            yield frame | _tool_call(call, index, clock)
    yield frame | {
        "event_type": "run.finished",
        "timestamp": clock.after(200, 900),
        "status": "solved" if run["reward"] == 1.0 else "failed",
        "metadata": {key: value for key, value in run.items() if key != "traj"},
    }


def _message(message: Mapping[str, Any], clock: _Clock) -> Json:
    role, content = message["role"], message["content"]
    event: Json = {"event_type": MESSAGE_TYPES[role], "content": content}
    if role == "tool":
        wait_ms = clock.between(80, 900)
        event |= {
            "timestamp": clock.after(wait_ms, wait_ms),
            "agent_id": AGENT,
            "tool_name": message["name"],
            "parent_id": message["tool_call_id"],
            "status": "error" if content.startswith("Error") else "ok",
            "duration_ms": wait_ms,
        }
    elif role == "assistant":
        wait_ms = clock.between(700, 2_500) + 8 * len(content or "")
        event |= {"timestamp": clock.after(wait_ms, wait_ms), "agent_id": AGENT, "model": MODEL, "duration_ms": wait_ms}
    else:
        event["timestamp"] = clock.after(0, 0) if role == "system" else clock.after(4_000, 25_000)
    rest = {key: value for key, value in message.items() if key not in ("role", "content")}
    return event | ({"metadata": rest} if rest else {})


def _tool_call(call: Mapping[str, Any], index: int, clock: _Clock) -> Json:
    function = call["function"]
    rest = {key: value for key, value in call.items() if key != "function"}
    return {
        "event_type": "tool.call",
        "timestamp": clock.after(1, 5),
        "agent_id": AGENT,
        "model": MODEL,
        "tool_name": function["name"],
        "content": function["arguments"],
        "metadata": rest | {"index": index},
    }


class _Clock:
    """Times of one run, from a seed, so that the same run always gets the same."""

    def __init__(self, seed: str, start_us: int) -> None:
        self._random = random.Random(seed)
        self._now_us = start_us

    def between(self, low_ms: int, high_ms: int) -> int:
        return self._random.randint(low_ms, high_ms)

    def after(self, low_ms: int, high_ms: int) -> int:
        """The time, µs since the epoch, after a pause of low to high ms."""
        self._now_us += 1000 * self.between(low_ms, high_ms)
        return self._now_us


def ndjson(events: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """One line per event, its newline included, as `thermocline append` reads them."""
    for event in events:
        yield json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Print FILE (default: the sample) as NDJSON."""
    parser = argparse.ArgumentParser(prog="python -m thermocline.sample_import", description=__doc__.partition("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, default=SAMPLE, help="JSON list of runs; default: the shipped sample")
    parser.add_argument("--days", type=float, default=10, help="spread the runs over this many days (10)")
    parser.add_argument("--end", type=datetime.fromisoformat, help="when the period ends, RFC 3339 (now)")
    options = parser.parse_args(argv)
    end_at = options.end or datetime.now(UTC)
    end_at = end_at if end_at.tzinfo else end_at.replace(tzinfo=UTC)
    try:
        runs = load_runs(options.file)
    except (OSError, ValueError) as exc:
        parser.error(f"{options.file}: {exc.strerror if isinstance(exc, OSError) else exc}")
    for line in ndjson(events_of(runs, end_us=int(end_at.timestamp() * 1_000_000), days=options.days)):
        sys.stdout.buffer.write(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
