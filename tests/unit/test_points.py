"""The list of fault points is the code's own; and what lets writes fail does so, and nothing else."""

from __future__ import annotations

import ast
import errno
import subprocess
import sys
from pathlib import Path

from tests.points.catalogue import STEPS

ROOT = Path(__file__).parents[2]
REFUSED = """
import os, socket, sys, tempfile
from pathlib import Path
from tests.points.refusal import refuse_writes
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "file"
    file = path.open("w+b", buffering=0)
    here, there = socket.socketpair()
    refuse_writes({number})
    found = []
    def tried(act):
        try:
            act()
        except OSError as exc:
            found.append(exc.errno)
    tried(lambda: file.write(b"x"))
    tried(lambda: os.pwrite(file.fileno(), b"x", 0))
    tried(lambda: os.fsync(file.fileno()))
    tried(lambda: os.ftruncate(file.fileno(), 0))
    tried(lambda: path.rename(path.with_name("other")))
    tried(lambda: os.link(path, path.with_name("other")))
    tried(lambda: here.sendall(b"x"))
    print(found, there.recv(1), file.read())
"""


def test_every_step_that_the_code_names_is_listed_and_no_other() -> None:
    named: set[str] = set()
    for folder in ("archiver", "tiers"):
        for path in (ROOT / folder).rglob("*.py"):
            named |= names_in(ast.parse(path.read_text()))
    assert named == {step for steps in STEPS.values() for step in steps}


def names_in(tree: ast.AST) -> set[str]:
    """What is given to `named` as a name, and to a Reach itself."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if ast.unparse(node.func) in ("named", "self._reach"):
            texts = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            found.update(text.removesuffix(" done") for text in texts)
    return found


def test_a_process_that_refuses_writes_still_speaks_and_reads() -> None:
    for number in (errno.EIO, errno.ENOSPC):
        done = subprocess.run([sys.executable, "-c", REFUSED.format(number=number)], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout == f"{[number] * 6} b'x' b''\n", done.stderr
