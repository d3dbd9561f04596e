"""Bearer tokens: `<data dir>/tokens.json`, which has their hashes, scopes, namespaces and ends; never the tokens themselves.

A token is `tc_<id>_<secret>`: 64 bits of id to find it by, 256 random bits of secret. The file is written whole and renamed,
readable by its owner only, and read again when it has changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec
import orjson

from thermocline.errors import ConfigError
from thermocline.tiers.whole_file import file_errors, make_folder, whole_file

FILE_NAME: Final = "tokens.json"
FORMAT: Final = "1"
TOKENS_MAX: Final = 10_000
NAME_MAX: Final = 100
Scope = Literal["append", "query", "admin"]
SCOPES: Final[tuple[Scope, ...]] = ("append", "query", "admin")
_TOKEN: Final = re.compile(rb"tc_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_NAMESPACE: Final = re.compile(r"[a-z0-9_-]{1,64}")


class Token(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of a token."""

    id: str
    name: str
    hash: str
    """sha256 of the whole token, hexadecimal. The secret has 256 random bits: nothing slower would make it safer."""
    scopes: tuple[Scope, ...]
    namespaces: tuple[str, ...] = ()
    """Those it is good for; () is all."""
    created_s: int
    expires_s: int | None = None
    revoked_s: int | None = None

    def state(self, now_s: float) -> Literal["good", "expired", "revoked"]:
        if self.revoked_s is not None:
            return "revoked"
        return "expired" if self.expires_s is not None and now_s >= self.expires_s else "good"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    tokens: tuple[Token, ...] = ()


class Created(NamedTuple):
    """A new token: the only time that its text is seen."""

    token: Token
    text: str


class Tokens:
    """The tokens of a data directory, as they are now. Not for several threads at once."""

    def __init__(self, data_dir: Path) -> None:
        """ConfigError: there is a file that cannot be used."""
        self.path = data_dir / FILE_NAME
        self._seen: tuple[int, int, int] | None = None
        self._by_id: dict[str, Token] = {}
        self.required = False
        """Whether there is, or was since the start, a file of tokens."""
        self.reload()

    def reload(self) -> None:
        """Read the file again if it has changed. One that is gone, or cannot be read any more, leaves no token good."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            self._seen, self._by_id = None, {}
            return
        seen = (found.st_mtime_ns, found.st_ino, found.st_size)
        if seen != self._seen:
            self.required = True
            self._by_id = {}
            self._by_id = {token.id: token for token in load(self.path)}
            self._seen = seen

    def find(self, given: bytes, now_s: float) -> Token | None:
        """The token of this text when it is good, else None."""
        parts = _TOKEN.fullmatch(given)
        if parts is None:
            return None
        token = self._by_id.get(parts[1].decode())
        expected = bytes.fromhex(token.hash) if token is not None else bytes(32)
        same = hmac.compare_digest(hashlib.sha256(given).digest(), expected)
        return token if token is not None and same and token.state(now_s) == "good" else None


def load(path: Path) -> list[Token]:
    """The tokens of a file, oldest first. ConfigError: it cannot be read, or others can read it."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise ConfigError(f"{path}: others may read or write it (mode {mode:04o}): chmod 600 {path}")
            given = msgspec.json.decode(file.read(), type=_File)
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read ({exc.strerror}): let this user read it") from exc
    except msgspec.MsgspecError as exc:
        raise ConfigError(f"{path}: is no file of tokens ({exc}): restore it, or remove it and create the tokens anew") from exc
    if given.format != FORMAT:
        raise ConfigError(f"{path}: has format {given.format!r}, this version reads {FORMAT!r}: use the version that wrote it")
    return list(given.tokens)


def create(
    data_dir: Path, name: str, scopes: Sequence[str], *, namespaces: Sequence[str] = (), lives_s: int | None = None
) -> Created:
    """A new token, kept. ConfigError names what is wrong with the arguments."""
    problems = []
    if not 1 <= len(name) <= NAME_MAX or not name.isprintable():
        problems.append(f"name: must have 1 to {NAME_MAX} printable characters")
    wrong = [scope for scope in scopes if scope not in SCOPES]
    if wrong or not scopes:
        problems.append(f"scope: {', '.join(wrong) or 'none'}; choose from {', '.join(SCOPES)}")
    problems += [
        f"namespace: {one!r} is none: 1 to 64 of a-z, 0-9, _ and -" for one in namespaces if not _NAMESPACE.fullmatch(one)
    ]
    if lives_s is not None and lives_s < 1:
        problems.append("expires: must lie ahead")
    if problems:
        raise ConfigError(problems)
    now_s = int(time.time())
    identity = secrets.token_hex(8)
    text = f"tc_{identity}_{secrets.token_urlsafe(32)}"
    token = Token(
        id=identity,
        name=name,
        hash=hashlib.sha256(text.encode()).hexdigest(),
        scopes=tuple(scope for scope in SCOPES if scope in scopes),
        namespaces=tuple(dict.fromkeys(namespaces)),
        created_s=now_s,
        expires_s=None if lives_s is None else now_s + lives_s,
    )
    with _changing(data_dir) as kept:
        if any(one.name == name and one.state(now_s) == "good" for one in kept):
            raise ConfigError(f"name: there is a token {name!r} already: revoke it first, or choose another name")
        if len(kept) >= TOKENS_MAX:
            raise ConfigError(f"there are {TOKENS_MAX:,} tokens, which is all there may be: remove old ones from {FILE_NAME}")
        kept.append(token)
    return Created(token, text)


def listed(data_dir: Path) -> list[Token]:
    """All tokens ever made, oldest first."""
    return load(data_dir / FILE_NAME)


def revoke(data_dir: Path, which: str) -> Token:
    """The token of that id or name, which is not good any more. ConfigError when there is none that is good."""
    now_s = int(time.time())
    with _changing(data_dir) as kept:
        for place, token in enumerate(kept):
            if which in (token.id, token.name) and token.state(now_s) != "revoked":
                kept[place] = msgspec.structs.replace(token, revoked_s=now_s)
                return kept[place]
        raise ConfigError(f"there is no token {which!r} to revoke: `thermocline tokens list`")


@contextmanager
def _changing(data_dir: Path) -> Iterator[list[Token]]:
    """The tokens, to be changed in place; kept when the block ends well. One at a time, over all processes."""
    path = data_dir / FILE_NAME
    with file_errors(str(path), setting="data_dir"):
        make_folder(data_dir)
        lock = os.open(data_dir / f"{FILE_NAME}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            kept = load(path)
            yield kept
            with whole_file(path) as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(orjson.dumps(msgspec.to_builtins(_File(FORMAT, tuple(kept))), option=orjson.OPT_INDENT_2) + b"\n")
        finally:
            os.close(lock)
