"""Settings: thermocline.toml, overridden by THERMOCLINE_* variables, overridden by arguments. Read once, at the edge; frozen.

`[hot] cache_window_s = 60` in the file is `THERMOCLINE_HOT__CACHE_WINDOW_S=60` in the environment and
`load(hot={"cache_window_s": 60})` as an argument.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from thermocline.errors import ConfigError
from thermocline.event import EVENT_BYTES_MAX, Durability
from thermocline.policy import Policy, SamplingSettings
from thermocline.serve_settings import ServeSettings

MIB = 1 << 20
GIB = 1 << 30
NUMBER_MAX = 1_000_000_000
"""Of seconds and milliseconds in settings."""
SETTLE_BATCHES = 6
"""Batches that must fit in the memory of the DuckDB that settles one."""
FILE_NAME = "thermocline.toml"
EMBEDDED_FOLDER = "redis"
ROLLUPS_MAX = 16
RollupName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,47}$")]
TAKEN_ROLLUPS = ("hourly", "conversation", "task", "quantile", "decision", "total", "user")
ENV_PREFIX = "THERMOCLINE_"
CONFIG_FILE_VARIABLE = "THERMOCLINE_CONFIG"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _within_reach(cls, value: object) -> object:
        """Timers and the kernel count in 32-bit seconds or 64-bit microseconds."""
        if isinstance(value, float) and value > NUMBER_MAX:
            raise ValueError(f"must be at most {NUMBER_MAX:,}")
        return value


class HotSettings(_Section):
    """Redis: what it may hold and how long."""

    shards: int = Field(16, ge=1, le=1024, description="logs the namespace is split into; fixed at creation")
    buckets: int = Field(8192, ge=1, le=1 << 20, description="hashes the heads of a shard are spread over; fixed at creation")
    unsettled_bytes_max: int = Field(512 * MIB, ge=MIB, description="payload not yet settled; beyond it append sheds")
    unsettled_blocks_max: int = Field(4_000_000, ge=100, description="blocks in one shard's log; beyond it append sheds")
    log_bytes_max: int = Field(GIB, ge=MIB, description="payload in the logs, settled and not; the settled gives way first")
    cache_window_s: float = Field(3600, ge=0, description="how long Redis keeps what is settled, if the budget allows")
    log_grace_s: float = Field(5, ge=0, description="what is settled stays in the log at least this long, for readers under way")
    hold_s_max: float = Field(
        3600, ge=0, description="how long a group of consumers may keep what it has not had from being trimmed"
    )
    durable_lag_s: float = Field(
        2, ge=0, le=60, description="under everysec, settle leaves what is younger than this; below 1.2 that proves nothing"
    )
    allow_volatile: bool = Field(False, description="accept a Redis without an append-only file: a crash loses events")
    append_fsync: Literal["always", "everysec"] = Field("everysec", description="appendfsync of the embedded Redis")
    start_timeout_s: float = Field(300, gt=0, description="how long the embedded Redis may take to load its append-only file")
    replicas_min: int = Field(0, ge=0, le=16, description="replicas that must have a block before its append returns (WAIT)")
    ids_window_s: float = Field(600, gt=0, description="how long a caller's event_id is remembered, at least")
    ids_max: int = Field(100_000, ge=1, description="event ids remembered per shard and half-window")
    page_bytes_max: int = Field(4 * MIB, ge=64 << 10, description="payload fetched from a log at once")
    connect_timeout_s: float = Field(2, gt=0)
    timeout_s: float = Field(5, gt=0, description="one round trip")


class IngestSettings(_Section):
    """append() and Producer."""

    linger_ms: float = Field(5, ge=0, description="how long a Producer waits to fill a block")
    block_events_max: int = Field(500, ge=1, le=500)
    block_bytes_max: int = Field(EVENT_BYTES_MAX, ge=1024, le=EVENT_BYTES_MAX)
    buffer_events_max: int = Field(100_000, ge=1, description="events a Producer holds; append() blocks beyond it")
    buffer_bytes_max: int = Field(256 * MIB, ge=MIB, description="payload a Producer holds; append() blocks beyond it")
    unacked_blocks_max: int = Field(16, ge=1, le=16, description="blocks per shard sent and not yet acknowledged")
    deadline_s: float = Field(10, gt=0, description="how long one append may retry before it raises")
    spool_bytes_max: int = Field(GIB, ge=16 * MIB, description="files in a Producer's spool_dir; append() blocks beyond it")
    sessions_max: int = Field(64, ge=1, description="connections append() may use at once in one process")
    durability: Durability = Field("memory", description="how firmly an event is kept before its append returns, at least")


class WarmSettings(_Section):
    """Settle, merge and purge of DuckDB segments."""

    window_days: int = Field(7, ge=1, description="age at which a day may be archived")
    bytes_max: int = Field(0, ge=0, description="segment bytes beyond which settle stops and append sheds; 0 is no limit")
    settle_events: int = Field(20_000, ge=1, description="waiting events that make a settle due")
    settle_bytes: int = Field(16 * MIB, ge=1, description="waiting payload that makes a settle due")
    settle_after_s: float = Field(30, ge=0, description="oldest wait that makes a settle of settle_after_events due")
    settle_after_events: int = Field(1000, ge=1)
    settle_latest_s: float = Field(900, ge=0, description="oldest wait that makes any settle due")
    settle_batch_events: int = Field(200_000, ge=500, description="events in one settle at most")
    settle_batch_bytes: int = Field(64 * MIB, ge=EVENT_BYTES_MAX, description="payload in one settle at most")
    fan_in: int = Field(11, ge=2, le=64, description="segments of one level that become one of the next")
    day_rows_min: int = Field(10_000, ge=1, description="rows below which a day shares a mixed segment")
    segment_rows_max: int = Field(2_000_000, ge=1000)
    segment_bytes_max: int = Field(GIB, ge=MIB)
    small_block_bytes_max: int = Field(4 * MIB, ge=0, description="expected size below which a segment uses 16 KiB blocks")
    rollup_rows_min: int = Field(50_000, ge=1, description="rows from which a level-0 segment carries rollups")
    seal_after_s: float = Field(3600, ge=0, description="how long after its end a UTC day is closed")
    purge_grace_s: float = Field(900, ge=0, description="how long a file that left the ledger stays on disk")
    mirror: str | None = Field(
        None, description="s3:// or file:// folder for copies of segments and of the ledger; none: no copies"
    )
    mirror_snapshots: int = Field(10, ge=2, le=1000, description="copies of the ledger that are kept")
    mirror_grace_s: float = Field(86_400, ge=0, description="how long a copy that no kept snapshot needs stays in the mirror")
    memory_bytes_max: int = Field(768 * MIB, ge=64 * MIB, description="DuckDB memory of the worker")
    threads: int = Field(2, ge=1, le=64)


class ColdSettings(_Section):
    """Parquet files, the objects they are, and their table. Keys come from the usual AWS_* variables and files."""

    endpoint_url: str | None = Field(None, description="of an S3-compatible server; none means AWS_ENDPOINT_URL, else AWS itself")
    region: str | None = Field(None, description="none means AWS_REGION or AWS_DEFAULT_REGION, else us-east-1")
    catalog_url: str | None = Field(None, description="Iceberg catalog: SQLAlchemy or REST URL; none means catalog.db")
    catalog_properties: dict[str, str] = Field({}, description="handed to pyiceberg's catalog as they are")
    connect_timeout_s: float = Field(5, gt=0)
    timeout_s: float = Field(30, gt=0, description="how long one request may wait for bytes")
    deadline_s: float = Field(120, gt=0, description="how long one operation may retry before it fails")
    file_bytes_max: int = Field(256 * MIB, ge=MIB, description="of a Parquet file, about")
    archive_rows_max: int = Field(2_000_000, ge=1000, description="events in one archive batch, about; settling waits for it")
    remainder_rows_max: int = Field(
        200_000, ge=0, description="rows too young to archive that a segment may have to be split for"
    )
    compact_files_min: int = Field(8, ge=2, description="small files of one day, or of one rollup, that become one")
    small_file_bytes_max: int = Field(32 * MIB, ge=1, description="size below which a file may be compacted")
    retention_days: int = Field(0, ge=0, description="age at which archived events expire; 0 keeps them for ever")
    snapshot_keep_days: int = Field(30, ge=1, description="how long the Iceberg table can be read as it was")
    metadata_versions_max: int = Field(20, ge=1)
    cache_bytes_max: int = Field(4 * GIB, ge=MIB, description="local copies of rollup files when the objects are on S3")
    purge_grace_s: float = Field(86_400, ge=0, description="how long a file that left the ledger stays")


class QuerySettings(_Section):
    """Readers."""

    view_retries_max: int = Field(5, ge=1, le=100, description="fresh views a query may take before it gives up")
    memory_bytes_max: int = Field(2 * GIB, ge=64 * MIB, description="DuckDB memory of one store")
    tail_bytes_max: int = Field(768 * MIB, ge=MIB, description="payload of unsettled events one reader keeps")
    recent_bytes_max: int = Field(32 * MIB, ge=0, description="events one reader keeps for the next recent(); 0 keeps none")
    search_rows_max: int = Field(20_000_000, ge=1000, description="stored events one search looks through, newest first, about")
    threads: int = Field(2, ge=1, le=64)
    state_bytes_max: int = Field(16 * MIB, ge=1024, description="one state of a projection, as JSON")
    states_bytes_max: int = Field(256 * MIB, ge=MIB, description="all states that are kept; the oldest go first")


class RollupSettings(_Section):
    """A rollup of one's own: `[rollups.<name>]`. docs/views.md says what it may be; opening the store checks it."""

    sql: str = Field(
        min_length=1, max_length=10_000, pattern=r"^\s*(?i:select)\s", description="one SELECT of hour, keys and aggregates"
    )
    merge: dict[str, Literal["sum", "min", "max"]] = Field(
        min_length=1, max_length=32, description="aggregate → how those of two parts become one"
    )
    rows_max: int = Field(50_000, ge=1, le=1_000_000, description="rows of one segment; more are not stored")


