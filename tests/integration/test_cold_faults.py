"""What can be wrong with a place for cold objects, or on the way to it: each call ends, with one line that says what to do."""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import pytest

from tests.s3_front import CUT, CUT_REQUEST, DROP, FLIP, FLIP_REQUEST, HANG, SLOW, TRICKLE, Action, Answer, Front
from tests.s3_servers import SECRET_KEY, Bucket, S3Server
from thermocline.config import ColdSettings
from thermocline.errors import ConfigError, ThermoclineError, TierCorrupt, TierUnavailable
from thermocline.tiers import cold_probe
from thermocline.tiers.cold import Cold, StoredObject
from thermocline.tiers.cold_folder import FolderCold
from thermocline.tiers.cold_probe import probe
from thermocline.tiers.cold_s3 import S3Cold
from thermocline.tiers.s3_requests import CONTINUE_WAIT_S

KEY = "events/day=2026-11-13/0190-1.parquet"
ENDS_WITHIN_S = 60
PATIENT = {"connect_timeout_s": 5, "timeout_s": 20, "deadline_s": 60}
HASTY = {"connect_timeout_s": 0.5, "timeout_s": 0.5, "deadline_s": 0.5 + CONTINUE_WAIT_S + 3}
"""Room for one repetition, at least, after a request that hangs."""
Call = Callable[[Cold, Path], object]
CALLS: dict[str, Call] = {
    "put": lambda cold, folder: cold.put(KEY, b"x"),
    "put_file": lambda cold, folder: cold.put_file(KEY, Path(__file__)),
    "get": lambda cold, folder: cold.get(KEY),
    "fetch": lambda cold, folder: cold.fetch(KEY, folder / "target"),
    "size": lambda cold, folder: cold.size(KEY),
    "objects": lambda cold, folder: list(cold.objects("events/")),
    "delete": lambda cold, folder: cold.delete([KEY]),
    "delete many": lambda cold, folder: cold.delete([KEY, "another"]),
    "abandon_uploads": lambda cold, folder: cold.abandon_uploads(before_us=1),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
some_calls = pytest.mark.parametrize(
    "call", [CALLS[name] for name in ("put", "fetch", "objects")], ids=["put", "fetch", "objects"]
)


def open_bucket(bucket: str, endpoint_url: str | None, **settings: float) -> S3Cold:
    return S3Cold(bucket, "some/tests", ColdSettings(**{"endpoint_url": endpoint_url, **PATIENT, **settings}))


def failure(call: Callable[[], object]) -> ThermoclineError:
    """The error a call ends with, in time, in one line and without the secret."""
    caught: list[BaseException | object] = []

    def run() -> None:
        try:
            caught.append(call())
        except BaseException as exc:
            caught.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(ENDS_WITHIN_S)
    assert caught, f"it has not ended within {ENDS_WITHIN_S} s"
    assert isinstance(caught[0], ThermoclineError), repr(caught[0])
    words = str(caught[0])
    assert "\n" not in words
    assert SECRET_KEY not in words
    return caught[0]


def only(kind: str, action: Action, *, times: int = 1000) -> Callable[[str, int], Action]:
    """A plan: the first requests of that kind meet the action."""
    return lambda asked, number: action if asked == kind and number <= times else None


# --- the server and the way to it


@every_call
def test_a_server_that_is_gone_is_named(call: Call, aws_environ: None, tmp_path: Path) -> None:
    error = failure(lambda: call(open_bucket("bucket", "http://user:pass@127.0.0.1:1", **HASTY), tmp_path))
    assert isinstance(error, TierUnavailable)
    assert "s3://bucket/some/tests" in str(error)
    assert "at http://user:***@127.0.0.1:1): cannot be reached (Connection refused): is it running" in str(error)


@some_calls
def test_a_server_that_accepts_and_says_nothing_is_given_up(call: Call, moto_bucket: Bucket, tmp_path: Path) -> None:
    with Front(moto_bucket.endpoint_url, lambda kind, number: HANG) as front:
        error = failure(lambda: call(open_bucket(moto_bucket.name, front.url, **HASTY), tmp_path))
    assert isinstance(error, TierUnavailable)
    assert "no answer in time" in str(error)
    assert f"given up within {HASTY['deadline_s']:g} s" in str(error)
    assert front.count.total() > 1
    assert list(tmp_path.iterdir()) == []


@every_call
def test_a_server_that_is_overloaded_for_a_moment_is_waited_for(call: Call, moto_bucket: Bucket, tmp_path: Path) -> None:
    open_bucket(moto_bucket.name, moto_bucket.endpoint_url).put(KEY, Path(__file__).read_bytes() if "file" in str(call) else b"x")
    answers = [Answer(503, "SlowDown", "Please reduce your request rate."), Answer(500, "InternalError"), Answer(429), DROP]
    with Front(moto_bucket.endpoint_url, lambda kind, number: answers.pop() if answers else None) as front:
        cold = open_bucket(moto_bucket.name, front.url)
        if call is CALLS["put_file"]:
            cold.delete([KEY])
        call(cold, tmp_path)
    assert answers == []


@some_calls
def test_a_server_that_stays_broken_is_named(call: Call, aws_environ: None, tmp_path: Path) -> None:
    with Front(None, lambda kind, number: Answer(502, "", "")) as front:
        error = failure(lambda: call(open_bucket("bucket", front.url, **HASTY), tmp_path))
    assert isinstance(error, TierUnavailable)
    assert "the server fails (502" in str(error)
    assert front.count.total() > 1


@some_calls
def test_an_endpoint_that_is_no_s3_server_is_named(call: Call, aws_environ: None, tmp_path: Path) -> None:
    page = Answer(418, headers={"Content-Type": "text/html"}, body=b"<html><body>I am a <b>teapot</body>")
    with Front(None, lambda kind, number: page) as front:
        error = failure(lambda: call(open_bucket("bucket", front.url), tmp_path))
    assert isinstance(error, TierUnavailable)
    assert "correct cold.endpoint_url" in str(error) or "check cold_url and cold.endpoint_url" in str(error)


def test_plain_http_where_tls_is_expected_is_named(moto_bucket: Bucket) -> None:
    cold = open_bucket(moto_bucket.name, moto_bucket.endpoint_url.replace("http://", "https://"))
    error = failure(lambda: cold.put(KEY, b"x"))
    assert isinstance(error, ConfigError)
    assert "correct cold.endpoint_url (http or https?)" in str(error)


@pytest.mark.parametrize(
    "call", [CALLS[name] for name in ("put", "fetch", "size", "objects")], ids=["put", "fetch", "size", "objects"]
)
def test_a_reply_that_comes_a_byte_at_a_time_ends_with_the_deadline(call: Call, moto_bucket: Bucket, tmp_path: Path) -> None:
    open_bucket(moto_bucket.name, moto_bucket.endpoint_url).put("events/other", b"x")
    with Front(moto_bucket.endpoint_url, lambda kind, number: SLOW) as front:
        cold = open_bucket(moto_bucket.name, front.url, timeout_s=1, deadline_s=1.5)
        started_s = time.monotonic()
        error = failure(lambda: call(cold, tmp_path))
        took_s = time.monotonic() - started_s
    assert isinstance(error, TierUnavailable)
    assert "no answer in time (the deadline was over while it was under way); given up within 1.5 s" in str(error)
    assert took_s < 5, "the whole reply takes ten"
    assert list(tmp_path.iterdir()) == []


def test_a_listing_that_breaks_off_before_its_first_byte_is_not_an_empty_one(
    moto_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Front(moto_bucket.endpoint_url, only("LIST", CUT, times=1)) as front:
        monkeypatch.setattr(front.dice, "choice", min)
        cold = open_bucket(moto_bucket.name, front.url)
        cold.put(KEY, b"x")
        assert [one.key for one in cold.objects()] == [KEY]
    assert front.count["LIST"] == 2


def test_a_listing_with_a_size_that_is_no_number_is_named(aws_environ: None) -> None:
    listing = b"<ListBucketResult><Contents><Key>some/tests/a</Key><Size>1o</Size></Contents></ListBucketResult>"
    with Front(None, lambda kind, number: Answer(200, body=listing)) as front:
        error = failure(lambda: list(open_bucket("bucket", front.url).objects()))
    assert isinstance(error, TierUnavailable)
    assert "the reply cannot be read: invalid literal for int() with base 10: '1o'" in str(error)


# --- keys, rights, bucket, clock


@some_calls
@pytest.mark.parametrize(
    ("variable", "value"), [("AWS_SECRET_ACCESS_KEY", "another secret"), ("AWS_ACCESS_KEY_ID", "test:nobody")]
)
def test_wrong_keys_are_named_by_what_to_set(
    call: Call, swift_bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    error = failure(lambda: call(open_bucket(swift_bucket.name, swift_bucket.endpoint_url), tmp_path))
    assert isinstance(error, ConfigError)
    assert "the server refuses the keys (SignatureDoesNotMatch): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in str(error)
    assert value not in str(error)


@some_calls
def test_missing_keys_are_named_by_what_to_set(
    call: Call, swift_bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    error = failure(lambda: call(open_bucket(swift_bucket.name, swift_bucket.endpoint_url), tmp_path))
    assert isinstance(error, ConfigError)
    assert "no usable keys" in str(error)
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" in str(error)


def test_a_profile_that_is_not_there_is_named(aws_environ: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nowhere")
    error = failure(lambda: open_bucket("bucket", "http://127.0.0.1:1", **HASTY).size(KEY))
    assert isinstance(error, ConfigError)
    assert "nowhere" in str(error)


@every_call
def test_a_bucket_that_is_not_there_is_named(call: Call, s3_bucket: Bucket, tmp_path: Path) -> None:
    error = failure(lambda: call(open_bucket("no-such-bucket", s3_bucket.endpoint_url), tmp_path))
    assert isinstance(error, ConfigError)
    assert "no bucket no-such-bucket: create it, or correct cold_url or cold.endpoint_url" in str(error)


def test_a_name_that_no_bucket_can_have_is_refused(aws_environ: None) -> None:
    error = failure(lambda: open_bucket("no bucket", "http://127.0.0.1:1").put(KEY, b"x"))
    assert isinstance(error, ConfigError)
    assert "correct cold_url" in str(error)


@some_calls
@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (Answer(403, "AccessDenied", "Access Denied."), ConfigError, "the keys need s3:ListBucket, GetObject, PutObject"),
        (Answer(403, "InvalidAccessKeyId", "who?"), ConfigError, "the server refuses the keys (InvalidAccessKeyId): set AWS_"),
        (Answer(403, "ExpiredToken", "expired"), ConfigError, "the session token has expired: log in again"),
        (
            Answer(403, "RequestTimeTooSkewed", "too large", {"Date": "Sun, 01 Nov 2026 00:00:00 GMT"}),
            TierUnavailable,
            "this machine's clock is off, the server's says Sun, 01 Nov 2026 00:00:00 GMT: set it (NTP)",
        ),
        (Answer(400, "InvalidRequest", "no"), TierUnavailable, "the server refuses it (400 InvalidRequest no)"),
    ],
    ids=lambda value: value.code if isinstance(value, Answer) else "",
)
def test_what_is_refused_is_not_asked_again(
    call: Call,
    answer: Answer,
    kind: type[ThermoclineError],
    words: str,
    aws_environ: None,
    tmp_path: Path,
) -> None:
    with Front(None, lambda kind, number: answer) as front:
        error = failure(lambda: call(open_bucket("bucket", front.url), tmp_path))
    assert isinstance(error, kind)
    assert words in str(error)
    assert front.count.total() <= 3  # a look, what is wrong in words, and botocore's own question for the region


def test_a_bucket_in_another_region_is_named(aws_environ: None) -> None:
    answer = Answer(400, "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong; expecting 'eu-west-1'")
    with Front(None, lambda kind, number: answer) as front:
        error = failure(lambda: open_bucket("bucket", front.url).get(KEY))
    assert isinstance(error, ConfigError)
    assert "expecting 'eu-west-1'" in str(error)
    assert "set cold.region" in str(error)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(507, "InsufficientStorage", "no room"), "the server is full (507 InsufficientStorage no room): free space"),
        (Answer(403, "QuotaExceeded", "over"), "the server is full (403 QuotaExceeded over): free space"),
        (Answer(413, "EntityTooLarge", "Upload exceeds quota."), "7 bytes are too many"),
    ],
)
def test_a_full_server_is_named_and_not_asked_again(moto_bucket: Bucket, answer: Answer, words: str) -> None:
    with Front(moto_bucket.endpoint_url, only("PUT", answer)) as front:
        error = failure(lambda: open_bucket(moto_bucket.name, front.url).put(KEY, b"content"))
    assert isinstance(error, TierUnavailable)
    assert words in str(error)
    assert front.count["PUT"] == 1


