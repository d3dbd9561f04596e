"""The hot tier against its contract, on every redis-server there is: append answers, cuts, pages, trim, recent."""

from __future__ import annotations

import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
import uuid_utils

from tests.conftest import StartServer
from tests.servers import RedisServer, redis_binaries
from tests.waiting import wait_until
from thermocline.config import HotSettings
from thermocline.errors import ConfigError, TierCorrupt, TierUnavailable
from thermocline.event import NULLABLE_COLUMNS
from thermocline.tiers.append_session import RedisAppendSession
from thermocline.tiers.block import ORIGIN, Block, Position, payload_checksum, shard_of
from thermocline.tiers.hot import OutcomeLost, ShardCut
from thermocline.tiers.hot_redis import RedisHot
from thermocline.tiers.redis_link import Link

INCARNATION = "a" * 32


@pytest.fixture(scope="module", params=redis_binaries(), ids=str)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(request.param, tmp_path_factory.mktemp("redis"), options={"appendfsync": "always"})
    server.start()
    yield server
    server.stop()


def open_hot(server: RedisServer, **settings: object) -> RedisHot:
    """A new namespace of its own, confirmed by hand."""
    link = Link(server.url, connect_timeout_s=2, timeout_s=5)
    hot = RedisHot(link, uuid.uuid4().hex, HotSettings(**settings))  # type: ignore[arg-type]
    run_id = hot.facts().run_id
    for shard in range(hot.shards):
        hot.put_meta(
            shard,
            {
                "format": "1",
                "shards": hot.shards,
                "buckets": 8192,
                "inc": INCARNATION,
                "prev": "",
                "era": 0,
                "N": 0,
                "B": 0,
                "L": "0-0",
                "T": "0-0",
                "tB": 0,
                "sN": 0,
                "sB": 0,
                "oB": 0,
                "run": run_id,
            },
        )
    return hot


@pytest.fixture
def hot(server: RedisServer) -> Iterator[RedisHot]:
    hot = open_hot(server)
    yield hot
    hot.drop()
    hot.close()


@pytest.fixture
def session(hot: RedisHot) -> Iterator[RedisAppendSession]:
    session = hot.session()
    yield session
    session.close()


def block(
    conversation_id: str = "chat", lines: int = 1, *, event_ids: tuple[str, ...] = (), at_us: int | None = None, text: str = "hi"
) -> Block:
    at_us = at_us or time.time_ns() // 1000
    objects = [{"event_type": "t", "timestamp": at_us + i, "content": text} for i in range(lines)]
    for one, event_id in zip(objects, event_ids, strict=False):
        one["event_id"] = event_id
    payload = b"\n".join(orjson.dumps(one) for one in objects)
    block_id = str(uuid_utils.uuid7())[:32] + "0000"
    sizes = f"{len(text) * lines},0," + ",".join([str(lines)] * len(NULLABLE_COLUMNS))
    end_us = at_us + lines - 1
    return Block(
        conversation_id=conversation_id,
        shard=shard_of(conversation_id, 16),
        block_id=block_id,
        lines=lines,
        timestamp_min_us=at_us,
        timestamp_max_us=end_us,
        sizes=sizes,
        payload=payload,
        checksum=payload_checksum(conversation_id, block_id, lines, at_us, end_us, sizes, payload),
        event_ids=tuple(enumerate(event_ids)),
    )


def append(session: RedisAppendSession, one: Block, number: int, expected_seq: int | None = None, producer: str = "p"):
    (reply,) = session.send(producer, [(one, number, expected_seq)], deadline_s=5)
    return reply


def shard_cut(hot: RedisHot, conversation_id: str = "chat") -> ShardCut:
    return hot.cut()[shard_of(conversation_id, hot.shards)]


def test_blocks_of_a_conversation_are_numbered_without_gaps(session: RedisAppendSession, hot: RedisHot) -> None:
    replies = session.send("p", [(block(lines=3), 1, None), (block(lines=2), 2, None)], deadline_s=5)
    assert [(reply.code, reply.seq_first) for reply in replies] == [("OK", 1), ("OK", 4)]
    cut = shard_cut(hot)
    assert (cut.events_total, cut.entries, str(cut.last)) == (5, 2, replies[1].position)


