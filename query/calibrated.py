"""Estimates that agree with the rollups, as SQL text: samples are weighed within groups whose exact size the rollups know. Pure.

A group of the answer falls into strata, one per event type; types of which too little was kept lie together in one. Of a stratum
the rollups know the total M of z (1 for every event, or the value that is summed) over what was sampled; so its part of the
answer is M · Σ y/p : Σ z/p over the kept rows, y being z of the rows asked for and 0 of the others. What is kept for certain is
added as it is. The error is that of the residuals y - R z: small where a stratum is alike, 0 where all of it is asked for.

Of a conversation kept as one the residuals are added up before: it is one draw. Whether it was, its rows tell: of rows kept one
by one the md5 of each id is below the rate, of rows kept together that of the conversation is (docs/sampling.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from .estimates import moments

STRATUM_MIN: Final = 10
"""A type of which fewer rows were kept lies with others, unless chance does not explain that."""
CHANCE_MAX: Final = 30
"""So many rows expected, and fewer than STRATUM_MIN kept, are not chance: the type has a rate of its own, perhaps 0."""
_HASH: Final = "((md5_number({text}) >> 64)::DOUBLE / 18446744073709551616::DOUBLE)"
HOUR: Final = "make_timestamptz(epoch_us(timestamp) // 3600000000 * 3600000000)"
KEYS: Final[Mapping[str, str]] = {
    **{name: name for name in ("conversation_id", "event_type", "agent_id", "model", "tool_name")},
    "hour": HOUR,
    "day": f"{HOUR}::DATE",
}
"""What an estimate can be grouped by → the same of an event."""
Kind = Literal["count", "sum", "avg"]


def group_of(by: Sequence[str], *, of_events: bool) -> str:
    """SQL of the group a row of events, or of usage, belongs to."""
    of_usage = {"day": "hour::DATE"}
    fields = [f"'{name}': {KEYS[name] if of_events else of_usage.get(name, name)}" for name in by]
    return f"{{{', '.join(fields)}}}" if fields else "{'all': 0}"


def estimate_sql(kind: Kind, value: str, total: str, by: Sequence[str], base: str, base_of_usage: str, asked: str) -> str:
    """SELECT of by…, estimate, low, high, basis, kept over `events` and `usage`; one row for each group that has events.

    value          SQL of what is summed or averaged; "1" for a count
    total          column of usage that is the sum of value over all events; "" when there is none
    base           condition on events that `base_of_usage` is on usage
    asked          the rest of the condition
    """
    columns = "".join(f"_g.{name} AS {name}, " for name in by)
    order = f" ORDER BY {', '.join(by)}" if by else ""
    least_low = "_certain" if kind == "count" else "CASE WHEN _least >= 0 THEN _certain END"
    if kind == "avg":
        least_low = "CASE WHEN _least >= 0 THEN 0::DOUBLE END"
    slack = "(_open * (1 - power(0.05, 1 / greatest(_n, 1))))"
    high = f"CASE WHEN _e.high IS NULL AND _open > 0 THEN _e.estimate + {slack} ELSE _e.high END + _unseen"
    low = f"CASE WHEN _e.high IS NULL AND _hits = _n THEN greatest(_e.estimate - {slack}, _certain) ELSE _e.low END"
    if kind != "count":
        high, low = "CASE WHEN _unseen = 0 THEN _e.high END", "CASE WHEN _unseen = 0 THEN _e.low END"
    return f"""
        WITH {_steps(kind, value, total, by, base, base_of_usage, asked)}, ended AS (
            SELECT *, est_interval(_estimate, _moments, {least_low}, _open <= 0) AS _e FROM measured
        )
        SELECT {columns}_e.estimate AS estimate, {low} AS low, {high} AS high,
               CASE WHEN _open <= 0 THEN 'exact' WHEN ({high}) IS NULL OR ({low}) IS NULL THEN 'unknown'
                    ELSE 'estimated' END AS basis,
               _kept AS kept
        FROM ended{order}"""


def _steps(kind: Kind, value: str, total: str, by: Sequence[str], base: str, base_of_usage: str, asked: str) -> str:
    whole = f"sum({total or 'events'})"
    z = "1::DOUBLE" if not total or kind == "avg" else f"coalesce(({value})::DOUBLE, 0)"
    used = "_asked AND _x IS NOT NULL"
    deviation = "CASE WHEN used THEN _x - coalesce(_mean, 0) ELSE 0 END" if kind == "avg" else "CASE WHEN used THEN _x ELSE 0 END"
    return f"""seen AS MATERIALIZED (
            SELECT *, {used} AS used FROM (
                SELECT {group_of(by, of_events=True)} AS _g, event_type AS _type, sample_rate AS _p, conversation_id AS _c,
                       event_id AS _id, coalesce({asked}, false) AS _asked, ({value})::DOUBLE AS _x, {z} AS _z
                FROM events WHERE {base})
        ), types AS (
            SELECT _g, _type, sum(_m) AS _m, sum(_count) AS _count, sum(_n)::BIGINT AS _n, sum(_w) AS _w FROM (
                SELECT {group_of(by, of_events=False)} AS _g, event_type AS _type, {whole}::DOUBLE AS _m, sum(events) AS _count,
                       0 AS _n, 0::DOUBLE AS _w
                FROM usage WHERE {base_of_usage} GROUP BY ALL
                UNION ALL
                SELECT _g, _type, coalesce(-sum(_z) FILTER (_p >= 1), 0), -count(*) FILTER (_p >= 1), count(*) FILTER (_p < 1),
                       coalesce(sum(1 / _p) FILTER (_p < 1), 0)
                FROM seen GROUP BY _g, _type)
            GROUP BY _g, _type
        ), labelled AS (
            SELECT *, CASE WHEN _n < {STRATUM_MIN} AND _count * sum(_n) OVER (PARTITION BY _g) <=
                           {CHANCE_MAX} * sum(_w) OVER (PARTITION BY _g) THEN '' ELSE _type END AS _stratum
            FROM types
        ), strata AS (
            SELECT _g, _stratum, sum(_m) AS _m, sum(_count) AS _count, sum(_n) AS _n FROM labelled GROUP BY _g, _stratum
        ), sized AS (
            SELECT seen.*, _stratum FROM seen JOIN (SELECT _g AS _lg, _type AS _lt, _stratum FROM labelled) AS labels
                ON seen._g IS NOT DISTINCT FROM _lg AND seen._type = _lt
        ), scaled AS (
            SELECT _g, _stratum, _m, _count, _n,
                   CASE WHEN _z_sum > 0 THEN _m / _z_sum END AS _scale, _z_sum,
                   coalesce(_x_sum, 0) AS _x_sum, coalesce(_used_sum, 0) AS _used_sum
            FROM strata LEFT JOIN (
                SELECT _g AS _sg, _stratum AS _ss, sum(_z / _p) AS _z_sum, sum(_x / _p) FILTER (used) AS _x_sum,
                       sum(1 / _p) FILTER (used) AS _used_sum
                FROM sized WHERE _p < 1 GROUP BY _g, _stratum) AS sums
                ON _g IS NOT DISTINCT FROM _sg AND _stratum = _ss
        ), certain AS (
            SELECT _g, count(*) FILTER (used) AS _kept, coalesce(sum(_x) FILTER (used AND _p >= 1), 0) AS _x_certain,
                   count(*) FILTER (used AND _p >= 1) AS _used_certain, coalesce(sum(_x) FILTER (used), 0) AS _certain,
                   min(_x) AS _least, count(*) FILTER (used AND _p < 1) AS _hits
            FROM seen GROUP BY _g
        ), added AS (
            SELECT _g, coalesce(sum(_scale * _x_sum), 0) AS _x_all, coalesce(sum(_scale * _used_sum), 0) AS _used_all,
                   coalesce(sum(greatest(_count, 0)), 0) AS _open,
                   coalesce(sum(_count) FILTER (_n = 0 AND _count > 0), 0) AS _unseen,
                   coalesce(sum(_n), 0)::BIGINT AS _n, count(*) FILTER (_n > 0) AS _strata
            FROM scaled GROUP BY _g
        ), groups AS (
            SELECT _g, _open, _unseen, _n, _strata, coalesce(_kept, 0) AS _kept, coalesce(_certain, 0) AS _certain, _least,
                   coalesce(_hits, 0) AS _hits, coalesce(_x_certain, 0) + _x_all AS _x_total,
                   coalesce(_used_certain, 0) + _used_all AS _used_total, _x_total / nullif(_used_total, 0) AS _mean
            FROM added LEFT JOIN (SELECT _g AS _cg, * EXCLUDE (_g) FROM certain) AS known ON _g IS NOT DISTINCT FROM _cg
        ), {_errors(kind, deviation)}"""


def _errors(kind: Kind, deviation: str) -> str:
    """The steps from what each group adds up to, to the moments of its error."""
    estimate = {"count": "_used_total", "sum": "_x_total", "avg": "_mean"}[kind]
    over = "nullif(_used_total, 0)" if kind == "avg" else "1"
    spent = "2 / greatest(any_value(_n) - any_value(_strata), 1)" if kind != "count" else "0"
    more = "(greatest(any_value(_n), 2) / greatest(any_value(_n) - any_value(_strata), 1))"
    y = moments("_e", "_p", more=more, spent=spent)
    chosen = deviation if kind != "count" else "CASE WHEN used THEN 1 ELSE 0 END"
    return f"""units AS (
            SELECT _c AS _uc, _p AS _up, CASE WHEN _together THEN true WHEN _apart THEN false
                   ELSE sum(_together::INT) OVER (PARTITION BY _p) > sum(_apart::INT) OVER (PARTITION BY _p) END AS _one
            FROM (SELECT _c, _p, bool_or({_HASH.format(text="_id")} >= _p) AS _together,
                         any_value({_HASH.format(text="_c")}) >= _p AS _apart
                  FROM seen WHERE _p < 1 GROUP BY _c, _p)
        ), deviations AS (
            SELECT sized._g AS _g, _stratum, _c, _id, _p, _z, {chosen} AS _y
            FROM sized JOIN (SELECT _g AS _gg, _mean FROM groups) AS means ON sized._g IS NOT DISTINCT FROM _gg
            WHERE _p < 1
        ), ratios AS (
            SELECT _g AS _rg, _stratum AS _rs, sum(_y / _p) / nullif(sum(_z / _p), 0) AS _ratio
            FROM deviations GROUP BY _g, _stratum
        ), residuals AS (
            SELECT _g, _c, _id, _p, _scale * (_y - _ratio * _z) AS _r
            FROM deviations JOIN ratios ON _g IS NOT DISTINCT FROM _rg AND _stratum = _rs
                 JOIN (SELECT _g AS _kg, _stratum AS _ks, _scale FROM scaled) AS scales
                 ON _g IS NOT DISTINCT FROM _kg AND _stratum = _ks
        ), draws AS (
            SELECT _g AS _dg, _p, sum(_r) AS _r
            FROM residuals JOIN units ON _c = _uc AND _p = _up GROUP BY _g, _p, _c, CASE WHEN _one THEN '' ELSE _id END
        ), measured AS (
            SELECT groups.*, {estimate}::DOUBLE AS _estimate, _moments
            FROM groups LEFT JOIN (
                SELECT _dg AS _mg, {y} AS _moments
                FROM (SELECT _dg, _p, _r / {over} AS _e, _n, _strata FROM draws JOIN groups ON _dg IS NOT DISTINCT FROM groups._g)
                GROUP BY _dg) AS errors ON _g IS NOT DISTINCT FROM _mg
        )"""
