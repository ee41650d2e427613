"""Sessions of a browser: a cookie that an API key was exchanged for, good for some hours.

The cookie is `vys_<prefix>_<end>_<mac>`: the key's prefix, the end in seconds since the epoch, and
an HMAC over both. The HMAC's key is made of the servers' session secret and of the hash in the key's
row, so that it ends with the key, whoever revoked it, and neither a reader of the database nor a
holder of the session secret can make one. It holds no key, and is of use for /dagster only.
"""

import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vyvo_dagster.security.keys import digest_of
from vyvo_dagster.settings import Settings

__all__ = ["COOKIE", "Session", "Sessions"]

COOKIE: Final = "vyvo_session"
_FORM: Final = re.compile(r"vys_([0-9a-f]{8})_([0-9]{10,11})_([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Session:
    """A cookie as it came; nothing of it is proven yet."""

    prefix: str
    ends_at: int
    mac: str
    text: str


class Sessions:
    """Makes and reads cookies.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self.seconds = settings.session_seconds
        self._secret, self._clock = _secret(settings), clock

    def make(self, prefix: str, secret_sha256: bytes, ends_at: float | None = None) -> str:
        """A cookie for the holder of a key; it ends with the key where that is sooner."""
        end = int(self._clock()) + self.seconds
        end = end if ends_at is None else min(end, int(ends_at))
        return f"vys_{prefix}_{end}_{self._mac(prefix, end, secret_sha256)}"

    def read(self, text: str | None) -> Session | None:
        """A cookie that has the form of one and has not ended."""
        found = None if text is None or len(text) > 200 else _FORM.fullmatch(text)
        if found is None or int(found[2]) <= self._clock():
            return None
        return Session(found[1], int(found[2]), found[3], found[0])

    def proves(self, session: Session, secret_sha256: bytes) -> bool:
        """Whether a cookie was made for the key with this hash."""
        expected = self._mac(session.prefix, session.ends_at, secret_sha256)
        return hmac.compare_digest(session.mac, expected)

    def _mac(self, prefix: str, end: int, secret_sha256: bytes) -> str:
        key = hmac.digest(self._secret, secret_sha256, "sha256")
        return hmac.digest(key, f"dagster:{prefix}:{end}".encode(), "sha256").hex()


def _secret(settings: Settings) -> bytes:
    """The session secret; unset, one made of the admin key, so that all api processes have the same."""
    given = settings.session_secret or settings.admin_key
    return secrets.token_bytes(32) if given is None else digest_of(given.get_secret_value())
