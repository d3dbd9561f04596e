"""Sampling policies as data: the rules of `[sampling]`, checked, and the policy they make. What they keep is docs/sampling.md."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_serializer, model_validator

from thermocline.errors import ConfigError
from thermocline.event import NAME_BYTES_MAX

UNMATCHED: Final = "unmatched"
"""The rule of an event that no rule takes: it is kept."""
RULES_MAX: Final = 100
PATTERNS_MAX: Final = 1000
"""In one list of one rule."""

COLUMN_OF: Final = {
    "event_types": "event_type",
    "status": "status",
    "agents": "agent_id",
    "models": "model",
    "tools": "tool_name",
}
"""List of patterns in a rule → the column of `events` it is about."""
MEASURES: Final = ("events", "errors", "interventions", "content_bytes", "input_tokens", "output_tokens", "cost_usd")
"""What `when` can ask of a conversation: columns of the rollup over all its events."""

_IN_NO_VALUE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_EVENT_TYPES: Final = re.compile(r"[A-Za-z0-9_.*-]+")
_CANONICAL_VERSION: Final = 1
"""Part of the policy's hash: a formula that comes to mean something else is another policy."""

Patterns = Annotated[tuple[str, ...] | None, Field(strict=False, min_length=1, max_length=PATTERNS_MAX)]
Count = Annotated[int | None, Field(ge=0)]
Amount = Annotated[float | None, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_serializer
    def _given(self) -> dict[str, Any]:
        """What is not the default, so that `config show` reads like the file."""
        return {name: value for name, value in self if value != type(self).model_fields[name].default}


class When(_Part):
    """Conditions on the whole conversation, over all tiers; all must hold. Bounds are inclusive."""

    events_min: Count = None
    events_max: Count = None
    errors_min: Count = None
    errors_max: Count = None
    interventions_min: Count = None
    interventions_max: Count = None
    content_bytes_min: Count = None
    content_bytes_max: Count = None
    input_tokens_min: Count = None
    input_tokens_max: Count = None
    output_tokens_min: Count = None
    output_tokens_max: Count = None
    cost_usd_min: Amount = None
    cost_usd_max: Amount = None

    @model_validator(mode="after")
    def _ordered(self) -> When:
        for measure in MEASURES:
            least, most = self.bounds(measure)
            if least is not None and most is not None and least > most:
                raise ValueError(f"{measure}_min exceeds {measure}_max, so no conversation can meet it")
        return self

    def bounds(self, measure: str) -> tuple[float | None, float | None]:
        """The least and the most of a measure; None where there is no bound."""
        return getattr(self, f"{measure}_min"), getattr(self, f"{measure}_max")


class Rule(_Part):
    """Which events, and how many of them are kept. Lists left out match everything; a listed value must match one pattern."""

    name: str = Field(pattern=r"^[a-z0-9_-]{1,64}$")
    event_types: Patterns = None
    status: Patterns = None
    agents: Patterns = None
    models: Patterns = None
    tools: Patterns = None
    scope: Literal["event", "conversation"] = "event"
    when: When = When()
    keep: bool | None = None
    rate: Annotated[float | None, Field(ge=0, le=1)] = None
    formula: Literal["age"] | None = None

    @field_validator(*COLUMN_OF)
    @classmethod
    def _matchable(cls, patterns: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for pattern in patterns or ():
            if _IN_NO_VALUE.search(pattern):
                raise ValueError(f"pattern {pattern!r} has a control character or a lone surrogate, which no value has")
            if len(pattern.replace("*", "").encode()) > NAME_BYTES_MAX:
                raise ValueError(f"pattern {pattern[:40]!r}… is longer than any value ({NAME_BYTES_MAX} bytes)")
        return patterns

    @field_validator("event_types")
    @classmethod
    def _names(cls, patterns: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for pattern in patterns or ():
            if not _EVENT_TYPES.fullmatch(pattern):
                raise ValueError(f"pattern {pattern!r} can match no event type: those have letters, digits and _ . - only")
        return patterns

    @field_validator("name")
    @classmethod
    def _free(cls, name: str) -> str:
        if name == UNMATCHED:
            raise ValueError(f"{UNMATCHED!r} names what no rule takes; give the rule another name")
        return name

    @model_validator(mode="after")
    def _one_action(self) -> Rule:
        if self.keep is False:
            raise ValueError("keep = false is not an action; to drop what the rule takes write rate = 0")
        actions = [name for name in ("keep", "rate", "formula") if getattr(self, name) is not None]
        if len(actions) != 1:
            found = " and ".join(actions) if actions else "none"
            raise ValueError(f'needs exactly one of keep = true, rate = 0.1, formula = "age", and has {found}')
        return self

    @property
    def fixed_rate(self) -> float | None:
        """The rate, if it is the same for every event; None when a formula gives it."""
        return 1.0 if self.keep else self.rate

    @property
    def takes_all(self) -> bool:
        """Whether no event can pass this rule by."""
        lists = (getattr(self, name) for name in COLUMN_OF if name != "event_types")
        anything = self.event_types is None or any(set(pattern) == {"*"} for pattern in self.event_types)
        return anything and all(patterns is None for patterns in lists) and self.when == When()

    def canonical(self) -> dict[str, Any]:
        """What decides about events, and nothing else: the same rule said in another way gives the same."""
        lists = {name: getattr(self, name) for name in COLUMN_OF}
        given = {
            name: sorted({re.sub(r"\*+", "*", pattern) for pattern in patterns})
            for name, patterns in lists.items()
            if patterns is not None
        }
        when = {name: value for name, value in self.when if value is not None}
        rate = self.formula if self.fixed_rate is None else self.fixed_rate
        return {"name": self.name, "scope": self.scope, "when": when, "rate": rate, **given}


DEFAULT_RULES: Final = (
    Rule(name="keep", event_types=("error", "intervention", "file_created", "file.created"), keep=True),
    Rule(name="rest", formula="age"),
)


class SamplingSettings(BaseModel):
    """What the archive keeps of old events."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: tuple[Rule, ...] = Field(DEFAULT_RULES, description="the first that takes an event decides; none given, the default")

    @field_validator("rules", mode="before")
    @classmethod
    def _checked(cls, given: object) -> tuple[Rule, ...]:
        return rules_of(given)


class Policy(NamedTuple):
    """Everything that decides what is kept, beside the events themselves."""

    rules: tuple[Rule, ...]
    window_days: int
    """warm.window_days: the age of formula "age" is that at the end of the window."""

    @property
    def hash(self) -> str:
        """16 hex digits that differ between policies that may decide differently."""
        rules = [rule.canonical() for rule in self.rules]
        text = json.dumps([_CANONICAL_VERSION, self.window_days, rules], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def rules_of(given: object) -> tuple[Rule, ...]:
    """The rules, checked; the default ones for an empty list. ConfigError names every wrong rule and says how to mend it.

    given  a list of tables as TOML has them, of Rules, or such a list as JSON text (from the environment)
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as exc:
            raise ConfigError(f"sampling.rules: not valid JSON: {exc}; give a list of rules") from exc
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise ConfigError("sampling.rules: must be a list of rules: write [[sampling.rules]] above each")
    if len(given) > RULES_MAX:
        raise ConfigError(f"sampling.rules: {len(given)} rules, at most {RULES_MAX}; one rule may list many patterns")
    rules: list[Rule] = []
    problems: list[str] = []
    for number, one in enumerate(given, start=1):
        try:
            rules.append(one if isinstance(one, Rule) else Rule.model_validate(one))
        except ValidationError as exc:
            named = isinstance(one, Mapping) and isinstance(one.get("name"), str)
            label = _label(one["name"]) if named else f"sampling.rules: rule number {number}"
            problems += [f"{label}: {_problem(error)}" for error in exc.errors()]
    problems += _clashes(rules)
    if problems:
        raise ConfigError(problems)
    return tuple(rules) or DEFAULT_RULES


def _clashes(rules: Sequence[Rule]) -> list[str]:
    problems = []
    names: set[str] = set()
    takes_all: Rule | None = None
    for rule in rules:
        if rule.name in names:
            problems.append(f"{_label(rule.name)}: there is another of that name; rename one, stored decisions go by it")
        if takes_all is not None:
            problems.append(f"{_label(rule.name)}: never applies, rule {takes_all.name!r} before it takes all; move it up")
        names.add(rule.name)
        takes_all = takes_all or (rule if rule.takes_all else None)
    return problems


def _label(name: str) -> str:
    return f"sampling.rules: rule {name!r}"


def _problem(error: Any) -> str:
    """One error of pydantic in our words."""
    place = [part for part in error["loc"] if isinstance(part, str)]
    key = ".".join(place)
    match error["type"]:
        case "extra_forbidden":
            known = When.model_fields if place[0] == "when" else Rule.model_fields
            return f"{key}: no such key; there are {', '.join(known)}"
        case "missing":
            return f'has no {key}; add {key} = "…"'
        case "model_type":
            return f"{key + ': ' if key else ''}must be a table of keys and values, not {error['input']!r}"
        case "tuple_type":
            return f'{key}: must be a list of patterns, as ["tool.*"], not {error["input"]!r}'
        case "too_short":
            return f"{key}: is empty, so the rule takes nothing; leave it out to take everything"
        case "string_pattern_mismatch":
            return f"{key}: must be 1 to 64 of a-z 0-9 _ -, not {error['input']!r}"
        case "value_error":
            return f"{key}: {error['ctx']['error']}" if key else str(error["ctx"]["error"])
        case _:
            return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}, not {error['input']!r}"
