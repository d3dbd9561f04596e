"""States of conversations: the fold of all events up to any number, kept safely, and refused when events are missing."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.archiving import settle_all
from tests.servers import RedisServer
from tests.site import Site
from tests.tidying import Archive
from thermocline import Projection
from thermocline.archiver.archive import Archiver
from thermocline.archiver.settle import Settler
from thermocline.errors import IncompleteAnswer, QueryRefused
from thermocline.ingest.append import Client
from thermocline.query import states as states_module
from thermocline.store import connect
from thermocline.tiers.state_file import StateFile


class Totals(Projection):
    """Counts, and the contents one after the other."""

    name = "totals"

    def __init__(self) -> None:
        self.applied = 0

    def initial(self) -> Any:
        return {"events": 0, "seqs": []}

    def apply(self, state: Any, event: Any) -> Any:
        self.applied += 1
        state["events"] += 1
        state["seqs"].append(event["seq"])
        return state


class Tolerant(Totals):
    name = "tolerant"

    def gap(self, state: Any, first: int, last: int) -> Any:
        state["seqs"].append([first, last])
        return state


@pytest.fixture
def site(data_dir: Path, server: RedisServer) -> Iterator[Site]:
    with Site(data_dir, server.url, warm={"fan_in": 2}) as site:
        yield site


def words(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"conversation_id": "c", "event_type": "output.chunk", "content": f"{n}"} for n in range(start, start + count)]


def test_a_state_is_the_fold_of_all_events_wherever_they_are_and_goes_on_from_where_it_was(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states_module, "SNAPSHOT_EVERY", 20)
    totals = Totals()
    assert site.store.register(totals) is totals
    assert site.store.state("c", projection="totals").state == totals.initial()
    site.append(words(50))
    site.settle()
    site.append(words(20, 50))
    found = site.store.state("c", projection="totals")
    assert (found.state, found.seq, found.complete) == ({"events": 70, "seqs": list(range(1, 71))}, 70, True)
    site.append(words(5, 70))
    totals.applied = 0
    again = site.store.state("c", projection=totals)
    assert (again.seq, again.from_seq, totals.applied) == (75, 70, 5)
    assert again.state == site.store.state("c", projection=Totals, keep=False).state
    assert [one.seq for one in site.store.states_kept("c", projection="totals")] == [20, 40, 60, 70, 75]
    assert again.checksum == site.store.states_kept("c")[-1].checksum


def test_the_state_at_any_number_and_the_ones_on_the_way(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states_module, "SNAPSHOT_EVERY", 10)
    site.append(words(35))
    totals = Totals()
    site.store.state("c", projection=totals)
    for seq in (0, 1, 9, 10, 11, 34, 35):
        found = site.store.state("c", projection=totals, at_seq=seq)
        assert (found.seq, found.state["seqs"]) == (seq, list(range(1, seq + 1)))
        assert seq // 10 * 10 <= found.from_seq <= seq
    history = list(site.store.states_history("c", projection=totals, from_seq=12, until_seq=30, every=3))
    assert [one.seq for one in history] == [12, 15, 18, 21, 24, 27, 30]
    assert [one.state["events"] for one in history] == [12, 15, 18, 21, 24, 27, 30]
    with pytest.raises(QueryRefused, match="is at seq 35: there is no state at 36 yet"):
        site.store.state("c", projection=totals, at_seq=36)


def test_a_kept_state_that_is_damaged_or_of_another_version_is_not_used(site: Site) -> None:
    site.append(words(10))
    site.store.state("c", projection=Totals())
    path = site.settings.namespace_dir / "states.db"
    with sqlite3.connect(path) as con:
        con.execute("UPDATE snapshots SET state = CAST(replace(CAST(state AS TEXT), '10', '11') AS BLOB)")
    con.close()
    assert [one.sound for one in site.store.states_kept("c")] == [False]
    found = site.store.state("c", projection=Totals())
    assert (found.from_seq, found.state["events"]) == (0, 10)
    newer = Totals()
    newer.version = "2"
    assert site.store.state("c", projection=newer).from_seq == 0
    assert {one.version for one in site.store.states_kept("c")} == {"1", "2"}
    path.write_bytes(b"no database at all" * 100)
    assert site.store.state("c", projection=Totals()).state["events"] == 10


def test_a_state_of_before_a_declared_loss_is_not_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.append(words(10))
    totals = Totals()
    site.store.state("c", projection=totals)
    monkeypatch.setattr(states_module.States, "_identity", lambda *_: "another/1")
    assert [one.sound for one in site.store.states_kept("c")] == [False]
    assert site.store.state("c", projection=totals).from_seq == 0


def test_missing_events_are_refused_or_told(tmp_path: Path, server: RedisServer) -> None:
    with Archive(tmp_path, server) as archive:
        archive.archive_round(events=700)
        there = [
            seq for (seq,) in archive.store.sql("SELECT seq FROM events WHERE conversation_id = 'c0' ORDER BY seq").fetchall()
        ]
        assert 0 < len(there) < 100
        with pytest.raises(IncompleteAnswer, match=r"conversation 'c0' are not there any more .* give projection 'totals' a gap"):
            archive.store.state("c0", projection=Totals)
        found = archive.store.state("c0", projection=Tolerant)
        assert not found.complete
        assert (found.seq, found.state["events"]) == (100, len(there))
        missing = {seq for first, last in found.gaps for seq in range(first, last + 1)}
        assert missing == set(range(1, 101)) - set(there)
        assert [one for one in found.state["seqs"] if isinstance(one, int)] == there
        assert archive.store.state("c0", projection=Tolerant) == found.__class__(
            **{name: getattr(found, name) for name in found.__struct_fields__ if name != "from_seq"}, from_seq=100
        )
        with pytest.raises(IncompleteAnswer):
            archive.store.state("c0", projection=Totals, at_seq=100)


def test_a_state_that_was_kept_stays_right_when_its_events_are_sampled_out(tmp_path: Path, server: RedisServer) -> None:
    with Archive(tmp_path, server) as archive:
        old_us = archive.now_us - 12 * 86_400_000_000
        with Client(archive.settings, tiers=archive.tiers) as client:
            client.append_many([{**one, "timestamp": old_us} for one in words(60)])
        settle_all(Settler(archive.tiers, archive.epoch))
        before = archive.store.state("c", projection=Totals)
        assert Archiver(archive.tiers, archive.epoch).step() is not None
        assert archive.store.sql("SELECT count(*) FROM events").fetchall() < [(60,)]
        after = archive.store.state("c", projection=Totals)
        assert (after.state, after.checksum, after.complete) == (before.state, before.checksum, True)


class Sets(Totals):
    def apply(self, state: Any, event: Any) -> Any:
        return {"seen": (1, 2)}


class Numbers(Totals):
    def apply(self, state: Any, event: Any) -> Any:
        return {1: "one"}


class Large(Totals):
    def apply(self, state: Any, event: Any) -> Any:
        return "x" * 5000


class Failing(Totals):
    def apply(self, state: Any, event: Any) -> Any:
        return 1 // 0


class Nameless(Totals):
    name = "No Name"


@pytest.mark.parametrize(
    ("projection", "problem"),
    [
        (Sets, "its state is not what JSON gives back"),
        (Numbers, "its state is not what JSON gives back"),
        (Large, r"its state has 5,002 bytes, more than query.state_bytes_max \(1,024\)"),
        (Failing, "apply failed after seq 0 of conversation 'c': ZeroDivisionError"),
        (Nameless, "a projection's name must be like order-totals"),
        ("unknown", "there is no projection 'unknown'"),
        (object(), r"object is no projection: it must have a name, initial\(\) and apply"),
        (dict, "dict is no projection"),
    ],
)
def test_what_cannot_be_a_state_is_refused_by_name(site: Site, projection: Any, problem: str) -> None:
    site.append(words(1))
    small = site.settings.query.model_copy(update={"state_bytes_max": 1024})
    with connect(site.settings.model_copy(update={"query": small})) as store, pytest.raises(QueryRefused, match=problem):
        store.state("c", projection=projection)


def test_no_more_is_kept_than_allowed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states_module, "SNAPSHOT_EVERY", 1)
    site.append(words(100))
    site.store.state("c", projection=Totals)
    seqs = [one.seq for one in site.store.states_kept("c")]
    assert seqs == list(range(69, 101))
    file = StateFile(site.settings.namespace_dir, bytes_max=2_000)
    kept = file.listed("c", "totals")
    file.keep(kept[-1:])
    left = file.listed("c", "totals")
    assert sum(len(one.state) for one in left) <= 2_000
    assert all(one.sound for one in left)
    assert left[-1].seq == 100


def test_a_projection_that_lacks_a_method_is_refused_by_its_name(site: Site) -> None:
    class Half(Projection):
        name = "half"

        def initial(self) -> int:
            return 0

    with pytest.raises(QueryRefused, match=r"projection Half: .*apply"):
        site.store.state("c", projection=Half)
