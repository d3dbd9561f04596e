"""GET /v1/conversations/{id}/events: a conversation's events, page by page, from all tiers."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import Response

from thermocline.event import INT64_MAX
from thermocline.ingest.validate import check_conversation_id

from .accepting import chosen
from .coverage_header import COVERAGE_HEADER, brief
from .problems import Problem
from .rows import JSON, NDJSON, event_objects
from .service import Service

LIMIT_DEFAULT: Final = 100
CHUNK_BYTES: Final = 64 << 10
"""Of a large page that is sent at once."""
_ROWS: Final = "SELECT * FROM events WHERE conversation_id = $conversation AND seq >= $from_seq ORDER BY seq {order} LIMIT $limit"
_SIZE: Final = "strlen(content) + coalesce(strlen(metadata), 0)"
PAGE: Final = f"""
SELECT * EXCLUDE (place, bytes) FROM (
    SELECT *, count(*) OVER () AS found, row_number() OVER nearest AS place,
           sum({_SIZE}) OVER (nearest ROWS UNBOUNDED PRECEDING) AS bytes
    FROM ({_ROWS}) WINDOW nearest AS (ORDER BY seq {{order}}))
WHERE place = 1 OR place < $limit AND bytes <= $bytes_max ORDER BY seq
"""
"""The events of a page, oldest first: within bytes_max of text, but at least one. {order}: which end gives way."""


async def conversation_events(request: Request) -> Response:
    """A page from `from_seq` on, or the newest events; JSON or NDJSON; a link to the next page when there may be more."""
    service: Service = request.app.state.service
    settings = service.settings.serve
    conversation = check_conversation_id(request.path_params["conversation_id"])
    request.scope["audit"] = {"conversation_id": conversation}
    limit = number(request, "limit", default=min(LIMIT_DEFAULT, settings.page_events_max), least=1, most=settings.page_events_max)
    from_seq = number(request, "from_seq", default=1, least=0, most=INT64_MAX)
    newest = request.query_params.get("newest", "false")
    if newest not in ("true", "false"):
        raise Problem(400, "bad-request", f"newest must be true or false, not {newest[:40]!r}")
    media_type = chosen(request.headers.get("accept", ""), (JSON, NDJSON))
    if media_type is None:
        raise Problem(406, "not-acceptable", f"events come as {JSON} or {NDJSON}: name one of them in Accept")
    values = {"conversation": conversation, "from_seq": from_seq, "limit": limit + 1, "bytes_max": settings.page_bytes_max}
    sql = PAGE.format(order="DESC" if newest == "true" else "ASC")

    def read() -> tuple[list[bytes], int | None, Any]:
        answer = service.store.sql(sql, values)
        rows = answer.to_arrow().to_pylist()
        found = [row.pop("found") for row in rows]
        more_from = rows[-1]["seq"] + 1 if rows and found[0] > len(rows) else None
        columns = tuple(one for one in answer.coverage.columns if one[0] != "found")
        return list(event_objects(rows)), more_from, msgspec.structs.replace(answer.coverage, columns=columns)

    events, more_from, coverage = await service.read(read)
    headers = {COVERAGE_HEADER: brief(coverage), "Cache-Control": "no-store"}
    following = None
    if more_from is not None and newest == "false":
        following = f"/v1/conversations/{quote(conversation, safe='')}/events?from_seq={more_from}&limit={limit}"
        headers["Link"] = f'<{following}>; rel="next"'
    if media_type == NDJSON:
        return _Page(b"".join(event + b"\n" for event in events), service, headers=headers, media_type=NDJSON)
    page = {"conversation_id": conversation, "next": following, "coverage": coverage.as_dict()}
    body = b'{"events":[' + b",\n".join(events) + b"]," + orjson.dumps(page)[1:]
    return _Page(body, service, headers=headers, media_type=JSON)


class _Page(Response):
    """A page; a large one has a place among the answers, and is sent in pieces, until its client has read it."""

    def __init__(self, body: bytes, service: Service, **named: Any) -> None:
        super().__init__(body, **named)
        self._service = service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if len(self.body) <= self._service.settings.serve.answer_memory_bytes_max:
            await super().__call__(scope, receive, send)
            return
        with self._service.answers.place("answers being sent", "serve.answers_max"):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for start in range(0, len(self.body), CHUNK_BYTES):  # each waits until there is room for it
                piece = self.body[start : start + CHUNK_BYTES]
                await send({"type": "http.response.body", "body": piece, "more_body": start + CHUNK_BYTES < len(self.body)})


def number(request: Request, name: str, *, default: int, least: int, most: int) -> int:
    """A parameter of the query string that is an integer within bounds."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 19 or not least <= int(text) <= most:
        raise Problem(400, "bad-request", f"{name} must be an integer from {least:,} to {most:,}, not {text[:40]!r}")
    return int(text)
