"""The minio client, and the one place where its errors become ours."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.error import MinioException, S3Error

from vyvo_dagster.errors import InvalidInput, NotFound, Unavailable, VyvoError
from vyvo_dagster.settings import S3Settings

__all__ = ["MISSING", "connect", "connection_pool", "mapped"]

MISSING: Final = frozenset({"NoSuchKey", "NoSuchBucket", "NoSuchObject", "NotFound"})
"""Codes of S3 for what is not there."""


def connection_pool(connect_timeout: float, read_timeout: float) -> urllib3.PoolManager:
    """Connections to one endpoint; a request that a server could not take is tried three times."""
    return urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=connect_timeout, read=read_timeout),
        retries=urllib3.Retry(total=3, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
        maxsize=10,
    )


def connect(endpoint: str, settings: S3Settings, pool: urllib3.PoolManager) -> Minio:
    """A client of `endpoint`; nothing is sent yet.

    Raises:
        InvalidInput: the endpoint is not `http://host:port` or `https://host[:port]`.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.netloc or parts.path not in {"", "/"}:
        raise InvalidInput(f"an S3 endpoint looks like http://host:port; got {endpoint!r}")
    return Minio(
        parts.netloc,
        access_key=settings.access_key,
        secret_key=settings.secret_key.get_secret_value(),
        secure=parts.scheme == "https",
        # Known beforehand, so that signing a URL asks no server for it.
        region=settings.region,
        http_client=pool,
    )


@contextmanager
def mapped(endpoint: str, what: str) -> Generator[None]:
    """Turn errors of the SDK into those of our tree; `what` is the location at hand.

    Errors of the local disk (no space left, not permitted) pass as they are.
    """
    try:
        yield
    except VyvoError:
        raise
    except S3Error as error:
        if error.code in MISSING:
            raise NotFound(f"{what} does not exist in the object store") from error
        raise Unavailable(
            f"the object store refused {what}: {error.code} {error.message}"
        ) from error
    except (MinioException, urllib3.exceptions.HTTPError) as error:
        raise Unavailable(
            f"the object store at {endpoint} does not answer ({type(error).__name__}); "
            "check VYVO_S3_ENDPOINT and that it runs"
        ) from error
    except ValueError as error:
        raise InvalidInput(f"the object store cannot take {what}: {error}") from error
