"""A connection pool to one Redis, with errors translated in one place. The only module that imports redis and
hiredis.

Replies come raw (bytes, lists), never parsed per event. redis-py's own retries are off: a write is repeated by its block
number or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from hiredis import ProtocolError, Reader, ReplyError, pack_command
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool
from redis.retry import Retry

from thermocline.config import mask_url
from thermocline.errors import ConfigError, ThermoclineError, TierCorrupt, TierUnavailable

from .hot import OutcomeLost

SCRIPTS = Path(__file__).parent / "scripts"
CONNECTIONS_MAX = 256
"""Calls of one process to one Redis at once; sessions come on top."""

_READ_BYTES = 65_536
_MORE: Any = object()

Connection = Any
"""A redis-py connection; its methods are not typed."""
Arg = bytes | str | int
Command = Sequence[Arg]


_IN_SCRIPT = re.compile(r"(?:ERR )?Error running script \(call to \w+\): @user_script:\d+: (?:@user_script: \d+: )?-?(?=[A-Z]+ )")
"""What Redis before 7.0 puts before the error of a command that a script called."""


class CommandFailed(Exception):
    """Internal: Redis answered one command with an error, so it did nothing."""

    def __init__(self, message: str) -> None:
        message = _IN_SCRIPT.sub("", message)
        self.out_of_memory = message.startswith("OOM")
        self.no_script = message.startswith("NOSCRIPT")
        super().__init__(message)


class Script:
    """One Lua file, called by its hash."""

    def __init__(self, name: str) -> None:
        self.text = (SCRIPTS / f"{name}.lua").read_bytes()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()

    def command(self, keys: Sequence[Arg], args: Sequence[Arg]) -> Command:
        return ("EVALSHA", self.sha, len(keys), *keys, *args)


class Link:
    """Commands to one Redis. Thread-safe: every call borrows a connection of its own.

    Errors: TierUnavailable naming the masked URL and what to do, also when a command is refused; TierCorrupt when a key holds
    something else than it should.
    """

    def __init__(self, url: str, *, connect_timeout_s: float, timeout_s: float, shown_url: str | None = None) -> None:
        self.shown_url = shown_url or mask_url(url)
        try:
            self._pool = ConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS_MAX,
                socket_connect_timeout=connect_timeout_s,
                socket_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
                driver_info=None,
                decode_responses=False,
                **({"redis_connect_func": _greet} if url.startswith("rediss:") else {}),
            )
            self.connection()  # not connected yet: this only reads what follows the ? of the URL
        except (TypeError, ValueError, redis.RedisError) as exc:
            raise ConfigError(f"redis_url: {self.shown_url} cannot be used: {exc}") from exc

    @contextmanager
    def _borrowed(self) -> Iterator[Connection]:
        with self._translated():
            connection = self._pool.get_connection()
        try:
            yield connection
        finally:
            self._pool.release(connection)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except redis.AuthenticationError as exc:
            raise TierUnavailable(f"Redis at {self.shown_url} refuses the login ({exc}): check user and password") from exc
        except redis.MaxConnectionsError as exc:
            raise TierUnavailable(
                f"more than {CONNECTIONS_MAX} connections to {self.shown_url} at once: append from fewer threads"
            ) from exc
        except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError, OSError) as exc:
            raise TierUnavailable(f"Redis at {self.shown_url} does not answer ({_reason(exc)}): is it running?") from exc
        except redis.RedisError as exc:
            raise TierUnavailable(f"Redis at {self.shown_url}: {exc}") from exc

    def call(self, *command: Arg) -> Any:
        """The reply of one command that may safely be sent again."""
        return self.pipeline([command])[0]

    def pipeline(self, commands: Sequence[Command], *, transaction: bool = False) -> list[Any]:
        """The replies of `commands`, one round trip; of a transaction, at one instant. Safe to send again: reads, and writes
        of fixed values. Raises the `refusal` of the first refused command."""
        return self._accepted(self.replies(commands, transaction=transaction))

    def replies(self, commands: Sequence[Command], *, transaction: bool = False) -> list[Any]:
        """Like `pipeline`, but refused commands come back as CommandFailed in their place."""
        try:
            with self._borrowed() as connection:
                return exchange(connection, commands, transaction=transaction, shown_url=self.shown_url)
        except OutcomeLost as exc:
            raise TierUnavailable(f"Redis at {self.shown_url} stopped answering ({exc}): is it running?") from exc

    def script(self, script: Script, keys: Sequence[Arg], args: Sequence[Arg]) -> Any:
        """The answer of one script that may safely be run again."""
        command = script.command(keys, args)
        replies = self.replies([command])
        if isinstance(replies[0], CommandFailed) and replies[0].no_script:
            self.call("SCRIPT", "LOAD", script.text)
            replies = self.replies([command])
        return self._accepted(replies)[0]

    def _accepted(self, replies: list[Any]) -> list[Any]:
        for reply in replies:
            if isinstance(reply, CommandFailed):
                raise self.refusal(reply) from reply
        return replies

    def connection(self) -> Connection:
        """A new connection of one's own, for `exchange`; not connected yet, the caller disconnects it. The pool would count it
        among its own for ever, so it comes from its class."""
        connection: Connection = self._pool.connection_class(**self._pool.connection_kwargs)
        return connection

    def refusal(self, failure: CommandFailed) -> ThermoclineError:
        """The error a refused command means: most say something about the server, not the command."""
        text = str(failure)
        if text.startswith("WRONGTYPE"):
            return TierCorrupt(f"Redis at {self.shown_url}: a key of the namespace holds what Thermocline did not write: {text}")
        known = (advice for prefix, advice in _STATES.items() if text.startswith(prefix))
        advice = _MEMORY if failure.out_of_memory else next(known, "look at its log")
        return TierUnavailable(f"Redis at {self.shown_url}: {text}: {advice}")

    def close(self) -> None:
        self._pool.disconnect()


_STATES = {
    "NOAUTH": "give the password in redis_url",
    "WRONGPASS": "check user and password in redis_url",
    "NOPERM": "the Redis user needs the commands listed in docs/operations.md",
    "READONLY": "this is a replica; point redis_url at the primary",
    "LOADING": "it is loading its data; try again",
    "MASTERDOWN": "it is a replica without its primary",
    "MISCONF": "it cannot write to its disk; free space, then try again",
    "CLUSTERDOWN": "its cluster is down",
    "NOREPLICAS": "fewer replicas than its min-replicas-to-write are connected; bring them back",
}
_MEMORY = "it is full; raise maxmemory, or start the worker, which makes room"


def bulk_strings(arguments: Sequence[Arg]) -> bytes:
    """The arguments of a command, or some of them, as the wire has them: without the head that says how many they are."""
    packed = _packed(arguments)
    return packed[packed.index(b"\n") + 1 :]


def _packed(arguments: Sequence[Arg]) -> bytes:
    pack: Any = pack_command  # its types say one argument, and it takes any number
    packed: bytes = pack(tuple(arguments))
    return packed


def exchange(
    connection: Connection,
    commands: Sequence[Command],
    *,
    shown_url: str,
    transaction: bool = False,
    timeout_s: float | None = None,
) -> list[Any]:
    """Send `commands` over one connection and read one reply each; refused ones are CommandFailed in their place.

    timeout_s  for each reply; None: the link's

    TierUnavailable: nothing can have been done. OutcomeLost: some may have been done; the connection is closed.
    """
    sent = [("MULTI",), *commands, ("EXEC",)] if transaction else commands
    packed = b"".join([_packed(command) for command in sent])
    replies = exchange_packed(connection, packed, len(sent), shown_url=shown_url, timeout_s=timeout_s)
    if not transaction:
        return replies
    result = replies[-1]
    if isinstance(result, CommandFailed):
        return [next((reply for reply in replies if isinstance(reply, CommandFailed)), result)]
    return [CommandFailed(str(reply)) if isinstance(reply, ReplyError) else reply for reply in result]


def exchange_packed(
    connection: Connection, packed: bytes, count: int, *, shown_url: str, timeout_s: float | None = None
) -> list[Any]:
    """`exchange` for commands that are bytes already (hiredis' pack_command): `count` of them, so many replies.

    redis-py makes the connection; what it does for every command it sends and every reply it reads costs more than Redis takes
    to answer, so bytes go through its socket straight to hiredis here.
    """
    try:
        if not connection.is_connected:
            connection.connect()
        sock = connection._get_socket()
    except redis.AuthenticationError as exc:
        raise TierUnavailable(f"Redis at {shown_url} refuses the login ({exc}): check user and password") from exc
    except (redis.RedisError, OSError) as exc:
        connection.disconnect()
        raise TierUnavailable(f"Redis at {shown_url} does not answer ({_reason(exc)}): {_way_out(exc)}") from exc
    try:
        if timeout_s is not None:
            sock.settimeout(timeout_s)
        sock.sendall(packed)
        replies = _read(sock, count)
        if timeout_s is not None:
            sock.settimeout(connection.socket_timeout)
        return replies
    except BaseException as exc:
        connection.disconnect()
        if isinstance(exc, (ProtocolError, OSError)):
            raise OutcomeLost(_reason(exc)) from exc
        raise


def _read(sock: socket.socket, count: int) -> list[Any]:
    """The next `count` replies; refused commands as CommandFailed."""
    reader = Reader(notEnoughData=_MORE)
    replies: list[Any] = []
    while len(replies) < count:
        reply = reader.gets()
        if reply is _MORE:
            received = sock.recv(_READ_BYTES)
            if not received:
                raise ConnectionError("connection closed by the server")
            reader.feed(received)
        else:
            replies.append(CommandFailed(str(reply)) if isinstance(reply, ReplyError) else reply)
    return replies


def _greet(connection: Connection) -> None:
    """Exchange a PING first: TLS 1.3 sends its tickets with the first reply, and redis-py's pool takes bytes that wait unread
    for a broken connection."""
    connection.on_connect()
    connection.send_command("PING", check_health=False)
    try:
        connection.read_response()
    except redis.AuthenticationError:
        raise
    except redis.ResponseError:
        pass


def _way_out(exc: BaseException) -> str:
    """What to do when no connection can be made."""
    cause = exc if isinstance(exc, OSError) else exc.__context__
    if isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files (ulimit -n)"
    return "is it running?"


def _reason(exc: BaseException) -> str:
    return " ".join(str(exc).split()) or type(exc).__name__
