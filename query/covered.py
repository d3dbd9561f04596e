"""The coverage of a query, from what it is about to read; and the labels of its columns, once it has run. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from .coverage import EXACT, SAMPLE, Coverage, Label
from .receipt import Evidence
from .relations import Sources
from .view import Cut

ESTIMATES: Final = "est_"
"""How the names of functions begin that give intervals."""


def covered(cut: Cut, sources: Mapping[str, Sources], reading: Any, *, retries: int) -> Coverage:
    """The coverage of a query that reads `sources` of `cut`, before it has run. reading: a prune.Reading."""
    segments = {segment.segment_id: segment.rows for source in sources.values() for segment in source.segments}
    files = {file.file_id: file for source in sources.values() for file in source.files}
    sampled = {relation: source.sampled_rows(cut.view.whole_batches) for relation, source in sources.items()}
    labels: dict[str, Literal["exact", "sample"]] = {
        relation: SAMPLE if source.sampled_files(cut.view.whole_batches) or source.thinned else EXACT
        for relation, source in sources.items()
    }
    tail = cut.tail if sources else None
    newest_at = at(tail.newest_us) if tail and tail.newest_us is not None else None
    hot_rows = tail.rows if tail else 0
    return Coverage(
        taken_at=at(cut.taken_us),
        relations=labels,
        hot_rows=hot_rows,
        hot_newest_at=newest_at,
        warm_rows=sum(segments.values()),
        cold_rows=sum(file.rows for file in files.values() if file.kind == "events"),
        sampled_rows=max(sampled.values(), default=0),
        segments_read=len(segments),
        segments_pruned=len(cut.view.segments) - len(segments),
        files_read=len(files),
        files_pruned=len(cut.view.files) - len(files),
        rollup_files_read=sum(file.kind != "events" for file in files.values()),
        rejected=cut.tail.rejected,
        lost=sum(loss.events for loss in cut.view.losses),
        retries=retries,
        not_pruned=reading.not_pruned,
        evidence=Evidence(
            view=cut.view,
            shards=cut.shards,
            read_shards=cut.read,
            hot_rows=hot_rows,
            hot_newest_at=newest_at,
            sources=sources,
            bounds=reading.bounds,
        ),
    )


def labelled(coverage: Coverage, reading: Any, query: str, names: Sequence[str], units: Callable[[], str]) -> Coverage:
    """The coverage with a label for each column of the answer.

    units  asked only of a query that rests on a sample and wants intervals
    """
    found: Sequence[Label] = tuple(EXACT for _ in names)
    told = ""
    if not coverage.exact or reading.foreign or reading.not_pruned:
        from .labels import labels  # with sqlglot, which takes long to import

        sampled = [relation for relation, label in coverage.relations.items() if label == SAMPLE]
        found = labels(query, names, sampled)
        told = units() if coverage.sampled_rows and ESTIMATES in query.lower() else ""
    return msgspec.structs.replace(coverage, columns=tuple(zip(names, found, strict=True)), units=told)


def at(us: int) -> dt.datetime:
    """µs since the epoch as an aware datetime."""
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=us)
