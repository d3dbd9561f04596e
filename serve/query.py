"""POST /v1/query and DELETE /v1/query/{id}: SQL of strangers, run in the sandbox, its answer in the form the client takes.

An answer is whole before its first byte is sent: in a file, when it is more than a little. So an error has its own status, a
slow reader holds no process and no query's place, and what was cut short says so in a header.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator
from typing import IO, Any, Final, NamedTuple

import anyio.to_thread
import msgspec
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from thermocline.errors import IncompleteAnswer, QueryRefused, ThermoclineError
from thermocline.tiers.whole_file import file_errors

from .accepting import chosen
from .bodies import body_of
from .coverage_header import COVERAGE_HEADER, brief
from .problems import Problem
from .rows import (
    ARROW,
    CSV,
    FORMS,
    JSON,
    NDJSON,
    columns_of,
    dumped,
    write_arrow,
    write_csv,
    write_json_rows,
    write_ndjson,
    write_parquet,
)
from .service import Service

SQL_TYPES: Final = ("application/sql", "text/plain")
ID_HEADER: Final = "Thermocline-Query-Id"
CHUNK_BYTES: Final = 64 << 10
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Ask(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of a query as JSON."""

    sql: str
    params: list[Any] | dict[str, Any] | None = None
    rows_max: int | None = None
    deadline_s: float | None = None
    id: str | None = None
    complete: bool = False


class Running(NamedTuple):
    """A query under way."""

    caller: str
    cancelled: threading.Event
    """Seen by the thread that runs it."""
    told: asyncio.Event
    """Seen while it still waits."""

    def cancel(self) -> None:
        self.cancelled.set()
        self.told.set()


class Answered(NamedTuple):
    """A whole answer in a file."""

    file: IO[bytes]
    size: int
    rows: int
    truncated: bool
    coverage: Any


class Queries:
    """The queries under way, by id."""

    def __init__(self) -> None:
        self.running: dict[tuple[str, str], Running] = {}
        """By caller and id: one caller's ids say nothing to another."""

    def begin(self, query_id: str, caller: str) -> Running:
        """Problem 409 when the id is in use."""
        if (caller, query_id) in self.running:
            raise Problem(
                409, "query-id-in-use", f"a query with the id {query_id!r} is running: choose another, or cancel it first"
            )
        found = self.running[caller, query_id] = Running(caller, threading.Event(), asyncio.Event())
        return found

    def end(self, query_id: str, caller: str) -> None:
        self.running.pop((caller, query_id), None)

    def cancel(self, query_id: str, caller: str, *, any_callers: bool) -> bool:
        """Whether there was such a query of this caller, or of anybody."""
        found = [one for (whose, name), one in self.running.items() if name == query_id and (any_callers or whose == caller)]
        for one in found:
            one.cancel()
        return bool(found)


async def query(request: Request) -> Response:
    """The answer, after the whole of it is there."""
    service: Service = request.app.state.service
    media_type = chosen(request.headers.get("accept", ""), FORMS)
    if media_type is None:
        raise Problem(406, "not-acceptable", f"answers come as {', '.join(FORMS)}: name one of them in Accept")
    async with body_of(request, service) as body:
        ask = _ask(request, body)
    query_id = ask.id or request.headers.get(ID_HEADER) or uuid.uuid4().hex
    if not _ID.fullmatch(query_id):
        raise Problem(400, "bad-request", "the query's id may have 1 to 64 letters, digits, '_' and '-'")
    answered = await answered_to(request, ask, media_type, query_id)
    return _response(service, answered, media_type, query_id)


async def answered_to(request: Request, ask: Ask, media_type: str, query_id: str) -> Answered:
    """The whole answer; its file is the caller's to close. Counted, audited, and cancelled when the client leaves."""
    service: Service = request.app.state.service
    queries: Queries = request.app.state.queries
    caller = request.scope["caller"]
    request.scope["audit"] = {"query_id": query_id, "sql": ask.sql}
    running = queries.begin(query_id, caller.name)
    begin_s = time.perf_counter()
    try:
        service.answers.check("answers being sent", "serve.answers_max")
        with service.queries.place("queries", "sandbox.children_max, sandbox.waiting_max"):
            answered = await _watched(request, service, ask, media_type, query_id, running)
    except Exception as exc:
        service.metrics.queried(_outcome(exc, running), time.perf_counter() - begin_s, 0, 0)
        if running.cancelled.is_set() and not isinstance(exc, Problem):
            raise Problem(409, "query-cancelled", f"query {query_id} was cancelled") from exc
        raise
    finally:
        queries.end(query_id, caller.name)
    service.metrics.queried("answered", time.perf_counter() - begin_s, answered.rows, answered.size)
    request.scope["audit"] |= {"rows": answered.rows, "truncated": answered.truncated}
    return answered


async def cancel(request: Request) -> Response:
    """204; 404 when there is no such query of this caller."""
    queries: Queries = request.app.state.queries
    query_id = request.path_params["query_id"]
    caller = request.scope["caller"]
    request.scope["audit"] = {"query_id": query_id}
    if not queries.cancel(query_id, caller.name, any_callers="admin" in caller.scopes):
        raise Problem(404, "not-found", "no query of yours with that id is running: it may have ended")
    return Response(status_code=204)


