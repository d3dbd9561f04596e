"""Odd events by chance: most are good, the others wrong in a field or two, many at a limit. From a seed, in plain Python."""

from __future__ import annotations

import json
import random
import sys
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec

from tests.odd_events import (
    AHEAD_US,
    DEPTH,
    EVENT_BYTES,
    FIRST_US,
    INTEGER_COLUMNS,
    LAST_US,
    METADATA_BYTES,
    NAME_BYTES,
    ODD_INTEGERS,
    ODD_REALS,
    ODD_TEXTS,
    REAL_COLUMNS,
    TEXT_COLUMNS,
    line_bytes,
)
from thermocline.event import Event

DAY_US = 86_400_000_000
SURROGATES = ("\ud800", "a\udfffb", "\udc00\ud800", "ok\ud83d")
SPOILED = 0.2
"""Share of the events in which something is made odd that is likely to be wrong."""
SEPARATORS = ((",", ":"), (", ", ": "), (" ,\t", "\r:  "))


class OddDice(random.Random):
    """Chance, and the events it makes."""

    def __init__(self, seed: str, *, now_us: int) -> None:
        super().__init__(seed)
        self._now_us = now_us
        self._conversations = [self._conversation() for _ in range(40)]
        self._ids: list[tuple[str, Any]] = []
        self.largest_bytes = 0

    def events(self, count: int, *, plain: bool = False) -> list[dict[str, Any]]:
        """plain  nothing that is large"""
        return [self.event(plain=plain) for _ in range(count)]

    def event(self, *, plain: bool = False) -> dict[str, Any]:
        event: dict[str, Any] = {"conversation_id": self._known_conversation(), "event_type": self._kind()}
        chances = {
            "content": (0.8, self._content),
            "timestamp": (0.7, self._time),
            "metadata": (0.5, self._metadata),
            "event_id": (0.2, self._id),
            **dict.fromkeys(TEXT_COLUMNS, (0.25, self._name)),
            **dict.fromkeys(REAL_COLUMNS, (0.25, self._real)),
            **dict.fromkeys(INTEGER_COLUMNS, (0.25, self._integer)),
        }
        for name, (chance, make) in chances.items():
            if self.random() < chance:
                event[name] = make()
        if self._ids and self.random() < 0.03:
            event["conversation_id"], event["event_id"] = self.choice(self._ids)
        elif event.get("event_id") is not None:
            self._ids.append((event["conversation_id"], event["event_id"]))
        if self.random() < SPOILED:
            for _ in range(self.choice((1, 1, 1, 2))):
                self._spoil(event)
        if not plain and self.random() < 0.003:
            event = self._at_the_limit(event)
        return event

    # Good values.

    def text(self, longest: int = 30) -> str:
        kind = self.random()
        if kind < 0.25:
            return self.choice(ODD_TEXTS)
        count = self.randint(0, longest)
        if kind < 0.5:
            return "".join(self.choices('abc "\\/{}[]:,\n\r\t\x00\x1f\x7f\u2028é😀', k=count))
        return "".join(self._character() for _ in range(count))

    def _character(self) -> str:
        """Any character but a surrogate; half of them below 256."""
        code = self.randrange(256) if self.random() < 0.5 else self.randrange(sys.maxunicode + 1 - 2048)
        return chr(code if code < 0xD800 else code + 2048)

    def _content(self) -> str | None:
        kind = self.random()
        if kind < 0.05:
            return None
        if kind < 0.02 + 0.05:
            return self.text(30) * self.randint(1, 1500)
        return self.text(60)

    def _name(self) -> str | None:
        kind = self.random()
        if kind < 0.1:
            return None
        if kind < 0.2:
            return self._filled(NAME_BYTES, self.choice("xé€😀"))
        text = "".join(one for one in self.text(20) if not (one < " " or "\x7f" <= one <= "\x9f"))
        return text.encode()[:NAME_BYTES].decode(errors="ignore")

    def _filled(self, size_bytes: int, character: str) -> str:
        """A text of so many bytes, most of them of this character."""
        count = size_bytes // len(character.encode())
        return character * count + "x" * (size_bytes - count * len(character.encode()))

    def _conversation(self) -> str:
        kind = self.random()
        if kind < 0.2:
            return self._filled(self.choice((1, 63, 64, 65, 255, 256)), self.choice("cü漢😀"))
        if kind < 0.5:
            printable = [one for one in (self._character() for _ in range(40)) if one.isprintable()]
            return "c" + "".join(printable)[:60]
        starts = ("c#", "a b", "'; DROP", "%_*", '"q"', "c{x}", "c-", "\\", "e\u0301", "2026-11-13")
        return self.choice(starts) + str(self.randrange(20))

    def _known_conversation(self) -> str:
        return self.choice(self._conversations)

    def _kind(self) -> str:
        if self.random() < 0.1:
            return self.choice(("x" * NAME_BYTES, "a." * 127 + "bb", "-.A-_9", "0"))
        return self.choice(("output.chunk", "tool.call", "error", "intervention", "a.b.c", "file.created"))

    def _time(self) -> Any:
        kind = self.random()
        us = self._now_us - self.choice((0, 1, 5, 20)) * DAY_US - self.randrange(3_600_000_000)
        if kind < 0.1:
            us = self.choice((FIRST_US, FIRST_US + 1, self._now_us + AHEAD_US - 60_000_000))
        if kind < 0.5:
            return us
        if kind < 0.55:
            return None
        offset = timedelta(minutes=self.choice((0, 60, -570, 840, -720)))
        at = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)).astimezone(timezone(offset))
        return at if kind < 0.75 else at.isoformat().replace("+00:00", self.choice(("Z", "+00:00")))

    def _real(self) -> Any:
        kind = self.random()
        if kind < 0.1:
            return None
        if kind < 0.4:
            return self.choice(ODD_REALS)
        if kind < 0.6:
            return self.choice((self.randrange(1000), -(2**70), 10**300, 2**63))
        return self.choice((self.random(), self.uniform(-1e6, 1e6), self.random() * 10.0 ** self.randint(-300, 300)))

    def _integer(self) -> int | None:
        kind = self.random()
        return None if kind < 0.1 else self.choice(ODD_INTEGERS) if kind < 0.5 else self.randrange(-(2**63), 2**63)

    def _id(self) -> Any:
        identity = uuid.UUID(int=self.getrandbits(128))
        return self.choice((identity, str(identity), str(identity).upper(), identity.hex))

    def _metadata(self) -> Any:
        kind = self.random()
        if kind < 0.05:
            return None
        if kind < 0.1:
            return self._nested(self.choice((1, 2, DEPTH - 1, DEPTH)))
        if kind < 0.15:
            return self._long_metadata(METADATA_BYTES - self.choice((0, 1, 15, 16)))
        tree = self._tree()
        return tree if kind < 0.4 else self._as_given(self._written(tree))

    def _tree(self) -> dict[str, Any]:
        names = ("a", "content", "key", "", "ü", "\x00", self.text(5))
        return {self.choice(names): self._leaf(3) for _ in range(self.randint(0, 4))}

    def _leaf(self, levels: int) -> Any:
        kind = self.random()
        if levels and kind < 0.2:
            return [self._leaf(levels - 1) for _ in range(self.randint(0, 3))]
        if levels and kind < 0.4:
            return {self.text(4): self._leaf(levels - 1) for _ in range(self.randint(0, 3))}
        numbers = (self.choice(ODD_INTEGERS), 2**64 - 1, self.choice(ODD_REALS), self.random(), self.randrange(100))
        return self.choice((None, True, False, self.text(20), *numbers))

    def _written(self, tree: dict[str, Any]) -> str:
        """The tree in any notation that json writes."""
        text = json.dumps(tree, ensure_ascii=self.random() < 0.5, separators=self.choice(SEPARATORS))
        return self.choice(("", " ", "\n")) + text + self.choice(("", "", "\t", " \r\n"))

    def _as_given(self, text: str) -> Any:
        kind = self.choice((str, str, bytes, bytearray, memoryview, msgspec.Raw))
        return text if kind is str else kind(text.encode("utf-8", "surrogatepass"))

    def _nested(self, depth: int) -> Any:
        inner = self.choice(("[", '{"a":'))
        close = "]" if inner == "[" else "}"
        bottom = "" if inner == "[" else "1" if depth > 1 else ""
        if depth == 1:
            return "{}"
        text = '{"n":' + inner * (depth - 1) + bottom + close * (depth - 1) + "}"
        return self._as_given(text) if self.random() < 0.6 or depth > DEPTH + 2 else json.loads(text)

    def _long_metadata(self, size_bytes: int) -> str:
        return '{"a":"' + self._filled(size_bytes - 8, self.choice("xü")) + '"}'

    # What is likely to be wrong.

    def _spoil(self, event: dict[str, Any]) -> None:
        name = self.choice((*Event.__struct_fields__, "metadata", "metadata", "content", "keys"))
        if name == "keys":
            self._spoil_keys(event)
        elif name in TEXT_COLUMNS:
            event[name] = self.choice(
                (*self._bad_texts(), *(f"a{one}" for one in ("\n", "\x85", "\x00")), self._filled(257, "é"))
            )
        elif name in REAL_COLUMNS:
            event[name] = self.choice((float("nan"), float("inf"), -float("inf"), 10**400, True, "1", b"1", [1.0]))
        elif name in INTEGER_COLUMNS:
            event[name] = self.choice((2**63, -(2**63) - 1, 2**64, 10**30, True, 1.0, "1", [1]))
        else:
            event[name] = getattr(self, f"_bad_{name}")()

    def _spoil_keys(self, event: dict[str, Any]) -> None:
        if self.random() < 0.5:
            event[self.choice(("seq", "Content", "extra", "sample_rate", ""))] = 1
        else:
            event.pop(self.choice(("conversation_id", "event_type")), None)

    def _bad_texts(self) -> tuple[Any, ...]:
        return (*SURROGATES, 1, 1.5, True, b"bytes", ["list"], {"a": 1})

    def _bad_content(self) -> Any:
        return self.choice((*self._bad_texts(), self.text() + self.choice(SURROGATES)))

    def _bad_conversation_id(self) -> Any:
        made = ("", "#", "#a", "a\n", "a\x00", "\u2028", "a\u200b", self._filled(257, "x"), self._filled(258, "😀"), None)
        return self.choice((*self._bad_texts(), *made))

    def _bad_event_type(self) -> Any:
        made = ("", ".", "a.", ".a", "a..b", "a b", "é", "a\n", "a" * 257, "a." * 128, None)
        return self.choice((*self._bad_texts(), *made))

    def _bad_timestamp(self) -> Any:
        made = (FIRST_US - 1, 0, -1, LAST_US, LAST_US + 1, 2**63, 10**30, self._now_us + AHEAD_US + 120_000_000, 1_780_000_000)
        texts = ("", "now", "2026-11-13", "2026-11-13T09:30:00", "2026-13-13T09:30:00Z", "1999-12-31T23:59:59.999999Z", "\ud800")
        times = (datetime(2026, 1, 1), datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))), datetime.max.replace(tzinfo=UTC))
        return self.choice((*made, *texts, *times, True, 1.5e15, b"1", [1]))

    def _bad_event_id(self) -> Any:
        made = ("", "x", "0" * 31, "g" * 32, "0" * 33, "{" + str(uuid.UUID(int=1)) + "}", str(uuid.UUID(int=1)) + "\n", "٣" * 32)
        return self.choice((*self._bad_texts(), *made))

    def _bad_metadata(self) -> Any:
        kind = self.random()
        if kind < 0.15:
            return self._nested(self.choice((DEPTH + 1, DEPTH + 2, 100, 1000, 20_000)))
        if kind < 0.25:
            return self._long_metadata(METADATA_BYTES + self.choice((1, 2, 1000)))
        if kind < 0.5:
            worse = (2**64, -(2**63) - 1, 10**30, float("nan"), float("inf"), *SURROGATES, {1: 2}, {"a": {None: 1}}, b"x", {1, 2})
            return {"a": self.choice(worse), **self._tree()}
        if kind < 0.65:
            parts = (
                "1e999",
                "-1e999",
                "18446744073709551616",
                "[1,]",
                "NaN",
                "01",
                '"\\ud800"',
                '"\\udc00\\ud800"',
                '"\\x"',
                "'a'",
            )
            return self._as_given('{"a":' + self.choice(parts) + "}")
        if kind < 0.75:
            return self.choice(
                ("", " ", "null", "[]", '"{}"', "1", "{", "{}{}", "\ufeff{}", b"\xff{}", b'{"a":"\xc3"}', 1, [], True, ())
            )
        text = self._written(self._tree())
        place = self.randrange(len(text))
        put = self.choice(("", ",", "}", "\\", '"', "1e999", "\x00", "\x1f", "9" * 25, "x", "\ud800"))
        return self._as_given(text[:place] + put + text[place + 1 :])

    def _at_the_limit(self, event: dict[str, Any]) -> dict[str, Any]:
        """The event with a content that makes its line as long as allowed, or a byte more or less, or any length below."""
        plain = {name: value for name, value in event.items() if name not in REAL_COLUMNS}
        plain |= {"timestamp": self._now_us - DAY_US, "content": "x"}
        try:
            room = EVENT_BYTES - line_bytes(plain) + 1
        except (TypeError, ValueError, AttributeError, KeyError):
            return event  # it is wrong already
        character, width = self.choice((("x", 1), ("é", 2), ("\x00", 6), ("\n", 2), ("😀", 4), ('"', 2)))
        size = room + self.choice((-1, 0, 0, 1, 2)) if self.random() < 0.7 else self.randrange(room)
        plain["content"] = character * (size // width) + "x" * (size % width)
        self.largest_bytes = max(self.largest_bytes, line_bytes(plain))
        return plain

    # Ways in.

    def possible(self, way: str, event: Mapping[str, Any]) -> str:
        """The way, or another one when the event cannot be said in its terms."""
        known = set(event) <= set(Event.__struct_fields__) and {"conversation_id", "event_type"} <= set(event)
        if way == "feed":
            return way if is_sayable(event) else "append_many of dicts"
        if way == "Producer" and _is_far(event, self._now_us):
            way = "append"  # what only Redis can judge would come back with the next call
        return way if known else "append_many of dicts"


def is_sayable(event: Mapping[str, Any]) -> bool:
    """Whether the event can be written as a line of NDJSON, right or wrong."""
    plain = (str, int, float, bool, type(None), datetime, uuid.UUID)
    others = (value for name, value in event.items() if name != "metadata")
    metadata = event.get("metadata")
    if isinstance(metadata, dict):
        try:
            json.dumps(metadata)
        except (TypeError, ValueError, RecursionError):
            return False
        return False  # a dict is dumped by the product; a line holds text
    return all(isinstance(value, plain) for value in others) and isinstance(metadata, str | None)


def ndjson_line(dice: random.Random, event: dict[str, Any]) -> bytes:
    """The event as a line, in one notation or another. Metadata is put in as the object it is, or as text that holds one."""
    said: dict[str, Any] = {}
    for name, value in event.items():
        said[name] = value.isoformat() if isinstance(value, datetime) else str(value) if isinstance(value, uuid.UUID) else value
    event.update({name: said[name] for name in ("timestamp", "event_id") if name in event})
    raw = None
    text = said.get("metadata")
    if isinstance(text, str) and dice.random() < 0.8 and _is_json_object(text):
        raw = event["metadata"] = text.strip(" \t\r\n").replace("\n", " ")
        del said["metadata"]
    line = json.dumps(said, ensure_ascii=dice.random() < 0.5, separators=dice.choice(SEPARATORS[:2]))
    if raw is not None:
        line = line[:-1] + (", " if said else "") + '"metadata":' + raw + "}"
    return (line + dice.choice(("", "", "\r", " "))).encode("utf-8", "surrogatepass")


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _is_far(event: Mapping[str, Any], now_us: int) -> bool:
    at = event.get("timestamp")
    far_us = now_us + AHEAD_US // 2
    if isinstance(at, datetime):
        return at.tzinfo is not None and at > datetime.fromtimestamp(far_us / 1e6, UTC)
    return isinstance(at, int) and at > far_us