class SandboxSettings(_Section):
    """SQL of others, in processes of its own (docs/security.md)."""

    children_max: int = Field(2, ge=1, le=64, description="queries that run at once, each in a process of its own")
    spare: int = Field(1, ge=0, le=16, description="processes that wait ready for the next query, about 100 MiB each")
    waiting_max: int = Field(32, ge=0, le=10_000, description="queries that wait for one to end; beyond it they are sent away")
    wait_s: float = Field(10, ge=0, description="how long a query waits for one to end before it is sent away")
    deadline_s: float = Field(30, gt=0, le=86_400, description="from the start of a query to its last row; then it is killed")
    query_bytes_max: int = Field(64 << 10, ge=1024, le=MIB, description="text of a query and its parameters")
    rows_max: int = Field(1_000_000, ge=1, description="rows of an answer; it ends there and says so")
    answer_bytes_max: int = Field(256 * MIB, ge=MIB, description="bytes of an answer; it ends there and says so")
    row_bytes_max: int = Field(16 * MIB, ge=64 << 10, le=512 * MIB, description="bytes of one row of an answer")
    columns_max: int = Field(1000, ge=1, le=100_000, description="columns of an answer")
    memory_bytes_max: int = Field(512 * MIB, ge=64 * MIB, description="memory of one query; its process may not take more")
    spill_bytes_max: int = Field(GIB, ge=0, description="disk of one query for what does not fit in memory; 0 is none")
    threads: int = Field(2, ge=1, le=64, description="of one query, at low priority")
    copied_bytes_max: int = Field(GIB, ge=0, description="archived events that one query may have copied from S3; 0 is none")