# --- storing: what became of a write whose reply is lost


@pytest.mark.parametrize("action", [DROP, HANG])
def test_an_object_whose_reply_was_lost_is_stored_once_and_the_call_succeeds(s3_bucket: Bucket, action: Action) -> None:
    direct = open_bucket(s3_bucket.name, s3_bucket.endpoint_url)
    with Front(s3_bucket.endpoint_url, only("PUT", action, times=1)) as front:
        open_bucket(s3_bucket.name, front.url, timeout_s=3).put(KEY, b"content")
    assert front.count["PUT"] == 1
    assert [(stored.key, stored.size_bytes) for stored in direct.objects()] == [(KEY, 7)]


def test_a_condition_that_fails_without_an_object_is_tried_again(moto_bucket: Bucket) -> None:
    answers = [
        Answer(409, "ConditionalRequestConflict", "another is under way"),
        Answer(412, "PreconditionFailed", "it is there"),
    ]
    with Front(moto_bucket.endpoint_url, lambda kind, number: answers.pop() if kind == "PUT" and answers else None) as front:
        cold = open_bucket(moto_bucket.name, front.url)
        cold.put(KEY, b"content")
        assert cold.get(KEY) == b"content"
    assert front.count["PUT"] == 3


def test_a_writer_that_comes_between_the_look_and_the_write_is_noticed(moto_bucket: Bucket) -> None:
    direct = open_bucket(moto_bucket.name, moto_bucket.endpoint_url)

    def plan(kind: str, number: int) -> Action:
        if kind == "PUT" and number == 1:
            direct.put(KEY, b"of another writer")
        return None

    with Front(moto_bucket.endpoint_url, plan) as front:
        error = failure(lambda: open_bucket(moto_bucket.name, front.url).put(KEY, b"content"))
    assert isinstance(error, TierCorrupt)
    assert direct.get(KEY) == b"of another writer"


