"""Buckets: made once, each with its lifecycle rules."""

from typing import Final

from minio import Minio
from minio.commonconfig import ENABLED, Filter
from minio.error import S3Error
from minio.lifecycleconfig import (
    AbortIncompleteMultipartUpload,
    Expiration,
    LifecycleConfig,
    Rule,
)

__all__ = ["ensure_bucket", "set_lifecycle"]

_OWNED: Final = frozenset({"BucketAlreadyOwnedByYou", "BucketAlreadyExists"})
_DAY: Final = 86400
_UNFINISHED_DAYS: Final = 2


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


def set_lifecycle(client: Minio, bucket: str, expire_seconds: int | None) -> bool:
    """Let the store itself delete what a bucket should not keep.

    Args:
        client: of the store.
        bucket: its rules are replaced.
        expire_seconds: age at which objects are due, in whole days, at least one; the store takes them
            a day later, so that the expiry pass, which tells of it, comes first. None keeps them.

    Parts of uploads that nobody completed within two days go in any case.

    Returns:
        Whether the store has lifecycle rules and took these.
    """
    rules = [
        Rule(
            status=ENABLED,
            rule_filter=Filter(prefix=""),
            rule_id="vyvo-unfinished",
            abort_incomplete_multipart_upload=AbortIncompleteMultipartUpload(
                days_after_initiation=_UNFINISHED_DAYS
            ),
        )
    ]
    if expire_seconds is not None:
        rules.insert(0, Rule(
            status=ENABLED,
            rule_filter=Filter(prefix=""),
            rule_id="vyvo-expiry",
            expiration=Expiration(days=-(-expire_seconds // _DAY) + 1),
        ))  # fmt: skip
    # A store may know expiry and not the other kind of rule.
    return any(_took(client, bucket, rules[:count]) for count in range(len(rules), 0, -1))


def _took(client: Minio, bucket: str, rules: list[Rule]) -> bool:
    try:
        client.set_bucket_lifecycle(bucket_name=bucket, config=LifecycleConfig(rules))
    except S3Error:
        return False
    return True
