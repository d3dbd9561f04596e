"""Settings of `thermocline serve`: where it listens, whom it lets in, and every limit of what it takes and holds."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from thermocline.errors import ConfigError

KIB: Final = 1 << 10
MIB: Final = 1 << 20

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Signatures whose key to check them cannot make them."""


class ServeSettings(BaseModel):
    """The HTTP server: address, limits, who may do what."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; any but loopback needs tokens or an issuer")
    port: int = Field(8700, ge=0, le=65535, description="0 takes a free one")
    hosts: tuple[str, ...] = Field((), description="names clients may call the server by (Host header), beside addresses")
    worker: bool = Field(True, description="settle, merge and archive here too, unless another worker does")
    tls_cert_file: Path | None = Field(None, description="PEM chain; none: plain HTTP")
    tls_key_file: Path | None = Field(None, description="PEM key of it")

    connections_max: int = Field(1000, ge=1, le=100_000, description="open connections; beyond it 503")
    headers_bytes_max: int = Field(16 * KIB, ge=KIB, le=256 * KIB, description="headers and target of a request; beyond it 431")
    headers_timeout_s: float = Field(10, gt=0, le=3600, description="in which the headers of a request must arrive")
    body_bytes_max: int = Field(16 * MIB, ge=KIB, le=256 * MIB, description="body of a request; beyond it 413")
    body_timeout_s: float = Field(60, gt=0, le=3600, description="in which the body of a request must arrive; else 408")
    bodies_bytes_max: int = Field(128 * MIB, ge=KIB, description="bodies held at once; beyond it 503")
    json_depth_max: int = Field(72, ge=4, le=500, description="nesting of a JSON body; beyond it 422")
    requests_per_s: float = Field(1000, ge=0, le=1e6, description="per token, or address; beyond it 429; 0: no limit")
    denied_per_min: int = Field(60, ge=1, le=1_000_000, description="refused credentials per address; beyond it 429")
    write_timeout_s: float = Field(30, gt=0, le=3600, description="how long a client may leave what it asked for unread")
    keep_alive_s: float = Field(30, gt=0, le=3600, description="how long an idle connection stays open")
    stop_within_s: float = Field(4, gt=0, le=600, description="how long requests under way may take after SIGTERM")

    append_threads: int = Field(16, ge=1, le=64, description="appends at once; the others wait")
    batch_events_max: int = Field(10_000, ge=1, le=100_000, description="events in one request")
    read_threads: int = Field(2, ge=1, le=64, description="reads of conversations and of status at once")
    page_events_max: int = Field(1000, ge=1, le=10_000, description="events in one answer of a conversation")
    page_bytes_max: int = Field(8 * MIB, ge=KIB, le=256 * MIB, description="text of them, but for a single larger event")
    page_rows_max: int = Field(5000, ge=1, le=100_000, description="rows of an answer in the page's SQL console")
    answers_max: int = Field(16, ge=1, le=10_000, description="answers being sent at once; beyond it 503")
    answer_memory_bytes_max: int = Field(256 * KIB, ge=0, le=64 * MIB, description="of an answer; what is more is in a file")
    tails_max: int = Field(250, ge=1, le=10_000, description="tails open at once; beyond it 503")
    tail_threads: int = Field(2, ge=1, le=64, description="tails that read at once")
    tail_events_max: int = Field(100, ge=1, le=1000, description="events a tail holds for its reader")
    tail_bytes_max: int = Field(128 * KIB, ge=64 * KIB, le=4 * MIB, description="text of them, but for a single larger event")
    tail_reads_per_s: float = Field(50, gt=0, le=10_000, description="reads of all tails; beyond it they wait their turn")
    heartbeat_s: float = Field(15, gt=0, le=600, description="after which a quiet tail sends a comment")

    audit_bytes_max: int = Field(64 * MIB, ge=4 * KIB, description="of the audit log before it is rotated")
    audit_files_max: int = Field(8, ge=1, le=1000, description="rotated audit logs that are kept")

    jwt_issuer: str | None = Field(None, description="whose signed tokens (JWT) are taken too; their `iss`")
    jwt_audience: str | None = Field(None, description="their `aud`: what this server is called by the issuer")
    jwt_jwks_url: str | None = Field(None, description="https:// where the issuer's public keys are")
    jwt_key_file: Path | None = Field(None, description="or a file with its public key: PEM, or a JWK set")
    jwt_algorithms: tuple[Algorithm, ...] = Field(("RS256", "ES256", "EdDSA"), min_length=1)
    jwt_leeway_s: float = Field(30, ge=0, le=600, description="how far the issuer's clock may be off")
    jwt_scope_claim: str = Field("scope", min_length=1, description="claim with append, query, admin: list or words")
    jwt_namespace_claim: str = Field("thermocline_namespaces", min_length=1, description="claim with namespaces; absent: all")
    jwks_cache_s: float = Field(600, ge=10, le=86_400, description="how long fetched keys are used before they are fetched again")
    jwks_bytes_max: int = Field(256 * KIB, ge=KIB, le=16 * MIB, description="of an answer with keys")
    jwks_timeout_s: float = Field(5, gt=0, le=60, description="in which it must arrive")

    @field_validator("hosts", "jwt_algorithms", mode="before")
    @classmethod
    def _listed(cls, given: object) -> object:
        """`a, b` in the environment is a list."""
        return tuple(part.strip() for part in given.split(",") if part.strip()) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _relations(self) -> ServeSettings:
        problems = []
        if self.bodies_bytes_max < self.body_bytes_max:
            problems.append("serve.bodies_bytes_max must hold at least one body of serve.body_bytes_max")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            problems.append("serve.tls_cert_file and serve.tls_key_file belong together: set both, or none")
        if self.jwt_issuer is not None:
            if self.jwt_audience is None:
                problems.append("serve.jwt_issuer needs serve.jwt_audience, or tokens meant for other servers would be taken")
            if (self.jwt_jwks_url is None) == (self.jwt_key_file is None):
                problems.append("serve.jwt_issuer needs its keys: set either serve.jwt_jwks_url or serve.jwt_key_file")
        elif any((self.jwt_audience, self.jwt_jwks_url, self.jwt_key_file)):
            problems.append("serve.jwt_issuer is missing: the other jwt settings say nothing without it")
        if self.jwt_jwks_url is not None and not _fetchable(self.jwt_jwks_url):
            problems.append("serve.jwt_jwks_url must start with https://, or with http:// and be on this machine")
        if problems:
            raise ConfigError(problems)
        return self

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether the name or address is this machine's own, and no other can reach it."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _fetchable(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    except ValueError:
        return False


def effective(settings: ServeSettings, **given: Any) -> ServeSettings:
    """The settings with those of `given` that are not None, as the command line gives them."""
    changed = {name: value for name, value in given.items() if value is not None}
    return settings if not changed else ServeSettings.model_validate(settings.model_dump() | changed)
