"""Decide what the archive keeps, as SQL text. Pure: no connection, no clock; the same rows and policy give the same sample.

Every function takes the policy and names of relations (a table, a view or a parenthesized SELECT):

rows           columns of `events`: one batch
conversations  one row per conversation of the batch, over all its events in all tiers: conversation_id, started_at (TIMESTAMPTZ)
               and, as far as the policy asks for them (`measures`), events, errors, interventions, content_bytes,
               input_tokens, output_tokens, cost_usd. `conversations` makes it from rollups
stored         rollup_decision of earlier batches: conversation_id, rule, rate, started_at, policy_hash; keys may repeat
decisions      what `decisions` gave for the same rows: make it a table, `decided` and `kept` read it

An event is kept when the md5 of its id (of its conversation's, if that is the rule's scope), as a number from 0 to 1, is below
the rate. So a higher rate keeps the same events and more, and no order of rows, number of threads or day of the run matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from thermocline.event import COLUMN_NAMES
from thermocline.policy import COLUMN_OF, MEASURES, UNMATCHED, Policy, Rule, When
from thermocline.tiers.duck import quoted

_HOUR_US: Final = 3_600_000_000
_DAY_US: Final = 24 * _HOUR_US
_TWO_TO_64: Final = "18446744073709551616::DOUBLE"
_INTERVENTION: Final = "(event_type = 'intervention' OR prefix(event_type, 'intervention.'))"
_BYTES: Final = "strlen(content) + coalesce(strlen(metadata::VARCHAR), 0)"


def measures(policy: Policy) -> tuple[str, ...]:
    """The columns of `conversations` the policy asks for, beside conversation_id and started_at."""
    return tuple(name for name in MEASURES if any(rule.when.bounds(name) != (None, None) for rule in policy.rules))


def conversations(hourly: str, rows: str) -> str:
    """SELECT of `conversations` with all measures, for the conversations met in `rows`.

    hourly  columns of rollup_hourly over all tiers; keys may repeat, values add up
    """
    return f"""
        SELECT conversation_id, min(timestamp_min) AS started_at, sum(events)::BIGINT AS events, sum(errors)::BIGINT AS errors,
               coalesce(sum(events) FILTER {_INTERVENTION}, 0)::BIGINT AS interventions,
               sum(content_bytes)::BIGINT AS content_bytes, sum(input_tokens)::HUGEINT AS input_tokens,
               sum(output_tokens)::HUGEINT AS output_tokens, list_sum(list_sort(list(cost_usd))) AS cost_usd
        FROM {hourly} WHERE conversation_id IN (SELECT conversation_id FROM {rows}) GROUP BY conversation_id"""


def decisions(policy: Policy, *, rows: str, conversations: str, stored: str) -> str:
    """SELECT of (conversation_id, rule, rate, started_at, policy_hash, changed): one row per conversation and rule met in `rows`.

    rate     the stored one if it was decided by this policy, else the computed one or the stored one, whichever is higher.
             Computed is that of the earliest UTC day the batch has of the conversation and rule
    changed  whether it is not yet stored as it is, so that it has to be written with the batch
    """
    current = quoted(policy.hash)
    return f"""
        WITH met AS (
            SELECT conversation_id, rule, min(timestamp) AS earliest
            FROM ({_ruled(policy, rows, conversations, ("conversation_id", "timestamp"))}) GROUP BY conversation_id, rule
        ), before AS (
            SELECT conversation_id, rule, unnest(max({{
                'stored_rate': rate, 'same_policy': policy_hash = {current}, 'stored_us': -epoch_us(started_at)}}))
            FROM {stored} WHERE conversation_id IN (SELECT conversation_id FROM met) GROUP BY conversation_id, rule
        ), dated AS (
            SELECT met.*, before.* EXCLUDE (conversation_id, rule),
                   coalesce(-stored_us, epoch_us(least(started_at, earliest))) AS started_us
            FROM met LEFT JOIN before USING (conversation_id, rule)
                     LEFT JOIN (SELECT conversation_id, started_at FROM {conversations}) USING (conversation_id)
        ), rated AS (
            SELECT *, CASE WHEN same_policy THEN stored_rate ELSE greatest({_computed(policy)}, stored_rate) END AS rate
            FROM dated
        )
        SELECT conversation_id, rule, rate, make_timestamptz(started_us) AS started_at, {current} AS policy_hash,
               coalesce(NOT same_policy, true) AS changed
        FROM rated"""


def decided(policy: Policy, *, rows: str, conversations: str, decisions: str) -> str:
    """SELECT of all rows: the columns of `events` with sample_rate := rate, then rule and kept (BOOLEAN)."""
    rate = "CASE WHEN rate IS NULL THEN error('the decisions are of other rows') ELSE rate END"
    columns = ", ".join(f"{rate} AS sample_rate" if name == "sample_rate" else f"ruled.{name}" for name in COLUMN_NAMES)
    return f"""
        SELECT {columns}, rule, {_is_kept(policy, rate)} AS kept
        FROM ({_ruled(policy, rows, conversations, COLUMN_NAMES)}) AS ruled
        LEFT JOIN (SELECT conversation_id, rule, rate FROM {decisions}) AS decision USING (conversation_id, rule)"""


def kept(policy: Policy, *, rows: str, conversations: str, decisions: str) -> str:
    """SELECT of the rows that are kept: exactly the columns of `events`, in no order, sample_rate set."""
    every = decided(policy, rows=rows, conversations=conversations, decisions=decisions)
    return f"SELECT {', '.join(COLUMN_NAMES)} FROM ({every}) WHERE kept"


def dry_run(policy: Policy, *, rows: str, conversations: str, decisions: str) -> str:
    """SELECT of what would be kept: event_type, rule, events, bytes, events_expected, bytes_expected, events_kept, bytes_kept.

    bytes are those of content and metadata. expected is the sum of the rates; kept is what would be archived, exactly.
    """
    every = decided(policy, rows=rows, conversations=conversations, decisions=decisions)
    return f"""
        SELECT event_type, rule, count(*) AS events, sum(bytes)::BIGINT AS bytes,
               sum(sample_rate) AS events_expected, sum(sample_rate * bytes) AS bytes_expected,
               count_if(kept)::BIGINT AS events_kept, coalesce(sum(bytes) FILTER (kept), 0)::BIGINT AS bytes_kept
        FROM (SELECT event_type, rule, sample_rate, kept, {_BYTES} AS bytes FROM ({every}))
        GROUP BY event_type, rule ORDER BY event_type, rule"""


def dry_run_days(policy: Policy, *, rows: str, conversations: str, decisions: str) -> str:
    """SELECT of what would be archived and kept: day (YYYY-MM-DD, UTC), events, bytes, events_kept, bytes_kept."""
    every = decided(policy, rows=rows, conversations=conversations, decisions=decisions)
    return f"""
        SELECT strftime(make_timestamp(day * {_DAY_US}), '%Y-%m-%d') AS day, count(*) AS events, sum(bytes)::BIGINT AS bytes,
               count_if(kept)::BIGINT AS events_kept, coalesce(sum(bytes) FILTER (kept), 0)::BIGINT AS bytes_kept
        FROM (SELECT epoch_us(timestamp) // {_DAY_US} AS day, kept, {_BYTES} AS bytes FROM ({every}))
        GROUP BY day ORDER BY day"""


def _ruled(policy: Policy, rows: str, conversations: str, columns: Sequence[str]) -> str:
    """SELECT of `columns` of rows, and rule: the name of the first that takes the row."""
    asking = {number: rule.when for number, rule in enumerate(policy.rules) if rule.when != When()}
    met = ", ".join(f"{_holds(when)} AS met_{number}" for number, when in asking.items())
    # The rows come first in every join: they are streamed, what is joined to them is held in memory.
    source = f"{rows} AS event"
    if asking:
        source += f" LEFT JOIN (SELECT conversation_id, {met} FROM {conversations}) AS conversation USING (conversation_id)"
    branches = []
    for number, rule in enumerate(policy.rules):
        tests = [_listed(column, patterns) for column, patterns in _lists(rule)] + ([f"met_{number}"] if number in asking else [])
        branches.append(f"WHEN {' AND '.join(tests) or 'true'} THEN {quoted(rule.name)}")
    return (
        f"SELECT {', '.join(f'event.{name}' for name in columns)}, CASE {' '.join(branches)} ELSE {quoted(UNMATCHED)} END AS rule"
        f" FROM {source}"
    )


def _lists(rule: Rule) -> list[tuple[str, Sequence[str]]]:
    listed = [(f"event.{column}", getattr(rule, name)) for name, column in COLUMN_OF.items()]
    return [(column, patterns) for column, patterns in listed if patterns is not None]


def _listed(column: str, patterns: Sequence[str]) -> str:
    """Whether the column has a value that matches a pattern; NULL, which takes no branch, when it is NULL."""
    exact = [quoted(pattern) for pattern in patterns if "*" not in pattern]
    tests = [f"{column} IN ({', '.join(exact)})"] if exact else []
    tests += [_like(column, pattern) for pattern in patterns if "*" in pattern]
    return f"({' OR '.join(tests)})"


def _like(column: str, pattern: str) -> str:
    """Whether the column matches a pattern with *; by cheap tests if they will do, and never in exponential time."""
    first, *middle, last = pattern.split("*")
    middle = [part for part in middle if part]
    if not first and not last and len(middle) == 1:
        return f"contains({column}, {quoted(middle[0])})"
    if middle:
        body = ".*".join("".join(_plain(char) for char in part) for part in (first, *middle, last))
        return f"regexp_full_match({column}, {quoted(body)}, 's')"
    tests = [f"prefix({column}, {quoted(first)})"] if first else []
    tests += [f"suffix({column}, {quoted(last)})"] if last else []
    if first and last:
        tests.append(f"strlen({column}) >= {len((first + last).encode())}")
    return f"({' AND '.join(tests)})" if tests else f"{column} IS NOT NULL"


def _plain(char: str) -> str:
    """The character as a regular expression that matches only it."""
    return f"\\{char}" if char.isascii() and not char.isalnum() else char


def _holds(when: When) -> str:
    """Whether a conversation meets all conditions. Costs are compared to the millionth: sums of doubles end in noise."""
    tests = []
    for measure in MEASURES:
        value = "round(cost_usd, 6)" if measure == "cost_usd" else measure
        least, most = when.bounds(measure)
        tests += [f"{value} >= {_number(least)}"] if least is not None else []
        tests += [f"{value} <= {_number(most)}"] if most is not None else []
    return " AND ".join(tests)


def _computed(policy: Policy) -> str:
    """The rate of (rule, started_us, earliest) by the policy alone."""
    end_us = f"((epoch_us(earliest) // {_DAY_US} + 1 + {policy.window_days}) * {_DAY_US})"
    age = f"1 / log2(greatest(({end_us} - started_us) // {_HOUR_US}, 0) + 2)"
    rates = [age if rule.fixed_rate is None else _number(rule.fixed_rate) for rule in policy.rules]
    branches = [f"WHEN {quoted(rule.name)} THEN {rate}" for rule, rate in zip(policy.rules, rates, strict=True)]
    return f"CASE rule {' '.join(branches)} ELSE 1::DOUBLE END"


def _is_kept(policy: Policy, rate: str) -> str:
    """Whether the row is kept. The md5 is computed only where the rate leaves it open.

    `md5_number(x) >> 64` is md5_number_lower(x), five times faster (DuckDB 1.5: 103 ns for each of 1 M ids, not 559).
    """
    whole = [quoted(rule.name) for rule in policy.rules if rule.scope == "conversation"]
    number = f"(md5_number(event_id::VARCHAR) >> 64)::DOUBLE / {_TWO_TO_64} < {rate}"
    by_conversation = f"WHEN rule IN ({', '.join(whole)}) THEN {number.replace('event_id::VARCHAR', 'conversation_id')} "
    return f"CASE WHEN {rate} >= 1 THEN true WHEN {rate} <= 0 THEN false {by_conversation if whole else ''}ELSE {number} END"


def _number(value: float) -> str:
    """The number as SQL; a double to its last bit."""
    return str(value) if isinstance(value, int) else f"'{value!r}'::DOUBLE"
