"""The public keys of a token issuer (JWKS, RFC 7517): fetched, checked, and kept for a while."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from vyvo_dagster.errors import Unavailable

__all__ = ["ALGORITHMS", "KeySet", "PublicKey", "read_keys"]

_log = logging.getLogger(__name__)

ALGORITHMS: Final[Mapping[tuple[str, str | None], str]] = {
    ("RSA", None): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}
"""Kind and curve of a key → the one algorithm that it is used with."""

# What a key may call its algorithm (RFC 9864 has a name of its own for Ed25519).
_NAMES: Final[Mapping[str, frozenset[str]]] = {
    "RS256": frozenset({"RS256"}),
    "ES256": frozenset({"ES256"}),
    "EdDSA": frozenset({"EdDSA", "Ed25519"}),
}

_FRESH_SECONDS: Final = 300.0
# An issuer that is away does not lock everybody out at once; one that was taken over is not
# trusted for ever.
_STALE_SECONDS: Final = 3600.0
# Between two fetches, whatever key ids strangers make up.
_PAUSE_SECONDS: Final = 10.0
_FETCH_SECONDS: Final = 5.0
_MAX_BYTES: Final = 256 << 10
_RSA_BITS: Final = 2048


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key and the only algorithm that it verifies."""

    algorithm: str
    key: Any


def read_keys(document: Any) -> dict[str, PublicKey]:
    """The usable keys of a JWKS document, by their id; what is not usable is passed over.

    That is: secret and private keys, keys for encryption, other kinds or algorithms than
    `ALGORITHMS`, RSA below 2,048 bits, keys without an id.

    Raises:
        ValueError: it is no JWKS document.
    """
    found: dict[str, PublicKey] = {}
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("no list of keys")  # noqa: TRY004 - what was sent is wrong, no type of ours
    for entry in entries[:100]:
        kid = entry.get("kid") if isinstance(entry, dict) else None
        if not isinstance(kid, str):
            continue
        key = _read(entry)
        if key is not None:
            found[kid] = key
    return found


def _read(entry: Mapping[str, Any]) -> PublicKey | None:
    kty = entry.get("kty")
    algorithm = ALGORITHMS.get((str(kty), None if kty == "RSA" else entry.get("crv")))
    operations = entry.get("key_ops", ["verify"])
    if (
        algorithm is None
        or "d" in entry
        or entry.get("use", "sig") != "sig"
        or entry.get("alg", algorithm) not in _NAMES[algorithm]
        or not isinstance(operations, list)
        or "verify" not in operations
    ):
        return None
    try:
        key = jwt.PyJWK(dict(entry), algorithm=algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if isinstance(key, RSAPublicKey) and key.key_size < _RSA_BITS:
        return None
    return PublicKey(algorithm, key)


class KeySet:
    """The keys at one URL.

    Kept for five minutes, and up to an hour while the issuer does not answer. An unknown key id
    fetches them anew, every ten seconds at most, so that a new key works at once and made-up ids
    cost nothing.

    Args:
        clock: monotonic seconds.
    """

    def __init__(
        self, url: str, http: httpx.AsyncClient, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._url, self._http, self._clock = url, http, clock
        self._keys: dict[str, PublicKey] = {}
        self._read_at: float | None = None
        self._tried_at: float | None = None
        self._failed = False
        self._lock = asyncio.Lock()

    async def find(self, kid: str) -> PublicKey | None:
        """The key of an id; None where the issuer has none.

        Raises:
            Unavailable: the issuer does not answer, and what is known does not decide.
        """
        known = self._keys.get(kid)
        if known is not None and self._age() < _FRESH_SECONDS:
            return known
        await self._refresh()
        known = self._keys.get(kid)
        if known is not None and self._age() < _STALE_SECONDS:
            return known
        if self._failed or self._read_at is None:
            raise Unavailable("the token issuer's keys cannot be fetched; try again shortly")
        return None

    def _age(self) -> float:
        return float("inf") if self._read_at is None else self._clock() - self._read_at

    async def _refresh(self) -> None:
        """Fetch the keys, unless that was tried a moment ago; an error keeps those that are known."""
        async with self._lock:
            if self._tried_at is not None and self._clock() - self._tried_at < _PAUSE_SECONDS:
                return
            self._tried_at = self._clock()
            try:
                async with asyncio.timeout(_FETCH_SECONDS):
                    self._keys = read_keys(await self._fetch())
            except (httpx.HTTPError, TimeoutError, ValueError, RecursionError) as error:
                self._failed = True
                _log.warning(
                    "the keys at %s cannot be had: %s", self._url, error or type(error).__name__
                )
            else:
                self._failed = False
                self._read_at = self._clock()

    async def _fetch(self) -> Any:
        body = b""
        async with self._http.stream("GET", self._url, follow_redirects=False) as answer:
            if answer.status_code != 200:
                raise ValueError(f"answered {answer.status_code}")
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > _MAX_BYTES:
                    raise ValueError(f"more than {_MAX_BYTES} bytes")
        return json.loads(body)
