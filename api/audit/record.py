"""Writing to the audit log, in the transaction of what it tells of."""

from collections.abc import Mapping
from typing import Any

from uuid_utils.compat import uuid7

from api.auth import Principal
from vyvo_dagster.store.database import Store

__all__ = ["audit"]


async def audit(
    store: Store, principal: Principal, action: str, subject: str,
    detail: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Record what a principal did. `detail` goes into the log as it is: no secret may be in it."""
    await store.keys.audit(
        id=uuid7(), tenant=principal.tenant, key_prefix=principal.prefix, action=action,
        subject=subject, detail=detail,
    )  # fmt: skip
