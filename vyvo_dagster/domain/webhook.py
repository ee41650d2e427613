"""Webhooks: where one may go, when it is tried again, how it is signed.

Signatures follow standard-webhooks (https://www.standardwebhooks.com): HMAC-SHA256 over
`<id>.<timestamp>.<body>`, base64, prefixed `v1,`.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

from vyvo_dagster.domain.address import may_be_public
from vyvo_dagster.domain.job import JOB
from vyvo_dagster.domain.state import StateMachine
from vyvo_dagster.errors import InvalidWebhook

__all__ = [
    "DELIVERY",
    "EVENTS",
    "TRIES",
    "DeliveryState",
    "check_url",
    "is_loopback",
    "new_secret",
    "pause_after",
    "secret_bytes",
    "sign",
]

TRIES: Final = 5
_PAUSES: Final = (5.0, 30.0, 120.0, 600.0)
EVENTS: Final = tuple(sorted(JOB.terminal))
"""The ends of a job that a webhook may ask for."""
_PREFIX: Final = "whsec_"


class DeliveryState(StrEnum):
    """States of a delivery."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


DELIVERY: Final[StateMachine[DeliveryState]] = StateMachine(
    "delivery",
    {
        DeliveryState.PENDING: frozenset({DeliveryState.DELIVERED, DeliveryState.FAILED}),
        DeliveryState.DELIVERED: frozenset(),
        DeliveryState.FAILED: frozenset(),
    },
    # Somebody asks for it once more.
    reopened={
        DeliveryState.DELIVERED: frozenset({DeliveryState.PENDING}),
        DeliveryState.FAILED: frozenset({DeliveryState.PENDING}),
    },
)


def pause_after(tries: int) -> float | None:
    """Seconds until the next try after `tries` have failed; None when that was the last."""
    return None if tries >= TRIES else _PAUSES[tries - 1]


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself, by its literal or as localhost."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_url(url: str, *, allow_loopback: bool) -> None:
    """Raise InvalidWebhook unless deliveries may go to `url`.

    https to a host name or a public address; with `allow_loopback` also http and https to this
    machine. Names are resolved, and their addresses judged, at each delivery.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise InvalidWebhook(f"webhook.url is no URL: {error}") from error
    if not (url.isascii() and url.isprintable()) or " " in url or "\\" in url:
        raise InvalidWebhook("webhook.url holds characters that no URL has")
    if parts.username is not None or parts.password is not None or parts.fragment or port == 0:
        raise InvalidWebhook("webhook.url must hold no user, password, fragment or port 0")
    if allow_loopback and is_loopback(host) and parts.scheme in {"http", "https"}:
        return
    if parts.scheme != "https":
        raise InvalidWebhook("webhook.url must be https")
    if not may_be_public(host):
        raise InvalidWebhook(f"webhook.url: {host[:64]!r} is local, private or malformed")


def new_secret() -> str:
    """A signing secret as standard-webhooks writes them."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def secret_bytes(secret: str) -> bytes:
    """The key in a secret. Raises InvalidWebhook unless it is `whsec_` and 24 to 64 bytes, base64."""
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidWebhook("a secret is whsec_ and base64") from error
    if not secret.startswith(_PREFIX) or not 24 <= len(key) <= 64:
        raise InvalidWebhook("a secret is whsec_ and 24 to 64 bytes in base64")
    return key


def sign(secrets_: Iterable[str], id: str, timestamp: int, body: bytes) -> str:
    """The `webhook-signature` header: one signature for each secret."""
    signed = f"{id}.{timestamp}.".encode() + body
    made: Sequence[str] = [
        "v1," + base64.b64encode(hmac.digest(secret_bytes(s), signed, hashlib.sha256)).decode()
        for s in secrets_
    ]
    return " ".join(made)
