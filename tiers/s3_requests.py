"""Requests to one S3-compatible server, repeated while that may help. The only module that imports boto3.

boto3's own retries are off: it would repeat a write without a look at what became of the first. Its timeouts are for a server
that says nothing: one that says a byte now and then, or a name that is looked up for minutes, holds a request up for as long as
it likes. So each request has a thread of its own, which nobody waits for beyond the deadline.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import boto3
from botocore import exceptions as boto
from botocore.config import Config
from botocore.loaders import create_loader
from botocore.parsers import ResponseParserError
from botocore.session import Session, get_session
from botocore.utils import parse_timestamp

from thermocline.config import ColdSettings, mask_url

from .s3_failures import Kind, S3Failure

CONNECTIONS_MAX = 32
CONTINUE_WAIT_S = 1
"""How long botocore waits for `100 Continue` before it sends a body."""
WAIT_FIRST_S, WAIT_MAX_S = 0.1, 5.0
DEADLINE_OVER = "the deadline was over while it was under way"

T = TypeVar("T")

_KINDS: tuple[tuple[Kind, tuple[type[Exception], ...]], ...] = (
    ("keys", (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)),
    ("keys", (boto.ProfileNotFound, boto.TokenRetrievalError, boto.SSOError, boto.NoAuthTokenError)),
    ("tls", (boto.SSLError,)),
    ("unreachable", (boto.EndpointConnectionError, boto.ProxyConnectionError)),
    ("timeout", (boto.ConnectTimeoutError, boto.ReadTimeoutError)),
    ("no s3", (ResponseParserError,)),
    ("broken", (boto.HTTPClientError, boto.ResponseStreamingError, boto.IncompleteReadError)),
    ("request", (boto.BotoCoreError,)),
)
_ERRORS = (boto.BotoCoreError, boto.ClientError, ResponseParserError)


class Deadline:
    """When one call has to end, and how long to wait before each of its requests is repeated."""

    def __init__(self, settings: ColdSettings) -> None:
        self._started = time.monotonic()
        self._end = self._started + settings.deadline_s
        self._request_s = settings.timeout_s + CONTINUE_WAIT_S
        self._connect_s = settings.connect_timeout_s
        self._wait_s = WAIT_FIRST_S

    @property
    def over(self) -> bool:
        return self.left_s <= 0

    @property
    def left_s(self) -> float:
        return self._end - time.monotonic()

    def wait_s(self, failure: S3Failure) -> float | None:
        """How long to wait before trying again; None when the failure does not pass, or there is no time for another request.
        A server that cannot be reached at all gets cold.connect_timeout_s to come back."""
        if not failure.passing:
            return None
        wait_s = self._wait_s * random.uniform(0.5, 1)
        self._wait_s = min(2 * self._wait_s, WAIT_MAX_S)
        sent_s = time.monotonic() + wait_s
        if failure.kind == "unreachable":
            return wait_s if sent_s < self._started + self._connect_s else None
        return wait_s if sent_s + self._request_s < self._end else None


class S3Requests:
    """Requests to one server. Thread-safe; nothing is opened before the first one."""

    def __init__(self, settings: ColdSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._made: Any = None

    @property
    def endpoint(self) -> str:
        """Masked, for messages."""
        return mask_url(self._made.meta.endpoint_url if self._made else self._settings.endpoint_url or "the default endpoint")

    def close(self) -> None:
        if self._made is not None:
            self._made.close()

    def repeated(self, attempt: Callable[[Deadline], T]) -> T:
        """What `attempt` gives, tried again while its failure may pass. S3Failure when it did not."""
        until = Deadline(self._settings)
        while True:
            try:
                return attempt(until)
            except S3Failure as exc:
                wait_s = until.wait_s(exc)
                if wait_s is None:
                    raise
            time.sleep(wait_s)

    def send(self, method: str, until: Deadline, read: Callable[[Any], T], params: Mapping[str, Any]) -> T:
        """What `read` makes of the reply to one request, sent once. S3Failure otherwise, with the deadline at the latest."""
        try:
            return _in_time(lambda: read(_answer(getattr(self._client(), method), params)), until.left_s)
        except _Late as exc:
            raise S3Failure("timeout", text=DEADLINE_OVER) from exc
        except _ERRORS as exc:
            if until.over:
                raise S3Failure("timeout", text=DEADLINE_OVER) from exc
            raise _failure(exc) from exc

    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    def _make(self) -> Any:
        settings = self._settings
        session = boto3.session.Session(botocore_session=_session())
        region = settings.region or os.environ.get("AWS_REGION") or session.region_name or "us-east-1"

        def make(addressing: str) -> Any:
            config = Config(
                connect_timeout=settings.connect_timeout_s,
                read_timeout=settings.timeout_s,
                retries={"total_max_attempts": 1},
                request_checksum_calculation="when_required",  # many servers do not know the newer ones
                response_checksum_validation="when_required",
                max_pool_connections=CONNECTIONS_MAX,
                user_agent_extra="thermocline",
                # The server checks the sha256 of what arrives, over TLS too.
                s3={"addressing_style": addressing, "payload_signing_enabled": True},
            )
            try:
                return session.client("s3", region_name=region, endpoint_url=settings.endpoint_url, config=config)
            except ValueError as exc:
                raise S3Failure("request", text="the endpoint is no URL like https://host:port") from exc

        client = make("path" if settings.endpoint_url else "auto")
        if settings.endpoint_url is None and ".amazonaws.com" not in client.meta.endpoint_url:
            client = make("path")  # an endpoint by AWS_ENDPOINT_URL or a profile
        client.meta.events.register("before-call.s3.HeadBucket", _answer_is_final)
        client.meta.events.register("before-parse.s3", _require_whole)
        return client


def _session() -> Session:
    """With the keys that are found now, and what takes long in it done once or quicker."""
    session = get_session()
    session.register_component("data_loader", _definitions(session.get_config_variable("data_path")))
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=timestamp_of)
    return session


@cache
def _definitions(path: str | None) -> Any:
    """What botocore knows of services: it would read it for every client, which takes a tenth of a second."""
    return create_loader(path)


def timestamp_of(value: Any) -> datetime:
    """The instant a reply names, as botocore reads it. A page of a listing has a thousand, and botocore takes 0.1 ms for each."""
    try:
        found = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        found = None
    if found is None or found.tzinfo is None:
        found = parse_timestamp(value)
    return found


class _Late(Exception):
    """It was not done in time, and goes on by itself."""


def _in_time(act: Callable[[], T], limit_s: float) -> T:
    """What `act` gives. _Late when that takes longer."""
    done: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            done.put((act(), None))
        except BaseException as exc:  # whatever it is, the caller's thread raises it
            done.put((None, exc))

    if limit_s <= 0:
        raise _Late
    threading.Thread(target=run, daemon=True, name="s3").start()
    try:
        found, error = done.get(timeout=limit_s)
    except Empty:
        raise _Late from None
    if error is not None:
        try:
            raise error
        finally:
            del error  # or it and this frame keep each other
    return found  # type: ignore[return-value]  # where there was no error there is what act gave


def _answer(call: Callable[..., Any], params: Mapping[str, Any]) -> Any:
    try:
        return call(**params)
    except ValueError as exc:  # botocore's reader lets out what int() and the like raise
        raise S3Failure("no s3", text=f"the reply cannot be read: {exc}") from exc


def _require_whole(response_dict: Mapping[str, Any], operation_model: Any, **_: Any) -> None:
    """S3Failure when a reply ends early: botocore would take a listing of which only the headers came for an empty one."""
    body, stated = response_dict["body"], response_dict["headers"].get("content-length")
    if (
        isinstance(body, bytes)
        and stated is not None
        and operation_model.http.get("method") != "HEAD"
        and len(body) < int(stated)
    ):
        raise S3Failure("broken", text=f"{len(body)} of {stated} bytes came")


def _answer_is_final(context: dict[str, Any], **_: Any) -> None:
    """Of a request that is answered with 301, 302 or 307 botocore asks HeadBucket where the bucket is; and where that is answered
    so too, again, until the stack is full. This lets it take the answer as it is."""
    context.setdefault("s3_redirect", {})["redirected"] = True


def _failure(exc: Exception) -> S3Failure:
    if isinstance(exc, boto.ClientError):
        meta, error = exc.response.get("ResponseMetadata", {}), exc.response.get("Error", {})
        headers = meta.get("HTTPHeaders", {})
        return S3Failure(
            "answer",
            status=meta.get("HTTPStatusCode", 0),
            code=error.get("Code") or "",  # an empty element comes as None
            text=error.get("Message") or "",
            server_time=headers.get("date", ""),
        )
    kind = next(kind for kind, types in _KINDS if isinstance(exc, types))
    return S3Failure(kind, text=_reason(exc))


def _reason(exc: BaseException) -> str:
    """The system's words where there are some: botocore's repeat the whole URL."""
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        inner = getattr(seen, "kwargs", {}).get("error")
        seen = inner if isinstance(inner, BaseException) else seen.__cause__ or seen.__context__
    return type(exc).__name__ if isinstance(exc, boto.HTTPClientError) else str(exc).splitlines()[0]
