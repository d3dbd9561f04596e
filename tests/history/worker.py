"""The worker of a history. What the archive needs is imported before it is forked, so that no life begins with seconds of it."""

from __future__ import annotations

import pyarrow.parquet  # noqa: F401

from tests.chaos.roles import work
from thermocline.tiers import cold_s3, iceberg_catalog, iceberg_errors, iceberg_table  # noqa: F401

__all__ = ["work"]
