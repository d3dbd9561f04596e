"""est_count, est_sum and est_avg as SQL macros: Horvitz-Thompson estimates with 95 % intervals. Pure text but for `define`;
docs/estimates.md says how to use them and how good they are.

A row kept with probability p stands for 1 / p. From sums over the kept rows of powers of y, what a row adds to the estimate,

    v  Σ y² (1 - p) / p²              variance of the estimate
    c  Σ y³ (1 - p)² / p³             how its error goes with that of v
    k  Σ y³ (1 - p) (1 - 2p) / p³     its third cumulant
    q  Σ y⁴ (1 - p)³ / p⁴             variance of v

the interval follows by the first terms of the Cornish-Fisher series of the studentized estimate. For a plain count this is, to
that order, the mid-P interval of the binomial; for sums of skewed values it is Johnson's; what q has beyond c² / v widens it as
Student's t does. Of an average, y is the deviation from it. Rows with p = 1 are in no sum: they are known.
"""

from __future__ import annotations

from math import comb
from typing import Final

from thermocline.tiers.duck import Connection

NAMES: Final = ("est_count", "est_sum", "est_avg")
ALL_NAMES: Final = (*NAMES, "est_interval", "est_interval_of")
"""Functions that every database of ours has."""
Z: Final = 1.959963984540054
_SKEW: Final = (Z * Z - 1) / 6
_T: Final = (Z**3 + Z) / 8
"""Half of what Student's quantile has more than Z, for each degree of freedom."""
_T_MAX: Final = 1.2 * Z
"""It gets at most so much wider for want of rows."""
_WIDER: Final = 0.325
"""What the second order adds to the variance of a count, for each kept row's share of it."""
_FAR: Final = 1e-5
"""Below this share of the second moment a variance has lost too many digits for higher powers to have any."""

_INTERVAL: Final = """
    CASE WHEN estimate IS NULL OR known THEN {'estimate': estimate, 'low': estimate, 'high': estimate}
         WHEN NOT coalesce(v > 0, false) THEN {'estimate': estimate, 'low': least_low, 'high': NULL::DOUBLE}
         ELSE {'estimate': estimate, 'low': greatest(estimate - wide - shift, least_low), 'high': estimate + wide - shift} END"""
_OF_MOMENTS: Final = f"""
    est_interval_of(_est_e, m.v,
        sqrt(m.v + {_WIDER} * (m.c / m.v) * (m.c / m.v))
            * ({Z} + least({_T} * (greatest((m.q - m.c * m.c / m.v) / (m.v * m.v), 0) + m.spent), {_T_MAX})),
        -(m.c / 2 + {_SKEW} * (3 * m.c - m.k)) / m.v,
        _est_l, _est_k)"""
_FACTORS: Final = {
    "v": (2, "(1 - rate) / (rate * rate)"),
    "c": (3, "(1 - rate) * (1 - rate) / (rate * rate * rate)"),
    "k": (3, "(1 - rate) * (1 - 2 * rate) / (rate * rate * rate)"),
    "q": (4, "(1 - rate) * (1 - rate) * (1 - rate) / (rate * rate * rate * rate)"),
}
"""Moment → the power of y in it, and what that is multiplied by."""
_X: Final = "(x::DOUBLE)"
_ROWS: Final = "x IS NOT NULL AND rate < 1"
_KNOWN: Final = "coalesce(min(rate) FILTER (x IS NOT NULL) >= 1, true)"


def statements() -> list[str]:
    """CREATE MACRO of all of them, in order."""
    counted = "coalesce(sum(1 / rate), 0)", _moments([], "rate < 1"), "count(rate)::DOUBLE"
    summed = f"sum({_X} / rate)", _moments([_X], _ROWS), f"CASE WHEN min({_X}) >= 0 THEN sum({_X}) END"
    return [
        f"CREATE OR REPLACE MACRO est_interval_of(estimate, v, wide, shift, least_low, known) AS {_INTERVAL}",
        "CREATE OR REPLACE MACRO est_interval(estimate, moments, least_low, known) AS "
        f"(SELECT {_OF_MOMENTS} FROM (SELECT estimate AS _est_e, moments AS m, least_low AS _est_l, known AS _est_k))",
        f"CREATE OR REPLACE MACRO est_count(rate) AS est_interval({', '.join(counted)}, coalesce(min(rate) >= 1, false))",
        f"CREATE OR REPLACE MACRO est_sum(x, rate) AS est_interval({', '.join(summed)}, {_KNOWN})",
        f"CREATE OR REPLACE MACRO est_avg (x, rate) AS {_averaged([])}, (x, rate, n) AS {_averaged(['(n::DOUBLE)'])}",
    ]