def test_a_server_that_ignores_conditions_still_keeps_what_is_there(moto_bucket: Bucket) -> None:
    with Front(moto_bucket.endpoint_url, lambda kind, number: None, dropped_headers=("if-none-match",)) as front:
        cold = open_bucket(moto_bucket.name, front.url)
        cold.put(KEY, b"content")
        error = failure(lambda: cold.put(KEY, b"changed"))
        assert isinstance(error, TierCorrupt)
        assert cold.get(KEY) == b"content"
        by_name = {finding.name: finding for finding in cold.probe()}
    assert [name for name, finding in by_name.items() if not finding.ok] == ["conditional write"]
    assert "overwrites although asked not to" in by_name["conditional write"].detail


@pytest.mark.parametrize("action", [FLIP_REQUEST, CUT_REQUEST])
def test_an_upload_that_arrives_changed_or_in_part_is_sent_again(
    s3_bucket: Bucket, moto_server: S3Server, action: Action
) -> None:
    is_moto = s3_bucket.endpoint_url == moto_server.endpoint_url
    with Front(s3_bucket.endpoint_url, only("PUT", action, times=1), checks=is_moto) as front:
        cold = open_bucket(s3_bucket.name, front.url)
        cold.put(KEY, b"content")
        assert cold.get(KEY) == b"content"
    assert (front.met["PUT"], front.count["PUT"]) == (1, 2)


