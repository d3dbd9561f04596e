"""/openapi.json: every address for programs, what it takes and answers. Tests hold it to the routes, and try it."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from thermocline.config import Settings

from .metrics import MEDIA_TYPE as METRICS_TYPE
from .openapi_schemas import SCHEMAS, ref
from .parsing import CLOUD_BATCH_TYPE, CLOUD_TYPE, JSON_TYPE, NDJSON_TYPES
from .problems import MEDIA_TYPE as PROBLEM_TYPE
from .rows import ARROW, CSV, JSON, NDJSON, PARQUET

Document = dict[str, Any]
ID_PATTERN: Final = "^[A-Za-z0-9_-]{1,64}$"
ALWAYS: Final = {
    "400": "The request cannot be understood",
    "401": "A token is missing or not good",
    "403": "The token does not allow this, or a page of another site asks",
    "408": "The request did not arrive in time",
    "410": "What the request goes on from is of a store that is gone",
    "421": "The server is not called by that name",
    "429": "Too many requests: Retry-After says when",
    "431": "The headers are too large",
    "500": "The server failed, or stored data is damaged",
    "503": "No room, or a part of the store cannot be used now: Retry-After says when",
}
OPEN_ANSWERS: Final = ("400", "421", "429", "431", "500")


async def openapi(request: Request) -> Response:
    """The document."""
    found = document(request.app.state.service.settings)
    return Response(orjson.dumps(found), headers={"Cache-Control": "no-store"}, media_type=JSON)


def document(settings: Settings) -> Document:
    """The OpenAPI 3.1 document of a server with these settings."""
    paths: Document = {
        "/v1/events": {"post": _append(settings)},
        "/v1/conversations/{conversation_id}/events": {"get": _conversation(settings)},
        "/v1/query": {"post": _query()},
        "/v1/query/{query_id}": {"delete": _cancel()},
        "/v1/tail": {"get": _tail()},
        "/v1/status": {"get": _plain("What each tier holds, what waits, the health and why", "Status")},
        "/healthz": {"get": _open("Whether the server lives", "Alive")},
        "/readyz": {"get": _open("Whether it can serve appends and queries", "Ready", "503")},
        "/metrics": {"get": _operation("Prometheus' text format", {METRICS_TYPE: {"schema": {"type": "string"}}})},
        "/openapi.json": {"get": _open("This document", "Document")},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Thermocline",
            "version": version("thermocline"),
            "description": "Events of AI agents: append, follow, query with SQL. docs/http.md explains each.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"bearer": []}, {}],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Of `thermocline tokens create`, or a JWT of the issuer; none on loopback without tokens",
                }
            },
        },
    }


def _append(settings: Settings) -> Document:
    text = {"type": "string", "description": "One event a line, as JSON"}
    one_or_many = {"oneOf": [ref("Event"), {"type": "array", "items": ref("Event"), "minItems": 1}]}
    body: Document = {kind: {"schema": text} for kind in NDJSON_TYPES}
    body[JSON_TYPE] = {"schema": one_or_many}
    body[CLOUD_TYPE] = {"schema": ref("CloudEvent")}
    body[CLOUD_BATCH_TYPE] = {"schema": {"type": "array", "items": ref("CloudEvent"), "minItems": 1}}
    operation = _operation(
        "Append events; an outcome for each",
        {JSON: {"schema": ref("Outcomes")}},
        "409",
        "413",
        "415",
        "422",
        parameters=[
            _parameter(
                "atomic", "query", {"type": "boolean", "default": False}, "All or nothing: of one conversation, one block"
            ),
            _parameter("expected_seq", "query", _integer(0, 10**18 - 1), "The conversation's last seq; of a single event"),
            _parameter(
                "Idempotency-Key",
                "header",
                {"type": "string", "maxLength": 64},
                "Makes ids: sent again, it stores once",
            ),
        ],
    )
    operation["requestBody"] = {"required": True, "content": body}
    operation["responses"]["207"] = _response("Some are stored", {JSON: {"schema": ref("Outcomes")}})
    operation["description"] = (
        f"At most {settings.serve.batch_events_max:,} events and {settings.serve.body_bytes_max:,} bytes. 200: all are stored; "
        "207: some; 422: none, each breaks a rule; 503: none, the store cannot take them."
    )
    return operation


def _conversation(settings: Settings) -> Document:
    content = {JSON: {"schema": ref("Page")}, NDJSON: {"schema": {"type": "string"}}}
    return _operation(
        "A conversation's events, page by page",
        content,
        "406",
        "422",
        parameters=[
            _parameter("conversation_id", "path", {"type": "string", "minLength": 1, "maxLength": 64}, "Percent-encoded"),
            _parameter("limit", "query", _integer(1, settings.serve.page_events_max), "How many at most"),
            _parameter("from_seq", "query", _integer(0, (1 << 63) - 1), "The first seq of the page"),
            _parameter("newest", "query", {"type": "boolean", "default": False}, "The newest ones instead, oldest first"),
        ],
    )


def _query() -> Document:
    binary = {"schema": {"type": "string", "format": "binary"}}
    text = {"schema": {"type": "string"}}
    content = {JSON: {"schema": ref("Answer")}, ARROW: binary, NDJSON: text, CSV: text, PARQUET: binary}
    operation = _operation("One SELECT, or EXPLAIN of one, over all tiers", content, "406", "409", "413", "415")
    sql = {"schema": {"type": "string", "maxLength": 65_536}}
    operation["requestBody"] = {
        "required": True,
        "content": {JSON: {"schema": ref("Query")}, "application/sql": sql, "text/plain": sql},
    }
    operation["parameters"] = [
        _parameter("Thermocline-Query-Id", "header", {"type": "string", "pattern": ID_PATTERN}, "To cancel it by")
    ]
    return operation


def _cancel() -> Document:
    operation = _operation("Cancel a query that runs", {}, "404")
    operation["parameters"] = [_parameter("query_id", "path", {"type": "string", "pattern": ID_PATTERN}, "Its id")]
    operation["responses"]["204"] = {"description": "It is told to end"}
    del operation["responses"]["200"]
    return operation


def _tail() -> Document:
    return _operation(
        "Events as they come: server-sent events `event`, `gap` and `problem`, resumed by Last-Event-ID",
        {"text/event-stream": {"schema": {"type": "string"}}},
        "406",
        "422",
        parameters=[
            _parameter(
                "conversation_id", "query", {"type": "string", "minLength": 1, "maxLength": 64}, "Of one conversation only"
            ),
            _parameter("event_types", "query", {"type": "string"}, "Names with commas between; * is any text"),
            _parameter("start", "query", {"type": "string"}, "now, begin, a time, a position, or a seq of the conversation"),
            _parameter("Last-Event-ID", "header", {"type": "string"}, "A position: goes on after it"),
        ],
    )


def _plain(summary: str, schema: str) -> Document:
    return _operation(summary, {JSON: {"schema": ref(schema)}})


def _open(summary: str, schema: str, *more: str) -> Document:
    found = _plain(summary, schema)
    found["security"] = []
    found["responses"] = {code: answer for code, answer in found["responses"].items() if code in ("200", *OPEN_ANSWERS, *more)}
    return found


def _operation(summary: str, content: Document, *statuses: str, parameters: list[Document] | None = None) -> Document:
    more = {
        "404": "There is none",
        "406": "No form that Accept names",
        "409": "It conflicts with how things are: the detail says what to do",
        "413": "Too much at once",
        "415": "A form of the body that is not taken",
        "422": "What is given breaks a rule of events",
    }
    responses = {"200": _response(summary, content)}
    for code in sorted([*ALWAYS, *statuses]):
        responses[code] = _response(ALWAYS.get(code) or more[code], {PROBLEM_TYPE: {"schema": ref("Problem")}})
    return {"summary": summary, "responses": responses, **({"parameters": parameters} if parameters else {})}


def _response(description: str, content: Document) -> Document:
    return {"description": description, **({"content": content} if content else {})}


def _parameter(name: str, place: str, schema: Document, description: str) -> Document:
    return {"name": name, "in": place, "required": place == "path", "schema": schema, "description": description}


def _integer(least: int, most: int) -> Document:
    return {"type": "integer", "minimum": least, "maximum": most}
