"""Which batches of the archive count, told from the cold tier alone: their descriptions, and what the Iceberg tables show.

A batch counts when any table shows it. The newest of them is then published to the others too, because other engines see a part
of it already; those before it were published in full before it was begun, and what they added may be long replaced and gone.
What was described and never published does not count: its segments are still there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from thermocline.tiers.cold import Cold
from thermocline.tiers.cold_schema import KINDS
from thermocline.tiers.iceberg import IcebergTables
from thermocline.tiers.ledger import Batch, ColdFile

from .batches import decoded, publish


def published_batches(cold: Cold, iceberg: IcebergTables) -> list[Batch]:
    """The batches that count, oldest first; [] when nothing was ever archived. Errors are those of the cold tier."""
    described = [
        decoded(cold.get(stored.key), key=stored.key) for stored in cold.objects("batches/") if stored.key.endswith(".json")
    ]
    if not described:
        return []
    described.sort(key=lambda batch: batch.batch_id)
    files = {file.file_id: file for batch in described for file in batch.files}
    iceberg.ensure()
    shown = _shown(cold, iceberg, described, files)
    for batch in shown[-1:]:
        publish(iceberg, batch, files)
    return shown


def _shown(cold: Cold, iceberg: IcebergTables, described: Sequence[Batch], files: Mapping[str, ColdFile]) -> list[Batch]:
    """Those that any table shows: by the id of a snapshot, or, when that has expired, by what it added or removed."""
    ids = set().union(*(iceberg.batches(kind) for kind in KINDS))
    keys = set().union(*(iceberg.keys(kind) for kind in KINDS))
    found: list[Batch] = []
    removed_later: set[str] = set()
    for batch in reversed(described):
        added = {file.file_id for file in batch.files}
        live = {file_id for file_id in added if files[file_id].key in keys}
        gone = [file_id for file_id in batch.removed if file_id in files and files[file_id].key not in keys]
        if batch.batch_id in ids or live or added & removed_later or (not added and gone):
            found.append(batch)
            removed_later.update(batch.removed)
    return found[::-1]
