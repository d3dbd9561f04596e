"""What a search looks for, as patterns that DuckDB and Python read alike, and where they are in a text. Pure.

Words are found anywhere in a text, whatever their case: `refund` is in `Refunded`. Case is Unicode's simple case folding (ä is Ä,
ß is not ss), accents count, and between the words of a phrase there may be any white space.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from thermocline.errors import QueryRefused

TEXT_CHARS_MAX: Final = 1_000
WORDS_MAX: Final = 32
SPANS_MAX: Final = 100
"""Marked in one snippet."""
_RE2_GAP: Final = r"[\s\x0b\x1c-\x1f\x{85}\pZ]+"
"""What Python's `\\s+` is, in the words of RE2, whose own knows ASCII."""
_OF_ONE_CASE: Final = {"i": "(?-i:[iI])", "I": "(?-i:[iI])"} | {letter: f"(?-i:{letter})" for letter in "İıﬅﬆ"}
"""Letters that Python's `(?i)` holds to be others' cases and simple case folding does not, in Python's words."""


class Wanted(msgspec.Struct, frozen=True):
    """Words, or phrases, that all have to be in a text, without regard to case."""

    phrases: tuple[tuple[str, ...], ...]
    """Of each the words, which follow one another."""
    whole_words: bool = False

    @classmethod
    def of(cls, text: str, *, phrase: bool = False, whole_words: bool = False) -> Wanted:
        """What a search for `text` looks for. QueryRefused when there is nothing to look for, or too much."""
        if not isinstance(text, str):
            raise QueryRefused(f"text must be a str, not {type(text).__name__}")
        if len(text) > TEXT_CHARS_MAX or "\0" in text or not _is_utf8(text):
            raise QueryRefused(f"text must have at most {TEXT_CHARS_MAX} characters, none of them NUL or a lone surrogate")
        words = text.split()
        if not 1 <= len(words) <= WORDS_MAX:
            raise QueryRefused(f"text must have 1 to {WORDS_MAX} words, not {len(words)}")
        return cls((tuple(words),) if phrase else tuple((word,) for word in dict.fromkeys(words)), whole_words)

    def sql(self, column: str, quoted: Callable[[str], str]) -> str:
        """The condition that all of them are in a column."""
        return " AND ".join(f"regexp_matches({column}, {quoted(self._re2(one))})" for one in self.phrases)

    def place_sql(self, column: str, quoted: Callable[[str], str]) -> str:
        """How many characters of a column that matches are before the first of them."""
        found = [f"length(regexp_extract({column}, {quoted('(?s)^(.*?)' + self._re2(one))}, 1))" for one in self.phrases]
        return f"least({', '.join(found)})"

    def spans(self, text: str) -> list[tuple[int, int]]:
        """(start, length) in characters of everything in `text` that is looked for, in order; what touches is one."""
        found: list[tuple[int, int]] = []
        for start, end in sorted(match.span() for one in self.phrases for match in re.finditer(self._python(one), text)):
            if found and start <= found[-1][1]:
                found[-1] = (found[-1][0], max(found[-1][1], end))
            else:
                found.append((start, end))
        return [(start, end - start) for start, end in found[:SPANS_MAX]]

    def _re2(self, words: tuple[str, ...]) -> str:
        pattern = _RE2_GAP.join(map(re.escape, words))
        return rf"(?i)(?:^|[^\pL\pN_])(?:{pattern})(?:$|[^\pL\pN_])" if self.whole_words else f"(?i)(?:{pattern})"

    def _python(self, words: tuple[str, ...]) -> str:
        pattern = r"\s+".join("".join(_OF_ONE_CASE.get(sign, re.escape(sign)) for sign in word) for word in words)
        return rf"(?i)(?<!\w)(?:{pattern})(?!\w)" if self.whole_words else f"(?i){pattern}"


def highlighted(
    snippet: str,
    spans: Iterable[Mapping[str, int] | tuple[int, int]],
    *,
    before: str = "<mark>",
    after: str = "</mark>",
    escape: Callable[[str], str] = html.escape,
) -> str:
    """The snippet with its spans between `before` and `after`, everything else escaped: safe to put into a page.

    spans   as a search gives them: {"start": …, "length": …}, or pairs
    escape  of text; the identity for text that is not HTML, where marks are then to be told from content by the reader
    """
    parts, done = [], 0
    for span in spans:
        start, length = (span["start"], span["length"]) if isinstance(span, Mapping) else span
        parts += [escape(snippet[done:start]), before, escape(snippet[start : start + length]), after]
        done = start + length
    return "".join([*parts, escape(snippet[done:])])


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def rungs(extents: Sequence[tuple[int, int]], *, first_rows: int, growth: int) -> list[tuple[int | None, int]]:
    """How far back to look, step by step: [(no earlier than this µs, stored rows since then)], the last one (None, all).

    extents  (latest µs, rows) of segments and files, any order

    Each step takes in so many more that all of them together are hardly more work than the last one.
    """
    found: list[tuple[int | None, int]] = []
    rows, wanted = 0, first_rows
    newest_first = sorted(extents, reverse=True)
    for place, (_, count) in enumerate(newest_first):
        rows += count
        left = newest_first[place + 1 :]
        if rows >= wanted and left and left[0][0] < newest_first[place][0]:
            found.append((left[0][0] + 1, rows))
            wanted = rows * growth
    return [*found, (None, rows)]
