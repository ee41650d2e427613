"""Under which key an output is stored.

The same file in the platform (`vyvo_dagster/objects/`) and in the package `vyvo_runner`; a test
holds them equal.
"""

import hashlib
import hmac
import re
from datetime import datetime
from typing import Optional

__all__ = ["object_key"]

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def object_key(
    secret: str,
    moment: datetime,
    owner: str,
    sha256: str,
    extension: str,
    name: Optional[str] = None,
) -> str:
    """`YYYY/MM/DD/<owner>/<token>[-<name>]`, derived, so that a retry overwrites its earlier self.

    The token is an HMAC over owner and content: neither a job's id nor the content itself, which a
    short text gives away, leads to the key without the secret.

    Args:
        secret: the S3 secret key, which whoever stores has.
        moment: today, UTC.
        owner: the prediction, `<job id>.<attempt>`; empty where there is none.
        sha256: of the content, in hex.
        extension: with its dot; taken where the name has none.
        name: ends the key; only its last part, of ASCII letters, digits, `.`, `_` and `-`.
    """
    token = hmac.new(secret.encode(), f"{owner}\n{sha256}".encode(), hashlib.sha256).hexdigest()[
        :32
    ]
    last = token
    if name is not None:
        # Only the last part of a path, so that no name climbs out of its folder.
        wanted = _UNSAFE.sub("-", name.replace("\\", "/").rpartition("/")[2]).strip(".-")[-100:]
        last = f"{token}-{wanted}" if wanted else token
    if "." not in last[1:]:
        last += extension
    folder = _UNSAFE.sub("-", owner).strip(".-")[:128]
    return "/".join(part for part in (moment.strftime("%Y/%m/%d"), folder, last) if part)
