"""S3-compatible object storage: buckets per modality, upload, verified download, presigned URLs."""

from vyvo_dagster.objects.store import ListedObject, ObjectStat, ObjectStore
from vyvo_dagster.objects.uri import S3Uri, format_s3_uri, parse_s3_uri

__all__ = ["ListedObject", "ObjectStat", "ObjectStore", "S3Uri", "format_s3_uri", "parse_s3_uri"]
