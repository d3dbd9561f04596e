"""The object stores the archive is tested on: a folder, moto's server and a real Swift, one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from thermocline.config import Settings, load

STORES = ("folder", "moto", pytest.param("swift", marks=pytest.mark.long))
"""On every change a folder and the quicker server; Swift in tests/contract/test_cold.py, and everywhere in the long ring."""
SWIFT_IN_LONG = ("folder", *(pytest.param(store, marks=pytest.mark.long) for store in ("moto", "swift")))
"""For what does not depend on the store, beside others that go to all of them."""


@pytest.fixture(params=STORES)
def cold_url(request: pytest.FixtureRequest) -> str | None:
    """Of an empty store; None is the folder beside the ledger."""
    return None if request.param == "folder" else str(request.getfixturevalue(f"{request.param}_bucket").url)


@pytest.fixture
def cold_overrides(tmp_path: Path, redis_server: Any, cold_url: str | None) -> dict[str, Any]:
    """Settings of a small namespace with that store, as a process beside would be given them."""
    hot = {"shards": 4, "buckets": 64}
    return {"data_dir": str(tmp_path / "data"), "redis_url": redis_server().url, "hot": hot, "cold_url": cold_url}


@pytest.fixture
def cold_settings(cold_overrides: dict[str, Any]) -> Settings:
    return load(cold_overrides, environ={})
