"""Who may call: hosts, origins, tokens of an issuer; nothing is served to others without a credential."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from thermocline.config import load
from thermocline.errors import ConfigError
from thermocline.serve.access import COOKIE, Access, Caller, require
from thermocline.serve.problems import Problem
from thermocline.serve.tokens import create

ISSUER = "https://issuer.example.org"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def access(data_dir: Path, **serve: Any) -> Access:
    return Access(load({"data_dir": data_dir, "serve": serve}, environ={}))


def who(
    checked: Access, headers: Mapping[str, str], cookies: Mapping[str, str] | None = None, address: str = "10.0.0.1"
) -> Caller:
    return asyncio.run(checked.caller(headers, cookies or {}, address))


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


def refused(status: int, checked: Access, headers: Mapping[str, str], **more: Any) -> Problem:
    with pytest.raises(Problem) as found:
        who(checked, headers, **more)
    assert found.value.status == status, found.value.detail
    return found.value


# Without credentials


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", "127.0.0.1.example.org"])
def test_without_tokens_only_loopback_is_served(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="thermocline tokens create"):
        access(tmp_path, host=host)
    create(tmp_path, "agent", ["append"])
    assert access(tmp_path, host=host).required


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_on_loopback_without_tokens_anybody_may_do_anything(tmp_path: Path, host: str) -> None:
    caller = who(access(tmp_path, host=host), {})
    assert caller.name == "local"
    require(caller, "admin")


def test_a_token_made_meanwhile_is_asked_for_at_once(tmp_path: Path) -> None:
    checked = access(tmp_path)
    assert who(checked, {}).name == "local"
    made = create(tmp_path, "agent", ["query"])
    refused(401, checked, {})
    assert who(checked, bearer(made.text)).name == f"token:{made.token.id}"


def test_tokens_that_cannot_be_read_any_more_let_nobody_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = create(tmp_path, "agent", ["query"])
    checked = access(tmp_path)
    (tmp_path / "tokens.json").chmod(0o644)
    create_time = (tmp_path / "tokens.json").stat().st_mtime
    os.utime(tmp_path / "tokens.json", (create_time + 1, create_time + 1))
    for _ in range(2):
        found = refused(503, checked, bearer(made.text))
        assert "chmod" not in found.detail
    assert "chmod 600" in caplog.text
    (tmp_path / "tokens.json").chmod(0o600)
    assert who(checked, bearer(made.text)).scopes == {"query"}


# Hosts and origins


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8700", "127.0.0.1:1", "[::1]:8700", "Store.example.org", "10.1.2.3", "store.example.org."]
)
def test_names_of_the_server_are_taken(tmp_path: Path, host: str) -> None:
    access(tmp_path, hosts=["store.example.org"]).check_host(host)


@pytest.mark.parametrize(
    "host", ["", "evil.example.org", "localhost.evil.org", "a@localhost", "localhost/x", "localhost:x", "[::1", "x" * 999]
)
def test_other_names_are_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(Problem) as found:
        access(tmp_path, hosts=["store.example.org"]).check_host(host)
    assert found.value.status == 421
    assert "serve.hosts" in found.value.detail


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"host": "localhost:8700"}, True),
        ({"host": "localhost:8700", "origin": "http://localhost:8700", "sec-fetch-site": "same-origin"}, True),
        ({"host": "localhost:8700", "sec-fetch-site": "none"}, True),
        ({"host": "localhost:8700", "origin": "https://evil.example.org"}, False),
        ({"host": "localhost:8700", "origin": "http://localhost:9000"}, False),
        ({"host": "localhost:8700", "origin": "null"}, False),
        ({"host": "localhost:8700", "sec-fetch-site": "cross-site"}, False),
        ({"host": "localhost:8700", "sec-fetch-site": "same-site"}, False),
    ],
)
def test_pages_of_other_sites_may_change_nothing(tmp_path: Path, headers: dict[str, str], allowed: bool) -> None:
    checked = access(tmp_path)
    checked.check_origin("GET", headers)
    if allowed:
        checked.check_origin("POST", headers)
    else:
        with pytest.raises(Problem, match=r"another site|may not do this"):
            checked.check_origin("POST", headers)


# Tokens


def test_a_scope_that_is_missing_is_named(tmp_path: Path) -> None:
    made = create(tmp_path, "agent", ["append"])
    caller = who(access(tmp_path), bearer(made.text))
    require(caller, "append")
    with pytest.raises(Problem) as found:
        require(caller, "query")
    assert (found.value.status, "insufficient_scope" in found.value.headers["WWW-Authenticate"]) == (403, True)
    admin = create(tmp_path, "admin", ["admin"])
    require(who(access(tmp_path), bearer(admin.text)), "query")


def test_a_token_is_good_for_its_namespaces_only(tmp_path: Path) -> None:
    other = create(tmp_path, "other", ["query"], namespaces=["other"])
    both = create(tmp_path, "both", ["query"], namespaces=["other", "default"])
    refused(403, access(tmp_path), bearer(other.text))
    assert who(access(tmp_path), bearer(both.text)).scopes == {"query"}


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "Bearer tc_x", "Bearer \ud800", "bearer a.b.c", "Bearer " + "x" * 100_000],
)
def test_what_is_no_token_is_refused_with_a_challenge(tmp_path: Path, header: str) -> None:
    create(tmp_path, "agent", ["query"])
    found = refused(401, access(tmp_path), {"authorization": header} if header else {})
    assert found.headers["WWW-Authenticate"].startswith("Bearer realm=")


def test_a_browser_has_its_token_in_a_cookie(tmp_path: Path) -> None:
    made = create(tmp_path, "person", ["query"])
    checked = access(tmp_path)
    assert who(checked, {}, {COOKIE: made.text}).name == f"token:{made.token.id}"
    refused(401, checked, {"authorization": "Basic x"}, cookies={COOKIE: made.text})


def test_who_tries_too_often_has_to_wait(tmp_path: Path) -> None:
    made = create(tmp_path, "agent", ["query"])
    checked = access(tmp_path, denied_per_min=3)
    for _ in range(3):
        refused(401, checked, bearer("wrong"))
    found = refused(429, checked, bearer(made.text))
    assert found.retry_after_s is not None
    assert who(checked, bearer(made.text), address="10.0.0.2").scopes == {"query"}


# Tokens of an issuer


def public_pem(key: Any) -> bytes:
    found: bytes = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return found


def issued(key: Any = RSA_KEY, algorithm: str = "RS256", headers: dict[str, str] | None = None, **more: Any) -> str:
    now_s = int(time.time())
    claims = {"iss": ISSUER, "aud": "thermocline", "sub": "agent-7", "exp": now_s + 600, "scope": "append other", **more}
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, key, algorithm, headers)


@pytest.fixture
def trusting(tmp_path: Path) -> Access:
    """An access that takes tokens signed with RSA_KEY."""
    (tmp_path / "key.pem").write_bytes(public_pem(RSA_KEY))
    return access(tmp_path, host="0.0.0.0", jwt_issuer=ISSUER, jwt_audience="thermocline", jwt_key_file=str(tmp_path / "key.pem"))


def test_a_token_of_the_issuer_is_taken_for_the_scopes_it_has(trusting: Access) -> None:
    caller = who(trusting, bearer(issued()))
    assert (caller.name, caller.scopes) == ("jwt:agent-7", {"append"})
    assert who(trusting, bearer(issued(scope=["query", "admin", 7]))).scopes == {"query", "admin"}
    assert who(trusting, bearer(issued(scope=None))).scopes == frozenset()


def test_a_token_of_the_issuer_may_name_namespaces(trusting: Access) -> None:
    assert who(trusting, bearer(issued(thermocline_namespaces=["default"]))).name == "jwt:agent-7"
    refused(403, trusting, bearer(issued(thermocline_namespaces=["other"])))
    refused(403, trusting, bearer(issued(thermocline_namespaces=[])))


def confused() -> str:
    """A token signed with the public key as if it were a shared secret."""
    import base64
    import hashlib
    import hmac

    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=")
    body = issued().split(".")[1].encode()
    signature = hmac.new(public_pem(RSA_KEY), head + b"." + body, hashlib.sha256).digest()
    return b".".join([head, body, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


@pytest.mark.parametrize(
    "text",
    [
        issued(OTHER),
        issued(EC_KEY, "ES256"),
        issued("a shared secret that is long enough for it", "HS256"),
        issued(None, "none"),
        confused(),
        issued(exp=int(time.time()) - 60),
        issued(exp=None),
        issued(nbf=int(time.time()) + 600),
        issued(iss="https://other.example.org"),
        issued(iss=None),
        issued(aud="another"),
        issued(aud=None),
        issued(sub=None),
        issued()[:-4] + "AAAA",
        "a.b.c",
        "..",
        "eyJhbGciOiJSUzI1NiJ9..",
    ],
    ids=lambda text: "",
)
def test_a_token_that_the_issuer_did_not_make_for_us_is_refused(trusting: Access, text: str) -> None:
    refused(401, trusting, bearer(text))


def test_the_issuers_clock_may_be_off_a_little(trusting: Access) -> None:
    assert who(trusting, bearer(issued(exp=int(time.time()) - 5))).name == "jwt:agent-7"


class Keys:
    """A server of key sets: what it answers, and how often it was asked."""

    def __init__(self) -> None:
        self.answer: bytes = b"{}"
        self.status = 200
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(outer.answer)))
                self.end_headers()
                self.wfile.write(outer.answer)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys"
        self.thread = Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def put(self, **keys: Any) -> None:
        found = []
        for kid, key in keys.items():
            algorithm = jwt.algorithms.ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else jwt.algorithms.RSAAlgorithm
            found.append({**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, "use": "sig"})
        found.append({"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0", "kid": "shared"})
        self.answer = json.dumps({"keys": found}).encode()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def keys() -> Any:
    found = Keys()
    yield found
    found.close()


def fetching(data_dir: Path, keys: Keys, **more: Any) -> Access:
    return access(data_dir, jwt_issuer=ISSUER, jwt_audience="thermocline", jwt_jwks_url=keys.url, **more)


def test_keys_are_fetched_once_and_found_by_their_id(tmp_path: Path, keys: Keys) -> None:
    keys.put(one=RSA_KEY, two=EC_KEY)
    checked = fetching(tmp_path, keys)
    for _ in range(3):
        assert who(checked, bearer(issued(headers={"kid": "one"}))).name == "jwt:agent-7"
        assert who(checked, bearer(issued(EC_KEY, "ES256", {"kid": "two"}))).name == "jwt:agent-7"
    assert keys.asked == 1


def test_a_key_that_is_not_known_is_asked_for_but_not_over_and_over(tmp_path: Path, keys: Keys) -> None:
    keys.put(one=RSA_KEY)
    checked = fetching(tmp_path, keys)
    for number in range(5):
        refused(401, checked, bearer(issued(OTHER, headers={"kid": f"k{number}"})))
    assert keys.asked == 1


def test_a_shared_secret_among_the_keys_is_no_key(tmp_path: Path, keys: Keys) -> None:
    keys.put(one=RSA_KEY)
    forged = jwt.encode(
        {"iss": ISSUER, "aud": "thermocline", "sub": "x", "exp": int(time.time()) + 60, "scope": "admin"},
        "secret-secret-secret-secret-secret",
        "HS256",
        {"kid": "shared"},
    )
    refused(401, fetching(tmp_path, keys), bearer(forged))


@pytest.mark.parametrize(("status", "answer"), [(500, b"{}"), (200, b"no json"), (200, b"{" + b" " * 2000 + b"}"), (302, b"")])
def test_an_issuer_that_gives_no_keys_is_a_problem_of_the_server(tmp_path: Path, keys: Keys, status: int, answer: bytes) -> None:
    keys.status, keys.answer = status, answer
    found = refused(503, fetching(tmp_path, keys, jwks_bytes_max=1024), bearer(issued(headers={"kid": "one"})))
    assert found.retry_after_s is not None


# Settings


@pytest.mark.parametrize(
    ("serve", "named"),
    [
        ({"jwt_issuer": ISSUER}, "serve.jwt_audience"),
        ({"jwt_issuer": ISSUER, "jwt_audience": "x"}, "serve.jwt_jwks_url"),
        ({"jwt_issuer": ISSUER, "jwt_audience": "x", "jwt_jwks_url": "http://example.org"}, "https://"),
        ({"jwt_audience": "x"}, "serve.jwt_issuer"),
        ({"jwt_algorithms": ["HS256"]}, "jwt_algorithms"),
        ({"jwt_algorithms": ["none"]}, "jwt_algorithms"),
        ({"tls_cert_file": "x"}, "serve.tls_key_file"),
        ({"bodies_bytes_max": 2048}, "serve.bodies_bytes_max"),
        ({"jwt_key_file": "/nowhere", "jwt_issuer": ISSUER, "jwt_audience": "x"}, "serve.jwt_key_file"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path: Path, serve: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as found:
        access(tmp_path, **serve)
    assert named in str(found.value)
