"""The settings of a runner, from the environment that the node agent gives it."""

from __future__ import annotations

import os
import re
import urllib.parse
from dataclasses import dataclass, field
from typing import Mapping, Optional

from .errors import SettingsError

__all__ = ["StorageSettings"]

WEEK_SECONDS = 7 * 86400
# The longest prefix still leaves room for a modality's name within S3's 63 characters.
_BUCKET_PREFIX = re.compile(r"[a-z0-9][a-z0-9.-]{0,49}")


@dataclass(frozen=True)
class StorageSettings:
    """Where outputs go."""

    endpoint: str
    """`VYVO_S3_ENDPOINT`: host and port, without the scheme."""
    secure: bool
    """Whether that endpoint's URL was https."""
    access_key: str
    """`VYVO_S3_ACCESS_KEY`."""
    secret_key: str = field(repr=False)
    """`VYVO_S3_SECRET_KEY`."""
    region: str = "us-east-1"
    """`VYVO_S3_REGION`: used to sign requests."""
    bucket_prefix: str = "vyvo-"
    """`VYVO_S3_BUCKET_PREFIX`: put before a modality to name its bucket."""
    ttl_seconds: int = WEEK_SECONDS
    """`VYVO_ARTIFACT_TTL_SECONDS`: life of an output in its bucket."""

    @classmethod
    def from_env(cls, environ: Optional[Mapping[str, str]] = None) -> StorageSettings:
        """Read the settings.

        Raises:
            SettingsError: a variable is missing or malformed; the message names it.
        """
        environ = os.environ if environ is None else environ
        endpoint = urllib.parse.urlsplit(_required(environ, "VYVO_S3_ENDPOINT"))
        if (
            endpoint.scheme not in ("http", "https")
            or not endpoint.hostname
            or endpoint.path.strip("/")
        ):
            raise SettingsError("VYVO_S3_ENDPOINT must be a URL such as http://127.0.0.1:9000")
        prefix = environ.get("VYVO_S3_BUCKET_PREFIX", "vyvo-")
        if not _BUCKET_PREFIX.fullmatch(prefix):
            raise SettingsError(
                "VYVO_S3_BUCKET_PREFIX must be lower case letters, digits, '.' and '-'"
            )
        return cls(
            endpoint=endpoint.netloc.rpartition("@")[2],
            secure=endpoint.scheme == "https",
            access_key=_required(environ, "VYVO_S3_ACCESS_KEY"),
            secret_key=_required(environ, "VYVO_S3_SECRET_KEY"),
            region=environ.get("VYVO_S3_REGION") or "us-east-1",
            bucket_prefix=prefix,
            ttl_seconds=_seconds(environ),
        )


def _required(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name)
    if not value:
        raise SettingsError(f"{name} is not set; the node agent sets it, or set it to run by hand")
    return value


def _seconds(environ: Mapping[str, str]) -> int:
    text = environ.get("VYVO_ARTIFACT_TTL_SECONDS") or str(WEEK_SECONDS)
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 10**10:
        raise SettingsError(
            f"VYVO_ARTIFACT_TTL_SECONDS must be a whole number of seconds, not {text[:40]!r}"
        )
    return int(text)
