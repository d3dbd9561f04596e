"""The verdict of a chaos run: journals against the store."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from thermocline.store import connect
from thermocline.tiers.block import ERA_SEQ_STEP

from .roles import settings_of


class Verdict(msgspec.Struct, kw_only=True):
    """Counts that must be 0 unless said otherwise."""

    acknowledged: int = 0
    """Receipts in the journals; not 0."""
    stored: int = 0
    """Events in the store; not 0."""
    lost: int = 0
    """Acknowledged and not stored."""
    declared_lost: int = 0
    """What the ledger says is lost; equals `lost`."""
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
    anomalies: int = 0
    """Reader counts outside their brackets."""
    queries: int = 0
    unavailable: int = 0
    """Queries refused because Redis was down: not an anomaly."""
    conservation: list[str] = []
    unfinished: list[str] = []
    """Roles that did not end in order."""

    def problems(self, *, gaps_allowed: bool) -> list[str]:
        wrong = ["lost is not declared_lost"] if self.lost != self.declared_lost else []
        strict = [] if gaps_allowed else ["gaps", "steps", "lost"]
        names = ["doubled", "misplaced", "reused", "disordered", "anomalies", *strict]
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
    receipts: list[dict[str, Any]] = []
    for name, lines in journal_lines(folder, "producer").items():
        receipts += [line for line in lines if "seq" in line]
        if not lines or not lines[-1].get("done"):
            verdict.unfinished.append(name)
    for name, lines in journal_lines(folder, "reader").items():
        verdict.anomalies += sum(1 for line in lines if line.get("anomaly"))
        if lines and lines[-1].get("done"):
            verdict.queries += lines[-1]["queries"]
            verdict.unavailable += lines[-1]["unavailable"]
        else:
            verdict.unfinished.append(name)
    with connect(settings_of(folder)) as store:
        rows = store.sql("SELECT content, conversation_id, seq FROM events").fetchall()
        verification = store.verify(deep=True)
        verdict.conservation = list(verification.problems)
        verdict.declared_lost = sum(loss.events for loss in store.tiers.ledger.view().losses)
    _compare(verdict, receipts, rows)
    return verdict


def _compare(verdict: Verdict, receipts: list[dict[str, Any]], rows: list[tuple[str, str, int]]) -> None:
    stored = {content: (conversation, seq) for content, conversation, seq in rows}
    verdict.acknowledged, verdict.stored = len(receipts), len(rows)
    verdict.doubled = len(rows) - len(stored)
    places = Counter((receipt["conversation"], receipt["seq"]) for receipt in receipts)
    verdict.reused = sum(count - 1 for count in places.values())
    by_writer: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for receipt in receipts:
        place = stored.get(receipt["content"])
        if place is None:
            verdict.lost += 1
        elif place != (receipt["conversation"], receipt["seq"]):
            verdict.misplaced += 1
    for content, conversation, seq in rows:
        producer, number = content.split(":")
        by_writer[producer, conversation].append((seq, int(number)))
    for written in by_writer.values():
        numbers = [number for _, number in sorted(written)]
        verdict.disordered += sum(1 for one, two in pairwise(numbers) if two < one)
    seqs: dict[str, set[int]] = defaultdict(set)
    for _, conversation, seq in rows:
        seqs[conversation].add(seq)
    for present in seqs.values():
        missing = max(present) - len(present)
        verdict.steps += missing // ERA_SEQ_STEP
        verdict.gaps += missing % ERA_SEQ_STEP
