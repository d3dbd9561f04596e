"""Instants in the replies of S3 servers are what botocore reads."""

from __future__ import annotations

import pytest
from botocore.utils import parse_timestamp

from thermocline.tiers.s3_requests import timestamp_of


@pytest.mark.parametrize(
    "value",
    [
        "2026-11-22T07:12:47.123Z",
        "2026-11-22T07:12:47.000000Z",
        "2026-11-22T07:12:47Z",
        "2026-11-22T07:12:47+02:00",
        "2026-11-22T07:12:47",
        "2026-11-22",
        "20261122T071247Z",
        "20261122",
        "Sun, 22 Nov 2026 07:12:47 GMT",
        "1795331567",
        1795331567,
        1795331567.5,
    ],
)
def test_an_instant_in_a_reply_is_read_as_botocore_reads_it(value: object) -> None:
    assert timestamp_of(value).timestamp() == parse_timestamp(value).timestamp()


@pytest.mark.parametrize("value", ["", "soon", None, [], "2026-13-22T07:12:47Z"])
def test_what_is_no_instant_is_refused(value: object) -> None:
    with pytest.raises(ValueError):
        timestamp_of(value)
