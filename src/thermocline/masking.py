"""Secrets kept out of what is logged: passwords and keys that this process was given, wherever they turn up in a text."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from thermocline.config import Settings, mask_url

MASK: Final = "***"
SECRET_BYTES_MIN: Final = 6
"""Shorter ones would mask half of every text."""
ENVIRONMENT: Final = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
TOKENS: Final = re.compile(r"\btc_([0-9a-f]{16})_[A-Za-z0-9_-]{43}|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")
"""Tokens of ours, and signed ones."""


class Mask:
    """Replaces known secrets, and whatever looks like a token, by ***."""

    def __init__(self, secrets: Iterable[str]) -> None:
        kept = sorted({secret for secret in secrets if len(secret) >= SECRET_BYTES_MIN}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, kept))) if kept else None

    def text(self, text: str) -> str:
        found = TOKENS.sub(MASK, text)
        return found if self._known is None else self._known.sub(MASK, found)


def secrets_of(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    """The secrets a process was given by its settings and its environment."""
    found = [environ[name] for name in ENVIRONMENT if environ.get(name)]
    for url in (settings.redis_url, settings.ledger_url, settings.cold.catalog_url):
        if url is not None:
            found += _passwords(url)
    found += [value for name, value in settings.cold.catalog_properties.items() if _secret_name(name)]
    return found


def _passwords(url: str) -> list[str]:
    try:
        password = urlsplit(url).password
    except ValueError:
        return [url]
    return [] if not password else [password, unquote(password)]


def _secret_name(name: str) -> bool:
    return any(part in name.lower() for part in ("secret", "password", "token", "credential", "key"))


def shown(key: str, value: Any) -> Any:
    """The value of a setting as it may be shown."""
    if key.startswith("cold.catalog_properties.") and _secret_name(key.removeprefix("cold.catalog_properties.")):
        return MASK
    return mask_url(value) if isinstance(value, str) and "://" in value else value


class _Masked:
    """Makes records of the log, as `make` does, without secrets: whatever handler writes them."""

    def __init__(self, mask: Mask, make: Callable[..., logging.LogRecord]) -> None:
        self.make = make
        self._mask = mask

    def __call__(self, *arguments: Any, **named: Any) -> logging.LogRecord:
        record = self.make(*arguments, **named)
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            return record  # its handler says what is wrong with it
        masked = self._mask.text(text)
        if masked != text:
            record.msg, record.args = masked, None
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = self._mask.text(logging.Formatter().formatException(record.exc_info))
        if record.stack_info:
            record.stack_info = self._mask.text(record.stack_info)
        return record


def mask_of(settings: Settings, environ: Mapping[str, str] | None = None) -> Mask:
    """What masks the secrets of this process. environ: default os.environ, where the keys of S3 are."""
    return Mask(secrets_of(settings, os.environ if environ is None else environ))


def mask_records(settings: Settings) -> None:
    """Mask whatever this process logs from now on, at any level and by any handler. For programs, not for libraries."""
    made = logging.getLogRecordFactory()
    logging.setLogRecordFactory(_Masked(mask_of(settings), made.make if isinstance(made, _Masked) else made))


def log_to_stderr(settings: Settings) -> None:
    """Log from `log_level` on, if nothing is set up yet, without secrets."""
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    mask_records(settings)
