"""Make the bucket of THERMOCLINE_COLD_URL if it is not there. For object stores that begin empty; safe to repeat."""

from __future__ import annotations

import sys
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from thermocline.config import load

THERE = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")


def main() -> int:
    """The exit code: 0 when the bucket is there now."""
    settings = load()
    url = urlsplit(settings.cold_url or "")
    if url.scheme != "s3":
        return said("THERMOCLINE_COLD_URL is no s3:// URL: there is no bucket to make", 0)
    client = boto3.client(
        "s3",
        endpoint_url=settings.cold.endpoint_url,
        region_name=settings.cold.region or "us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 10, "mode": "standard"}),
    )
    try:
        client.create_bucket(Bucket=url.netloc)
    except ClientError as exc:
        if exc.response["Error"]["Code"] not in THERE:
            return said(f"bucket {url.netloc}: {exc}", 1)
    except BotoCoreError as exc:
        return said(f"bucket {url.netloc}: {exc}", 1)
    return said(f"bucket {url.netloc} is there", 0)


def said(text: str, code: int) -> int:
    sys.stderr.write(f"{text}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
