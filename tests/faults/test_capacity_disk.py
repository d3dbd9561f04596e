"""A full disk: bounded, said in one line with what to do, and over as soon as there is space again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.full_disk import appending, archiving, on_small_disk, spooling, starting, working


def test_a_worker_on_a_full_disk_says_so_while_reads_and_appends_go_on_and_works_again_when_there_is_space(
    tmp_path: Path,
) -> None:
    on_small_disk(working, tmp_path)


@pytest.mark.long
def test_whoever_starts_on_a_full_disk_says_so_in_one_line_and_starts_when_there_is_space(tmp_path: Path) -> None:
    on_small_disk(starting, tmp_path)


@pytest.mark.long
def test_an_archive_that_does_not_fit_on_the_disk_leaves_the_events_warm_until_it_fits(tmp_path: Path) -> None:
    on_small_disk(archiving, tmp_path)


@pytest.mark.long
def test_a_spool_on_a_full_disk_is_backpressure_and_what_it_took_is_stored_once_in_order(tmp_path: Path) -> None:
    on_small_disk(spooling, tmp_path)


def test_an_embedded_redis_on_a_full_disk_takes_nothing_more_and_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    on_small_disk(appending, tmp_path)
