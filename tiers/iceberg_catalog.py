"""The catalog that says which version of each Iceberg table is current: catalog.db, another SQL database, or a REST server."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from pyiceberg.catalog import Catalog
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.catalog.sql import IcebergTables as Row
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import NoSuchTableError, TableAlreadyExistsError
from pyiceberg.io.pyarrow import pyarrow_to_schema
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC, PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.transforms import DayTransform
from pyiceberg.typedef import Identifier
from requests import Session

from thermocline.config import Settings, mask_url
from thermocline.errors import ConfigError, TierCorrupt

from .cold import Cold
from .cold_schema import SCHEMAS
from .iceberg_errors import translated
from .iceberg_io import ColdFileIO, Handed
from .iceberg_row import newest_location
from .iceberg_table import LoadedTable, Manifests

CATALOG_NAME: Final = "thermocline"
BUSY_TIMEOUT_S: Final = 30
_DAY: Final = {"events": "timestamp"}
"""Kind → the column by whose day its files are split."""
_BOUNDLESS: Final = ("content", "metadata")
"""Columns whose smallest and largest values are kept out of the manifests: they are text of conversations."""


class TableCatalog:
    """The catalog of one namespace, open. Thread-safe.

    ConfigError when cold.catalog_url or cold.catalog_properties cannot be right, TierUnavailable when the catalog is away.
    """

    def __init__(self, cold: Cold, settings: Settings) -> None:
        self._handed = Handed(cold)
        self._read = Manifests()
        self._base = cold.url
        self._namespace = settings.namespace
        self._versions_max = settings.cold.metadata_versions_max
        url = settings.cold.catalog_url or _local_url(settings.namespace_dir)
        self._shown = mask_url(url)
        own = {"uri": url, **self._handed.properties}
        with translated(f"Iceberg catalog {self._shown}"):
            if urlsplit(url).scheme in ("http", "https"):
                timeouts = (settings.cold.connect_timeout_s, settings.cold.timeout_s)
                self._catalog: Catalog = _PatientCatalog(timeouts, settings.cold.catalog_properties | own)
            else:
                self._catalog = _FrugalCatalog(CATALOG_NAME, **{"pool_pre_ping": "true"} | settings.cold.catalog_properties | own)

    def create_namespace(self) -> None:
        with translated(f"Iceberg catalog {self._shown}"):
            self._catalog.create_namespace_if_not_exists((self._namespace,))

    def find(self, kind: str) -> LoadedTable | None:
        """The table as it is now; None when the catalog does not know it."""
        with translated(self._what(kind)):
            try:
                return self._loaded(kind, self._catalog.load_table((self._namespace, kind)))
            except NoSuchTableError:
                return None

    def load(self, kind: str) -> LoadedTable:
        """The table as it is now. TierUnavailable when the catalog does not know it."""
        with translated(self._what(kind)):
            return self._loaded(kind, self._catalog.load_table((self._namespace, kind)))

    def create(self, kind: str) -> LoadedTable:
        """Make an empty table; the one that is there when another process was first."""
        schema = _schema(kind)
        with translated(self._what(kind)):
            try:
                self._catalog.create_table(
                    (self._namespace, kind),
                    schema,
                    location=f"{self._base}/iceberg/{kind}",
                    partition_spec=_partitions(kind, schema),
                    properties={"format-version": "2", **_properties(kind, self._versions_max)},
                )
            except TableAlreadyExistsError:
                pass
        return self.load(kind)

    def register(self, kind: str, metadata_url: str) -> LoadedTable:
        """Make a table known whose metadata is in the store; the one that is there when another process was first."""
        with translated(self._what(kind)):
            try:
                self._catalog.register_table((self._namespace, kind), metadata_url)
            except TableAlreadyExistsError:
                pass
        return self.load(kind)

    def with_properties(self, kind: str, table: LoadedTable) -> LoadedTable:
        """The table, after what the settings say of it has been written where it differs."""
        table.set_properties(_properties(kind, self._versions_max))
        return table

    def close(self) -> None:
        self._catalog.close()

    def _what(self, kind: str) -> str:
        return f"Iceberg table {self._namespace}.{kind} in {self._shown}"

    def _loaded(self, kind: str, table: Table) -> LoadedTable:
        """ConfigError or TierCorrupt unless this is our table: the place, and our columns under our ids."""
        if not isinstance(table.io, ColdFileIO):
            raise ConfigError(f"cold.catalog_url: {self._what(kind)} sets py-io-impl: remove that property, we read by cold_url")
        wanted = f"{self._base}/iceberg/{kind}"
        if table.location().rstrip("/") != wanted:
            raise ConfigError(
                f"cold.catalog_url: {self._what(kind)} lies at {table.location()}, not at {wanted}: Iceberg files name each "
                "other by full URL, so give the cold_url it was made with, or another namespace or catalog"
            )
        ours, theirs = _schema(kind), table.schema()
        wrong = [field.name for field in ours.fields if _shape(theirs, field.field_id) != _shape(ours, field.field_id)]
        if wrong:
            raise TierCorrupt(f"{self._what(kind)}: columns {', '.join(wrong)} do not have the ids and types of our files")
        return LoadedTable(table, self._what(kind), self._read)


class _PatientCatalog(RestCatalog):
    """A REST catalog whose requests end."""

    def __init__(self, timeouts: tuple[float, float], properties: dict[str, str]) -> None:
        self._timeouts = timeouts
        super().__init__(CATALOG_NAME, **properties)

    def _config_headers(self, session: Session) -> None:
        """pyiceberg gives no timeout. This is the first it does with a new session, before it fetches a token through it."""
        session.request = partial(session.request, timeout=self._timeouts)  # type: ignore[method-assign]
        super()._config_headers(session)


class _FrugalCatalog(SqlCatalog):
    """A SQL catalog that reads a version of a table's metadata once: its row says which one is current, and none ever changes."""

    def __init__(self, name: str, **properties: str) -> None:
        self._newest: dict[tuple[str, ...], Table] = {}
        super().__init__(name, **properties)

    def load_table(self, identifier: str | Identifier) -> Table:
        known = self._newest.get(self.identifier_to_tuple(identifier))
        if known is not None and newest_location(self.engine, self.name, *known.name()) == known.metadata_location:
            return self._copy(known)
        return super().load_table(identifier)

    def _convert_orm_to_iceberg(self, orm_table: Row) -> Table:
        known = self._newest.get((orm_table.table_namespace, orm_table.table_name))
        if known is None or known.metadata_location != orm_table.metadata_location:
            known = super()._convert_orm_to_iceberg(orm_table)
            self._newest[orm_table.table_namespace, orm_table.table_name] = known
        return self._copy(known)

    def _copy(self, known: Table) -> Table:
        """The caller's own: commits move it on."""
        return Table(known.name(), known.metadata, known.metadata_location, known.io, self)


