"""API keys and node credentials: how they are made, read and compared. No I/O.

A token is `vyk_<prefix>_<secret>` (a key) or `vyn_<prefix>_<secret>` (a node's credential): 8 hex
digits that find the row, and 43 URL-safe characters (256 bits) that prove it. The row holds the
SHA-256 of the whole token. A fast hash is right here: the secret is random, so nothing can be
guessed from its hash, and it is compared on every request.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

__all__ = ["Token", "TokenKind", "digest_of", "matches", "mint", "parse_token", "same_secret"]

_SECRET_BYTES: Final = 32
_TOKEN = re.compile(r"(vyk|vyn)_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")


class TokenKind(StrEnum):
    """What a token begins with."""

    KEY = "vyk"
    NODE = "vyn"


@dataclass(frozen=True, slots=True)
class Token:
    """A credential in the clear; shown once, never stored or logged."""

    kind: TokenKind
    prefix: str
    text: str

    def __repr__(self) -> str:
        return f"Token({self.kind}_{self.prefix}_***)"

    @property
    def digest(self) -> bytes:
        """The SHA-256 that the row holds, 32 bytes."""
        return digest_of(self.text)


def mint(kind: TokenKind) -> Token:
    """A new random token."""
    prefix = secrets.token_hex(4)
    return Token(kind, prefix, f"{kind}_{prefix}_{secrets.token_urlsafe(_SECRET_BYTES)}")


def parse_token(text: str) -> Token | None:
    """The token that `text` is; None when it is none."""
    # Bounded before the pattern sees it: a header may be long.
    found = _TOKEN.fullmatch(text) if len(text) < 100 else None
    return None if found is None else Token(TokenKind(found[1]), found[2], text)


def digest_of(text: str) -> bytes:
    """SHA-256 of a token's text."""
    return hashlib.sha256(text.encode()).digest()


def matches(token: Token, digest: bytes) -> bool:
    """Whether `token` is the one that `digest` was made of, in constant time."""
    return hmac.compare_digest(token.digest, digest)


def same_secret(given: str, expected: str) -> bool:
    """Whether two secrets are equal, in time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode(errors="surrogatepass"), expected.encode())