def test_a_pointer_whose_reply_was_lost_is_written_again(moto_bucket: Bucket) -> None:
    with Front(moto_bucket.endpoint_url, only("PUT", DROP, times=1)) as front:
        cold = open_bucket(moto_bucket.name, front.url)
        cold.put("iceberg/pointer", b"1", replace=True)
        assert cold.get("iceberg/pointer") == b"1"
    assert front.count["PUT"] == 2


# --- reading and deleting


@pytest.mark.parametrize("size_bytes", [100, 1 << 20])
def test_a_body_that_ends_early_is_fetched_again(moto_bucket: Bucket, tmp_path: Path, size_bytes: int) -> None:
    content = os.urandom(size_bytes)
    with Front(moto_bucket.endpoint_url, only("GET", CUT, times=1)) as front:
        cold = open_bucket(moto_bucket.name, front.url)
        cold.put(KEY, content)
        assert cold.get(KEY) == content
        front.count.clear()
        cold.fetch(KEY, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == content


READS: dict[str, Call] = {
    "get": CALLS["get"],
    "get as a range": lambda cold, folder: cold.get(KEY, offset=0, length=7),
    "fetch": CALLS["fetch"],
}
every_read = pytest.mark.parametrize("read", READS.values(), ids=READS.keys())


@every_read
def test_bytes_that_change_on_the_way_are_read_again(moto_bucket: Bucket, tmp_path: Path, read: Call) -> None:
    with Front(moto_bucket.endpoint_url, only("GET", FLIP, times=1)) as front:
        cold = open_bucket(moto_bucket.name, front.url)
        cold.put(KEY, b"content")
        found = read(cold, tmp_path)
    assert (found or (tmp_path / "target").read_bytes()) == b"content"
    assert (front.met["GET"], front.count["GET"]) == (1, 2)


@pytest.mark.parametrize(
    "read", [CALLS["get"], lambda cold, folder: cold.get(KEY, offset=0, length=7000), CALLS["fetch"]], ids=READS.keys()
)
def test_bytes_that_change_at_every_reading_are_not_taken_for_a_damaged_object(
    moto_bucket: Bucket, tmp_path: Path, read: Call
) -> None:
    open_bucket(moto_bucket.name, moto_bucket.endpoint_url).put(KEY, b"content" * 1000)  # so that no two flips are the same
    with Front(moto_bucket.endpoint_url, only("GET", FLIP), seed=1) as front:
        error = failure(lambda: read(open_bucket(moto_bucket.name, front.url, **HASTY), tmp_path))
    assert isinstance(error, TierUnavailable)
    assert "other bytes come at every reading" in str(error)
    assert list(tmp_path.iterdir()) == []


@every_read
def test_an_object_that_holds_other_bytes_is_read_twice_and_named(moto_bucket: Bucket, tmp_path: Path, read: Call) -> None:
    open_bucket(moto_bucket.name, moto_bucket.endpoint_url).put(KEY, b"content")
    damaged = {"Bucket": moto_bucket.name, "Key": f"some/tests/{KEY}", "Body": b"contenT"}
    stated = moto_bucket.client().head_object(Bucket=moto_bucket.name, Key=damaged["Key"])["Metadata"]
    moto_bucket.client().put_object(**damaged, Metadata=stated)
    with Front(moto_bucket.endpoint_url, lambda kind, number: None) as front:
        error = failure(lambda: read(open_bucket(moto_bucket.name, front.url), tmp_path))
    assert isinstance(error, TierCorrupt)
    assert f"{KEY} does not hold the bytes it was written with (sha256): restore it from a copy" in str(error)
    assert front.count["GET"] == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("action", [CUT, TRICKLE])
def test_a_body_that_never_comes_whole_leaves_no_file(moto_bucket: Bucket, tmp_path: Path, action: Action) -> None:
    open_bucket(moto_bucket.name, moto_bucket.endpoint_url).put(KEY, bytes(8 << 20))
    with Front(moto_bucket.endpoint_url, only("GET", action)) as front:
        error = failure(lambda: open_bucket(moto_bucket.name, front.url, **HASTY).fetch(KEY, tmp_path / "target"))
    assert isinstance(error, TierUnavailable)
    assert list(tmp_path.iterdir()) == []


def test_a_server_without_ranges_still_gives_the_part_asked_for(moto_bucket: Bucket) -> None:
    with Front(moto_bucket.endpoint_url, lambda kind, number: None, dropped_headers=("range",)) as front:
        cold = open_bucket(moto_bucket.name, front.url)
        cold.put(KEY, b"0123456789")
        assert cold.get(KEY, offset=3, length=4) == b"3456"
        assert cold.get(KEY, offset=3) == b"3456789"


@pytest.mark.parametrize(
    "answer", [Answer(501, "NotImplemented"), Answer(400, "MissingContentMD5"), Answer(405, "MethodNotAllowed")]
)
def test_a_server_that_cannot_delete_many_at_once_deletes_one_by_one(moto_bucket: Bucket, answer: Answer) -> None:
    with Front(moto_bucket.endpoint_url, only("DELETES", answer)) as front:
        cold = open_bucket(moto_bucket.name, front.url)
        for name in ("a", "b", "c", "d"):
            cold.put(name, b"x")
        cold.delete(["a", "b"])
        cold.delete(["c", "d"])
        assert list(cold.objects()) == []
    assert (front.count["DELETES"], front.count["DELETE"]) == (1, 4)


def test_what_a_deletion_of_many_left_is_deleted_one_by_one(moto_bucket: Bucket) -> None:
    key = "some/tests/a"
    body = f"<DeleteResult><Error><Key>{key}</Key><Code>InternalError</Code><Message>again</Message></Error></DeleteResult>"
    with Front(moto_bucket.endpoint_url, only("DELETES", Answer(200, body=body.encode()))) as front:
        cold = open_bucket(moto_bucket.name, front.url)
        cold.put("a", b"x")
        cold.delete(["a", "b"])
        assert list(cold.objects()) == []
    assert front.count["DELETE"] == 1


# --- answers of a kind that few servers give


def test_a_name_that_the_server_refuses_is_a_config_error(aws_environ: None) -> None:
    with Front(None, lambda kind, number: Answer(400, "InvalidBucketName", "no")) as front:
        error = failure(lambda: list(open_bucket("bucket", front.url).objects()))
    assert isinstance(error, ConfigError)
    assert "bucket cannot be the name of a bucket: correct cold_url" in str(error)


@some_calls
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_an_endpoint_that_points_elsewhere_is_a_config_error(call: Call, status: int, aws_environ: None, tmp_path: Path) -> None:
    """As one by http of a server that wants https."""
    moved = Answer(status, "", headers={"Location": "https://127.0.0.1:1/"}, body=b"<html>moved</html>")
    with Front(None, lambda kind, number: moved) as front:
        error = failure(lambda: call(open_bucket("bucket", front.url), tmp_path))
    assert isinstance(error, ConfigError)
    assert f"the server points elsewhere ({status}" in str(error)
    assert "correct cold.endpoint_url or cold.region" in str(error)
    assert front.count.total() <= 4


def test_a_bucket_that_says_in_which_region_it_is_is_found_there(moto_bucket: Bucket) -> None:
    elsewhere = Answer(301, "PermanentRedirect", "elsewhere", headers={"x-amz-bucket-region": "eu-west-1"})
    with Front(moto_bucket.endpoint_url, only("LIST", elsewhere, times=1)) as front:
        assert list(open_bucket(moto_bucket.name, front.url).objects()) == []
    assert front.count["LIST"] == 2


def test_a_page_instead_of_a_listing_is_named(aws_environ: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where botocore does not take it for a listing that was cut off, as its newer versions do."""
    monkeypatch.setattr("botocore.handlers._looks_like_special_case_error", lambda status, body: False)
    with Front(None, lambda kind, number: Answer(200, body=b"<html><p>welcome")) as front:
        error = failure(lambda: list(open_bucket("bucket", front.url).objects()))
    assert isinstance(error, TierUnavailable)
    assert "what answers there is no S3 server" in str(error)
    assert "correct cold.endpoint_url" in str(error)
    assert front.count.total() == 1


def test_an_endpoint_that_is_no_url_is_a_config_error(aws_environ: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    error = failure(lambda: open_bucket("bucket", None).get(KEY))
    assert isinstance(error, ConfigError)
    assert "the endpoint is no URL like https://host:port" in str(error)


@pytest.mark.parametrize("there", [True, False], ids=["there", "missing"])
def test_a_look_that_is_refused_where_reading_is_allowed_is_still_a_refusal(moto_bucket: Bucket, there: bool) -> None:
    if there:
        open_bucket(moto_bucket.name, moto_bucket.endpoint_url).put(KEY, b"x")
    with Front(moto_bucket.endpoint_url, only("HEAD", Answer(403))) as front:
        error = failure(lambda: open_bucket(moto_bucket.name, front.url).put(KEY, b"x"))
    assert isinstance(error, ConfigError)
    assert "access denied (403" in str(error)
    assert "the keys need s3:ListBucket" in str(error)
    assert front.count["PUT"] == 0


def test_a_bucket_that_may_not_be_looked_at_is_not_taken_for_a_missing_one(moto_bucket: Bucket) -> None:
    with Front(moto_bucket.endpoint_url, lambda kind, number: Answer(403) if (kind, number) == ("HEAD", 2) else None) as front:
        error = failure(lambda: open_bucket(moto_bucket.name, front.url).size(KEY))
    assert isinstance(error, ConfigError)
    assert "access denied (403" in str(error)
    assert "the keys need s3:ListBucket" in str(error)


def test_a_bucket_that_was_seen_once_is_not_looked_for_again(moto_bucket: Bucket) -> None:
    with Front(moto_bucket.endpoint_url, lambda kind, number: None) as front:
        cold = open_bucket(moto_bucket.name, front.url)
        assert [cold.size(KEY) for _ in range(3)] == [None] * 3
    assert front.count["HEAD"] == 4  # of them one for the bucket


class SlowServer:
    """Takes a request's body as a slow line brings it: a little now and then, for ever."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(4)
        self._socket.settimeout(0.05)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def _serve(self) -> None:
        while not self._over.is_set():
            with suppress(TimeoutError, ConnectionError), self._socket.accept()[0] as connection:
                connection.settimeout(0.5)
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                while not self._over.wait(0.01) and connection.recv(4096):
                    pass

    def __enter__(self) -> SlowServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()


def test_an_upload_on_a_slow_line_ends_with_the_deadline(aws_environ: None) -> None:
    content = bytes(32 << 20)
    with SlowServer() as server:
        cold = open_bucket("bucket", server.url, timeout_s=5, deadline_s=2)
        error = failure(lambda: cold.put("iceberg/pointer", content, replace=True))
        cold.close()
    assert isinstance(error, TierUnavailable)
    assert "no answer in time (the deadline was over while it was under way); given up within 2 s" in str(error)
    assert "raise cold.deadline_s or lower cold.file_bytes_max" in str(error)


# --- what another program does to the bucket meanwhile


def test_what_a_console_makes_to_show_a_folder_is_no_object(s3_bucket: Bucket) -> None:
    cold = open_bucket(s3_bucket.name, s3_bucket.endpoint_url)
    for name in ("some/tests/", "some/tests/events/"):
        s3_bucket.client().put_object(Bucket=s3_bucket.name, Key=name, Body=b"")
    cold.put(KEY, b"x")
    assert [stored.key for stored in cold.objects()] == [KEY]
    assert [stored.key for stored in cold.objects("events/")] == [KEY]


def test_an_object_that_another_deleted_first_is_deleted(moto_bucket: Bucket) -> None:
    with Front(moto_bucket.endpoint_url, only("DELETE", Answer(404, "NoSuchKey", "gone"))) as front:
        open_bucket(moto_bucket.name, front.url).delete([KEY])
    assert front.count["DELETE"] == 1


def test_an_upload_that_ended_meanwhile_is_ended_and_one_that_may_not_be_is_named(moto_bucket: Bucket) -> None:
    client = moto_bucket.client()
    client.create_multipart_upload(Bucket=moto_bucket.name, Key=f"some/tests/{KEY}")
    later_us = 4_000_000_000_000_000
    with Front(moto_bucket.endpoint_url, only("ABORT", Answer(404, "NoSuchUpload", "gone"))) as front:
        assert open_bucket(moto_bucket.name, front.url).abandon_uploads(before_us=later_us) == 1
    with Front(moto_bucket.endpoint_url, only("ABORT", Answer(403, "AccessDenied", "no"))) as front:
        error = failure(lambda: open_bucket(moto_bucket.name, front.url).abandon_uploads(before_us=later_us))
    assert isinstance(error, ConfigError)
    assert f"some/tests/{KEY} (ending an upload" in str(error)
    assert "AbortMultipartUpload" in str(error)
    assert len(client.list_multipart_uploads(Bucket=moto_bucket.name)["Uploads"]) == 1


def test_a_probe_goes_on_after_a_conditional_write_that_is_refused(moto_bucket: Bucket) -> None:
    refused = Answer(403, "AccessDenied", "not so")
    with Front(moto_bucket.endpoint_url, lambda kind, number: refused if (kind, number) == ("PUT", 2) else None) as front:
        cold = open_bucket(moto_bucket.name, front.url)
        findings = {finding.name: finding for finding in cold.probe()}
        assert list(cold.objects()) == []
    assert [name for name, finding in findings.items() if not finding.ok] == ["conditional write"]
    assert "access denied (403 AccessDenied not so)" in findings["conditional write"].detail
    assert findings["delete"].ok


def test_an_object_in_a_bucket_is_no_local_file(aws_environ: None) -> None:
    with pytest.raises(AssertionError, match=r"s3://bucket/some/tests/events/.* is no local file"):
        open_bucket("bucket", None).path(KEY)


# --- folders


@every_call
def test_a_place_that_is_a_file_is_named(call: Call, tmp_path: Path) -> None:
    place, other = tmp_path / "file", tmp_path / "other"
    place.write_bytes(b"")
    other.mkdir()
    error = failure(lambda: call(FolderCold(place), other))
    assert isinstance(error, TierUnavailable)
    assert f"{place}" in str(error)
    assert "cold_url must be a folder" in str(error)


def test_a_disk_that_is_not_mounted_does_not_make_objects_corrupt(tmp_path: Path) -> None:
    error = failure(lambda: FolderCold(tmp_path / "mounted" / "later").get(KEY))
    assert isinstance(error, TierUnavailable)
    assert "is the disk mounted?" in str(error)


@pytest.mark.parametrize("step", ["fsync", "link"])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left on device; free disk space"),
        (errno.EDQUOT, "free disk space or raise the limit"),
        (errno.EACCES, "Permission denied; let this user read and write the folder"),
        (errno.EROFS, "Read-only file system; mount it for writing, or point cold_url at"),
        (errno.EIO, "Input/output error; check the disk"),
    ],
)
def test_a_disk_that_refuses_a_step_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int, words: str
) -> None:
    cold = FolderCold(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    cold.put("events/before", b"x")
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        error = failure(lambda: cold.put("events/after", b"x"))
    assert isinstance(error, TierUnavailable)
    assert words in str(error)
    assert [path.name for path in (tmp_path / "events").iterdir()] == ["before"]
    cold.put("events/after", b"x")


def test_a_file_system_without_links_still_never_overwrites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", fail)
    cold = FolderCold(tmp_path)
    cold.put(KEY, b"x")
    cold.put(KEY, b"x")
    error = failure(lambda: cold.put(KEY, b"y"))
    assert isinstance(error, TierCorrupt)
    assert all(finding.ok for finding in cold.probe())
    assert cold.get(KEY) == b"x"


def run_python(text: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", text, *map(str, arguments)], capture_output=True, text=True)


def test_a_limit_of_open_files_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    cold = FolderCold(tmp_path)
    cold.put("a/before", b"x")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, before[1]))
    try:
        error = failure(lambda: cold.put("a/after", b"x"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert isinstance(error, TierUnavailable)
    assert "Too many open files" in str(error)
    assert "raise the limit of open files (ulimit -n)" in str(error)
    assert [stored.key for stored in cold.objects()] == ["a/before"]
    assert cold.abandon_uploads(before_us=4_000_000_000_000_000) == 0


def test_what_is_deleted_while_a_folder_is_listed_is_left_out(tmp_path: Path) -> None:
    cold = FolderCold(tmp_path)
    for name in "abc":
        cold.put(f"events/{name}", b"x")
    listing = cold.objects()
    assert next(listing).key == "events/a"
    cold.delete(["events/b"])
    assert [stored.key for stored in listing] == ["events/c"]


def test_a_limit_of_file_sizes_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    done = run_python(
        """
import resource, sys
from pathlib import Path
from thermocline.errors import TierUnavailable
from thermocline.tiers.cold_folder import FolderCold
source = Path(sys.argv[1], "source")
source.write_bytes(bytes(2 << 20))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    FolderCold(Path(sys.argv[1], "cold")).put_file("a/b", source)
except TierUnavailable as exc:
    print(exc)
""",
        tmp_path,
    )
    assert "File too large" in done.stdout, done
    assert "free disk space or raise the limit" in done.stdout
    assert list((tmp_path / "cold" / "a").iterdir()) == []


@pytest.mark.parametrize("step", ["fsync", "link"])
def test_a_writer_that_dies_within_a_step_leaves_an_orphan_and_no_object(tmp_path: Path, step: str) -> None:
    cold = FolderCold(tmp_path)
    cold.put("a/before", b"x")
    text = """
import os, sys
from pathlib import Path
from thermocline.tiers.cold_folder import FolderCold
setattr(os, sys.argv[2], lambda *_: os._exit(9))
FolderCold(Path(sys.argv[1])).put("a/after", b"content")
"""
    assert run_python(text, tmp_path, step).returncode == 9
    assert [stored.key for stored in cold.objects()] == ["a/before"]
    cold.put("a/after", b"content")
    assert cold.get("a/after") == b"content"
    assert cold.abandon_uploads(before_us=4_000_000_000_000_000) == 1
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["after", "before"]


def test_a_probe_tells_what_fails_instead_of_raising(tmp_path: Path, aws_environ: None) -> None:
    place = tmp_path / "file"
    place.write_bytes(b"")
    for cold in (FolderCold(place), open_bucket("bucket", "http://127.0.0.1:1", **HASTY)):
        (finding,) = cold.probe()
        assert (finding.name, finding.ok) == ("write", False)
        assert "cold_url must be a folder" in finding.detail or "is cold.endpoint_url right?" in finding.detail


class Forgetful(FolderCold):
    """Does not list what was written for the next so many listings."""

    forgets = 0

    def objects(self, prefix: str = "") -> Iterator[StoredObject]:
        self.forgets -= 1
        return iter(()) if self.forgets >= 0 else super().objects(prefix)


def test_a_probe_waits_a_moment_for_a_listing_that_comes_later(tmp_path: Path) -> None:
    cold = Forgetful(tmp_path)
    cold.forgets = 3
    findings = probe(cold, lambda key: None, wait_s=0.001)
    assert [finding.name for finding in findings if not finding.ok] == []
    assert cold.forgets == -1


def test_a_probe_names_a_listing_that_does_not_come_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_probe, "LISTED_WITHIN_S", 0.01)
    cold = Forgetful(tmp_path)
    cold.forgets = 10_000
    findings = {finding.name: finding for finding in probe(cold, lambda key: None, wait_s=0.001)}
    assert [name for name, finding in findings.items() if not finding.ok] == ["list after write"]
    assert (
        "is not listed 0.01 s after it was written: orphans will be found late, nothing is lost"
        in findings["list after write"].detail
    )
    assert findings["delete"].ok
    assert list(tmp_path.rglob("probe/*")) == []


def test_a_probe_tells_a_file_system_that_overwrites_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", os.replace)
    findings = {finding.name: finding for finding in FolderCold(tmp_path).probe()}
    assert [name for name, finding in findings.items() if not finding.ok] == ["conditional write"]
    assert "can be overwritten unawares: use another file system" in findings["conditional write"].detail
