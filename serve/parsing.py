"""Events from a request's body: NDJSON, JSON, CloudEvents. Per line or element the event, or its fault. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Final

import msgspec

from thermocline.errors import InvalidEvent
from thermocline.event import Event
from thermocline.ndjson import LINE_BYTES_MAX, parse_line

from .cloudevents import event_of
from .limits import deeper_than
from .problems import Problem

NDJSON_TYPES: Final = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines")
JSON_TYPE: Final = "application/json"
CLOUD_TYPE: Final = "application/cloudevents+json"
CLOUD_BATCH_TYPE: Final = "application/cloudevents-batch+json"
TYPES: Final = (*NDJSON_TYPES, JSON_TYPE, CLOUD_TYPE, CLOUD_BATCH_TYPE)

_elements: Final = msgspec.json.Decoder(list[msgspec.Raw])
Item = Event | InvalidEvent


def items_of(body: bytes, media_type: str, *, depth_max: int, items_max: int) -> list[tuple[int, Item]]:
    """(place, event or its fault) for everything in the body, in order; empty lines are left out.

    place  the line's number from 1 in NDJSON, else the element's from 0

    Problem: the body as a whole cannot be read, or holds more than `items_max`.
    """
    pieces = list(_pieces(body, media_type, items_max))
    if len(pieces) > items_max:
        raise Problem(
            413, "too-large", f"more than {items_max:,} events (serve.batch_events_max) in one request: send them in parts"
        )
    cloud = media_type in (CLOUD_TYPE, CLOUD_BATCH_TYPE)
    return [(place, _item(raw, depth_max, cloud)) for place, raw in pieces]


def _pieces(body: bytes, media_type: str, items_max: int) -> Iterator[tuple[int, bytes]]:
    if media_type in NDJSON_TYPES:
        start = number = found = 0
        while start < len(body) and found <= items_max:
            end = body.find(b"\n", start)
            end = len(body) if end < 0 else end
            number += 1
            line = body[start:end]
            if line.strip():
                found += 1
                yield number, line
            start = end + 1
    elif media_type == CLOUD_BATCH_TYPE or (media_type == JSON_TYPE and body.lstrip()[:1] == b"["):
        try:
            for place, raw in enumerate(_elements.decode(body)):
                yield place, bytes(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise Problem(
                400, "bad-request", f"the body is no JSON array: {exc}; as NDJSON one bad line leaves the others"
            ) from exc
    elif body.strip():
        yield 0, body


def _item(raw: bytes, depth_max: int, cloud: bool) -> Item:
    try:
        if len(raw) > LINE_BYTES_MAX:
            parse_line(raw)
        if deeper_than(raw, depth_max):
            raise InvalidEvent(
                "line", f"is nested deeper than {depth_max} (serve.json_depth_max): flatten it, or give the inner part as text"
            )
        return event_of(raw) if cloud else parse_line(raw)
    except InvalidEvent as exc:
        return exc


def with_ids(items: list[tuple[int, Item]], key: str) -> list[tuple[int, Item]]:
    """The items with an event_id made from `key` and their number where they have none: the same request, the same ids."""
    space = uuid.uuid5(uuid.NAMESPACE_OID, f"thermocline:{key}")
    return [(place, _with_id(item, space, number)) for number, (place, item) in enumerate(items)]


def _with_id(item: Item, space: uuid.UUID, number: int) -> Item:
    if isinstance(item, InvalidEvent) or item.event_id is not None:
        return item
    return msgspec.structs.replace(item, event_id=str(uuid.uuid5(space, str(number))))
