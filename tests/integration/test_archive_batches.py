"""Batches of the archive that do not go as usual: large days, young events, damage, and what a crash or a person left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from tests.archiving import Crash, settle_all
from tests.servers import RedisServer
from tests.shelf import Shelf
from tests.tidying import Archive, breaking_at
from thermocline.archiver.archive import Archiver
from thermocline.archiver.archive_pass import forecast_days, forecast_rules, held_up
from thermocline.archiver.batches import decoded, key_of
from thermocline.archiver.recover import recover
from thermocline.archiver.settle import Settler
from thermocline.errors import IncompleteAnswer, TierCorrupt
from thermocline.ingest.append import Client
from thermocline.tiers.ledger import Batch

DAY_US = 86_400_000_000
KEEP_ALL = {"rules": [{"name": "all", "keep": True}]}
STATISTICS = "SELECT * FROM hourly_stats ORDER BY ALL"


def settled(archive: Archive, events: list[dict[str, Any]]) -> None:
    with Client(archive.settings, tiers=archive.tiers) as client:
        client.append_many(events)
    settle_all(Settler(archive.tiers, archive.epoch))


def on_day(archive: Archive, days_ago: int, count: int) -> list[dict[str, Any]]:
    """Events of seven conversations, spread over a UTC day."""
    first_us = (archive.now_us // DAY_US - days_ago) * DAY_US
    return [
        {
            "conversation_id": f"c{number % 7}",
            "event_type": "output.chunk",
            "content": f"{days_ago} {number}",
            "timestamp": first_us + number * (DAY_US // count),
        }
        for number in range(count)
    ]


def old_and_young(archive: Archive) -> None:
    """One segment with events that are due and events of today."""
    settled(archive, [*on_day(archive, 12, 40), *[{**one, "timestamp": archive.now_us} for one in on_day(archive, 0, 20)]])


def test_a_large_day_is_written_in_steps_and_the_small_ones_together(tmp_path: Path, server: RedisServer) -> None:
    warm = {"day_rows_min": 500, "settle_batch_events": 500}
    with Archive(tmp_path, server, warm=warm, sampling=KEEP_ALL) as archive:
        settled(archive, [*on_day(archive, 12, 1300), *on_day(archive, 11, 30), *on_day(archive, 10, 20)])
        before = archive.contents()
        while Archiver(archive.tiers, archive.epoch).step():
            pass
        assert archive.tiers.ledger.view().segments == ()
        assert archive.contents() == before
        files = archive.files("events")
        assert sorted(file.rows for file in files) == [20, 30, 1300]
        for file in files:
            rows = pq.read_table(archive.tiers.cold.path(file.key), columns=["conversation_id", "timestamp", "seq"]).to_pylist()
            assert rows == sorted(rows, key=lambda row: (row["conversation_id"], row["timestamp"], row["seq"]))
        archive.check()


def test_large_days_alone_leave_no_file_of_small_ones(tmp_path: Path, server: RedisServer) -> None:
    with Archive(tmp_path, server, warm={"day_rows_min": 100}, sampling=KEEP_ALL) as archive:
        settled(archive, [*on_day(archive, 12, 150), *on_day(archive, 11, 200)])
        before = archive.contents()
        assert Archiver(archive.tiers, archive.epoch).step() is not None
        assert [file.rows for file in archive.files("events")] == [150, 200]
        assert archive.contents() == before
        archive.check()


def test_archiving_goes_on_when_the_rollups_of_a_bucket_are_more_than_the_local_copies_may_be(shelf: Shelf) -> None:
    with shelf.fresh(bucket=True) as archive:
        archive.archive_rounds(2)
        small = archive.settings.cold.model_copy(update={"cache_bytes_max": 1})
        archive.close()
        archive.settings = archive.settings.model_copy(update={"cold": small})
        archive.open()
        copies = archive.settings.namespace_dir / "cold"
        for kind in ("rollup_hourly", "rollup_decision"):
            (copies / archive.files(kind)[0].key).unlink()
        archive.archive_round()
        assert archive.store.sql("SELECT sum(event_count) FROM hourly_stats").fetchall() == [(180,)]
        archive.check()


def test_a_forecast_of_nothing_is_empty(archive: Archive) -> None:
    before_us = archive.now_us // DAY_US * DAY_US
    assert forecast_days(archive.tiers, before_us) == forecast_rules(archive.tiers, before_us) == []
    assert forecast_rules(archive.tiers, None) == []
    settled(archive, [{**one, "timestamp": archive.now_us} for one in on_day(archive, 0, 20)])
    assert forecast_days(archive.tiers, before_us) == forecast_rules(archive.tiers, before_us) == []
    assert sum(one.events for one in forecast_rules(archive.tiers, None)) == 20
    assert held_up(archive.tiers, before_us) == []


def test_young_events_that_get_lost_in_the_writing_stop_it_and_the_segment_is_set_aside(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_and_young(archive)
    contents, view = archive.contents(), archive.view()
    archiver = Archiver(archive.tiers, archive.epoch)
    with monkeypatch.context() as patch:
        patch.setattr(archive.tiers.warm, "write_rest", lambda *_, **__: [])
        with pytest.raises(
            TierCorrupt, match=r"40 rows came out of 60.*the segments are unchanged; run `thermocline verify --deep`"
        ):
            archiver.step()
    assert (archive.view(), archive.contents()) == (view, contents)
    assert archive.tiers.ledger.intents() == []
    assert archive.keys() == set()
    assert archiver.step() is None, "it is set aside until the worker starts again"
    statistics = archive.store.sql(STATISTICS).to_arrow()
    batch = Archiver(archive.tiers, archive.epoch).step()
    assert batch is not None
    assert (batch.events_in, sum(one.rows for one in batch.rest)) == (40, 20)
    assert archive.store.sql(STATISTICS).to_arrow() == statistics
    archive.check()


def test_a_batch_that_is_published_but_described_no_more_stops_everything_until_it_is(archive: Archive) -> None:
    with pytest.raises(Crash):
        archive.archive_round(reach=breaking_at("publish done"))
    [intent] = archive.tiers.ledger.intents()
    contents, cold = archive.contents(), archive.tiers.cold
    description = cold.get(key_of(intent.batch_id))
    cold.delete([key_of(intent.batch_id)])
    for step in (archive.compact, Archiver(archive.tiers, archive.epoch).step):
        with pytest.raises(TierCorrupt, match=f"batches/{intent.batch_id}.json is gone, but the batch is published: restore it"):
            step()
    assert archive.contents() == contents
    assert archive.tiers.ledger.intents() == [intent]
    cold.put(key_of(intent.batch_id), description)
    assert Archiver(archive.tiers, archive.epoch).step() is None
    assert archive.tiers.ledger.intents() == []
    archive.check()


def test_a_described_batch_that_was_never_published_does_not_count_when_the_ledger_is_made_again(archive: Archive) -> None:
    archive.archive_round()
    view = archive.view()
    with pytest.raises(Crash):
        archive.archive_round(reach=breaking_at("describe done"))
    contents = archive.contents()
    archive.close()
    found = recover(archive.settings, force=True)
    archive.open()
    assert found.batches == 1
    assert archive.view().files == view.files
    assert archive.contents() == contents
    statistics = archive.store.sql(STATISTICS).to_arrow()
    assert Archiver(archive.tiers, archive.epoch).step() is not None
    assert archive.store.sql(STATISTICS).to_arrow() == statistics
    archive.check()


def test_a_description_that_is_none_or_of_another_format_is_refused(archive: Archive) -> None:
    batch = archive.archive_round()
    content = archive.tiers.cold.get(key_of(batch.batch_id))
    assert decoded(content, key="k") == batch
    for damaged in (content[:-10], b"", b"{}", b"[1]"):
        with pytest.raises(TierCorrupt, match=r"^k does not describe a batch .*: restore it from a copy$"):
            decoded(damaged, key="k")
    later: Batch = msgspec.structs.replace(batch, format="2")
    with pytest.raises(TierCorrupt, match="k has format '2', this version knows '1': upgrade Thermocline"):
        decoded(msgspec.json.encode(later), key="k")


def test_an_answer_without_events_that_were_all_sampled_out_is_not_passed_off_as_complete(
    tmp_path: Path, server: RedisServer
) -> None:
    """Nothing is left of them in any file of events, neither of their day, nor of their type, nor of their conversation."""
    rules = [{"name": "errors", "event_types": ["error"], "keep": True}, {"name": "none", "rate": 0}]
    with Archive(tmp_path, server, sampling={"rules": rules}) as archive:
        batch = archive.archive_round()
        assert 0 < batch.events_kept < batch.events_in
        first = archive.files("rollup_hourly")[0]
        asked = (
            "event_type = 'tool.call'",
            "conversation_id = 'c0' AND event_type = 'output.chunk'",
            f"timestamp < make_timestamptz({first.timestamp_min_us + 1})",
        )
        for where in asked:
            query = f"SELECT count(*) FROM events WHERE {where}"
            answer = archive.store.sql(query)
            assert answer.fetchall() == [(0,)] and not answer.coverage.exact
            assert answer.coverage.relations == {"events": "sample"}
            with pytest.raises(IncompleteAnswer, match="may be sampled out: hourly_stats and conversation_summary count all"):
                archive.store.sql(query, require="complete")
        outside = "conversation_id = 'someone else' OR event_type = 'never.seen'"
        for where in (f"conversation_id = 'z' AND ({outside})", "event_type = 'never.seen'"):
            assert archive.store.sql(f"SELECT count(*) FROM events WHERE {where}", require="complete").fetchall() == [(0,)]
        whole = archive.store.sql("SELECT sum(event_count) FROM hourly_stats", require="complete")
        assert whole.fetchall() == [(batch.events_in,)]
