"""Three readers of a conversation that happens, through an archive in the middle."""

from __future__ import annotations

from pathlib import Path

from tests.followed import disagreements, followed


def test_a_tail_the_page_and_sql_agree_about_a_conversation_that_was_archived_half_way(tmp_path: Path) -> None:
    assert disagreements(followed(tmp_path)) == []
