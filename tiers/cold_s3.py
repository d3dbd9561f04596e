"""The cold tier's objects in an S3-compatible bucket (contract: cold.py).

Storing an object, and what a crash or a lost reply leaves after each step: look whether it is there (nothing); one PUT on
condition that it is not (the whole object, or nothing); on any doubt look again and compare. Some servers ignore the condition
and some answer it wrongly after a lost reply of our own, so only the look decides. An object carries its sha256 in its metadata.

Every call ends within cold.deadline_s; of a listing every page, of a deletion every thousand keys.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from thermocline.config import ColdSettings
from thermocline.errors import TierCorrupt

from .cold import Finding, StoredObject
from .cold_keys import checked_base, checked_key, key_below
from .cold_probe import probe
from .s3_failures import Place, S3Failure, explained
from .s3_requests import Deadline, S3Requests
from .whole_file import file_errors, whole_file

BATCH_KEYS = 1000
"""What one request can delete."""
PIECE_BYTES = 32 << 10
"""Received at once; between two of them the deadline is looked at."""

T = TypeVar("T")


class S3Cold:
    """Objects below `prefix` in a bucket.

    prefix  without slashes at its ends
    """

    is_local = False

    def __init__(self, bucket: str, prefix: str, settings: ColdSettings) -> None:
        self.url = checked_base(f"s3://{bucket}/{prefix}")
        self._bucket = bucket
        self._prefix = prefix + "/"
        self._settings = settings
        self._requests = S3Requests(settings)
        self._bucket_seen = False
        self._deletes_batches = True

    def url_of(self, key: str) -> str:
        return f"{self.url}/{checked_key(key)}"

    def key_of(self, url: str) -> str:
        return key_below(self.url, url)

    def path(self, key: str) -> Path:
        raise AssertionError(f"{self.url_of(key)} is no local file")

    def put_file(self, key: str, source: Path) -> None:
        with file_errors(str(source), setting="data_dir"), source.open("rb") as file:
            self._store(key, file, replace=False)

    def put(self, key: str, content: bytes, *, replace: bool = False) -> None:
        self._store(key, io.BytesIO(content), replace=replace)

    def _store(self, key: str, content: io.BufferedReader | io.BytesIO, *, replace: bool) -> None:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
        size_bytes = content.seek(0, io.SEEK_END)

        def attempt(until: Deadline) -> None:
            if not replace and self._holds(key, size_bytes, digest, until):
                return
            params = {"Body": _Body(content, until), "ContentLength": size_bytes, "Metadata": {"sha256": digest}}
            try:
                self._send("put_object", until, key, **params, **({} if replace else {"IfNoneMatch": "*"}))
            except S3Failure as exc:
                exc.again = exc.taken  # the next look tells by what
                raise

        with self._explained(self.url_of(key), "storing", size_bytes=size_bytes):
            self._requests.repeated(attempt)

    def _holds(self, key: str, size_bytes: int, digest: str, until: Deadline) -> bool:
        """Whether the object is there already. TierCorrupt when another one is there."""
        found = self._head(key, until)
        if found is None:
            return False
        if found["ContentLength"] == size_bytes:
            there = found.get("Metadata", {}).get("sha256") or self._read(key, until, _digest, {})
            if there == digest:
                return True
        url = self.url_of(key)
        raise TierCorrupt(f"{url} is there already and holds other bytes: it was not changed; see which of the two is right")

    def _head(self, key: str, until: Deadline) -> Mapping[str, Any] | None:
        """The answer to HEAD; None when there is no such object. What is wrong otherwise it cannot say: a GET is asked."""
        try:
            found: Mapping[str, Any] = self._send("head_object", until, key)
            return found
        except S3Failure as exc:
            if exc.missing:
                if not self._bucket_seen:
                    self._see_bucket(until)
                return None
            if exc.kind == "answer" and not exc.passing:
                raise self._worded(exc, key, until) from exc
            raise

    def _worded(self, failure: S3Failure, key: str, until: Deadline) -> S3Failure:
        try:
            self._read(key, until, _whole, {"Range": "bytes=0-0"})
        except S3Failure as exc:
            return failure if exc.missing else exc
        return failure

    def _see_bucket(self, until: Deadline) -> None:
        try:
            self._send("head_bucket", until)
        except S3Failure as exc:
            if exc.missing:
                raise S3Failure("answer", status=404, code="NoSuchBucket") from exc
            raise

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        url = self.url_of(key)
        if length == 0 and self.size(key) is not None:
            return b""
        end = "" if length is None else offset + length - 1
        params = {} if offset == 0 and not length else {"Range": f"bytes={offset}-{end}"}

        seen: set[str] = set()

        def read(reply: Any, until: Deadline) -> bytes:
            content = _whole(reply, until)
            given = reply.get("ContentRange")  # none of a server that knows no ranges
            if given is None or given == f"bytes 0-{len(content) - 1}/{len(content)}":
                _require_sum(reply, hashlib.sha256(content).hexdigest(), seen)
            if params and given is None:
                content = content[offset:] if length is None else content[offset : offset + length]
            return content

        with self._explained(url, "reading"):
            try:
                return self._requests.repeated(lambda until: self._read(key, until, read, params))
            except S3Failure as exc:
                if exc.status == 416:  # nothing from there on
                    return b""
                raise

    def fetch(self, key: str, target: Path) -> None:
        def attempt(until: Deadline) -> None:
            with whole_file(target) as file:
                self._read(key, until, lambda reply, until: _copy(reply, file, until, seen), {})

        url, seen = self.url_of(key), set[str]()
        with self._explained(url, "reading"), file_errors(str(target), setting="data_dir"):
            self._requests.repeated(attempt)

    def _read(self, key: str, until: Deadline, read: Callable[[Any, Deadline], T], params: Mapping[str, Any]) -> T:
        full = {"Bucket": self._bucket, "Key": self._prefix + key, **params}
        return self._requests.send("get_object", until, lambda reply: read(reply, until), full)

    def size(self, key: str) -> int | None:
        with self._explained(self.url_of(key), "looking"):
            found = self._requests.repeated(lambda until: self._head(key, until))
        return None if found is None else int(found["ContentLength"])

    def objects(self, prefix: str = "") -> Iterator[StoredObject]:
        for page in self._pages("list_objects_v2", prefix, {"ContinuationToken": "NextContinuationToken"}):
            for item in page.get("Contents", ()):
                key = item["Key"].removeprefix(self._prefix)
                if key and not key.endswith("/"):  # what consoles make to show a folder
                    modified_us = int(item["LastModified"].timestamp() * 1_000_000)
                    yield StoredObject(key=key, size_bytes=item["Size"], modified_us=modified_us)

    def _pages(self, method: str, prefix: str, markers: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
        """Pages of a listing; `markers` are the parameters of the next page and where this one names them."""
        params: dict[str, Any] = {"Prefix": self._prefix + prefix}
        while True:
            with self._explained(f"{self.url}/{prefix}", "listing"):
                page = self._repeat(method, **params)
            yield page
            if not page.get("IsTruncated"):
                return
            params |= {parameter: page[name] for parameter, name in markers.items()}

    def delete(self, keys: Iterable[str]) -> None:
        waiting = iter(keys)
        while batch := [checked_key(key) for key in islice(waiting, BATCH_KEYS)]:
            for key in self._delete_batch(batch):
                with self._explained(self.url_of(key), "deleting"):
                    self._requests.repeated(lambda until, key=key: self._delete_one(key, until))  # type: ignore[misc]

    def _delete_batch(self, keys: Sequence[str]) -> Sequence[str]:
        """Delete many at once; those that have to be deleted one by one."""
        if len(keys) == 1 or not self._deletes_batches:
            return keys
        wanted = {"Objects": [{"Key": self._prefix + key} for key in keys], "Quiet": True}
        with self._explained(self.url, "deleting"):
            try:
                reply = self._repeat("delete_objects", Delete=wanted)
            except S3Failure as exc:
                if exc.status not in (400, 405, 411, 501):
                    raise
                self._deletes_batches = False  # it does not know such requests, or not with our checksum
                return keys
        return [error["Key"].removeprefix(self._prefix) for error in reply.get("Errors", ()) if error.get("Code") != "NoSuchKey"]

    def _delete_one(self, key: str, until: Deadline) -> None:
        try:
            self._send("delete_object", until, key)
        except S3Failure as exc:
            if not exc.missing:
                raise

    def abandon_uploads(self, *, before_us: int) -> int:
        count = 0
        for page in self._pages(
            "list_multipart_uploads", "", {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        ):
            for upload in page.get("Uploads", ()):
                if upload["Initiated"].timestamp() * 1_000_000 < before_us:
                    with self._explained(f"s3://{self._bucket}/{upload['Key']}", "ending an upload"):
                        self._requests.repeated(lambda until, upload=upload: self._abort(upload, until))  # type: ignore[misc]
                    count += 1
        return count

    def _abort(self, upload: Mapping[str, Any], until: Deadline) -> None:
        try:
            key = upload["Key"].removeprefix(self._prefix)
            self._send("abort_multipart_upload", until, key, UploadId=upload["UploadId"])
        except S3Failure as exc:
            if not exc.missing:
                raise

    def probe(self) -> list[Finding]:
        return probe(self, self._overwrites)

    def _overwrites(self, key: str) -> str | None:
        with self._explained(self.url_of(key), "storing"):
            try:
                self._repeat("put_object", key, Body=b"other", IfNoneMatch="*")
            except S3Failure as exc:
                if exc.taken:
                    return None
                raise
        return "the server overwrites although asked not to (If-None-Match): one worker alone cannot lose data, two at once could"

    def close(self) -> None:
        self._requests.close()

    def _repeat(self, method: str, key: str | None = None, **params: Any) -> Any:
        return self._requests.repeated(lambda until: self._send(method, until, key, **params))

    def _send(self, method: str, until: Deadline, key: str | None = None, **params: Any) -> Any:
        named = {} if key is None else {"Key": self._prefix + key}
        reply = self._requests.send(method, until, lambda reply: reply, {"Bucket": self._bucket, **named, **params})
        self._bucket_seen = True
        return reply

    @contextmanager
    def _explained(self, url: str, doing: str, *, size_bytes: int = 0) -> Iterator[None]:
        try:
            yield
        except S3Failure as exc:
            deadline_s = self._settings.deadline_s
            place = Place(url=url, bucket=self._bucket, endpoint=self._requests.endpoint, deadline_s=deadline_s)
            raise explained(exc, place, doing=doing, size_bytes=size_bytes) from exc


class _Body:
    """A file as botocore sends it; reading ends with the deadline."""

    def __init__(self, content: io.BufferedIOBase, until: Deadline) -> None:
        self._content = content
        self._until = until
        content.seek(0)

    def read(self, count: int = -1) -> bytes:
        if self._until.over:
            raise TimeoutError("the deadline is over")
        return self._content.read(count)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._content.seek(offset, whence)

    def tell(self) -> int:
        return self._content.tell()


def _pieces(reply: Any, until: Deadline) -> Iterator[bytes]:
    body = reply["Body"]  # not entered as a context: that gives the bare stream, which takes a broken connection for the end
    try:
        while piece := body.read(PIECE_BYTES):
            yield piece
            if until.over:
                raise S3Failure("timeout", text="still receiving when the deadline was over")
    finally:
        body.close()


def _whole(reply: Any, until: Deadline) -> bytes:
    return b"".join(_pieces(reply, until))


def _digest(reply: Any, until: Deadline) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(reply, until):
        digest.update(piece)
    return digest.hexdigest()


def _copy(reply: Any, file: BinaryIO, until: Deadline, seen: set[str]) -> None:
    digest = hashlib.sha256()
    for piece in _pieces(reply, until):
        digest.update(piece)
        file.write(piece)
    _require_sum(reply, digest.hexdigest(), seen)


def _require_sum(reply: Any, digest: str, seen: set[str]) -> None:
    """S3Failure unless these are the bytes that were stored. The same wrong ones twice are what the object holds; what is another
    at every reading was changed on the way.

    seen  sums of what came before, in this call
    """
    if reply.get("Metadata", {}).get("sha256", digest) == digest:
        return
    again = digest not in seen
    seen.add(digest)
    failure = S3Failure("damaged") if len(seen) == 1 else S3Failure("broken", text="other bytes come at every reading")
    failure.again = again
    raise failure