@cache
def _schema(kind: str) -> Schema:
    return pyarrow_to_schema(SCHEMAS[kind])


def _shape(schema: Schema, field_id: int) -> tuple[Any, ...] | None:
    field = next((one for one in schema.fields if one.field_id == field_id), None)
    return (field.name, field.field_type, field.required) if field is not None else None


def _partitions(kind: str, schema: Schema) -> PartitionSpec:
    column = _DAY.get(kind)
    if column is None:
        return UNPARTITIONED_PARTITION_SPEC
    source = schema.find_field(column).field_id
    return PartitionSpec(PartitionField(source_id=source, field_id=1000, transform=DayTransform(), name=f"{column}_day"))


def _properties(kind: str, versions_max: int) -> dict[str, str]:
    """Our own repeats instead of pyiceberg's, which add files twice; bounded metadata; few manifests."""
    columns = [column for column in _BOUNDLESS if column in SCHEMAS[kind].names]
    return {
        "commit.retry.num-retries": "0",
        "commit.manifest-merge.enabled": "true",
        "commit.manifest.min-count-to-merge": "16",
        "write.metadata.delete-after-commit.enabled": "true",
        "write.metadata.previous-versions-max": str(versions_max),
        **{f"write.metadata.metrics.column.{column}": "counts" for column in columns},
    }


def _local_url(folder: Path) -> str:
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder}/catalog.db?timeout={BUSY_TIMEOUT_S}"


__all__ = ["TableCatalog"]