def _ask(request: Request, body: bytes) -> Ask:
    media_type = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    try:
        if media_type in SQL_TYPES:
            ask = Ask(sql=body.decode())
        elif media_type == JSON:
            ask = msgspec.json.decode(body, type=Ask)
        else:
            detail = f"Content-Type {media_type[:60]!r} is not taken: send {JSON} with `sql`, or the SQL itself as {SQL_TYPES[0]}"
            raise Problem(415, "unsupported-media-type", detail)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise Problem(400, "bad-request", f'the body is no query: {exc}; send {{"sql": "SELECT …"}}') from exc
    if ask.rows_max is not None and not 1 <= ask.rows_max <= 1 << 40:
        raise Problem(400, "bad-request", f"rows_max must be 1 or more, not {ask.rows_max}")
    if ask.deadline_s is not None and not 0 < ask.deadline_s <= 86_400:
        raise Problem(400, "bad-request", f"deadline_s must be seconds above 0, not {ask.deadline_s}")
    return ask


async def _watched(request: Request, service: Service, ask: Ask, media_type: str, query_id: str, running: Running) -> Answered:
    """The answer; cancelled when the client leaves, when it is told to, or when the server stops."""
    work = asyncio.create_task(
        anyio.to_thread.run_sync(
            lambda: _answered(service, ask, media_type, query_id, running.cancelled), limiter=service.querying
        )
    )
    ends = [asyncio.create_task(end) for end in (_left(request), service.stopping.wait(), running.told.wait())]
    try:
        await asyncio.wait((work, *ends), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            running.cancel()
            work.cancel()
        return await work
    except asyncio.CancelledError as exc:
        running.cancel()
        work.cancel()
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise Problem(409, "query-cancelled", f"query {query_id} was cancelled") from exc
    finally:
        for end in ends:
            end.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answered(service: Service, ask: Ask, media_type: str, query_id: str, cancelled: threading.Event) -> Answered:
    """The whole answer in a file. Blocks."""
    if cancelled.is_set():
        raise QueryRefused("the query was cancelled before it began")
    folder = service.settings.namespace_dir
    with file_errors(str(folder), setting="data_dir"):
        return _written(service, ask, media_type, query_id, cancelled)


def _written(service: Service, ask: Ask, media_type: str, query_id: str, cancelled: threading.Event) -> Answered:
    memory = service.settings.serve.answer_memory_bytes_max
    bounds: dict[str, Any] = {"rows_max": ask.rows_max, "deadline_s": ask.deadline_s}
    file: Any = tempfile.SpooledTemporaryFile(max_size=memory, dir=str(service.settings.namespace_dir))  # noqa: SIM115  # it is sent later
    try:
        with service.sandbox.run(ask.sql, ask.params, **bounds, cancelled=cancelled) as answer:
            if ask.complete and not answer.coverage.exact:
                raise IncompleteAnswer(f"{answer.coverage.reason}; ask without `complete`, or for days that are still warm")
            rows = _write(file, answer, media_type, query_id)
            truncated = bool(answer.truncated)
        if cancelled.is_set():
            raise QueryRefused("the query was cancelled")
        size = file.tell()
        file.seek(0)
        return Answered(file, size, rows, truncated, answer.coverage)
    except BaseException:
        file.close()
        raise


def _write(file: IO[bytes], answer: Any, media_type: str, query_id: str) -> int:
    out: Any = file
    if media_type == JSON:
        file.write(b'{"query_id":' + dumped(query_id) + b',"columns":' + dumped(columns_of(answer.schema)) + b',"rows":[')
        rows = write_json_rows(out, answer.schema, answer.batches())
        tail = {"row_count": rows, "truncated": bool(answer.truncated), "coverage": answer.coverage.as_dict()}
        file.write(b"]," + dumped(tail)[1:] + b"\n")
        return rows
    if media_type == NDJSON:
        return write_ndjson(out, answer.schema, answer.batches())
    if media_type == CSV:
        return write_csv(out, answer.schema, answer.batches())
    notes = {"thermocline.coverage": dumped(answer.coverage.as_dict()), "thermocline.query_id": query_id.encode()}
    write = write_arrow if media_type == ARROW else write_parquet
    return write(out, answer.schema, answer.batches(), notes)


def _response(service: Service, answered: Answered, media_type: str, query_id: str) -> Response:
    room = service.answers.place("answers being sent", "serve.answers_max")
    try:
        room.__enter__()
    except Problem:
        answered.file.close()
        raise
    ended = False

    def end() -> None:
        nonlocal ended
        if not ended:
            ended = True
            answered.file.close()
            room.__exit__(None, None, None)

    async def chunks() -> AsyncIterator[bytes]:
        try:
            while chunk := answered.file.read(CHUNK_BYTES):
                yield chunk
        finally:
            end()

    headers = {
        ID_HEADER: query_id,
        COVERAGE_HEADER: brief(answered.coverage),
        "Thermocline-Rows": str(answered.rows),
        "Thermocline-Truncated": "true" if answered.truncated else "false",
        "Content-Length": str(answered.size),
        "Cache-Control": "no-store",
    }
    return _Sent(chunks(), headers=headers, media_type=media_type, background=BackgroundTask(end), end=end)


class _Sent(StreamingResponse):
    """A response that lets go of its file however it ends."""

    def __init__(self, *arguments: Any, end: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._end = end

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


def _outcome(exc: BaseException, running: Running) -> str:
    if running.cancelled.is_set():
        return "cancelled"
    if isinstance(exc, QueryRefused | IncompleteAnswer):
        return "refused"
    if isinstance(exc, Problem):
        return "shed"
    return "failed" if isinstance(exc, ThermoclineError) else "broken"
