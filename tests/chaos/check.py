"""The verdict of a chaos run: journals against the store.

Both are compared in a DuckDB of its own, whose memory is limited and which may write to the run's folder, so that millions of
receipts can be judged. What the product says is read through the product once, as rows; none of its sums is relied on.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow as pa

from thermocline.store import connect
from thermocline.tiers.block import ERA_SEQ_STEP
from thermocline.tiers.opening import Tiers

from .roles import settings_of

MEMORY_MAX = "600MB"
SHOWN_MAX = 5
RECEIPT_FIELDS = "{content: 'VARCHAR', conversation: 'VARCHAR', seq: 'BIGINT', done: 'BOOLEAN'}"
PARTS = re.compile(
    r"LOCK|worker\.json|confirm\.lock|scrub\.(json|lock)|(ledger|catalog)\.db(-wal|-shm)?"
    r"|segments|trash|rejected|cold|staging(-mirror)?"
)
"""What a namespace's folder consists of."""


class Verdict(msgspec.Struct, kw_only=True):
    """Counts that must be 0 unless said otherwise."""

    acknowledged: int = 0
    """Receipts in the journals; not 0."""
    stored: int = 0
    """Events in the store; not 0."""
    lost: int = 0
    """Acknowledged and not stored."""
    declared_lost: int = 0
    """What the ledger says is lost; equals `lost`, but for what was lost on its way to being acknowledged."""
    doubled: int = 0
    """Stored more than once."""
    misplaced: int = 0
    """Stored under another conversation or seq than the receipt said."""
    reused: int = 0
    """(conversation, seq) given by two receipts."""
    gaps: int = 0
    """Missing seqs within conversations, whole steps of an era not counted."""
    steps: int = 0
    """Steps of an era in the numbers of conversations: Redis may have come back without its newest events."""
    disordered: int = 0
    """Events of one producer in one conversation whose seqs are not in the order they were appended."""
    unopenable: int = 0
    """Segments of the ledger that another DuckDB cannot open, or that have other rows than it says."""
    anomalies: int = 0
    """Reader counts outside their brackets."""
    alarms: int = 0
    """Lines the worker logged as errors: damage, sums that do not close, faults nobody foresaw."""
    queries: int = 0
    unavailable: int = 0
    """Queries refused because Redis was down: not an anomaly."""
    conservation: list[str] = []
    unfinished: list[str] = []
    """Roles that did not end in order."""

    def problems(self, *, gaps_allowed: bool, unacknowledged_max: int = 0) -> list[str]:
        """unacknowledged_max  events that may be gone, and declared, without having been acknowledged: appended anew"""
        surplus = self.declared_lost - self.lost
        wrong = [] if 0 <= surplus <= unacknowledged_max else ["lost is not declared_lost"]
        strict = [] if gaps_allowed else ["gaps", "steps", "lost"]
        names = ["doubled", "misplaced", "reused", "disordered", "unopenable", "anomalies", "alarms", *strict]
        wrong += [f"{name} is {getattr(self, name)}" for name in names if getattr(self, name)]
        wrong += [f"{name} is 0" for name in ("acknowledged", "stored", "queries") if not getattr(self, name)]
        return wrong + self.conservation + [f"{name} did not end in order" for name in self.unfinished]


def journal_lines(folder: Path, role: str) -> dict[str, list[dict[str, Any]]]:
    """name → lines, of every journal of a role."""
    found = {}
    for path in sorted(folder.glob(f"{role}-*.ndjson")):
        found[path.stem] = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return found


def judge(folder: Path) -> Verdict:
    """Compare every receipt with what is stored. Runs after everything has settled."""
    verdict = Verdict()
    for name, lines in journal_lines(folder, "reader").items():
        verdict.anomalies += sum(1 for line in lines if line.get("anomaly"))
        if lines and lines[-1].get("done"):
            verdict.queries += lines[-1]["queries"]
            verdict.unavailable += lines[-1]["unavailable"]
        else:
            verdict.unfinished.append(name)
    with (folder / "worker.log").open() as log:
        verdict.alarms = sum(1 for line in log if " ERROR " in line or line.startswith("Traceback"))
    with connect(settings_of(folder)) as store:
        rows = store.sql("SELECT content, conversation_id, seq FROM events").to_arrow()
        verification = store.verify(deep=True)
        verdict.conservation = list(verification.problems)
        verdict.declared_lost = sum(loss.events for loss in store.tiers.ledger.view().losses)
        verdict.unopenable = unopenable(store.tiers)
        verdict.conservation += litter(store.tiers)
    compare(verdict, folder, rows)
    return verdict


