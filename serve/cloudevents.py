"""CloudEvents 1.0 in JSON as events. Pure.

id                     event_id: itself when it is a UUID, else one made from source and id, which together are unique
type, time             event_type, timestamp
conversationid         conversation_id; without it `subject`
agentid taskid correlationid parentid model toolname status durationms costusd inputtokens outputtokens
                       extension attributes with the columns' names, their `_` left out
data                   content: text as it is, everything else as its JSON
data_base64            content, when it is UTF-8
metadata               an extension of ours: the event's own metadata, a JSON object as text
all other attributes   into metadata, under `cloudevent`
"""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from typing import Any, Final

import msgspec
import orjson

from thermocline.errors import InvalidEvent
from thermocline.event import Event

COLUMNS: Final = {
    name.replace("_", ""): name
    for name in ("agent_id", "task_id", "correlation_id", "parent_id", "model", "tool_name", "status", "duration_ms", "cost_usd",
                 "input_tokens", "output_tokens")
}  # fmt: skip
OWN_SOURCE: Final = "/thermocline/"
_DATA: Final = {*COLUMNS.values(), "content", "metadata"}
_NUMBERS: Final = {"duration_ms": float, "cost_usd": float, "input_tokens": int, "output_tokens": int}
_NAME: Final = re.compile(r"[a-z0-9]{1,64}")
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_OWN: Final = {"id", "type", "time", "specversion", "data", "data_base64", "conversationid", "metadata", "datacontenttype"}

_envelope: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_text: Final = msgspec.json.Decoder(str)


def event_of(raw: bytes) -> Event:
    """The event that a CloudEvent is, its values not yet checked. InvalidEvent: it is no CloudEvent 1.0."""
    attributes = _attributes(raw)
    fields: dict[str, Any] = {"event_id": _event_id(attributes), "event_type": attributes["type"]}
    fields["conversation_id"] = attributes.get("conversationid", attributes.get("subject"))
    if fields["conversation_id"] is None:
        raise InvalidEvent("subject", "is missing: the conversation is the attribute `conversationid`, or else `subject`")
    if "time" in attributes:
        fields["timestamp"] = attributes["time"]
    for name, column in COLUMNS.items():
        if name in attributes:
            fields[column] = _number(column, attributes[name])
    if attributes["source"].startswith(OWN_SOURCE) and attributes.get("data", b"")[:1] == b"{":
        return Event(**fields, **_exported(attributes["data"]))
    fields["content"] = _content(attributes)
    fields["metadata"] = _metadata(attributes)
    return Event(**fields)


def _exported(data: bytes) -> dict[str, Any]:
    """The columns that an export of ours has in `data`; metadata as its bytes."""
    try:
        found = _envelope.decode(data)
        unknown = found.keys() - _DATA
        if unknown:
            raise InvalidEvent("data", f"has {min(unknown)[:40]!r}, which is no column of an event: is the source right?")
        metadata = found.pop("metadata", None)
        values: dict[str, Any] = {name: msgspec.json.decode(value) for name, value in found.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidEvent("data", f"is no JSON object: {exc}") from exc
    if metadata is not None and bytes(metadata) != b"null":
        values["metadata"] = _text.decode(metadata) if bytes(metadata)[:1] == b'"' else metadata
    return values


def _attributes(raw: bytes) -> dict[str, Any]:
    try:
        found: dict[str, Any] = {
            name: bytes(value) if name == "data" else msgspec.json.decode(value) for name, value in _envelope.decode(raw).items()
        }
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidEvent("cloudevent", f"is no JSON object: {exc}") from exc
    found = {name: value for name, value in found.items() if value is not None}
    if found.get("specversion") != "1.0":
        raise InvalidEvent("specversion", f"is {str(found.get('specversion'))[:40]!r}, and must be '1.0'")
    for name in ("id", "source", "type"):
        if not isinstance(found.get(name), str) or not found[name]:
            raise InvalidEvent(name, "is missing: a CloudEvent has id, source and type, each a text")
    for name in found:
        if name != "data_base64" and not _NAME.fullmatch(name):
            raise InvalidEvent(name[:64], "is no name of an attribute: lower-case letters and digits only")
    return found


def _event_id(attributes: dict[str, Any]) -> str:
    given: str = attributes["id"]
    return given if _UUID.fullmatch(given) else str(uuid.uuid5(uuid.NAMESPACE_URL, f"{attributes['source']}\n{given}"))


def _number(column: str, value: Any) -> Any:
    """CloudEvents has no type for fractions: a number may come as text."""
    convert = _NUMBERS.get(column)
    if convert is None or not isinstance(value, str):
        return value
    try:
        return convert(value)
    except ValueError as exc:
        raise InvalidEvent(column, f"is {value[:40]!r}, and must be a number") from exc


def _content(attributes: dict[str, Any]) -> str:
    if "data" in attributes:
        given: bytes = attributes["data"]
        try:
            return "" if given == b"null" else _text.decode(given) if given[:1] == b'"' else _json(given)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise InvalidEvent("data", f"is not valid JSON: {exc}") from exc
    if "data_base64" not in attributes:
        return ""
    try:
        return base64.b64decode(attributes["data_base64"], validate=True).decode()
    except (binascii.Error, ValueError, TypeError) as exc:
        raise InvalidEvent("data_base64", "must be UTF-8 text in base64: bytes of other kinds are not stored") from exc


def _json(given: bytes) -> str:
    msgspec.json.decode(given)
    return given.decode()


def _metadata(attributes: dict[str, Any]) -> bytes | str | None:
    others = {name: value for name, value in attributes.items() if name not in _OWN and name not in COLUMNS}
    if "conversationid" not in attributes:
        others.pop("subject", None)
    if not _UUID.fullmatch(attributes["id"]):
        others["id"] = attributes["id"]
    if "datacontenttype" in attributes and attributes["datacontenttype"] != "application/json":
        others["datacontenttype"] = attributes["datacontenttype"]
    own = attributes.get("metadata")
    if own is None:
        return orjson.dumps({"cloudevent": others})
    if not isinstance(own, str):
        raise InvalidEvent("metadata", "must be a JSON object as text")
    return own
