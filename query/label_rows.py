"""What a query or relation gives, as labels.py sees it: columns with labels, whether rows are missing or a sample. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlglot import exp

if TYPE_CHECKING:
    from .coverage import Label

_ORDER: Final[tuple[Label, ...]] = ("exact", "estimated", "unknown")
MARKS: Final = ("rates", "sums", "structs")
"""What may be known of a column beside its label: the fields of Rows that name columns."""


class Rows(NamedTuple):
    """What a query or relation gives."""

    columns: tuple[tuple[str, Label], ...] | None
    """None: not known."""
    whole: bool
    """No row is missing."""
    drawn: bool = False
    """Each row is one of a sample, and stands for 1 / its rate of its kind."""
    rates: frozenset[str] = frozenset()
    """Columns that are the rate of their row, or of all the rows a grouped row is made of."""
    sums: frozenset[str] = frozenset()
    """Columns that add up rows of one rate."""
    structs: frozenset[str] = frozenset()
    """Columns that are estimates with their bounds."""
    wide: bool = False
    """There may be more columns than are listed."""

    def label(self, name: str) -> Label | None:
        """None when there is no such column."""
        if self.columns is None:
            return "unknown"
        if self.wide:
            return self.worst()
        return worst(label for column, label in self.columns if column == name) if name in dict(self.columns) else None

    def worst(self) -> Label:
        """The least certain of all columns."""
        return "unknown" if self.columns is None else worst(label for _, label in self.columns)

    def moved(self, names: Sequence[tuple[str, str]]) -> Rows:
        """What is known of columns beside their labels, under new names. names: pairs of the old one and the new."""
        rates, sums, structs = (frozenset(new for old, new in names if old in getattr(self, mark)) for mark in MARKS)
        return self._replace(rates=rates, sums=sums, structs=structs)


NOTHING_KNOWN: Final = Rows(None, False)


class Unclear(Exception):
    """Internal: a construct that nothing is known about."""


def worst(found: object) -> Label:
    """The least certain of some labels; exact of none."""
    return max(found, key=_ORDER.index, default="exact")  # type: ignore[call-overload,no-any-return]


def renamed(rows: Rows, node: exp.Expr) -> Rows:
    """The rows with the column names that an alias gives."""
    alias = node.args.get("alias")
    names = [one.name.lower() for one in alias.args.get("columns") or ()] if isinstance(alias, exp.TableAlias) else []
    if not names or rows.columns is None:
        return rows
    if rows.wide or len(names) > len(rows.columns):
        raise Unclear
    old = [name for name, _ in rows.columns]
    new = [*names, *old[len(names) :]]
    columns = tuple((name, label) for name, (_, label) in zip(new, rows.columns, strict=True))
    return rows.moved(list(zip(old, new, strict=True)))._replace(columns=columns)


def united(node: exp.SetOperation, left: Rows, right: Rows) -> Rows:
    """What a UNION, EXCEPT or INTERSECT gives of two."""
    whole = left.whole and right.whole
    if left.columns is None or right.columns is None or len(left.columns) != len(right.columns) or node.args.get("by_name"):
        raise Unclear
    if left.wide or right.wide:
        raise Unclear
    if not isinstance(node, exp.Union) and not whole:
        return Rows(tuple((name, "unknown") for name, _ in left.columns), False)
    pairs = zip(left.columns, right.columns, strict=True)
    columns = tuple((name, worst((one, other))) for (name, one), (_, other) in pairs)
    if not isinstance(node, exp.Union) or node.args.get("distinct") or is_cut(node):
        return Rows(columns, whole and not is_cut(node))
    names = [(other, one) for (one, _), (other, _) in zip(left.columns, right.columns, strict=True)]
    right = right.moved(names)
    drawn = left.drawn and right.drawn
    return Rows(columns, whole, drawn, left.rates & right.rates, left.sums & right.sums, left.structs & right.structs)


def is_cut(node: exp.Expr) -> bool:
    """Whether only some rows are taken, by their place."""
    return any(node.args.get(name) is not None for name in ("limit", "offset"))
