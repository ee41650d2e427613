"""Buckets: made once, each with its expiry."""

from typing import Final

from minio import Minio
from minio.commonconfig import ENABLED, Filter
from minio.error import S3Error
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule

__all__ = ["ensure_bucket", "expire_after"]

_OWNED: Final = frozenset({"BucketAlreadyOwnedByYou", "BucketAlreadyExists"})
_DAY: Final = 86400


def ensure_bucket(client: Minio, bucket: str, region: str) -> None:
    """Create a bucket unless it is there."""
    if client.bucket_exists(bucket_name=bucket):
        return
    try:
        client.make_bucket(bucket_name=bucket, location=region)
    except S3Error as error:
        # Two processes start at once: whoever comes second finds it made.
        if error.code not in _OWNED:
            raise


def expire_after(client: Minio, bucket: str, seconds: int) -> bool:
    """Let the store delete a bucket's objects at an age of `seconds`, in whole days, at least one.

    Returns:
        Whether the store has lifecycle rules and took this one.
    """
    rule = Rule(
        status=ENABLED,
        rule_filter=Filter(prefix=""),
        rule_id="vyvo-expiry",
        expiration=Expiration(days=max(1, -(-seconds // _DAY))),
    )
    try:
        client.set_bucket_lifecycle(bucket_name=bucket, config=LifecycleConfig([rule]))
    except S3Error:
        return False
    return True
