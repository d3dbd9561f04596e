"""What goes wrong inside pyiceberg, its SQL catalog or its HTTP client, as errors of ours."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from pyiceberg import exceptions as ice
from sqlalchemy import exc

from thermocline.errors import ConfigError, ThermoclineError, TierCorrupt, TierUnavailable

FULL = 13
"""What SQLite calls a disk that is full."""
_REFUSED = (ice.UnauthorizedError, ice.ForbiddenError, ice.OAuthError, ice.SignError)
_UNUSABLE = (exc.ArgumentError, exc.NoSuchModuleError, ice.NoSuchPropertyException, ice.NotInstalledError, ImportError)
_AWAY = (
    ice.RESTError,
    ice.CommitFailedException,
    ice.WaitingForLockException,
    ice.NamespaceAlreadyExistsError,
    ice.TableAlreadyExistsError,
    ice.NoSuchNamespaceError,
    exc.OperationalError,
    exc.InterfaceError,
    exc.IntegrityError,
    exc.TimeoutError,
    OSError,  # the HTTP client's errors are OSErrors
)
_UNREADABLE = (
    ice.ValidationError,
    ice.ValidationException,
    exc.SQLAlchemyError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)


def translation(error: Exception, what: str) -> ThermoclineError | None:
    """The error of ours for what pyiceberg raised; None when it can only be a bug.

    what  names the table and its catalog, and begins the message
    """
    said = _said(error)
    if isinstance(error, ThermoclineError):
        return error
    if isinstance(error, ice.NoSuchTableError):
        return TierUnavailable(f"{what}: the catalog does not know the table; the next archive makes it known again")
    if isinstance(error, _REFUSED):
        return ConfigError(f"cold.catalog_properties: {what}: the catalog refuses us ({said}); give it a token or credential")
    if isinstance(error, _UNUSABLE):
        return ConfigError(f"cold.catalog_url: {what}: cannot be used ({said}); give a SQLAlchemy or http(s) URL, or none")
    if isinstance(error, RuntimeError) and not isinstance(error, RecursionError):  # what pyiceberg or the server cannot do
        return ConfigError(f"cold.catalog_url: {what}: {said}; upgrade pyiceberg or the catalog, or give another one")
    if isinstance(error, exc.DatabaseError) and _is_damaged(error):
        return TierCorrupt(f"{what}: the catalog is damaged ({said}); move it aside, the next archive makes it anew")
    if isinstance(error, _AWAY):
        return TierUnavailable(f"{what}: {said}")
    if isinstance(error, _UNREADABLE):
        return TierCorrupt(f"{what}: cannot be read or does not fit ({said})")
    return None


@contextmanager
def translated(what: str) -> Iterator[None]:
    """TierUnavailable, TierCorrupt or ConfigError for whatever pyiceberg raises inside."""
    try:
        yield
    except ThermoclineError:
        raise
    except Exception as error:
        ours = translation(error, what)
        if ours is None:
            raise
        raise ours from error


def _said(error: Exception) -> str:
    """Its message in one line: of a database, what the driver said, not SQLAlchemy's statement, parameters and link."""
    orig = getattr(error, "orig", None)
    said = " ".join(str(error if orig is None else orig).split()) or type(error).__name__
    return f"{said}; free disk space" if getattr(orig, "sqlite_errorcode", 0) & 0xFF == FULL else said


def _is_damaged(error: exc.DatabaseError) -> bool:
    return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in (11, 26)


__all__ = ["translated", "translation"]
