"""`s3://bucket/key`, read and written; no I/O."""

import re
from typing import NamedTuple

from vyvo_dagster.errors import InvalidInput

__all__ = ["S3Uri", "format_s3_uri", "parse_s3_uri"]

# Bucket names of S3 without the legacy forms; a key of at most 1,024 UTF-8 bytes.
_BUCKET = re.compile(r"[a-z0-9](?:[a-z0-9.-]{1,61})[a-z0-9]")
_KEY_BYTES = 1024


class S3Uri(NamedTuple):
    """Bucket and key of one object; the key has no leading slash."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


def parse_s3_uri(uri: str) -> S3Uri:
    """Bucket and key of `s3://bucket/key`.

    Raises:
        InvalidInput: another scheme, a bucket name S3 does not allow, an empty or too long key,
            a key with control characters or with `.`/`..` parts (clients and proxies resolve
            those, so that such a key names another object on the way).
    """
    shown = uri if len(uri) <= 80 else uri[:77] + "..."
    if not uri.startswith("s3://"):
        raise InvalidInput(f"an object's location must look like s3://bucket/key; got {shown!r}")
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise InvalidInput(f"not an S3 bucket name: {bucket[:64]!r}")
    if not key or len(key.encode(errors="surrogatepass")) > _KEY_BYTES or not key.isprintable():
        raise InvalidInput(f"an object key is 1 to 1024 printable bytes; got {shown!r}")
    if any(part in {"", ".", ".."} for part in key.split("/")):
        raise InvalidInput(f"an object key has no empty, . or .. part; got {shown!r}")
    return S3Uri(bucket, key)


def format_s3_uri(bucket: str, key: str) -> str:
    """`s3://bucket/key`, checked as parse_s3_uri does."""
    return str(parse_s3_uri(f"s3://{bucket}/{key}"))
