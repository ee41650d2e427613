"""`Idempotency-Key`: a write that is sent twice is done once and answered alike."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Final, TypeVar

from fastapi import Depends, Header, Request
from pydantic import BaseModel

from vyvo_dagster.store.database import Store

__all__ = ["KEY_CHARS", "KEY_PATTERN", "Once", "OnceDep", "fingerprint", "once"]

M = TypeVar("M", bound=BaseModel)

KEY_CHARS: Final = 255
KEY_PATTERN: Final = r"^[\x21-\x7e]+$"


@dataclass(frozen=True, slots=True)
class Once:
    """The key of one request; None where the caller sent none."""

    key: str | None
    route: str
    fingerprint: bytes
    """SHA-256 of method, path and body."""


async def _once(
    request: Request,
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key", min_length=1, max_length=KEY_CHARS, pattern=KEY_PATTERN,
            description="Any unique string; kept for 24 hours. A repeat gets the first answer.",
        ),
    ] = None,
) -> Once:  # fmt: skip
    route = f"{request.method} {request.url.path}"
    if key is None:
        return Once(None, route, b"")
    return Once(key, route, fingerprint(route, await request.body()))


def fingerprint(route: str, body: bytes) -> bytes:
    """What tells a repeat from another request of the same key."""
    return hashlib.sha256(route.encode() + b"\0" + body).digest()


OnceDep = Annotated[Once, Depends(_once)]


async def once(
    store: Store, tenant: str, request: Once, answer: type[M], work: Callable[[], Awaitable[M]]
) -> tuple[M, bool]:
    """Do `work` in the store's transaction unless an earlier request of the same key did.

    The key is claimed before the work, so that a concurrent repeat waits for this transaction;
    if the work fails, the key goes with its transaction.

    Returns:
        The answer, and whether the work was done now.

    Raises:
        Conflict: the key was used for another request.
    """
    if request.key is None:
        return await work(), True
    kept = await store.idempotency.claim(
        tenant, request.key, request.route, request.fingerprint, {}
    )
    if kept is not None:
        return answer.model_validate(kept), False
    made = await work()
    await store.idempotency.settle(tenant, request.key, made.model_dump(mode="json"))
    return made, True
