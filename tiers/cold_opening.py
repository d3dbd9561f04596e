"""The object store of one namespace, told by cold_url or warm.mirror. No connection is made before it is used."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from thermocline.config import Settings
from thermocline.errors import ConfigError

from .cold import Cold
from .cold_folder import FolderCold

FILE_SCHEME = "file://"
S3_SCHEME = "s3://"


def open_cold(settings: Settings) -> Cold:
    """cold/ in the namespace's folder when cold_url is not set, else the namespace's own folder below it.

    ConfigError when the URL cannot be used.
    """
    if settings.cold_url is None:
        return FolderCold(settings.namespace_dir / "cold", setting="data_dir")
    return open_store(settings.cold_url, settings, setting="cold_url")


def open_store(url: str, settings: Settings, *, setting: str) -> Cold:
    """The namespace's own folder below a URL, or below an absolute path. ConfigError, in the name of `setting`, when it cannot
    be used."""
    if url.startswith(FILE_SCHEME):
        host, slash, path = url.removeprefix(FILE_SCHEME).partition("/")
        if host not in ("", "localhost") or not slash:
            raise ConfigError(f"{setting}: a folder is given as file:///absolute/path, with three slashes")
        return FolderCold(Path("/", unquote(path), settings.namespace), setting=setting)
    if url.startswith("/"):
        return FolderCold(Path(url, settings.namespace), setting=setting)
    if not url.startswith(S3_SCHEME):
        raise ConfigError(f"{setting}: give it as s3://bucket/folder, file:///absolute/path or /absolute/path")
    bucket, _, prefix = url.removeprefix(S3_SCHEME).partition("/")
    if "@" in bucket or ":" in bucket or not bucket:
        raise ConfigError(
            f"{setting}: write s3://bucket/folder; keys belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "the server into cold.endpoint_url"
        )
    from .cold_s3 import S3Cold  # with boto3, which nothing else needs

    return S3Cold(bucket, "/".join([*filter(None, prefix.split("/")), settings.namespace]), settings.cold)
