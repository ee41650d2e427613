"""Canceling a job, for whoever asks: a client, or a workflow's run that is to stop."""

from uuid import UUID

from vyvo_dagster.protocol.job import CancelOrder, OrderKind
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import Job
from vyvo_dagster.streams import keys

__all__ = ["cancel_locked"]


async def cancel_locked(store: Store, job_id: UUID) -> Job | None:
    """Cancel a job whose row the caller has locked: at once where it waits, else by its node.

    Returns:
        The job as it is now, canceled or with the cancel noted; None when it had ended before.
    """
    canceled = await store.jobs.cancel_queued(job_id)
    if canceled is not None:
        return canceled
    asked = await store.jobs.request_cancel(job_id)
    if asked is not None:
        assert asked.node_id is not None
        order = CancelOrder(job_id=asked.id, attempt=asked.attempt)
        await store.outbox.add(
            keys.node(asked.node_id),
            {"kind": OrderKind.CANCEL.value, "body": order.model_dump_json()},
        )
    return asked
