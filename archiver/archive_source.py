"""What a batch of the archive is made of, as SQL: the due rows of its segments, and what is known of their conversations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from thermocline.config import Settings, WarmSettings
from thermocline.policy import Policy
from thermocline.tiers import rollups, user_rollups
from thermocline.tiers.batch_files import BatchFiles, Part
from thermocline.tiers.checksum import COLUMN_LIST, ROW_HASH
from thermocline.tiers.dense_rows import ARCHIVE_SHARE
from thermocline.tiers.duck import fresh_name, quoted
from thermocline.tiers.ledger import Segment
from thermocline.tiers.merge_split import COUNTS, counted_shares, day_text, equal_ranges
from thermocline.tiers.opening import Tiers

from . import sampler
from .archive_plan import DAY_US

_DAY = f"epoch_us(timestamp) // {DAY_US}"
GROUPS_AT_ONCE: Final = 500_000
"""Rows of a rollup that are added up at once: a million, each with a cost and a duration, take 250 MiB that cannot be spilled."""
_NO_DECISIONS = "(SELECT '' AS conversation_id, '' AS rule, 0.5 AS rate, now() AS started_at, '' AS policy_hash LIMIT 0)"


class Counted(msgspec.Struct, frozen=True):
    """How many due events there are, and a sum over them."""

    events: dict[str, int]
    """By conversation."""
    rows: int
    hashes: int


class ArchiveSource:
    """The due rows of segments as SQL, with what is known of their conversations in all tiers. A context manager."""

    def __init__(self, tiers: Tiers, inputs: Sequence[Segment], before_us: int) -> None:
        self._tiers = tiers
        self._rollups = tuple(msgspec.structs.replace(one, rows_max=one.rows_max * len(inputs)) for one in tiers.rollups)
        self._inputs = inputs
        self._before_us = before_us
        view = tiers.ledger.view()
        self._segments = view.segments
        self._files = view.files
        self._whole = {one.segment_id for one in inputs if one.timestamp_max_us < before_us}

    def __enter__(self) -> ArchiveSource:
        task = f"archiving {len(self._inputs)} segments"
        self._open = self._tiers.warm.reading(self._segments, task=task, memory_share=ARCHIVE_SHARE)
        self.con, aliases = self._open.__enter__()
        self._alias = {one.segment_id: alias for one, alias in zip(self._segments, aliases, strict=True)}
        self.rows = "(" + " UNION ALL ".join(self._due(one) for one in self._inputs) + ")"
        self._counts = fresh_name("counts")
        self.con.execute(
            f"CREATE TEMP TABLE {self._counts} AS SELECT {COUNTS}, {ROW_HASH} AS hashes FROM {self.rows} GROUP BY ALL"
        )
        return self

    def __exit__(self, *problem: object) -> None:
        self._open.__exit__(*problem)  # type: ignore[arg-type]

    def _due(self, segment: Segment) -> str:
        select = f"SELECT {COLUMN_LIST} FROM {self._alias[segment.segment_id]}.events"
        if segment.segment_id in self._whole:
            return select
        return f"{select} WHERE timestamp < make_timestamptz({self._before_us})"

    def counted(self) -> Counted:
        found = self.con.execute(
            f"SELECT conversation_id, sum(rows)::BIGINT, sum(hashes) FROM {self._counts} GROUP BY conversation_id"
        ).fetchall()
        events = {name: count for name, count, _ in found}
        return Counted(events, sum(events.values()), sum(int(hashes) for _, _, hashes in found))

    def prepare(self, policy: Policy) -> None:
        """Make the tables the sampler reads: conversations over all tiers, and the decisions for these rows."""
        self._names = fresh_name("archived_names")
        self._conversations, self._decisions = fresh_name("conversations"), fresh_name("decisions")
        self.con.execute(f"CREATE TEMP TABLE {self._names} AS SELECT DISTINCT conversation_id FROM {self._counts}")
        hourly = rollups.combined("rollup_hourly", self._tables("rollup_hourly"), self._without_rollups())
        self.con.execute(f"CREATE TEMP TABLE {self._conversations} AS {sampler.conversations(f'({hourly})', rows=self._names)}")
        stored = self._archived("rollup_decision")
        decisions = sampler.decisions(
            policy, rows=self.rows, conversations=self._conversations, stored=stored[0] if stored else _NO_DECISIONS
        )
        self.con.execute(f"CREATE TEMP TABLE {self._decisions} AS {decisions}")

    def dry_run(self, policy: Policy) -> list[tuple[Any, ...]]:
        """What the policy would keep of the rows, by type and rule: rows of `sampler.dry_run`."""
        self.prepare(policy)
        query = sampler.dry_run(policy, rows=self.rows, conversations=self._conversations, decisions=self._decisions)
        return list(self.con.execute(query).fetchall())

    def dry_run_days(self, policy: Policy) -> list[tuple[Any, ...]]:
        """What the policy would keep of the rows, by UTC day: rows of `sampler.dry_run_days`."""
        self.prepare(policy)
        query = sampler.dry_run_days(policy, rows=self.rows, conversations=self._conversations, decisions=self._decisions)
        return list(self.con.execute(query).fetchall())

    def parts(self, policy: Policy, settings: Settings) -> Iterator[Part]:
        """The sampled events, the rollups of all of them, and the decisions."""
        self.prepare(policy)
        for day, condition in self._sorted_at_once(settings.warm):
            kept = self._kept(policy, f"(SELECT * FROM {self.rows} WHERE {condition})")
            yield Part("events", kept if day is not None else f"SELECT *, {_DAY} AS _day FROM ({kept})", day)
        day = self._first_day()
        for rollup in rollups.ROLLUPS:
            rolled = [f"{self._alias[one.segment_id]}.{rollup.name}" for one in self._inputs if self._is_rolled(one)]
            raw = " UNION ALL ".join(self._due(one) for one in self._inputs if not self._is_rolled(one))
            for some in self._grouped_at_once(rollup, rolled):
                tables = [f"(SELECT * FROM {table} WHERE {some})" for table in rolled]
                yield Part(
                    rollup.name,
                    rollups.totals(rollup.name, tables, f"(SELECT * FROM ({raw}) WHERE {some})" if raw else None),
                    day,
                )
        if self._rollups:
            table = fresh_name("user_rollups")
            user_rollups.create(self.con, table, self.rows, self._rollups, temporary=True)
            yield Part(user_rollups.TABLE, f"SELECT * FROM {table}", day)
        yield Part("rollup_decision", f"SELECT * EXCLUDE (changed) FROM {self._decisions} WHERE changed", day)

    def kept(self, files: BatchFiles) -> dict[str, int]:
        """conversation → archived events."""
        paths = [quoted(str(one.path)) for one in files.staged if one.file.kind == "events"]
        if not paths:
            return {}
        found = self.con.execute(
            f"SELECT conversation_id, count(*) FROM read_parquet([{', '.join(paths)}], hive_partitioning = false) GROUP BY ALL"
        )
        return dict(found.fetchall())

    def rate_min(self) -> float:
        [(rate,)] = self.con.execute(f"SELECT min(rate) FROM {self._decisions}").fetchall()
        return float(rate)

    def _kept(self, policy: Policy, rows: str) -> str:
        return sampler.kept(policy, rows=rows, conversations=self._conversations, decisions=self._decisions)

    def _sorted_at_once(self, warm: WarmSettings) -> Iterator[tuple[str | None, str]]:
        """(day, condition on rows): in order of time, days together that fit memory, and the steps of a day that does not."""
        counts = f"SELECT day, sum(rows)::BIGINT, sum(bytes)::BIGINT FROM {self._counts} GROUP BY day ORDER BY day"
        found = self.con.execute(counts).fetchall()
        shares = [max(rows / warm.settle_batch_events, size / warm.settle_batch_bytes) for _, rows, size in found]
        for first, last in equal_ranges(shares):
            start, end = found[first][0], found[last - 1][0] + 1
            span = f"timestamp >= make_timestamptz({start * DAY_US}) AND timestamp < make_timestamptz({end * DAY_US})"
            if last - first > 1 or shares[first] <= 1:
                yield None, span
                continue
            rows, counted = f"(SELECT * FROM {self.rows} WHERE {span})", f"(SELECT * FROM {self._counts} WHERE day = {start})"
            for share in counted_shares(self.con, rows, counted, warm):
                for step in share.steps:
                    yield day_text(start), f"{span} AND {step}"

    def _grouped_at_once(self, rollup: rollups.Rollup, rolled: Sequence[str]) -> Iterator[str]:
        """Conditions on rows of a rollup: together all of them, in order, and of each no more than fit memory while they are
        added up: DuckDB cannot spill all that it holds of a group."""
        if "conversation_id" not in rollup.keys:
            yield "true"
            return
        raw = sum(one.rows for one in self._inputs if not self._is_rolled(one))
        counts = "".join(f" + (SELECT count(*) FROM {table})" for table in rolled)
        [(rows, names)] = self.con.execute(f"SELECT {raw}{counts}, (SELECT count(*) FROM {self._names})").fetchall()
        each = max(1, names * GROUPS_AT_ONCE // max(1, rows))
        numbered = f"SELECT conversation_id, row_number() OVER (ORDER BY conversation_id) AS number FROM {self._names}"
        ends = f"SELECT conversation_id FROM ({numbered}) WHERE number % {each} = 0 AND number < {names} ORDER BY number"
        after = "true"
        for (name,) in self.con.execute(ends).fetchall():
            yield f"{after} AND conversation_id <= {quoted(name)}"
            after = f"conversation_id > {quoted(name)}"
        yield after

    def _first_day(self) -> str:
        [(day,)] = self.con.execute(f"SELECT min(day) FROM {self._counts}").fetchall()
        return day_text(day)

    def _is_rolled(self, segment: Segment) -> bool:
        return segment.has_rollups and segment.segment_id in self._whole

    def _tables(self, kind: str) -> list[str]:
        """All tables of a rollup: of segments, and of what is archived."""
        rolled = [f"{self._alias[one.segment_id]}.{kind}" for one in self._segments if one.has_rollups]
        return rolled + self._archived(kind)

    def _without_rollups(self) -> list[str]:
        return [f"{self._alias[one.segment_id]}.events" for one in self._segments if not one.has_rollups]

    def _archived(self, kind: str) -> list[str]:
        """The relation of all archived files of a kind, in a list; an empty one when there are none."""
        files = [file for file in self._files if file.kind == kind]
        keys = [file.key for file in files]
        self._tiers.copies.ensure(keys)
        places = ", ".join(quoted(self._tiers.copies.place(key)) for key in keys)
        return [f"read_parquet([{places}], hive_partitioning = false)"] if keys else []