class WorkerSettings(_Section):
    """How often the worker looks."""

    settle_every_s: float = Field(1, gt=0)
    merge_every_s: float = Field(10, gt=0)
    purge_every_s: float = Field(60, gt=0)
    checkpoint_every_s: float = Field(3600, gt=0)
    verify_every_s: float = Field(3600, gt=0)
    archive_every_s: float = Field(3600, gt=0, description="how often it looks for days to archive")
    mirror_every_s: float = Field(10, gt=0, description="how often it looks for what is to be copied to warm.mirror")
    scrub_every_s: float = Field(3600, gt=0, description="how often a share of everything stored is read again")
    scrub_days: float = Field(7, gt=0, le=3650, description="in which everything is read about once")
    scrub_bytes_max: int = Field(GIB, ge=MIB, description="read by one pass at most, but for a single larger file")
    stop_within_s: float = Field(5, gt=0, description="SIGTERM finishes the step in hand within this")
    failures_red: int = Field(3, ge=1, description="failures in a row of one job that turn health red")


class Settings(BaseModel):
    """Everything that can be set. `load` is the way to make one."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    data_dir: Path = Field(Path("thermocline-data"), description="everything local: ledger, segments, the embedded Redis")
    namespace: str = Field("default", pattern=r"^[a-z0-9_-]{1,64}$")
    redis_url: str | None = Field(None, description="redis://, rediss:// or unix://; none means embedded")
    ledger_url: str | None = Field(None, description="SQLAlchemy URL; none means SQLite in the data directory")
    cold_url: str | None = Field(None, description="file:// or s3:// folder; none means cold/ in the data directory")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="of worker and server, on stderr")
    hot: HotSettings = HotSettings()  # type: ignore[call-arg]
    ingest: IngestSettings = IngestSettings()  # type: ignore[call-arg]
    warm: WarmSettings = WarmSettings()  # type: ignore[call-arg]
    cold: ColdSettings = ColdSettings()  # type: ignore[call-arg]
    query: QuerySettings = QuerySettings()  # type: ignore[call-arg]
    sandbox: SandboxSettings = SandboxSettings()  # type: ignore[call-arg]
    worker: WorkerSettings = WorkerSettings()  # type: ignore[call-arg]
    sampling: SamplingSettings = SamplingSettings()  # type: ignore[call-arg]
    serve: ServeSettings = ServeSettings()  # type: ignore[call-arg]
    rollups: dict[RollupName, RollupSettings] = Field({}, max_length=ROLLUPS_MAX, description="statistics of one's own")

    @property
    def namespace_dir(self) -> Path:
        return self.data_dir / self.namespace

    @property
    def policy(self) -> Policy:
        """What the archive keeps of old events."""
        return Policy(self.sampling.rules, self.warm.window_days)

    @model_validator(mode="after")
    def _relations(self) -> Settings:
        problems = []
        if self.hot.unsettled_bytes_max > self.hot.log_bytes_max:
            problems.append("hot.unsettled_bytes_max must not exceed hot.log_bytes_max: what is unsettled is in the logs")
        if self.hot.unsettled_bytes_max < 2 * self.ingest.block_bytes_max:
            problems.append("hot.unsettled_bytes_max must hold at least two blocks (ingest.block_bytes_max)")
        if self.warm.settle_bytes > self.hot.unsettled_bytes_max:
            problems.append(
                "warm.settle_bytes must not exceed hot.unsettled_bytes_max, or settle is never due before append sheds"
            )
        if self.warm.settle_after_s > self.warm.settle_latest_s:
            problems.append("warm.settle_after_s must not exceed warm.settle_latest_s")
        if self.warm.memory_bytes_max < SETTLE_BATCHES * self.warm.settle_batch_bytes:
            problems.append(
                "warm.memory_bytes_max must be at least six times warm.settle_batch_bytes, or a full batch may not fit in memory"
            )
        if self.hot.connect_timeout_s > self.ingest.deadline_s:
            problems.append("hot.connect_timeout_s must not exceed ingest.deadline_s, or one try outlives the append")
        if self.cold_url is not None and not self.cold_url.startswith(("file://", "s3://")):
            problems.append("cold_url must start with file:// or s3://")
        if self.warm.mirror is not None and not self.warm.mirror.startswith(("file://", "s3://", "/")):
            problems.append("warm.mirror must start with file:// or s3://, or be an absolute path")
        if self.cold.timeout_s > self.cold.deadline_s:
            problems.append("cold.timeout_s must not exceed cold.deadline_s, or one request outlives its operation")
        if self.redis_url is not None and not self.redis_url.startswith(("redis://", "rediss://", "unix://")):
            problems.append("redis_url must start with redis://, rediss:// or unix://")
        elif self.redis_url is not None and not _readable(self.redis_url):
            problems.append(
                "redis_url cannot be read: in user and password write / ? # [ ] @ : % as %2F %3F %23 %5B %5D %40 %3A %25"
            )
        problems += [f"rollups.{name}: this name is taken" for name in self.rollups if name in TAKEN_ROLLUPS]
        if self.namespace == EMBEDDED_FOLDER:
            problems.append(f"namespace must not be {EMBEDDED_FOLDER!r}: the embedded Redis has that folder")
        if not _is_path(self.data_dir):
            problems.append("data_dir must be a path in UTF-8 without a NUL")
        if problems:
            raise ConfigError(problems)
        return self


def load(
    overrides: Mapping[str, Any] | None = None,
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Settings from file, environment and `overrides`, later ones winning. ConfigError lists every problem at once.

    file     default: $THERMOCLINE_CONFIG, else ./thermocline.toml if it is there
    environ  default: os.environ
    """
    return load_with_sources(overrides, file=file, environ=environ)[0]


