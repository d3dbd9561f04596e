"""A self-signed certificate for 127.0.0.1 and its key, made with the standard library alone: a bare machine may lack `openssl`.

ECDSA over P-256, good for tests only: the arithmetic takes no care of timing.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

P = 2**256 - 2**224 + 2**192 + 2**96 - 1
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
"""The curve P-256 (SEC 2): y² = x³ - 3x + b mod P, of order N, with base point G."""

Point = tuple[int, int]


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """(certificate, key) as new PEM files in `folder`. The certificate is its own authority: clients trust that same file."""
    secret = secrets.randbelow(N - 1) + 1
    x, y = _times(secret, G)
    public = b"\x04" + x.to_bytes(32) + y.to_bytes(32)
    key = _sequence(_integer(1), _der(0x04, secret.to_bytes(32)), _der(0xA0, CURVE), _der(0xA1, _bits(public)))
    unsigned = _to_be_signed(public)
    certificate = _sequence(unsigned, _sequence(SIGNATURE_KIND), _bits(_sign(unsigned, secret)))
    certificate_path, key_path = folder / "certificate.pem", folder / "key.pem"
    certificate_path.write_text(_pem("CERTIFICATE", certificate))
    key_path.write_text(_pem("EC PRIVATE KEY", key))
    return certificate_path, key_path


def _to_be_signed(public: bytes) -> bytes:
    """RFC 5280's TBSCertificate, with what strict verification asks of an authority."""
    name = _sequence(_der(0x31, _sequence(_oid("2.5.4.3"), _der(0x0C, b"thermocline tests"))))
    now = datetime.now(UTC)
    lifetime = [_der(0x18, f"{at:%Y%m%d%H%M%SZ}".encode()) for at in (now - timedelta(days=1), now + timedelta(days=30))]
    names = _sequence(_der(0x82, b"localhost"), _der(0x87, bytes([127, 0, 0, 1])))
    extensions = _sequence(
        _extension("2.5.29.19", _sequence(_der(0x01, b"\xff")), critical=True),  # an authority
        _extension("2.5.29.15", _der(0x03, b"\x02\x84"), critical=True),  # digitalSignature, keyCertSign
        _extension("2.5.29.14", _der(0x04, hashlib.sha1(public, usedforsecurity=False).digest())),
        _extension("2.5.29.17", names),
    )
    return _sequence(
        _der(0xA0, _integer(2)),
        _integer(secrets.randbits(63)),
        _sequence(SIGNATURE_KIND),
        name,
        _sequence(*lifetime),
        name,
        _sequence(_sequence(_oid("1.2.840.10045.2.1"), CURVE), _bits(public)),
        _der(0xA3, extensions),
    )


def _sign(message: bytes, secret: int) -> bytes:
    digest = int.from_bytes(hashlib.sha256(message).digest())
    nonce = secrets.randbelow(N - 1) + 1
    r = _times(nonce, G)[0] % N
    return _sequence(_integer(r), _integer(pow(nonce, -1, N) * (digest + r * secret) % N))


def _times(factor: int, point: Point) -> Point:
    """factor × point, 0 < factor < N."""
    result: Point | None = None
    while factor:
        if factor & 1:
            result = point if result is None else _plus(result, point)
        point = _plus(point, point)
        factor >>= 1
    assert result is not None
    return result


def _plus(a: Point, b: Point) -> Point:
    slope = (3 * a[0] * a[0] - 3) * pow(2 * a[1], -1, P) if a == b else (b[1] - a[1]) * pow(b[0] - a[0], -1, P)
    x = (slope * slope - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def _der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = len(body)
    length = bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2)
    return bytes([tag]) + length + body


def _sequence(*parts: bytes) -> bytes:
    return _der(0x30, *parts)


def _integer(value: int) -> bytes:
    return _der(0x02, value.to_bytes(value.bit_length() // 8 + 1))


def _bits(raw: bytes) -> bytes:
    return _der(0x03, b"\x00" + raw)


def _oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    raw = bytearray([40 * first + second])
    for number in rest:
        groups = [number & 127]
        while number := number >> 7:
            groups.append(number & 127 | 128)
        raw += bytes(reversed(groups))
    return _der(0x06, bytes(raw))


def _extension(dotted: str, value: bytes, *, critical: bool = False) -> bytes:
    return _sequence(_oid(dotted), *([_der(0x01, b"\xff")] if critical else []), _der(0x04, value))


def _pem(label: str, raw: bytes) -> str:
    return f"-----BEGIN {label}-----\n{base64.encodebytes(raw).decode()}-----END {label}-----\n"


CURVE = _oid("1.2.840.10045.3.1.7")
SIGNATURE_KIND = _oid("1.2.840.10045.4.3.2")
"""ecdsa-with-SHA256"""
