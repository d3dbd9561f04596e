"""Policies are checked when they are read: what is wrong is named with its rule and the fix; what means the same has one hash."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from thermocline.config import Settings, load
from thermocline.errors import ConfigError
from thermocline.policy import DEFAULT_RULES, MEASURES, PATTERNS_MAX, RULES_MAX, Policy, Rule, When, rules_of

PAGE = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text()


def loaded(*rules: dict[str, Any], **more: Any) -> Settings:
    return load({"sampling": {"rules": list(rules)}, **more}, environ={})


def hashed(*rules: dict[str, Any], window_days: int = 7) -> str:
    return Policy(rules_of(list(rules)), window_days).hash


def test_without_rules_the_default_policy_keeps_what_matters_and_thins_the_rest_by_age() -> None:
    assert load(environ={}).sampling.rules == DEFAULT_RULES == loaded().sampling.rules
    keep, rest = DEFAULT_RULES
    assert (keep.event_types, keep.fixed_rate) == (("error", "intervention", "file_created", "file.created"), 1.0)
    assert (rest.event_types, rest.fixed_rate, rest.formula, rest.takes_all) == (None, None, "age", True)


def test_every_key_of_a_rule_can_be_given() -> None:
    given = {
        "name": "failures",
        "event_types": ["error", "file.*"],
        "status": ["error"],
        "agents": ["support-*"],
        "models": ["gpt-4o", ""],
        "tools": ["*"],
        "scope": "conversation",
        "when": {"errors_min": 1, "cost_usd_max": 0.5},
        "rate": 0.25,
    }
    (rule,) = loaded(given).sampling.rules
    assert rule.tools == ("*",)
    assert rule.when.bounds("cost_usd") == (None, 0.5)
    assert rule.fixed_rate == 0.25


def test_settings_with_rules_survive_being_written_and_read() -> None:
    settings = loaded(
        {"name": "a", "event_types": ["x*"], "when": {"events_min": 2}, "rate": 0.5}, {"name": "b", "formula": "age"}
    )
    told = settings.model_dump_json()
    assert json.loads(told)["sampling"]["rules"] == [
        {"name": "a", "event_types": ["x*"], "when": {"events_min": 2}, "rate": 0.5},
        {"name": "b", "formula": "age"},
    ]
    assert load(json.loads(told), environ={}) == settings


def test_rules_come_from_the_environment_as_json() -> None:
    settings = load(environ={"THERMOCLINE_SAMPLING__RULES": '[{"name": "all", "keep": true}]'})
    assert settings.sampling.rules == (Rule(name="all", keep=True),)


def test_rules_come_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "thermocline.toml"
    file.write_text('[[sampling.rules]]\nname = "none"\nrate = 0\n\n[warm]\nwindow_days = 3\n')
    assert load(file=file, environ={}).policy == Policy((Rule(name="none", rate=0.0),), 3)


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ({"keep": True}, r'rule number 1: has no name; add name = "…"'),
        ({"name": "No!", "keep": True}, r"rule 'No!': name: must be 1 to 64 of a-z 0-9 _ -"),
        ({"name": "x" * 65, "keep": True}, r"name: must be 1 to 64"),
        ({"name": "a\n", "keep": True}, r"name: must be 1 to 64"),
        ({"name": "unmatched", "keep": True}, r"rule 'unmatched': name: .*give the rule another name"),
        ({"name": "a"}, r"rule 'a': needs exactly one of keep = true, rate = 0\.1, formula = \"age\", and has none"),
        ({"name": "a", "keep": True, "formula": "age"}, r"rule 'a': needs exactly one of .* and has keep and formula"),
        ({"name": "a", "keep": False}, r"rule 'a': keep = false is not an action; .* rate = 0"),
        ({"name": "a", "keep": False, "rate": 0.5}, r"keep = false is not an action"),
        ({"name": "a", "rate": 1.01}, r"rule 'a': rate: .* less than or equal to 1, not 1\.01"),
        ({"name": "a", "rate": -0.1}, r"rule 'a': rate: .* greater than or equal to 0"),
        ({"name": "a", "rate": float("nan")}, r"rule 'a': rate: .*, not nan"),
        ({"name": "a", "rate": "0.1"}, r"rule 'a': rate: .* valid number, not '0\.1'"),
        ({"name": "a", "rate": True}, r"rule 'a': rate: .* valid number, not True"),
        ({"name": "a", "formula": "size"}, r"rule 'a': formula: .* 'age', not 'size'"),
        ({"name": "a", "scope": "task", "keep": True}, r"rule 'a': scope: .* 'event' or 'conversation'"),
        ({"name": "a", "event_type": ["error"], "keep": True}, r"rule 'a': event_type: no such key; there are name, event_types"),
        ({"name": "a", "event_types": "error", "keep": True}, r"rule 'a': event_types: must be a list of patterns"),
        ({"name": "a", "event_types": [], "keep": True}, r"rule 'a': event_types: is empty.*leave it out"),
        ({"name": "a", "event_types": ["a b"], "keep": True}, r"pattern 'a b' can match no event type"),
        ({"name": "a", "event_types": [""], "keep": True}, r"pattern '' can match no event type"),
        ({"name": "a", "status": [3], "keep": True}, r"rule 'a': status: .* valid string, not 3"),
        ({"name": "a", "status": ["a\tb"], "keep": True}, r"rule 'a': status: pattern 'a\\tb' has a control character"),
        ({"name": "a", "agents": ["\ud800"], "keep": True}, r"rule 'a': agents: .*lone surrogate"),
        ({"name": "a", "tools": ["ü" * 129], "keep": True}, r"rule 'a': tools: .*longer than any value \(256 bytes\)"),
        ({"name": "a", "tools": ["t"] * (PATTERNS_MAX + 1), "keep": True}, r"rule 'a': tools: .*at most 1000"),
        ({"name": "a", "when": {"costs": 1}, "keep": True}, r"rule 'a': when\.costs: no such key; there are events_min"),
        ({"name": "a", "when": {"errors_min": -1}, "keep": True}, r"rule 'a': when\.errors_min: .* greater than or equal to 0"),
        ({"name": "a", "when": {"errors_min": 1.5}, "keep": True}, r"rule 'a': when\.errors_min: .* integer, not 1\.5"),
        ({"name": "a", "when": {"cost_usd_min": float("inf")}, "keep": True}, r"rule 'a': when\.cost_usd_min: .* finite"),
        ({"name": "a", "when": {"events_min": 3, "events_max": 2}, "keep": True}, r"events_min exceeds events_max"),
        ({"name": "a", "when": 1, "keep": True}, r"rule 'a': when: must be a table"),
    ],
)
def test_what_is_wrong_with_a_rule_is_named_with_the_rule_and_the_fix(rule: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=r"sampling\.rules: .*" + problem):
        loaded(rule)


@pytest.mark.parametrize("given", [{"name": "a", "keep": True}, 3, None, ["a"], "[{", '{"name": "a"}'])
def test_what_is_not_a_list_of_rules_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"sampling\.rules: "):
        rules_of(given)


def test_every_wrong_rule_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        rules_of([{"name": "a"}, {"name": "b", "rate": 2}, {"name": "c", "keep": True, "tols": ["x"]}, 7])
    assert [problem.split(":")[1].strip() for problem in caught.value.problems] == [
        "rule 'a'",
        "rule 'b'",
        "rule 'c'",
        "rule number 4",
    ]


def test_two_rules_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"rule 'a': there is another of that name; rename one"):
        loaded({"name": "a", "status": ["error"], "keep": True}, {"name": "a", "rate": 0.5})


def test_a_rule_that_can_never_apply_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rule 'b': never applies, rule 'a' before it takes all; move it up"):
        loaded({"name": "a", "event_types": ["x", "**"], "rate": 0.1}, {"name": "b", "status": ["error"], "keep": True})


def test_a_rule_that_leaves_something_to_the_next_is_no_end() -> None:
    narrow: list[dict[str, Any]] = [{"tools": ["*"]}, {"event_types": ["*.*"]}, {"when": {"errors_min": 1}}]
    for number, one in enumerate(narrow):
        assert len(loaded({"name": f"n{number}", "rate": 0.1, **one}, {"name": "rest", "keep": True}).sampling.rules) == 2


def test_there_is_a_bound_on_the_number_of_rules() -> None:
    many = [{"name": f"r{number}", "tools": ["x"], "keep": True} for number in range(RULES_MAX + 1)]
    assert len(rules_of(many[:-1])) == RULES_MAX
    with pytest.raises(ConfigError, match="101 rules, at most 100"):
        rules_of(many)


def test_an_unknown_key_beside_the_rules_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sampling\.rule .*no such setting"):
        load({"sampling": {"rule": []}}, environ={})


def test_the_hash_of_the_default_policy_does_not_change_unless_its_meaning_does() -> None:
    assert Policy(DEFAULT_RULES, 7).hash == "e83ec5ba89839cf0"


def test_the_same_policy_said_in_another_way_has_the_same_hash() -> None:
    base = hashed({"name": "a", "event_types": ["x", "y*"], "keep": True}, {"name": "b", "rate": 1})
    assert hashed({"name": "a", "event_types": ["y**", "x", "x"], "rate": 1.0}, {"keep": True, "name": "b"}) == base
    assert hashed({"name": "a", "rate": 0.5, "when": {}, "scope": "event"}) == hashed({"name": "a", "rate": 0.5})


def test_policies_that_may_decide_differently_have_different_hashes() -> None:
    rules: list[dict[str, Any]] = [
        {"name": "a", "rate": 0.5},
        {"name": "b", "rate": 0.5},
        {"name": "a", "rate": 0.25},
        {"name": "a", "formula": "age"},
        {"name": "a", "rate": 0.5, "scope": "conversation"},
        {"name": "a", "rate": 0.5, "status": ["x"]},
        {"name": "a", "rate": 0.5, "tools": ["x"]},
        {"name": "a", "rate": 0.5, "when": {"errors_min": 1}},
        {"name": "a", "rate": 0.5, "when": {"errors_max": 1}},
    ]
    hashes = [hashed(rule) for rule in rules] + [hashed(rules[0], window_days=8)]
    two = ({"name": "a", "tools": ["x"], "keep": True}, {"name": "b", "models": ["y"], "keep": True})
    hashes += [hashed(*two), hashed(*reversed(two))]
    assert len(set(hashes)) == len(hashes)
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in hashes)


def test_the_policy_takes_the_window_from_the_warm_settings() -> None:
    assert loaded(warm={"window_days": 3}).policy == Policy(DEFAULT_RULES, 3)


def test_every_condition_has_two_bounds() -> None:
    names = set(When.model_fields)
    assert {name.removesuffix("_min") for name in names if name.endswith("_min")} == {
        name.removesuffix("_max") for name in names if name.endswith("_max")
    }


def test_the_policies_shown_in_the_docs_are_policies() -> None:
    shown = [tomllib.loads(text) for text in re.findall(r"^```toml\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)]
    names = [[rule.name for rule in load(one, environ={}).sampling.rules] for one in shown]
    assert names == [["all"], ["failed", "costly", "rest"], ["words", "billing-tools", "failed-tools", "rest"]]


def test_the_docs_name_every_key_and_every_measure() -> None:
    table = PAGE[PAGE.index("| key |") : PAGE.index("Mistakes are errors")]
    assert [name for name in (*Rule.model_fields, *MEASURES) if f"`{name}" not in table] == []
