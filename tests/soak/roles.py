"""What the processes of a soak do: `python -m tests.soak.roles ROLE FOLDER NUMBER RATE`, until FOLDER/stop exists."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from tests.chaos.roles import running, settings_of
from tests.waiting import Pace, pause
from thermocline.errors import Backpressure, TierUnavailable
from thermocline.ingest.producer import Producer
from thermocline.store import connect

CONVERSATIONS = 2000
TEXT = "In water, the thermocline is the layer where warm turns to cold. " * 4
TURN_EVENTS = 200
QUERIES = (
    "SELECT count(*) FROM events WHERE timestamp > now() - INTERVAL 1 HOUR",
    "SELECT event_type, count(*), sum(cost_usd) FROM events GROUP BY event_type",
    "SELECT hour, sum(event_count) FROM hourly_stats GROUP BY hour ORDER BY hour DESC LIMIT 24",
    "SELECT * FROM events WHERE conversation_id = 'chat-7' ORDER BY seq DESC LIMIT 100",
)


def produce(folder: Path, number: int, rate: float) -> None:
    """Append through a Producer; FOLDER/producer-N.count is how many events were acknowledged. Rate 0: as many as it takes."""
    dice = random.Random(number)
    pace = Pace(rate)
    made = acknowledged = 0
    count = folder / f"producer-{number}.count"
    with Producer(settings_of(folder)) as producer:
        for turn in running(folder):
            for _ in range(TURN_EVENTS):
                made += 1
                start = dice.randrange(len(TEXT) // 2)
                kind = "error" if made % 50 == 0 else "output.chunk"
                fields = {"content": TEXT[start : start + 120], "output_tokens": made % 300, "cost_usd": made % 7 / 1000}
                _put(producer, f"chat-{dice.randrange(CONVERSATIONS)}", kind, **fields)
            pace.wait(TURN_EVENTS)
            if turn % 5 == 4:
                _flush(producer)
                acknowledged = made
                count.write_text(str(acknowledged))
        _flush(producer)
    count.write_text(str(made))


def _put(producer: Producer, conversation: str, kind: str, **fields: object) -> None:
    while True:
        try:
            producer.append(conversation, kind, **fields)  # type: ignore[arg-type]
            return
        except Backpressure as exc:
            pause(exc.retry_after_s)


def _flush(producer: Producer) -> None:
    while True:
        try:
            producer.flush()
            return
        except (Backpressure, TierUnavailable) as exc:
            pause(exc.retry_after_s if isinstance(exc, Backpressure) else 0.2)


def read(folder: Path, number: int, rate: float) -> None:
    """Query; FOLDER/reader-N.count is how many were answered."""
    pace = Pace(rate)
    dice = random.Random(1000 + number)
    count = folder / f"reader-{number}.count"
    with connect(settings_of(folder)) as store:
        for turn in running(folder):
            pace.wait(1)
            if turn % 2:
                store.recent(f"chat-{dice.randrange(CONVERSATIONS)}", 100)
            else:
                store.sql(dice.choice(QUERIES))
            count.write_text(str(turn + 1))


if __name__ == "__main__":
    role, where, which, per_second = sys.argv[1:5]
    {"producer": produce, "reader": read}[role](Path(where), int(which), float(per_second))
