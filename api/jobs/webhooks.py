"""Webhooks of jobs: what is taken with a submission, the signing secret, deliveries."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, Field

from api.audit.record import audit
from api.auth import JobsRead, JobsWrite, Principal
from api.context import Context, Ctx
from api.fields import Body, Text
from api.jobs import service
from api.jobs.schemas import Webhook, WebhookView
from vyvo_dagster.domain.webhook import EVENTS, DeliveryState, check_url, new_secret, secret_bytes
from vyvo_dagster.errors import Conflict, IllegalTransition, NotFound
from vyvo_dagster.store.records import WebhookDelivery

__all__ = ["check", "check_signable", "router", "stored"]

router = APIRouter(prefix="/api", tags=["jobs"])


class SecretChange(Body):
    """A signing secret; unset makes one."""

    secret: Text | None = Field(
        None, max_length=200, description="`whsec_` and 24 to 64 bytes in base64."
    )


class SecretShown(BaseModel):
    """The tenant's signing secret. It is shown in this answer only."""

    secret: str


def check(context: Context, webhook: Webhook | None) -> None:
    """Raise InvalidWebhook unless it may be called."""
    if webhook is not None:
        check_url(webhook.url, allow_loopback=context.settings.webhook_allow_loopback)


async def check_signable(
    context: Context, principal: Principal, given: Sequence[Webhook | None]
) -> None:
    """Raise Conflict where one of the webhooks `given` could not be signed."""
    if all(webhook is None for webhook in given):
        return
    async with context.database.transaction() as store:
        if not await store.webhooks.has_secret(principal.tenant):
            raise Conflict(
                "this tenant has no secret to sign webhooks with; make one: POST /api/webhook-secret"
            )


def stored(webhook: Webhook | None) -> dict[str, Any] | None:
    """A webhook as the job's row holds it."""
    if webhook is None:
        return None
    return {"url": webhook.url, "events": sorted(set(webhook.events or EVENTS))}


@router.post("/webhook-secret", summary="Set the secret that signs webhooks")
async def set_secret(
    principal: JobsWrite, context: Ctx, body: SecretChange | None = None
) -> SecretShown:
    """Of the key's tenant; shown once. One that it replaces signs beside it for 24 hours."""
    secret = new_secret() if body is None or body.secret is None else body.secret
    secret_bytes(secret)
    async with context.database.transaction() as store:
        await store.webhooks.set_secret(principal.tenant, secret)
        await audit(store, principal, "webhook_secret_set", principal.tenant)
    return SecretShown(secret=secret)


@router.get("/jobs/{job_id}/webhooks", summary="List a job's webhook deliveries")
async def deliveries(job_id: UUID, principal: JobsRead, context: Ctx) -> list[WebhookView]:
    """Oldest first; one for each end of the job that its webhook asked for."""
    async with context.database.transaction() as store:
        await service.find(store, principal, job_id)
        return [_view(each) for each in await store.webhooks.of_job(job_id)]


@router.post(
    "/jobs/{job_id}/webhooks/{delivery_id}/redeliver", status_code=202,
    summary="Deliver a webhook again",
)  # fmt: skip
async def redeliver(
    job_id: UUID, delivery_id: UUID, principal: JobsWrite, context: Ctx
) -> WebhookView:
    """With the same `webhook-id` and body, and five tries. 409 while it is under way."""
    async with context.database.transaction() as store:
        await service.find(store, principal, job_id)
        again = await store.webhooks.redeliver(job_id, delivery_id)
        if again is None:
            if delivery_id not in [each.id for each in await store.webhooks.of_job(job_id)]:
                raise NotFound("no such delivery")
            raise IllegalTransition("the delivery is under way; its tries are not over")
    return _view(again)


def _view(delivery: WebhookDelivery) -> WebhookView:
    pending = delivery.state is DeliveryState.PENDING
    return WebhookView(
        id=delivery.id, event=delivery.event, url=delivery.url, state=delivery.state,
        tries=delivery.tries, next_try_at=delivery.next_try_at if pending else None,
        last_status=delivery.last_status, last_error=delivery.last_error,
        created_at=delivery.created_at, delivered_at=delivery.delivered_at,
    )  # fmt: skip