def unopenable(tiers: Tiers) -> int:
    """Segments in the ledger that DuckDB cannot open, or that have other rows than the ledger says."""
    bad = 0
    for segment in tiers.ledger.view().segments:
        try:
            with duckdb.connect(tiers.warm.path(segment.segment_id), read_only=True) as con:
                bad += con.execute("SELECT count(*) FROM events").fetchall() != [(segment.rows,)]
        except duckdb.Error:
            bad += 1
    return bad


def litter(tiers: Tiers) -> list[str]:
    """Files in the namespace's folder that no part of the product knows, and segments that the ledger does not list, as problems.

    All graces must be over.
    """
    folder = tiers.settings.namespace_dir
    known = {segment.segment_id for segment in tiers.ledger.view().segments}
    known |= {Path(row.path).stem for row in tiers.ledger.trash()}
    strays = [path.name for path in folder.iterdir() if not PARTS.fullmatch(path.name)]
    strays += [f"segments/{path.name}" for path in (folder / "segments").iterdir() if path.name.partition(".")[0] not in known]
    return [f"{len(strays)} files are left behind: {', '.join(sorted(strays)[:SHOWN_MAX])}"] if strays else []


def compare(verdict: Verdict, folder: Path, stored: pa.Table) -> None:
    """Fill in what the receipts in FOLDER/producer-*.ndjson and the rows `stored` (content, conversation_id, seq) say together.

    Contents are `producer:number`, numbered in the order they were appended.
    """
    paths = sorted(map(str, folder.glob("producer-*.ndjson")))
    with duckdb.connect() as con:
        con.execute(f"SET memory_limit = '{MEMORY_MAX}'")
        con.execute("SET temp_directory = ?", [str(folder / "verdict")])
        con.execute("CREATE TABLE stored AS SELECT content, conversation_id AS conversation, seq FROM stored")
        con.execute(
            f"CREATE TABLE lines AS SELECT *, parse_filename(filename, true) AS name FROM read_json(?, "
            f"columns = {RECEIPT_FIELDS}, format = 'newline_delimited', filename = true)",
            [paths],
        )

        def count(query: str) -> int:
            [[value]] = con.execute(query).fetchall()
            return int(value or 0)

        verdict.acknowledged = count("SELECT count(*) FROM lines WHERE seq IS NOT NULL")
        verdict.stored = count("SELECT count(*) FROM stored")
        verdict.doubled = count("SELECT count(*) - count(DISTINCT content) FROM stored")
        verdict.lost = count("SELECT count(*) FROM lines ANTI JOIN stored USING (content) WHERE seq IS NOT NULL")
        verdict.misplaced = count(
            "SELECT count(*) FROM lines JOIN stored USING (content)"
            " WHERE (lines.conversation, lines.seq) IS DISTINCT FROM (stored.conversation, stored.seq)"
        )
        verdict.reused = count(
            "SELECT sum(n - 1) FROM (SELECT count(*) AS n FROM lines WHERE seq IS NOT NULL GROUP BY conversation, seq)"
        )
        verdict.disordered = count(
            "SELECT count(*) FROM (SELECT split_part(content, ':', 2)::BIGINT AS number, lag(number) OVER ("
            " PARTITION BY split_part(content, ':', 1), conversation ORDER BY seq) AS before FROM stored) WHERE number < before"
        )
        missing = "SELECT max(seq) - count(DISTINCT seq) AS n FROM stored GROUP BY conversation"
        verdict.steps = count(f"SELECT sum(n // {ERA_SEQ_STEP}) FROM ({missing})")
        verdict.gaps = count(f"SELECT sum(n % {ERA_SEQ_STEP}) FROM ({missing})")
        finished = {name for (name,) in con.execute("SELECT DISTINCT name FROM lines WHERE done").fetchall()}
        verdict.unfinished += [Path(path).stem for path in paths if Path(path).stem not in finished]
