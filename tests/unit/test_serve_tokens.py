"""Tokens: made once, kept as hashes, refused when they are wrong, old, revoked or another namespace's."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest

from thermocline.errors import ConfigError
from thermocline.serve.tokens import FILE_NAME, Tokens, create, listed, load, revoke

NOW_S = 2_000_000_000.0


def test_a_token_is_found_by_its_text_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    made = create(tmp_path, "agent", ["query", "append"], namespaces=["a"])
    text = (tmp_path / FILE_NAME).read_text()
    assert made.text not in text
    assert made.text.split("_", 2)[2] not in text
    assert made.token.scopes == ("append", "query")
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600
    found = Tokens(tmp_path).find(made.text.encode(), NOW_S)
    assert found == made.token


def test_two_tokens_are_never_the_same_and_have_256_bits(tmp_path: Path) -> None:
    texts = {create(tmp_path, str(number), ["query"]).text for number in range(20)}
    assert len(texts) == 20
    assert all(len(text.partition("_")[2].partition("_")[2]) == 43 for text in texts)


@pytest.mark.parametrize(
    "change", [lambda text: text[:-1] + ("A" if text[-1] != "A" else "B"), lambda text: text + "A", lambda _: ""]
)
def test_another_text_is_no_token(tmp_path: Path, change: object) -> None:
    made = create(tmp_path, "agent", ["query"])
    tokens = Tokens(tmp_path)
    assert tokens.find(change(made.text).encode(), NOW_S) is None  # type: ignore[operator]
    assert tokens.find("tc_ü".encode() + b"\xff", NOW_S) is None


def test_an_expired_or_revoked_token_is_not_good(tmp_path: Path) -> None:
    short = create(tmp_path, "short", ["query"], lives_s=100)
    gone = create(tmp_path, "gone", ["query"])
    revoke(tmp_path, "gone")
    tokens = Tokens(tmp_path)
    assert short.token.expires_s is not None
    assert tokens.find(short.text.encode(), short.token.expires_s - 1) is not None
    assert tokens.find(short.text.encode(), short.token.expires_s) is None
    assert tokens.find(gone.text.encode(), NOW_S) is None
    assert [token.state(short.token.expires_s) for token in listed(tmp_path)] == ["expired", "revoked"]


def test_the_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    assert not tokens.required
    made = create(tmp_path, "agent", ["query"])
    tokens.reload()
    assert tokens.required
    assert tokens.find(made.text.encode(), NOW_S) is not None
    revoke(tmp_path, made.token.id)
    tokens.reload()
    assert tokens.find(made.text.encode(), NOW_S) is None


def test_a_file_that_is_removed_leaves_no_token_good_and_tokens_are_still_asked_for(tmp_path: Path) -> None:
    made = create(tmp_path, "agent", ["query"])
    tokens = Tokens(tmp_path)
    (tmp_path / FILE_NAME).unlink()
    tokens.reload()
    assert tokens.find(made.text.encode(), NOW_S) is None
    assert tokens.required


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    create(tmp_path, "agent", ["query"])
    (tmp_path / FILE_NAME).chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        Tokens(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"format":"9"}', '{"format":"1","tokens":[{"id":1}]}'])
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    (tmp_path / FILE_NAME).chmod(0o600)
    with pytest.raises(ConfigError, match=FILE_NAME):
        load(tmp_path / FILE_NAME)


def test_every_wrong_argument_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as found:
        create(tmp_path, "", ["read"], namespaces=["No"], lives_s=0)
    assert [problem.partition(":")[0] for problem in found.value.problems] == ["name", "scope", "namespace", "expires"]
    assert not (tmp_path / FILE_NAME).exists()


def test_two_good_tokens_do_not_have_one_name(tmp_path: Path) -> None:
    create(tmp_path, "agent", ["query"])
    with pytest.raises(ConfigError, match="already"):
        create(tmp_path, "agent", ["query"])
    revoke(tmp_path, "agent")
    create(tmp_path, "agent", ["query"])
    with pytest.raises(ConfigError, match="nobody"):
        revoke(tmp_path, "nobody")


def test_tokens_made_at_once_are_all_kept(tmp_path: Path) -> None:
    threads = [threading.Thread(target=create, args=(tmp_path, str(number), ["append"])) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(token.name for token in listed(tmp_path)) == [str(number) for number in range(8)]
    assert json.loads((tmp_path / FILE_NAME).read_text())["format"] == "1"
