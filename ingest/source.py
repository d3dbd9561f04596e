"""Where a Client's or Producer's sessions come from: the tiers of one namespace, opened at first use, anew in a forked child."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from pydantic import ValidationError

from thermocline.config import IngestSettings, Settings, load
from thermocline.errors import ConfigError
from thermocline.event import Durability
from thermocline.tiers.hot import AppendSession

Config = Settings | Mapping[str, Any] | str | Path | None


def settings_of(config: Config, overrides: Mapping[str, Any]) -> Settings:
    """The settings to use: those given; a mapping of settings or the path of a TOML file with `overrides` on top; else the usual.

    ConfigError lists every problem.
    """
    if isinstance(config, Settings):
        if overrides:
            raise ConfigError(f"{', '.join(overrides)}: give settings either as Settings or as arguments, not both")
        return config
    if isinstance(config, Mapping):
        return load({**config, **overrides})
    return load(overrides, file=None if config is None else Path(config))


def with_ingest(settings: Settings, **given: Any) -> Settings:
    """The settings with those of `ingest` that are not None. ConfigError lists every problem."""
    changed = {name: value for name, value in given.items() if value is not None}
    if not changed:
        return settings
    try:
        ingest = IngestSettings.model_validate(settings.ingest.model_dump() | changed)
    except ValidationError as exc:
        raise ConfigError([f"{error['loc'][0]}: {error['msg']}, not {error['input']!r}" for error in exc.errors()]) from exc
    return settings.model_copy(update={"ingest": ingest})


class Sessions(Protocol):
    """What of the hot tier is needed here."""

    def session(self, durability: Durability) -> AppendSession: ...


class OpenTiers(Protocol):
    """What of tiers.opening.Tiers is needed here."""

    @property
    def hot(self) -> Sessions: ...

    def reconfirm(self) -> object: ...

    def close(self) -> None: ...


class Renewable(Protocol):
    """Something that must not be shared with a forked child."""

    def renew(self) -> None:
        """Start over, in the child: nothing of the parent is used, sent or closed."""


def _opening() -> ModuleType:
    """The module that opens tiers. It loads every driver, so `import thermocline` leaves it for later."""
    return import_module("thermocline.tiers.opening")


class Source:
    """Sessions of one store. Thread-safe. Errors at first use are those of open_tiers."""

    def __init__(self, settings: Settings, tiers: OpenTiers | None = None) -> None:
        """tiers  opened ones to use; the caller closes them"""
        self.settings = settings
        self._given = tiers
        self._tiers: OpenTiers | None = tiers
        self._lock = threading.Lock()

    def load(self) -> None:
        """Import what opening needs, which cannot be done any more once the interpreter is ending."""
        if self._tiers is None:
            _opening()

    def session(self) -> AppendSession:
        return self._opened().hot.session(self.settings.ingest.durability)

    def reconfirm(self) -> None:
        """Bring the store back after a restart of Redis, as far as this process can."""
        self._opened().reconfirm()

    def _opened(self) -> OpenTiers:
        with self._lock:
            if self._tiers is None:
                self._tiers = _opening().open_tiers(self.settings)
            return self._tiers

    def close(self) -> None:
        with self._lock:
            if self._tiers is not None and self._tiers is not self._given:
                self._tiers.close()
            self._tiers = self._given

    def renew(self) -> None:
        _inherited.append(self._tiers)
        self._given = self._tiers = None
        self._lock = threading.Lock()


_inherited: list[object] = []
"""What a forked child has from its parent: kept for ever, because closing it could end what the parent still uses."""
_renewables: weakref.WeakSet[Renewable] = weakref.WeakSet()


def renew_in_child(what: Renewable) -> None:
    """Call `what.renew()` in every child this process forks, before anything else runs there."""
    _renewables.add(what)


def inherit(what: object) -> None:
    """Keep something of the parent from being closed in the child."""
    _inherited.append(what)


def _in_child() -> None:
    for what in list(_renewables):
        what.renew()


os.register_at_fork(after_in_child=_in_child)
