"""What a loss of power or an end in the middle must find in order: failures that simulated crashes have shown."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.archiving import settings_for
from tests.servers import RedisServer
from tests.tidying import Archive
from tests.waiting import wait_until
from thermocline.archiver.purge import Purger
from thermocline.tiers import iceberg, whole_file
from thermocline.tiers.ledger_sql import SqlLedger
from thermocline.tiers.opening import open_tiers


def test_the_folders_of_a_new_store_have_their_names_on_disk_before_redis_knows_it(
    tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    sync = whole_file.sync
    monkeypatch.setattr(whole_file, "sync", lambda path: (synced.append(path), sync(path)))
    settings = settings_for(tmp_path / "above", server)
    with open_tiers(settings):
        assert {tmp_path, tmp_path / "above", settings.data_dir, settings.namespace_dir} <= set(synced)


def test_the_catalog_has_a_batch_on_disk_before_the_ledger_has_it(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, commit, committed = iceberg.sync, iceberg.IcebergTables.commit, SqlLedger.committed

    def noted(name: str, act: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            found = act(*args, **more)
            order.append(name if name != "sync" else f"sync {args[0]}")
            return found

        return call

    monkeypatch.setattr(iceberg, "sync", noted("sync", sync))
    monkeypatch.setattr(iceberg.IcebergTables, "commit", noted("publish", commit))
    monkeypatch.setattr(SqlLedger, "committed", noted("ledger", committed))
    archive.archive_round()
    synced = f"sync {archive.settings.namespace_dir}"
    assert order[-1] == "ledger"
    assert order[:-1] == [synced, "publish"] * (len(order) // 2)


def test_files_that_a_crash_left_half_written_beside_the_ledger_are_removed_after_the_grace(archive: Archive) -> None:
    folder = archive.settings.namespace_dir
    old, young, other = folder / "0123.tmp", folder / "worker.json.99.tmp", folder / "note.txt"
    for path in (old, young, other):
        path.write_text("x")
    grace_us = int(archive.settings.warm.purge_grace_s * 1e6)
    now_us = time.time_ns() // 1000
    for path in (old, other):
        os.utime(path, ns=((now_us - grace_us - 1_000_000) * 1000,) * 2)
    Purger(archive.tiers, archive.epoch).step(now_us=now_us)
    assert (old.exists(), young.exists(), other.exists()) == (False, True, True)


def test_a_process_told_to_end_while_it_waits_inside_sqlite_ends_in_time(tmp_path: Path) -> None:
    path = tmp_path / "locked.db"
    code = (
        "import sqlite3, sys\n"
        "from thermocline.archiver.termination import ending\n"
        "con = sqlite3.connect(sys.argv[1], timeout=600, isolation_level=None)\n"
        "with ending(lambda: None, within_s=0.2):\n"
        "    print('waiting', flush=True)\n"
        "    con.execute('BEGIN IMMEDIATE')\n"
    )
    with sqlite3.connect(path, isolation_level=None) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"waiting\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
    holder.close()


def test_a_worker_told_to_end_while_it_starts_does_not_forget_it(tmp_path: Path, server: RedisServer) -> None:
    settings = settings_for(tmp_path, server)
    code = (
        "import os, signal, sys, msgspec\n"
        "from thermocline.archiver.worker import Worker\n"
        "from thermocline.config import load\n"
        "from thermocline.tiers.opening import open_tiers\n"
        "take = Worker._take_lease\n"
        "def told(self):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    take(self)\n"
        "Worker._take_lease = told\n"
        "with open_tiers(load(msgspec.json.decode(sys.argv[1]), environ={})) as tiers:\n"
        "    Worker(tiers).run()\n"
    )
    told = msgspec.json.encode(settings.model_dump(mode="json")).decode()
    with subprocess.Popen([sys.executable, "-c", code, told], stderr=subprocess.PIPE) as process:
        wait_until(lambda: process.poll() is not None, 60, "it ends")
        assert process.returncode == 0
        assert process.stderr is not None
        assert b"worker stopped" in process.stderr.read()