def define(con: Connection) -> None:
    """Make the macros in the database of `con`."""
    for statement in statements():
        con.execute(statement)


def _product(*factors: str) -> str:
    return " * ".join(factor for factor in factors if factor) or "1"


def moments(y: str, rate: str, *, more: str = "1", spent: str = "0") -> str:
    """SQL of the moments of y over all rows of a group, as est_interval takes them.

    more   what a variance is multiplied by because averages of the same rows were taken off
    spent  2 for each degree of freedom there is, where the spread has to be learnt from them
    """
    texts = {name: f"sum({_product(*[y] * power, by.replace('rate', rate))})" for name, (power, by) in _FACTORS.items()}
    by = {"v": more, "c": f"{more} * {more}", "k": f"{more} * {more}", "q": "1"}
    fields = [f"'{name}': {text} * {by[name]}" for name, text in texts.items()]
    return f"{{{', '.join(fields)}, 'spent': {spent}}}"


def _moments(y: list[str], rows: str) -> str:
    """SQL of STRUCT(v, c, k, q, spent) over `rows`, in double precision; y: its factors, none for 1."""
    sums = [f"'{name}': sum({_product(*y * power, by)}) FILTER ({rows})" for name, (power, by) in _FACTORS.items()]
    return f"{{{', '.join(sums)}, 'spent': 0::DOUBLE}}"


def _averaged(n: list[str]) -> str:
    """SQL of the average of x, or of values n of which add up to x: moments of x - average * n, from those of x and n."""
    weight = f"(sum({_product(*n)} / rate) FILTER (x IS NOT NULL))"
    average = f"(sum({_X} / rate) / nullif({weight}, 0))"
    sums = {
        f"_est_{name}{power}": f"sum({_product(*[_X] * power, *n * (total - power), by)}) FILTER ({_ROWS})"
        for name, (total, by) in _FACTORS.items()
        for power in range(total + 1)
    }
    sums |= {"_est_r": average, "_est_w": weight, "_est_n": f"greatest(count(rate) FILTER ({_ROWS}), 2)"}
    held = ", ".join(f"{text} AS {name}" for name, text in sums.items())
    terms = {name: _binomial(f"_est_{name}", total) for name, (total, _) in _FACTORS.items()}
    of_mean = "(_est_n / (_est_n - 1))"  # the deviations are from the average of these very rows
    near = f"({terms['v']}) > {_FAR} * _est_v2"
    fields = [f"'v': greatest({terms['v']}, 0) / (_est_w * _est_w) * {of_mean}"]
    for name, power, more in (("c", 3, f" * {of_mean} * {of_mean}"), ("k", 3, f" * {of_mean} * {of_mean}"), ("q", 4, "")):
        fields.append(f"'{name}': CASE WHEN {near} THEN ({terms[name]}) / ({_product(*['_est_w'] * power)}){more} ELSE 0 END")
    moments = f"(SELECT {{{', '.join(fields)}, 'spent': 2 / _est_n}} FROM (SELECT {held}))"
    return f"est_interval({average}, {moments}, CASE WHEN min({_X}) >= 0 THEN 0::DOUBLE END, {_KNOWN})"


def _binomial(name: str, total: int) -> str:
    """SQL of the sum of (x - r n) ** total, from the sums of x ** power * n ** (total - power)."""
    return " + ".join(
        f"{comb(total, power) * (-1) ** (total - power)} * {_product(f'{name}{power}', *['_est_r'] * (total - power))}"
        for power in range(total + 1)
    )