def test_the_same_number_is_answered_again_and_stored_once(session: RedisAppendSession, hot: RedisHot) -> None:
    one = block(lines=3)
    append(session, one, 1)
    again = append(session, one, 1)
    assert (again.code, again.seq_first) == ("DUP", 1)
    assert shard_cut(hot).events_total == 3


def test_a_number_beyond_the_next_is_refused_and_changes_nothing(session: RedisAppendSession, hot: RedisHot) -> None:
    append(session, block(), 1)
    gap = append(session, block(), 3)
    assert (gap.code, gap.detail) == ("GAP", 1)
    assert shard_cut(hot).events_total == 1


def test_a_number_taken_more_than_sixteen_blocks_ago_is_old(session: RedisAppendSession) -> None:
    for number in range(1, 19):
        append(session, block(), number)
    assert append(session, block(), 3).code == "DUP"
    assert append(session, block(), 2).code == "OLD"


def test_a_number_that_was_not_taken_is_used_up_by_a_look(session: RedisAppendSession, hot: RedisHot) -> None:
    append(session, block(), 1)
    replies = session.void("p", [(block(), 1), (block(), 2), (block(), 3)], deadline_s=5)
    assert [(reply.code, reply.seq_first) for reply in replies] == [("DUP", 1), ("VOID", 0), ("VOID", 0)]
    assert [append(session, block(), number).code for number in (2, 3)] == ["VOID", "VOID"]
    assert session.void("p", [(block(), 3)], deadline_s=5)[0].code == "VOID"
    assert append(session, block(), 4).seq_first == 2
    assert session.void("p", [(block(), 6)], deadline_s=5)[0].code == "GAP"
    assert [reply.code for reply in session.void("p", [(block(), 4)], deadline_s=5)] == ["DUP"]


def test_expected_seq_is_checked_against_the_last_seq(session: RedisAppendSession) -> None:
    assert append(session, block(lines=2), 1, expected_seq=0).code == "OK"
    conflict = append(session, block(), 2, expected_seq=1)
    assert (conflict.code, conflict.detail) == ("CONFLICT", 2)
    assert append(session, block(), 2, expected_seq=2).seq_first == 3


def test_a_callers_event_id_is_stored_once_within_a_block_and_across_blocks(session: RedisAppendSession, hot: RedisHot) -> None:
    one, two, three = (str(uuid.uuid4()) for _ in range(3))
    append(session, block(lines=2, event_ids=(one, two)), 1)
    reply = append(session, block(lines=4, event_ids=(two, three, three, one)), 2)
    assert (reply.seq_first, reply.skipped) == (3, {0: 2, 2: 3, 3: 1})
    assert shard_cut(hot).events_total == 3
    table = hot.page(shard_of("chat", 16), ORIGIN, shard_cut(hot).last, bytes_max=1 << 20)
    assert table["skip"].to_pylist() == [None, [0, 2, 3]] and table["fault"].to_pylist() == [None, None]


def test_a_resent_block_is_answered_with_its_skips(session: RedisAppendSession) -> None:
    one = str(uuid.uuid4())
    append(session, block(event_ids=(one,)), 1)
    repeated = block(lines=2, event_ids=(str(uuid.uuid4()), one))
    first, again = append(session, repeated, 2), append(session, repeated, 2)
    assert (again.code, again.seq_first, again.skipped) == ("DUP", first.seq_first, {1: 1}) == ("DUP", 2, first.skipped)


def test_a_block_of_known_ids_alone_stores_nothing_and_takes_its_number(session: RedisAppendSession, hot: RedisHot) -> None:
    one = str(uuid.uuid4())
    append(session, block(event_ids=(one,)), 1)
    reply = append(session, block(event_ids=(one,)), 2)
    assert (reply.code, reply.skipped) == ("OK", {0: 1})
    assert shard_cut(hot).entries == 1
    assert append(session, block(), 3).seq_first == 2


