"""Keys and URLs of cold objects. Pure.

URLs are taken and given literally, without percent-encoding: that is how Iceberg's readers understand them.
"""

from __future__ import annotations

from thermocline.errors import ConfigError, TierCorrupt

from .whole_file import UNFINISHED

KEY_BYTES_MAX = 800
"""S3 allows 1024, of which the bucket's prefix takes some."""
PART_BYTES_MAX = 255
"""What file systems allow between two slashes."""


def checked_key(key: str) -> str:
    """The key, when every store can hold it and it stays inside its folder. TierCorrupt otherwise: we give out no such keys."""
    parts = key.split("/")
    try:
        sizes = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        sizes = [0]
    if not all(0 < size <= PART_BYTES_MAX for size in sizes) or sum(sizes) + len(parts) - 1 > KEY_BYTES_MAX:
        problem = f"its parts must have 1 to {PART_BYTES_MAX} bytes of UTF-8 each, {KEY_BYTES_MAX} in all"
    elif "." in parts or ".." in parts or not key.isprintable():
        problem = "it leads elsewhere or cannot be printed"
    elif key.endswith(UNFINISHED):
        problem = f"names that end in {UNFINISHED} are those of unfinished files"
    else:
        return key
    raise TierCorrupt(f"{key[:200]!r} is no key of a cold object ({problem}): whatever names it was not written by Thermocline")


def key_below(base: str, url: str) -> str:
    """The key of a URL below `base`. TierCorrupt when it lies elsewhere."""
    if not url.startswith(base + "/"):
        raise TierCorrupt(f"{url} does not lie in {base}: was cold_url or data_dir changed after it was written?")
    return checked_key(url.removeprefix(base + "/"))


def checked_base(url: str) -> str:
    """The URL of a folder of ours, without a slash at its end. ConfigError when URLs below it could be misunderstood."""
    if "?" in url or "#" in url or not url.isprintable():
        raise ConfigError(
            f"cold_url: {url.partition('?')[0]!r} must not hold ?, # or what cannot be printed: choose another folder"
        )
    return url.rstrip("/")