def load_with_sources(
    overrides: Mapping[str, Any] | None = None,
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> tuple[Settings, dict[str, str]]:
    """`load`, and for every key that is not a default (`hot.shards`) where its value came from."""
    variables = os.environ if environ is None else environ
    layers: list[tuple[str, dict[str, Any]]] = []
    path = file or (Path(variables[CONFIG_FILE_VARIABLE]) if variables.get(CONFIG_FILE_VARIABLE) else None)
    if path is not None or Path(FILE_NAME).is_file():
        layers.append((str(path or FILE_NAME), _read_file(path or Path(FILE_NAME))))
    layers.append(("environment", _from_environ(variables)))
    layers.append(("argument", {key: value for key, value in dict(overrides or {}).items() if value is not None}))
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, layer in layers:
        for key, value in _leaves(layer):
            _put(merged, key, value)
            sources[key] = name
    try:
        return Settings(**merged), sources
    except ValidationError as exc:
        raise ConfigError([_problem(error, sources) for error in exc.errors()]) from exc


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read ({exc.strerror}); unset {CONFIG_FILE_VARIABLE} or fix the path") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: not valid TOML: {exc}") from exc


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in environ.items():
        if name.startswith(ENV_PREFIX) and name != CONFIG_FILE_VARIABLE and value != "":
            _put(found, name[len(ENV_PREFIX) :].lower().replace("__", "."), value)
    return found


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{key}: {parent} is a value, not a section")
    tree[leaf] = value