def test_event_ids_are_forgotten_after_two_full_halves(server: RedisServer) -> None:
    hot = open_hot(server, ids_max=2)
    session = hot.session()
    first = str(uuid.uuid4())
    append(session, block(event_ids=(first,)), 1)
    for number in range(2, 10):
        append(session, block(event_ids=(str(uuid.uuid4()),)), number)
    assert append(session, block(event_ids=(first,)), 10).skipped == {}
    session.close()
    hot.drop()
    hot.close()


def test_a_timestamp_far_after_the_clock_of_redis_is_refused(session: RedisAppendSession, hot: RedisHot) -> None:
    reply = append(session, block(at_us=time.time_ns() // 1000 + 400_000_000), 1)
    assert reply.code == "CLOCK" and abs(reply.detail - time.time_ns() // 1000) < 60_000_000
    assert shard_cut(hot).events_total == 0


def test_unsettled_bytes_are_bounded_until_the_worker_says_they_are_settled(server: RedisServer) -> None:
    hot = open_hot(server, unsettled_bytes_max=1 << 20)
    session = hot.session()
    number = 0
    while append(session, block(text="x" * 100_000), number + 1).code == "OK":
        number += 1
    assert number == 10
    cut = shard_cut(hot)
    hot.trim(cut.shard, None, settled_events=cut.events_total, settled_bytes=cut.bytes_total, others_bytes=0)
    assert append(session, block(text="x" * 100_000), number + 1).code == "OK"
    hot.trim(cut.shard, None, settled_events=cut.events_total, settled_bytes=cut.bytes_total, others_bytes=1 << 20)
    assert append(session, block(), number + 2).code == "BUSY"
    session.close()
    hot.drop()
    hot.close()


def test_another_era_skips_a_million_once_per_era(session: RedisAppendSession, hot: RedisHot) -> None:
    shard = shard_of("chat", 16)
    append(session, block(lines=2), 1)
    hot.put_meta(shard, {"era": 1})
    assert append(session, block(), 2).seq_first == 1_000_003
    assert append(session, block(), 3).seq_first == 1_000_004
    hot.put_meta(shard, {"era": 3})
    reply = append(session, block(), 4)
    assert (reply.seq_first, reply.era) == (3_000_005, 3)
    assert append(session, block(), 5, expected_seq=3_000_005).code == "OK"


def test_an_unconfirmed_shard_takes_nothing(session: RedisAppendSession, hot: RedisHot) -> None:
    append(session, block(), 1)
    hot.put_meta(shard_of("chat", 16), {"run": "f" * 40})
    assert append(session, block(), 2).code == "UNCONFIRMED"


def test_another_incarnation_is_noticed_and_followed_only_if_it_descends(session: RedisAppendSession, hot: RedisHot) -> None:
    append(session, block(), 1)
    for shard in range(hot.shards):
        hot.put_meta(shard, {"inc": "b" * 32, "prev": INCARNATION})
    assert append(session, block(), 2).code == "INC"
    session.reconnect()
    assert append(session, block(), 2).code == "OK"
    hot.put_meta(0, {"inc": "c" * 32, "prev": "d" * 32})
    with pytest.raises(TierCorrupt, match="another store"):
        session.reconnect()


def test_other_shards_than_the_namespace_has_are_refused_with_the_right_number(
    hot: RedisHot, session: RedisAppendSession
) -> None:
    hot.put_meta(0, {"shards": 3})
    with pytest.raises(ConfigError, match=r"hot\.shards is 16, but .* was created with 3: set hot\.shards = 3"):
        append(session, block(), 1)
    assert shard_cut(hot).events_total == 0


def test_another_format_is_refused(session: RedisAppendSession, hot: RedisHot) -> None:
    append(session, block(), 1)
    hot.put_meta(shard_of("chat", 16), {"format": "2"})
    assert append(session, block(), 2).code == "FORMAT"


def test_a_namespace_of_another_format_is_refused_before_anything_is_sent(hot: RedisHot, session: RedisAppendSession) -> None:
    hot.put_meta(0, {"format": "2"})
    with pytest.raises(TierCorrupt, match="has format '2', this version knows 1"):
        append(session, block(), 1)
    assert shard_cut(hot).events_total == 0


def restricted(server: RedisServer, hot: RedisHot, *rules: str, **settings: object) -> RedisHot:
    """The same namespace as a user with all rights but some sees it."""
    user = uuid.uuid4().hex
    hot.link.call("ACL", "SETUSER", user, "on", ">pw", "~*", "+@all", *rules)
    link = Link(server.url_of(user, "pw"), connect_timeout_s=2, timeout_s=5)
    return RedisHot(link, hot.keys.namespace, HotSettings(**settings))  # type: ignore[arg-type]


def test_what_the_user_may_not_do_is_said_with_the_place_to_read_and_stores_nothing(server: RedisServer, hot: RedisHot) -> None:
    acts: dict[str, Callable[[RedisHot, RedisAppendSession], object]] = {
        "hmget": lambda _, session: append(session, block(), 1),
        "evalsha": lambda _, session: append(session, block(), 1),
        "info": lambda hot, _: hot.facts(),
        "hget": lambda _, session: session.last_numbers("p", [0, 1]),
        "expire": lambda _, session: session.report_loss("p", 1, {0: 5}),
        "xdel": lambda hot, _: hot.raise_last_id(3, Position(5, 0)),
    }
    for command, act in acts.items():
        limited = restricted(server, hot, f"-{command}")
        session = limited.session()
        with pytest.raises(TierUnavailable, match=r"NOPERM.*docs/operations\.md"):
            act(limited, session)
        session.close()
        limited.close()
    assert shard_cut(hot).events_total == 0
    assert hot.link.call("EXISTS", hot.keys.log(3)) == 0


def test_without_the_right_to_read_the_configuration_everysec_is_assumed(server: RedisServer, hot: RedisHot) -> None:
    limited = restricted(server, hot, "-config")
    session = limited.session()
    assert append(session, block(), 1).code == "OK"
    assert (session.durability, limited.facts().append_fsync) == ("memory", "everysec")
    assert hot.facts().append_fsync == "always"
    session.close()
    limited.close()


def test_replicas_that_nobody_may_ask_for_leave_the_append_in_doubt(server: RedisServer, hot: RedisHot) -> None:
    limited = restricted(server, hot, "-wait", replicas_min=1)
    session = limited.session()
    with pytest.raises(OutcomeLost, match="does not say who has the block: NOPERM"):
        append(session, block(), 1)
    assert shard_cut(hot).events_total == 1
    session.close()
    limited.close()


def test_a_command_that_fails_for_an_unknown_reason_leaves_the_append_in_doubt(
    session: RedisAppendSession, hot: RedisHot
) -> None:
    hot.link.call("SET", hot.keys.log(shard_of("chat", 16)), "no log")
    with pytest.raises(OutcomeLost, match="WRONGTYPE"):
        append(session, block(), 1)
    hot.link.call("DEL", hot.keys.log(shard_of("chat", 16)))
    assert append(session, block(), 1).seq_first == 1


class Interrupted(BaseException):
    """What a signal handler of the user's may raise."""


def test_an_append_that_a_signal_interrupts_is_stored_once_when_it_is_sent_again(server: RedisServer, tmp_path: Path) -> None:
    own = RedisServer(server.binary, tmp_path, options={"appendfsync": "always"})
    own.start()
    hot = open_hot(own)
    session = hot.session()
    append(session, block(), 1)

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    own.pause()
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(Interrupted):
            append(session, again := block(), 2)
    finally:
        signal.signal(signal.SIGALRM, before)
        own.resume()
    session.reconnect()
    assert append(session, again, 2).code in ("OK", "DUP")
    assert shard_cut(hot).events_total == 2
    session.close()
    hot.close()
    own.stop()


def test_pages_give_every_block_once_whatever_their_size(session: RedisAppendSession, hot: RedisHot) -> None:
    for number in range(1, 60):
        append(session, block(text="x" * (number * 100)), number)
    cut, after, seen = shard_cut(hot), ORIGIN, []
    while True:
        table = hot.page(cut.shard, after, cut.last, bytes_max=20_000)
        if not table.num_rows:
            break
        assert sum(len(text) for text in table["payload"].to_pylist()) < 60_000
        seen += table["seq_first"].to_pylist()
        last = table.slice(table.num_rows - 1).to_pylist()[0]
        after = Position(last["position_ms"], last["position_seq"])
    assert seen == list(range(1, 60))


@pytest.mark.parametrize("field", ["d", "x", "y", "c", "u", "w", "v"])
def test_a_damaged_block_is_noticed_and_keeps_its_count(session: RedisAppendSession, hot: RedisHot, field: str) -> None:
    append(session, block(lines=4), 1)
    cut = shard_cut(hot)
    log = hot.keys.log(cut.shard)
    ((_, flat),) = hot.link.call("XRANGE", log, "-", "+")
    where = flat.index(field.encode()) + 1
    flat[where] = bytes([flat[where][0] ^ 1]) + flat[where][1:]
    hot.link.call("DEL", log)
    hot.link.call("XADD", log, str(cut.last), *flat)
    (row,) = hot.page(cut.shard, ORIGIN, cut.last, bytes_max=1 << 20).to_pylist()
    assert row["fault"] and row["events"] == 4 and row["events_total"] == 4


@pytest.mark.parametrize(("field", "value"), [("a", "early"), ("z", ""), ("u", "\xff")])
def test_a_block_whose_header_is_no_text_or_number_is_noticed_and_keeps_its_count(
    session: RedisAppendSession, hot: RedisHot, field: str, value: str
) -> None:
    append(session, block(lines=4), 1)
    cut = shard_cut(hot)
    log = hot.keys.log(cut.shard)
    ((_, flat),) = hot.link.call("XRANGE", log, "-", "+")
    flat[flat.index(field.encode()) + 1] = value.encode("latin-1")
    hot.link.call("DEL", log)
    hot.link.call("XADD", log, str(cut.last), *flat)
    (row,) = hot.page(cut.shard, ORIGIN, cut.last, bytes_max=1 << 20).to_pylist()
    assert row["fault"].startswith("not readable: ") and (row["events"], row["events_total"]) == (4, 4)


def test_an_entry_that_is_no_block_stops_the_reader(hot: RedisHot) -> None:
    hot.link.call("XADD", hot.keys.log(0), "5-0", "foo", "bar")
    with pytest.raises(TierCorrupt, match="shard 0, entry 5-0"):
        hot.page(0, ORIGIN, Position(9, 0), bytes_max=1 << 20)


def test_a_block_that_does_not_say_how_many_events_it_has_stops_the_reader(session: RedisAppendSession, hot: RedisHot) -> None:
    append(session, block(), 1)
    cut = shard_cut(hot)
    ((_, flat),) = hot.link.call("XRANGE", hot.keys.log(cut.shard), "-", "+")
    flat[flat.index(b"n") + 1] = b"many"
    hot.link.call("XADD", hot.keys.log(cut.shard), "*", *flat)
    with pytest.raises(TierCorrupt, match=rf"shard {cut.shard}, entry .*b'many'"):
        hot.page(cut.shard, ORIGIN, Position(1 << 60, 0), bytes_max=1 << 20)


def test_trim_drops_up_to_the_position_and_leaves_its_mark(session: RedisAppendSession, hot: RedisHot) -> None:
    replies = [append(session, block(), number) for number in range(1, 6)]
    shard = shard_of("chat", 16)
    upto = Position.parse(replies[2].position)
    assert hot.trim(shard, upto, settled_events=3, settled_bytes=1, others_bytes=0) == 3
    cut = shard_cut(hot)
    size = len(block().payload)
    assert (cut.trimmed, cut.entries, cut.trimmed_bytes, cut.events_total) == (upto, 2, 3 * size, 5)
    assert hot.trim(shard, Position(1, 0), settled_events=3, settled_bytes=1, others_bytes=0) == 0
    assert shard_cut(hot).trimmed == upto == hot.trimmed()[shard]
    hot.trim(shard, cut.last, settled_events=5, settled_bytes=1, others_bytes=0)
    assert (shard_cut(hot).entries, shard_cut(hot).trimmed_bytes) == (0, 5 * size)


def test_a_shard_that_is_not_there_is_not_trimmed_and_not_made(hot: RedisHot) -> None:
    hot.link.call("DEL", hot.keys.meta(2))
    assert hot.trim(2, Position(5, 0), settled_events=1, settled_bytes=1, others_bytes=0) == 0
    assert hot.link.call("EXISTS", hot.keys.meta(2), hot.keys.log(2)) == 0


def test_a_full_redis_refuses_blocks_whole_and_can_still_be_read_and_trimmed(
    request: pytest.FixtureRequest, server: RedisServer, tmp_path: Path
) -> None:
    small = RedisServer(server.binary, tmp_path, options={"maxmemory": "8mb"})
    small.start()
    hot = open_hot(small)
    session = hot.session()
    number = 0
    while (reply := append(session, block(text="x" * 200_000), number + 1)).code == "OK":
        number += 1
    assert reply.code == "FULL"
    cut = shard_cut(hot)
    assert cut.entries == cut.events_total == number > 3
    assert list(hot.recent("chat", 2).blocks["seq_first"]) == [number - 1, number]
    assert hot.trim(cut.shard, cut.last, settled_events=number, settled_bytes=cut.bytes_total, others_bytes=0) == number
    assert append(session, block(), number + 1).code == "OK"
    session.close()
    hot.close()
    small.stop()


def test_recent_gives_the_newest_cached_blocks_oldest_first(session: RedisAppendSession, hot: RedisHot) -> None:
    for number in range(1, 201):
        append(session, block(lines=2), number)
    newest = hot.recent("chat", 10)
    assert newest.head == 400 and list(newest.blocks["seq_first"]) == [391, 393, 395, 397, 399]
    assert list(hot.recent("chat", 399).blocks["seq_first"]) == list(range(1, 400, 2))
    shard = shard_of("chat", 16)
    last = Position.parse(append(session, block(), 201).position)
    hot.trim(shard, last, settled_events=0, settled_bytes=0, others_bytes=0)
    assert (hot.recent("chat", 10).blocks["payload"], hot.recent("chat", 10).trimmed) == ((), last)
    assert hot.recent("nobody", 10).head == 0


def test_recent_after_a_known_block_is_what_came_since(session: RedisAppendSession, hot: RedisHot) -> None:
    places = [Position.parse(append(session, block(lines=2), number).position) for number in range(1, 21)]
    found = hot.recent("chat", 40, places[17])
    assert (found.joined, found.head, list(found.blocks["seq_first"])) == (True, 40, [37, 39])
    found = hot.recent("chat", 40, places[-1])
    assert (found.joined, found.blocks["payload"]) == (True, ())
    assert found.shard_state == hot.recent("chat", 1).shard_state
    far = hot.recent("chat", 4, places[0])
    assert (far.joined, list(far.blocks["seq_first"])) == (False, [37, 39]), "there are others between"
    assert not hot.recent("chat", 40, Position(places[17].ms, places[17].seq + 1_000_000)).joined, "no such block"


def test_recent_after_a_known_block_says_when_more_came_than_is_read_at_once(session: RedisAppendSession, hot: RedisHot) -> None:
    known = Position.parse(append(session, block(), 1).position)
    for number in range(2, 14):
        append(session, block(text="x" * 600_000), number)
    found = hot.recent("chat", 100, known)
    assert 0 < len(found.blocks["payload"]) < 12
    assert not found.joined


def test_recent_reads_one_large_block_inside_of_a_script_and_the_others_one_by_one(
    session: RedisAppendSession, hot: RedisHot, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 5):
        append(session, block(text="x" * 600_000), number)
    script, answers = hot.link.script, []
    monkeypatch.setattr(hot.link, "script", lambda *given: answers.append(script(*given)) or answers[-1])
    assert list(hot.recent("chat", 100).blocks["seq_first"]) == [1, 2, 3, 4]
    [(*_, entries)] = answers
    assert len(entries) == 1, "Redis answers nobody else while a script copies"


def test_long_conversation_ids_have_heads_of_their_own(session: RedisAppendSession, hot: RedisHot) -> None:
    one, two = "a" * 200, "a" * 199 + "b"
    shards = {shard_of(one, 16): 0, shard_of(two, 16): 0}
    for conversation in (one, two, one):
        shard = shard_of(conversation, 16)
        shards[shard] += 1
        append(session, block(conversation), shards[shard])
    assert (hot.recent(one, 9).head, hot.recent(two, 9).head) == (2, 1)


def test_losses_that_producers_report_are_read_back_by_shard_and_era(session: RedisAppendSession, hot: RedisHot) -> None:
    append(session, block(), 1)
    session.report_loss("p", 2, {3: 7})
    session.report_loss("p", 2, {3: 7})
    assert hot.reported_losses() == {(3, 2, "p"): 7}
    assert session.last_numbers("p", [shard_of("chat", 16), (shard_of("chat", 16) + 1) % 16]) == {
        shard_of("chat", 16): 1,
        (shard_of("chat", 16) + 1) % 16: 0,
    }


def test_a_rewrite_that_puts_fsync_off_is_no_healthy_disk(redis_server: StartServer, redis_binary: Path) -> None:
    own = redis_server(redis_binary)
    slow_hot = open_hot(own)
    call = slow_hot.link.call
    wait_until(lambda: slow_hot.facts().disk_ok, 30, "what was begun at the start is on disk")
    call("CONFIG", "SET", "rdb-key-save-delay", "200000")  # µs per key: the 16 shards of this namespace take three seconds
    call("BGSAVE")
    wait_until(lambda: slow_hot.facts().disk_ok, 30, "the save is no fault")
    call("CONFIG", "SET", "no-appendfsync-on-rewrite", "yes")
    assert not slow_hot.facts().disk_ok
    wait_until(lambda: slow_hot.facts().disk_ok, 30, "the save has ended")


def test_a_namespace_that_is_not_there_says_what_to_start(server: RedisServer) -> None:
    hot = RedisHot(Link(server.url, connect_timeout_s=2, timeout_s=5), "nothere", HotSettings())
    with pytest.raises(TierUnavailable, match="thermocline worker"):
        hot.cut()
    session = hot.session()
    with pytest.raises(TierUnavailable, match="nothere"):
        append(session, block(), 1)
    session.close()
    hot.close()


def test_dropping_a_namespace_leaves_the_others_alone(server: RedisServer) -> None:
    one, two = open_hot(server), open_hot(server)
    session = one.session()
    append(session, block(), 1)
    assert one.drop() >= 16 + 3
    with pytest.raises(TierUnavailable):
        one.cut()
    assert len(two.cut()) == 16
    session.close()
    two.drop()
    one.close()
    two.close()


def test_a_namespace_is_dropped_from_among_thousands_of_other_keys(server: RedisServer) -> None:
    hot = open_hot(server)
    hot.link.call("DEBUG", "POPULATE", 3000, f"{{tc:{hot.keys.namespace}-2")
    assert hot.drop() == 16
    assert hot.link.call("EXISTS", f"{{tc:{hot.keys.namespace}-2:2999") == 1
    hot.link.call("FLUSHALL")
    hot.close()


def test_a_stopped_redis_is_an_unknown_outcome_and_a_dead_one_is_not(server: RedisServer, tmp_path: Path) -> None:
    own = RedisServer(server.binary, tmp_path, options={})
    own.start()
    hot = open_hot(own)
    session = hot.session()
    append(session, block(), 1)
    own.pause()
    with pytest.raises(OutcomeLost):
        session.send("p", [(block(), 2, None)], deadline_s=0.3)
    own.resume()
    session.reconnect()
    assert append(session, block(), 2).code in ("OK", "DUP")
    own.kill()
    with pytest.raises((OutcomeLost, TierUnavailable)):
        append(session, block(), 3)
    with pytest.raises(TierUnavailable, match="does not answer"):
        append(session, block(), 3)
    session.close()
    hot.close()
