"""The cold tier's objects against their contract: in a folder, on moto, on Swift."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3_servers import S3_SERVERS
from thermocline.config import Settings
from thermocline.errors import ConfigError, TierCorrupt
from thermocline.tiers.cold import Cold
from thermocline.tiers.cold_opening import open_cold

KEY = "events/day=2026-11-13/0190-1.parquet"
ODD = ["events/day=2026-11-13/a b+c&d%20=ü.x", "events/day=2026-11-13/'quoted'*[x]?.y", "events/日/~@:,;$!().z"]
LATER_US = 4_000_000_000_000_000


@pytest.fixture(params=["folder", *S3_SERVERS])
def cold(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cold]:
    """An empty store of each kind."""
    url = None
    if request.param != "folder":
        url = request.getfixturevalue(f"{request.param}_bucket").url + "/some/where"
    cold = open_cold(Settings(data_dir=tmp_path / "data", cold_url=url, namespace="tests"))
    yield cold
    cold.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(3 << 20))
    return path


def test_a_stored_file_comes_back_byte_for_byte(cold: Cold, source: Path, tmp_path: Path) -> None:
    cold.put_file(KEY, source)
    assert cold.get(KEY) == source.read_bytes()
    assert cold.size(KEY) == source.stat().st_size
    target = tmp_path / "not" / "there" / "yet"
    cold.fetch(KEY, target)
    assert target.read_bytes() == source.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["yet"]
    assert source.exists()


def test_a_part_of_an_object_comes_back(cold: Cold) -> None:
    cold.put(KEY, b"0123456789")
    assert cold.get(KEY, offset=3) == b"3456789"
    assert cold.get(KEY, offset=3, length=4) == b"3456"
    assert cold.get(KEY, length=4) == b"0123"
    assert cold.get(KEY, offset=8, length=10) == b"89"
    assert cold.get(KEY, offset=3, length=0) == b""
    assert cold.get(KEY, offset=10) == cold.get(KEY, offset=99, length=1) == b""


def test_an_empty_object_is_an_object(cold: Cold) -> None:
    cold.put(KEY, b"")
    assert (cold.size(KEY), cold.get(KEY)) == (0, b"")
    assert [stored.key for stored in cold.objects()] == [KEY]


def test_what_is_not_there_has_no_size_and_cannot_be_read(cold: Cold, tmp_path: Path) -> None:
    cold.put("another", b"x")
    assert cold.size(KEY) is None
    target = tmp_path / "target"
    for read in (
        lambda: cold.get(KEY),
        lambda: cold.get(KEY, offset=1, length=2),
        lambda: cold.get(KEY, length=0),
        lambda: cold.fetch(KEY, target),
    ):
        with pytest.raises(TierCorrupt, match=r"2026-11-13/0190-1\.parquet.*is not there any more: restore it"):
            read()
    assert not target.exists()


def test_storing_the_same_again_changes_nothing(cold: Cold, source: Path) -> None:
    cold.put_file(KEY, source)
    (before,) = cold.objects()
    cold.put_file(KEY, source)
    cold.put(KEY, source.read_bytes())
    assert list(cold.objects()) == [before]


@pytest.mark.parametrize("other", [b"bbb", b"longer", b""])
def test_an_object_that_is_there_is_never_changed(cold: Cold, tmp_path: Path, other: bytes) -> None:
    cold.put(KEY, b"aaa")
    path = tmp_path / "other"
    path.write_bytes(other)
    with pytest.raises(TierCorrupt, match="is there already and holds other bytes"):
        cold.put(KEY, other)
    with pytest.raises(TierCorrupt, match="is there already and holds other bytes"):
        cold.put_file(KEY, path)
    assert cold.get(KEY) == b"aaa"


def test_a_pointer_is_replaced_whole(cold: Cold) -> None:
    for content in (b"first", b"second, longer", b"3"):
        cold.put("iceberg/pointer", content, replace=True)
        assert cold.get("iceberg/pointer") == content
    assert [stored.key for stored in cold.objects()] == ["iceberg/pointer"]


def test_of_writers_at_the_same_moment_all_with_the_same_bytes_succeed(cold: Cold, source: Path) -> None:
    errors: list[Exception] = []

    def write() -> None:
        try:
            cold.put_file(KEY, source)
        except Exception as exc:
            errors.append(exc)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert hashlib.sha256(cold.get(KEY)).digest() == hashlib.sha256(source.read_bytes()).digest()
    assert [stored.key for stored in cold.objects()] == [KEY]


def test_objects_are_listed_by_key_with_size_and_time(cold: Cold) -> None:
    keys = [*ODD, KEY, "events.txt", "events", "a/b/c", "a-b", "a/b.c"][1:]
    keys.remove("events")  # a folder cannot also be a file
    for key in keys:
        cold.put(key, key.encode())
    found = list(cold.objects())
    assert [stored.key for stored in found] == sorted(keys, key=str.encode)
    assert [stored.size_bytes for stored in found] == [len(stored.key.encode()) for stored in found]
    now_us = time.time_ns() // 1000
    assert all(abs(now_us - stored.modified_us) < 3600 * 1_000_000 for stored in found)
    assert [stored.key for stored in found if cold.get(stored.key) != stored.key.encode()] == []


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("", ["a-b", "a/b.c", "a/b/c", "b"]),
        ("a", ["a-b", "a/b.c", "a/b/c"]),
        ("a/", ["a/b.c", "a/b/c"]),
        ("a/b", ["a/b.c", "a/b/c"]),
        ("a/b/", ["a/b/c"]),
        ("a/b/c", ["a/b/c"]),
        ("a/b/c/", []),
        ("c/d", []),
    ],
)
def test_a_listing_holds_the_keys_that_begin_so(cold: Cold, prefix: str, expected: list[str]) -> None:
    for key in ("b", "a/b/c", "a-b", "a/b.c"):
        cold.put(key, b"x")
    assert [stored.key for stored in cold.objects(prefix)] == expected


def test_an_empty_store_lists_nothing(cold: Cold) -> None:
    assert list(cold.objects()) == []
    assert list(cold.objects("events/")) == []


def test_odd_keys_can_be_stored_read_and_deleted(cold: Cold) -> None:
    for key in ODD:
        cold.put(key, key.encode())
        assert cold.get(key) == key.encode()
        assert cold.key_of(cold.url_of(key)) == key
    cold.delete(ODD)
    assert list(cold.objects()) == []


def test_deleting_what_is_not_there_is_no_error(cold: Cold) -> None:
    cold.delete([])
    cold.delete(["gone"])
    cold.put("a", b"x")
    cold.put("b", b"x")
    cold.delete(["gone", "a", "gone too"])
    assert [stored.key for stored in cold.objects()] == ["b"]
    cold.delete(iter(["b"]))
    assert cold.size("b") is None


@pytest.mark.parametrize("cold", ["folder", pytest.param("moto", marks=pytest.mark.long)], indirect=True)
def test_more_than_a_thousand_objects_are_listed_and_deleted(cold: Cold) -> None:
    keys = [f"many/{number:04}" for number in range(1003)]
    for key in keys:
        cold.put(key, b"", replace=True)
    cold.put("kept", b"")
    assert [stored.key for stored in cold.objects("many/")] == keys
    cold.delete(keys)
    assert [stored.key for stored in cold.objects()] == ["kept"]


def test_urls_are_absolute_literal_and_lead_back_to_keys(cold: Cold) -> None:
    assert cold.url.endswith("/tests" if not cold.is_local else "/tests/cold")
    assert cold.url_of(KEY) == f"{cold.url}/{KEY}"
    assert cold.key_of(cold.url_of(KEY)) == KEY
    cold.put(KEY, b"x")
    if cold.is_local:
        assert cold.path(KEY).read_bytes() == b"x"
        assert cold.url_of(KEY) == f"file://{cold.path(KEY)}"


@pytest.mark.parametrize(
    "url", ["s3://elsewhere/tests/x", "file:///etc/passwd", "x", "{url}", "{url}/", "{url}2/x", "{url}/../x"]
)
def test_a_url_that_lies_elsewhere_has_no_key(cold: Cold, url: str) -> None:
    with pytest.raises(TierCorrupt):
        cold.key_of(url.format(url=cold.url))


NO_KEYS = ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\nb", "a\0", "a.tmp", "x" * 300, "a/" * 400 + "a", "\ud800"]


@pytest.mark.parametrize("key", NO_KEYS, ids=lambda key: ascii(key)[:20])
def test_a_key_that_no_store_could_hold_is_refused_before_anything_happens(cold: Cold, key: str) -> None:
    for attempt in (
        lambda: cold.put(key, b"x"),
        lambda: cold.put(key, b"x", replace=True),
        lambda: cold.get(key),
        lambda: cold.size(key),
        lambda: cold.delete([key]),
        lambda: cold.url_of(key),
    ):
        with pytest.raises(TierCorrupt, match="is no key of a cold object"):
            attempt()
    assert list(cold.objects()) == []


def test_a_probe_tries_every_ability_and_leaves_nothing(cold: Cold) -> None:
    findings = cold.probe()
    names = ["write", "read", "ranged read", "list after write", "conditional write", "delete"]
    assert [(finding.name, finding.ok) for finding in findings] == [(name, True) for name in names], findings
    assert list(cold.objects()) == []


def test_two_namespaces_of_one_place_do_not_meet(cold: Cold, tmp_path: Path) -> None:
    place = cold.url.rpartition("/")[0] if not cold.is_local else f"file://{tmp_path}/place"
    one, two = (open_cold(Settings(data_dir=tmp_path, cold_url=place, namespace=name)) for name in ("one", "one_more"))
    one.put(KEY, b"1")
    two.put(KEY, b"2")
    assert (one.get(KEY), [stored.key for stored in one.objects()]) == (b"1", [KEY])
    two.delete([KEY])
    assert one.size(KEY) == 1
    with pytest.raises(TierCorrupt, match="does not lie in"):
        one.key_of(two.url_of(KEY))


def test_unfinished_files_of_a_folder_are_no_objects_and_end_by_age(tmp_path: Path) -> None:
    cold = open_cold(Settings(data_dir=tmp_path))
    cold.put(KEY, b"x")
    for name, age_s in (("old.tmp", 7200), ("new.tmp", 0)):
        path = cold.path(KEY).with_name(name)
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age_s,) * 2)
    assert [stored.key for stored in cold.objects()] == [KEY]
    assert cold.abandon_uploads(before_us=time.time_ns() // 1000 - 3600 * 1_000_000) == 1
    assert sorted(path.name for path in cold.path(KEY).parent.iterdir()) == ["0190-1.parquet", "new.tmp"]
    assert cold.abandon_uploads(before_us=LATER_US) == 1


@pytest.mark.parametrize("cold", S3_SERVERS, indirect=True)
def test_unfinished_uploads_of_a_bucket_end_by_age_and_only_ours(cold: Cold, request: pytest.FixtureRequest) -> None:
    server = request.node.callspec.params["cold"]
    bucket = request.getfixturevalue(f"{server}_bucket")
    client = bucket.client()
    prefix = cold.url.removeprefix(bucket.url + "/")
    for key in (f"{prefix}/{KEY}", f"{prefix}/other", "not ours"):
        client.create_multipart_upload(Bucket=bucket.name, Key=key)
    cold.put(KEY, b"x")
    assert cold.abandon_uploads(before_us=1) == 0
    assert cold.abandon_uploads(before_us=LATER_US) == 2
    assert cold.abandon_uploads(before_us=LATER_US) == 0
    assert [upload["Key"] for upload in client.list_multipart_uploads(Bucket=bucket.name)["Uploads"]] == ["not ours"]
    assert cold.get(KEY) == b"x"


@pytest.mark.parametrize("cold", S3_SERVERS, indirect=True)
def test_an_object_of_another_program_is_compared_by_its_bytes(cold: Cold, request: pytest.FixtureRequest) -> None:
    server = request.node.callspec.params["cold"]
    bucket = request.getfixturevalue(f"{server}_bucket")
    full = f"{cold.url.removeprefix(bucket.url + '/')}/{KEY}"
    bucket.client().put_object(Bucket=bucket.name, Key=full, Body=b"same")
    cold.put(KEY, b"same")
    with pytest.raises(TierCorrupt, match="holds other bytes"):
        cold.put(KEY, b"size")


@pytest.mark.parametrize("cold", S3_SERVERS, indirect=True)
def test_an_object_that_is_not_what_was_written_is_not_handed_out_whole(
    cold: Cold, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    server = request.node.callspec.params["cold"]
    bucket = request.getfixturevalue(f"{server}_bucket")
    full = f"{cold.url.removeprefix(bucket.url + '/')}/{KEY}"
    bucket.client().put_object(Bucket=bucket.name, Key=full, Body=b"rotten", Metadata={"sha256": "0" * 64})
    with pytest.raises(TierCorrupt, match="does not hold the bytes it was written with"):
        cold.get(KEY)
    with pytest.raises(TierCorrupt, match="does not hold the bytes it was written with"):
        cold.fetch(KEY, tmp_path / "target")
    assert list(tmp_path.glob("target*")) == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file://host/path", "three slashes"),
        ("file://relative", "three slashes"),
        ("file:///a/b#c", "must not hold"),
        ("s3://bucket/a?b", "must not hold"),
        ("s3://", "s3://bucket/folder"),
        ("s3://AKIA:very-secret@bucket/folder", "AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_at_once_without_repeating_secrets(tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        open_cold(Settings(data_dir=tmp_path, cold_url=url))
    assert "very-secret" not in str(caught.value)


def test_folders_are_given_as_urls_with_percent_signs_and_spaces(tmp_path: Path) -> None:
    cold = open_cold(Settings(data_dir=tmp_path, cold_url=f"file://{tmp_path}/two%20words/", namespace="n"))
    cold.put(KEY, b"x")
    assert (tmp_path / "two words" / "n" / KEY).read_bytes() == b"x"
    assert cold.key_of(cold.url_of(KEY)) == KEY


def test_opening_makes_no_folder_and_no_connection(tmp_path: Path, aws_environ: None) -> None:
    cold = open_cold(Settings(data_dir=tmp_path / "data"))
    assert list(cold.objects()) == []
    assert not (tmp_path / "data").exists()
    settings = Settings(data_dir=tmp_path, cold_url="s3://bucket/x", cold={"endpoint_url": "http://192.0.2.1:9"})  # type: ignore[arg-type]
    cold = open_cold(settings)
    assert cold.url_of(KEY) == f"s3://bucket/x/default/{KEY}"
    cold.close()
