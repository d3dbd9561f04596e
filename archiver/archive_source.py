"""What a batch of the archive is made of, as SQL: the due rows of its segments, and what is known of their conversations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from thermocline.config import Settings
from thermocline.policy import Policy
from thermocline.tiers import rollups
from thermocline.tiers.batch_files import BatchFiles
from thermocline.tiers.checksum import COLUMN_LIST, ROW_HASH
from thermocline.tiers.duck import fresh_name, quoted
from thermocline.tiers.ledger import Segment
from thermocline.tiers.merge_split import shares
from thermocline.tiers.opening import Tiers

from . import sampler
from .archive_plan import DAY_US

_DAY = f"epoch_us(timestamp) // {DAY_US}"
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
        self._inputs = inputs
        self._before_us = before_us
        view = tiers.ledger.view()
        self._segments = view.segments
        self._files = view.files
        self._whole = {one.segment_id for one in inputs if one.timestamp_max_us < before_us}

    def __enter__(self) -> ArchiveSource:
        self._open = self._tiers.warm.reading(self._segments, task=f"archiving {len(self._inputs)} segments")
        self.con, aliases = self._open.__enter__()
        self._alias = {one.segment_id: alias for one, alias in zip(self._segments, aliases, strict=True)}
        self.rows = "(" + " UNION ALL ".join(self._due(one) for one in self._inputs) + ")"
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
            f"SELECT conversation_id, count(*), {ROW_HASH} FROM {self.rows} GROUP BY conversation_id"
        ).fetchall()
        events = {name: count for name, count, _ in found}
        return Counted(events, sum(events.values()), sum(int(hashes) for _, _, hashes in found))

    def prepare(self, policy: Policy) -> None:
        """Make the tables the sampler reads: conversations over all tiers, and the decisions for these rows."""
        self._names = fresh_name("archived_names")
        self._conversations, self._decisions = fresh_name("conversations"), fresh_name("decisions")
        self.con.execute(f"CREATE TEMP TABLE {self._names} AS SELECT DISTINCT conversation_id FROM {self.rows}")
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

    def write(self, files: BatchFiles, policy: Policy, settings: Settings) -> None:
        """Write the sampled events, the rollups of all of them, and the decisions."""
        self.prepare(policy)
        large = list(self._large_days(settings))
        for day, steps in large:
            files.write("events", [self._kept(policy, f"(SELECT * FROM {self.rows} WHERE {step})") for step in steps], day=day)
        others = self.rows
        if large:
            numbers = ", ".join(f"epoch_us('{day}T00:00:00Z'::TIMESTAMPTZ) // {DAY_US}" for day, _ in large)
            others = f"(SELECT * FROM {self.rows} WHERE {_DAY} NOT IN ({numbers}))"
        files.write_days(f"SELECT *, {_DAY} AS _day FROM ({self._kept(policy, others)})")
        day = self._first_day()
        for rollup in rollups.ROLLUPS:
            rolled = [f"{self._alias[one.segment_id]}.{rollup.name}" for one in self._inputs if self._is_rolled(one)]
            raw = [f"({self._due(one)})" for one in self._inputs if not self._is_rolled(one)]
            combined = rollups.combined(rollup.name, rolled, raw, repeatable=True)
            files.write(rollup.name, [rollups.added_up(rollup.name, f"({combined})")], day=day)
        files.write("rollup_decision", [f"SELECT * EXCLUDE (changed) FROM {self._decisions} WHERE changed"], day=day)

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

    def _large_days(self, settings: Settings) -> Iterator[tuple[str, list[str]]]:
        """Days with so many rows that they are sorted in steps, and the steps."""
        by_day: dict[str, list[str]] = {}
        for share in shares(self.con, self.rows, settings.warm):
            if share.day is not None:
                by_day.setdefault(share.day, []).extend(share.steps)
        yield from by_day.items()

    def _first_day(self) -> str:
        [(day,)] = self.con.execute(f"SELECT strftime(min(timestamp), '%Y-%m-%d') FROM {self.rows}").fetchall()
        return str(day)

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
