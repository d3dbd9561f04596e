"""What an S3 server or the way to it did wrong, and which of our errors that is. Pure: knows no client library."""

from __future__ import annotations

from typing import Literal

import msgspec

from thermocline.errors import ConfigError, ThermoclineError, TierCorrupt, TierUnavailable

Kind = Literal["answer", "unreachable", "timeout", "broken", "damaged", "keys", "tls", "request", "no s3"]

KEYS_HELP = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
RIGHTS = "s3:ListBucket, GetObject, PutObject, DeleteObject, ListBucketMultipartUploads and AbortMultipartUpload"
_FULL = ("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "ServiceQuotaExceededException")
_BUSY = ("SlowDown", "ServiceUnavailable", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests")
_ARRIVED_DAMAGED = ("BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody")
"""What the server got is not what was sent."""


class S3Failure(Exception):
    """Internal: one request failed."""

    def __init__(self, kind: Kind, *, status: int = 0, code: str = "", text: str = "", server_time: str = "") -> None:
        self.kind = kind
        self.status = status
        """HTTP status of an answer."""
        self.code = code
        """S3's error code, where the answer had one."""
        self.server_time = server_time
        self.again = False
        """Whoever sent the request knows that it may succeed in a moment."""
        self.text = " ".join(text.split())[:300]
        super().__init__(self.seen)

    @property
    def seen(self) -> str:
        words = [str(self.status or ""), self.code if self.code != str(self.status) else "", self.text]
        return " ".join(filter(None, words)) or self.kind

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed in a moment."""
        if self.again:
            return True
        if self.kind == "answer":
            busy = self.status >= 500 and self.status not in (501, 505, 507) and self.code not in _FULL
            return busy or self.status == 429 or self.code in (*_BUSY, *_ARRIVED_DAMAGED)
        return self.kind in ("unreachable", "timeout", "broken")

    @property
    def missing(self) -> bool:
        """There is no such object, as far as the answer tells: that of a HEAD does not tell bucket from object."""
        return self.kind == "answer" and self.status == 404 and self.code != "NoSuchBucket"

    @property
    def taken(self) -> bool:
        """The condition of a write was not met, or another write of the same key is under way."""
        return self.kind == "answer" and (self.status == 412 or self.code == "ConditionalRequestConflict")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """What messages name."""

    url: str
    """Of the object or folder."""
    bucket: str
    endpoint: str
    """Masked."""
    deadline_s: float


def explained(failure: S3Failure, place: Place, *, doing: str, size_bytes: int = 0) -> ThermoclineError:
    """The error for a request that is not tried again.

    doing       "storing", "reading" …
    size_bytes  of what was to be stored
    """
    subject, seen = f"{place.url} ({doing}, at {place.endpoint})", failure.seen
    if failure.kind != "answer":
        return _without_answer(failure, subject, place)
    match failure.code:
        case "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "InvalidSecurity":
            return ConfigError(f"{subject}: the server refuses the keys ({failure.code}): {KEYS_HELP} to keys of this server")
        case "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired":
            return ConfigError(f"{subject}: the session token has expired: log in again, or {KEYS_HELP} to lasting keys")
        case "RequestTimeTooSkewed" | "RequestExpired":
            server = f", the server's says {failure.server_time}" if failure.server_time else ""
            return TierUnavailable(f"{subject}: this machine's clock is off{server}: set it (NTP), then run again")
        case "NoSuchBucket":
            return ConfigError(f"{subject}: no bucket {place.bucket}: create it, or correct cold_url or cold.endpoint_url")
        case "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" | "TemporaryRedirect":
            return ConfigError(f"{subject}: the bucket is in another region ({failure.text}): set cold.region")
        case "InvalidBucketName":
            return ConfigError(f"{subject}: {place.bucket} cannot be the name of a bucket: correct cold_url")
        case "EntityTooLarge" | "EntityTooSmall" | "MaxMessageLengthExceeded":
            return TierUnavailable(
                f"{subject}: {size_bytes} bytes are too many for the server ({seen}): "
                "raise the quota of the bucket, or lower cold.file_bytes_max"
            )
    if failure.code in _FULL or failure.status == 507 or "quota" in failure.text.lower():
        return TierUnavailable(f"{subject}: the server is full ({seen}): free space or raise its quota, then run again")
    if failure.status in (401, 403):
        return ConfigError(f"{subject}: access denied ({seen}): the keys need {RIGHTS} on bucket {place.bucket}")
    if failure.status == 404:
        return TierCorrupt(f"{subject}: it is not there any more: restore it from a copy, or take a fresh view")
    if failure.status in (301, 302, 307, 308):
        return ConfigError(f"{subject}: the server points elsewhere ({seen}): correct cold.endpoint_url or cold.region")
    if failure.passing or failure.status >= 500:
        return TierUnavailable(f"{subject}: the server fails ({seen}); given up after {place.deadline_s:g} s: run again later")
    return TierUnavailable(f"{subject}: the server refuses it ({seen}): check cold_url and cold.endpoint_url")


def _without_answer(failure: S3Failure, subject: str, place: Place) -> ThermoclineError:
    seen = failure.seen
    match failure.kind:
        case "keys":
            return ConfigError(f"{subject}: no usable keys ({seen}): {KEYS_HELP}")
        case "tls":
            return ConfigError(f"{subject}: TLS fails ({seen}): correct cold.endpoint_url (http or https?) or set AWS_CA_BUNDLE")
        case "request":
            return ConfigError(f"{subject}: no such request can be made ({seen}): correct cold_url or cold.endpoint_url")
        case "no s3":
            return TierUnavailable(f"{subject}: what answers there is no S3 server ({seen}): correct cold.endpoint_url")
        case "unreachable":
            return TierUnavailable(f"{subject}: cannot be reached ({seen}): is it running, and is cold.endpoint_url right?")
        case "damaged":
            return TierCorrupt(f"{place.url} does not hold the bytes it was written with (sha256): restore it from a copy")
        case "timeout":
            return TierUnavailable(
                f"{subject}: no answer in time ({seen}); given up within {place.deadline_s:g} s: is the server overloaded? "
                "On a slow line raise cold.deadline_s or lower cold.file_bytes_max"
            )
    return TierUnavailable(f"{subject}: the connection broke ({seen}); given up within {place.deadline_s:g} s: run again later")