def _problem(error: Any, sources: Mapping[str, str]) -> str:
    if isinstance(error.get("ctx", {}).get("error"), ConfigError):
        return "; ".join(error["ctx"]["error"].problems)
    key = ".".join(str(part) for part in error["loc"])
    origin = f" (from {sources[key]})" if key in sources else ""
    if error["type"] == "extra_forbidden":
        return f"{key}{origin}: no such setting; `thermocline config show` lists them all"
    shown = "" if key.endswith("_url") or not key else f", not {error['input']!r}"
    return f"{key}{origin}: {error['msg'][0].lower()}{error['msg'][1:]}{shown}"


def _readable(url: str) -> bool:
    """Whether the URL means what it looks like: a `/`, `?` or `#` in a password ends the host, and the rest is no port."""
    try:
        parts = urlsplit(url)
        return parts.port is None or "@" not in parts.path + parts.fragment
    except ValueError:
        return False


def _is_path(path: Path) -> bool:
    try:
        return "\0" not in str(path) and bool(str(path).encode())
    except UnicodeEncodeError:
        return False


def mask_url(url: str) -> str:
    """The URL with its password and query secrets replaced by ***. By its text: what cannot be read as a URL has secrets too."""
    scheme, _, rest = url.partition("://")
    login, at, place = rest.rpartition("@")
    place, question, query = place.partition("?")
    if "pass" in query.lower():
        query = "***"
    name, colon, _ = login.partition(":")
    return f"{scheme}://{f'{name}:***' if colon else '***' if at else ''}{at}{place}{question}{query}"
